"""What training minimises: cross-entropy on response tokens, KL to the frozen start under its causal mask, or both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """Sums over response tokens, in nats. `total` carries the gradient; the parts are detached."""

    total: Tensor
    ce: Tensor
    kl: Tensor


def objective(logits: Tensor, targets: Tensor, teacher: Tensor | None, *, ce: float, kl: float) -> Loss:
    """ce * cross-entropy + kl * KL(teacher || student), summed over tokens.

    Args:
        logits: (tokens, vocabulary), at the states that predict response tokens, and at no others.
        targets: (tokens,) response ids.
        teacher: (tokens, vocabulary) logits of the frozen start on the same tokens, or None when kl is 0.
    """
    logits = logits.float()
    nll = F.cross_entropy(logits, targets, reduction="sum")
    divergence = torch.zeros_like(nll)
    if teacher is not None:
        divergence = F.kl_div(
            torch.log_softmax(logits, -1), torch.log_softmax(teacher.float(), -1), reduction="sum", log_target=True
        )
    total = ce * nll + kl * divergence if teacher is not None else ce * nll
    return Loss(total, nll.detach(), divergence.detach())
