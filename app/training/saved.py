"""Saved = trained: stock transformers loads the written model again, and its logits and losses must be the trained one's.

A merge of an adapter, tied weights, a conversion to another dtype or a sharded save can each write another model than the
one whose losses were logged, without an error. Logits are compared under the causal mask, which stock transformers uses, and
the loss of the held-out examples under the training mask with the loss that training logged.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from app.attention.backends import NAMES, evaluating
from app.attention.layers import restrict
from app.attention.model_config import caps_scores, text_config
from app.model.load import auto_class
from app.training.forward import ResponseLoss
from jobs.config.schema import Objective
from jobs.errors import CheckpointError

log = logging.getLogger(__name__)
TOKENS = 32  # of the probe
# Root mean square of the difference, as a share of the spread of the logits. Rounding of float32 stays below 1e-4; that of
# bfloat16 weights reached 0.06 on SmolLM2-135M; between two masks, as between two models, it is 1 and more.
SHARE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}
# Difference of the losses, nats a token, for losses up to 1 and as a share of larger ones.
CLOSE, CLOSE_IN_HALF = 1e-3, 2e-2


@dataclass(frozen=True)
class Logged:
    """What training logged for the weights that are kept.

    loss: cross-entropy of the held-out examples, nats a response token. batches: their tensors, as app/training/batch.py makes
    them. attention: of app/attention/backends.py, that they can run under without compiled kernels. in_half: whether the loss was
    computed in bfloat16. merged: the weights were trained as an adapter beside frozen ones.
    """

    loss: float
    batches: Iterable[dict[str, Tensor]]
    attention: str
    in_half: bool
    layers: str = "all"  # those in which the training mask holds
    merged: bool = False


def probe_logits(model: Any) -> Tensor:
    """Logits of fixed random tokens under the causal mask, (TOKENS, vocabulary) float32 on the CPU, without compiled layers."""
    config = text_config(model)
    ids = torch.randint(0, config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    attention = config._attn_implementation
    if attention == NAMES["flex_attention"]:  # its compiled kernels want whole tiles
        config._attn_implementation = NAMES["sdpa"]
    try:
        with evaluating(model), torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits[0]
        return logits.float().cpu()
    finally:
        config._attn_implementation = attention


def require_same(directory: Path, trained: Tensor, dtype: torch.dtype, device: torch.device,
                 logged: Logged | None = None) -> dict[str, float]:  # fmt: skip
    """Load `directory` as stock transformers does and compare with `trained`, what probe_logits gave before the save.

    Returns the root mean square difference as a share of the logits' spread, and the share allowed; with `logged` also the
    loss of the held-out examples, unless the device has no memory left for them. A model that does not fit on the device beside
    what is there stays on the CPU.

    Raises:
        CheckpointError: a difference is beyond rounding, or not finite.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    options = {"attn_implementation": "eager"} if caps_scores(config) else {}  # transformers 5.17 would drop the caps
    model = auto_class(config, str(directory)).from_pretrained(directory, dtype=dtype, **options)
    try:
        model.to(device)
    except torch.OutOfMemoryError:
        log.warning(f"{directory}: no memory on {device} for the model that was read back; it is compared on the CPU")
        model.to("cpu")
    allowed = SHARE[dtype]
    same = {"difference": _require_close(directory, probe_logits(model), trained, allowed), "allowed": allowed}
    if logged is None:
        return same
    model.set_attn_implementation(logged.attention)  # which takes the training mask
    restrict(model, logged.layers)
    # Autocast rounded these weights to bfloat16 for the loss, but frozen ones without their adapter. After a few small steps
    # the rounded weights are three times as far from the start as the float32 ones (docs/log.md).
    rounded = logged.in_half and not logged.merged
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=rounded):
            loss = held_out_loss(model, logged.batches)
    except torch.OutOfMemoryError:
        fact = "no memory for the losses of the model that was read back"
        log.warning(f"{directory}: {fact}; only its logits were compared")
        return same
    close = CLOSE_IN_HALF if logged.in_half or dtype != torch.float32 else CLOSE
    if not abs(loss - logged.loss) <= close * max(1.0, logged.loss):
        fact = f"its loss of the held-out examples is {loss:.5f}, and training logged {logged.loss:.5f}"
        raise _other_model(directory, fact)
    return {**same, "loss": loss}


def require_same_adapter(model: Any, directory: Path, trained: Tensor) -> None:
    """Load the adapter in `directory` as stock peft does, beside the one of `model`, and compare as `require_same` does."""
    model.load_adapter(str(directory), adapter_name="written", torch_device=str(model.device))
    model.set_adapter("written")
    found = probe_logits(model)
    model.set_adapter("default")
    model.delete_adapter("written")
    _require_close(directory, found, trained, SHARE[torch.float32])


def _require_close(directory: Path, found: Tensor, trained: Tensor, allowed: float) -> float:
    """The difference of two models' logits as a share of their spread. Raises CheckpointError."""
    share = float((found - trained).square().mean().sqrt()) / max(float(trained.std()), 1e-6)
    if not share <= allowed:
        raise _other_model(directory, f"its logits differ from the trained model's by {share:.3g} of their spread")
    return share


def held_out_loss(model: Any, batches: Iterable[dict[str, Tensor]]) -> float:
    """Cross-entropy per response token (nats) under the masks of the batches, without compiled layers."""
    loss_of = ResponseLoss(model.eval(), Objective())
    losses: list[tuple[float, int]] = []
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for batch in batches:
            losses.append((float(loss_of(model, send_to_device(batch, model.device)).ce), len(batch["at"])))
    return sum(loss for loss, _ in losses) / sum(count for _, count in losses)


def _other_model(directory: Path, fact: str) -> CheckpointError:
    return CheckpointError(str(directory), f"read back, {fact}, more than rounding",
                           "the run's checkpoints are kept; report this with its stage.yaml")  # fmt: skip
