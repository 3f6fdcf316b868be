"""Saved = trained: stock transformers loads the written model again, and it must give the logits of the trained one.

A merge of an adapter, tied weights, a conversion to another dtype or a sharded save can each write another model than the
one whose losses were logged, without an error. The comparison is under the causal mask, which stock transformers uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.attention.backends import NAMES
from app.attention.model_config import text_config
from app.model.load import auto_class
from jobs.errors import CheckpointError

TOKENS = 32  # of the probe
# Root mean square of the difference, as a share of the spread of the logits. Rounding of float32 stays below 1e-4; that of
# bfloat16 weights reached 0.06 on SmolLM2-135M; between two masks, as between two models, it is 1 and more.
SHARE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}


def probe_logits(model: Any) -> Tensor:
    """Logits of fixed random tokens under the causal mask, (TOKENS, vocabulary) float32 on the CPU, without compiled layers."""
    config = text_config(model)
    ids = torch.randint(0, config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    training, attention = model.training, config._attn_implementation
    if attention == NAMES["flex_attention"]:  # its compiled kernels want whole tiles
        config._attn_implementation = NAMES["sdpa"]
    model.eval()
    try:
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits[0]
        return logits.float().cpu()
    finally:
        config._attn_implementation = attention
        model.train(training)


def require_same(directory: Path, trained: Tensor, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Load `directory` as stock transformers does and compare with `trained`, what probe_logits gave before the save.

    Returns the root mean square difference as a share of the logits' spread, and the share allowed.

    Raises:
        CheckpointError: the difference is beyond rounding, or not finite.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    model = auto_class(config, str(directory)).from_pretrained(directory, dtype=dtype).to(device)
    found = probe_logits(model)
    spread = max(float(trained.std()), 1e-6)
    share = float((found - trained).square().mean().sqrt()) / spread
    if not share <= SHARE[dtype]:
        fact = (
            f"read back, its logits differ from the trained model's by {share:.3g} of their spread, more than rounding"
        )
        raise CheckpointError(str(directory), fact, "the run's checkpoints are kept; report this with its stage.yaml")
    return {"difference": share, "allowed": SHARE[dtype]}
