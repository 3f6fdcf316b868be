"""The fast path of training on a GPU: FlexAttention over packed rows, and compiled decoder layers.

One layer is compiled, once, and serves all layers of its kind, with the row's length left open: 16 to 22 s on an H200,
where the whole 135M model was not done after 100 s. Rows differ in length, and none of them is compiled anew.
"""

from __future__ import annotations

from typing import Any

import torch

from app.attention import NAMES, text_config
from app.blocks import TILE
from app.compiled import decoder_layers
from app.model import Loaded, row_multiple
from jobs.memory import DENSE, LEAST_HEAD, PACKED

# Tokens of a row on a CPU, unless the stage says: see train.pack_tokens in jobs/reference.yaml. A row under a dense mask costs
# its length squared, and a CPU feels that first: 1.15 times as many tokens a second as with 1024 (docs/log.md).
DENSE_CPU = 512


def suits(loaded: Loaded) -> bool:
    """Whether to train with FlexAttention and compiled layers: on a GPU, asked for or left to us."""
    wanted = loaded.attention == NAMES["flex_attention"]
    if loaded.device.type != "cuda" or not (wanted or loaded.any_attention):
        return False
    config = text_config(loaded.model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    drops = getattr(config, "attention_dropout", 0.0) or 0.0
    # Its kernels know no dropout.
    return wanted or (head_dim >= LEAST_HEAD and drops == 0.0 and bool(decoder_layers(loaded.model)))


def row_tokens(wanted: int | None, fast: bool, device: torch.device) -> int:
    """Most tokens of a packed row."""
    return wanted or (PACKED if fast else DENSE_CPU if device.type == "cpu" else DENSE)


def tokens_multiple(fast: bool, device: torch.device) -> int:
    """Rows are padded to a multiple of this many tokens: whole tiles of FlexAttention's."""
    return TILE if fast else row_multiple(device)


def speed_up(model: Any, backend: str = "inductor") -> None:
    """Have the model use FlexAttention and compiled layers from now on. Its parameters and their names stay.

    A deep copy of the model made afterwards would run this one's layers: copy before.
    """
    text_config(model)._attn_implementation = NAMES["flex_attention"]
    # Two lengths that happen to be equal in the first row (its tiles, a head) are not taken for one: every row that
    # broke such an equality would be compiled anew.
    torch.fx.experimental._config.use_duck_shape = False
    # Under DDP the compiler would cut each layer into one graph a matrix, for an overlap that layer by layer is there anyway.
    torch._dynamo.config.optimize_ddp = False
    for layer in decoder_layers(model):
        # Its forward pass, not the call around it: hooks there (FSDP's gather and free weights) are not the compiler's.
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)
