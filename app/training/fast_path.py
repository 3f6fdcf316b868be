"""The fast path of training on a GPU: FlexAttention over packed rows, and compiled decoder layers.

One layer is compiled, once, and serves all layers of its kind, with the row's length left open: 16 to 22 s on an H200,
where the whole 135M model was not done after 100 s. Rows differ in length, and none of them is compiled anew.
"""

from __future__ import annotations

import torch

from app.attention.block_mask import TILE
from jobs.estimate.memory import DENSE, PACKED, PACKED_SMALL, SMALL_MODEL

# A row under a dense mask costs its length squared, and a CPU feels that first: 1.15 times as many tokens a second as with
# DENSE (docs/log.md).
DENSE_CPU = 512


def row_tokens(wanted: int | None, fast: bool, device: torch.device, parameters: float) -> int:
    """Most tokens of a packed row; `parameters`: of the model."""
    if wanted is not None:
        return wanted
    if fast:
        return PACKED_SMALL if parameters < SMALL_MODEL else PACKED
    return DENSE_CPU if device.type == "cpu" else DENSE


def tokens_multiple(fast: bool, device: torch.device) -> int:
    """Rows are padded to a multiple of this many tokens: whole tiles of FlexAttention's, or what aligns the masks of a GPU."""
    return TILE if fast else 16 if device.type == "cuda" else 1
