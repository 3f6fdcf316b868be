"""What training minimises: cross-entropy on response tokens, KL to the frozen start under its causal mask, or both.

Two ways to the same sums. `objective` takes logits. `from_hidden` takes the states before the output layer and never
holds more than a chunk of the logits: it computes each chunk's gradient as soon as its loss is known and keeps only those
of the states and of the weight (as Liger's fused linear cross-entropy does, arXiv 2410.10989). It uses only the weight of the
output layer, so it serves models whose logits are plainly that product (app/model/lm_head.py finds out which).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.estimate.memory import CHUNK


@dataclass(frozen=True)
class Loss:
    """Sums over response tokens, in nats. `total` carries the gradient; the parts are detached."""

    total: Tensor
    ce: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Teacher:
    """States of the frozen start before its output layer, (tokens, hidden), and that layer's weight."""

    hidden: Tensor
    weight: Tensor


def objective(logits: Tensor, targets: Tensor, teacher: Tensor | None, *, ce: float, kl: float,
              counted: Tensor | None = None) -> Loss:  # fmt: skip
    """ce * cross-entropy + kl * KL(teacher || student), summed over tokens.

    Args:
        logits: (tokens, vocabulary), at the states that predict response tokens, and at no others.
        targets: (tokens,) response ids.
        teacher: (tokens, vocabulary) logits of the frozen start on the same tokens, or None when kl is 0.
        counted: (tokens,) 1 for a token of the sum, 0 for padding; None: all of them are tokens.
    """
    logits = logits.float()
    if counted is None:
        nll = F.cross_entropy(logits, targets, reduction="sum")
    else:
        nll = (F.cross_entropy(logits, targets, reduction="none") * counted).sum()
    divergence = torch.zeros_like(nll)
    if teacher is not None:
        student, start = torch.log_softmax(logits, -1), torch.log_softmax(teacher.float(), -1)
        if counted is None:
            divergence = F.kl_div(student, start, reduction="sum", log_target=True)
        else:
            divergence = (F.kl_div(student, start, reduction="none", log_target=True).sum(-1) * counted).sum()
    total = ce * nll + kl * divergence if teacher is not None else ce * nll
    return Loss(total, nll.detach(), divergence.detach())


def from_hidden(hidden: Tensor, weight: Tensor, targets: Tensor, teacher: Teacher | None = None, *, ce: float,
                kl: float, chunk: int = CHUNK, counted: Tensor | None = None) -> Loss:  # fmt: skip
    """`objective` of the logits hidden @ weight.T, a chunk of tokens at a time.

    Args:
        weight: (vocabulary, hidden).
        hidden: (tokens, hidden), of the type that is multiplied in, which `weight` is rounded to.
        chunk: logits held at a time, at least one token's.
    """
    total, nll, divergence = _Chunked.apply(hidden, weight, targets, teacher, ce, kl, chunk, counted)
    return Loss(total, nll, divergence)


def _parts(logits: Tensor, targets: Tensor, teacher: Tensor | None, ce: float, kl: float,
           counted: Tensor | None) -> tuple[Tensor, ...]:  # fmt: skip
    """Cross-entropy and KL of a chunk, summed, and the gradient of ce * one + kl * the other by its logits."""
    logp = torch.log_softmax(logits.float(), -1)
    p = logp.exp()
    nll = -logp.gather(1, targets[:, None])
    wanted = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    gradient = ce * (p - wanted.float())
    if teacher is None:
        divergence = torch.zeros_like(nll)
    else:
        logq = torch.log_softmax(teacher.float(), -1)
        q = logq.exp()
        gradient = gradient + kl * (p - q)
        divergence = q * (logq - logp)
    if counted is not None:
        nll, divergence, gradient = (part * counted[:, None] for part in (nll, divergence, gradient))
    return nll.sum(), divergence.sum(), gradient.to(logits.dtype)


def _scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """In float32, a pass over the memory where multiplying and casting would be two: 1 ms for a matrix of 131,072 by 3,072."""
    return gradient.float() * scale


@cache
def _compiled() -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(_parts, dynamic=True)


@cache
def _compiled_scaled() -> Callable[..., Tensor]:
    return torch.compile(_scaled)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, teacher: Teacher | None, ce: float,
                kl: float, chunk: int, counted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        parts = _compiled() if hidden.is_cuda else _parts
        ctx.dtype, weight = weight.dtype, weight.to(hidden.dtype)
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight: Tensor | None = None
        nll = divergence = torch.zeros((), device=hidden.device)
        size = max(1, chunk // weight.shape[0])
        for start in range(0, len(hidden), size):
            some = hidden[start : start + size]
            # accelerate gives the outputs of a prepared model in float32, the states of a teacher among them.
            theirs = None if teacher is None else (
                F.linear(teacher.hidden[start : start + size].to(teacher.weight.dtype), teacher.weight))  # fmt: skip
            real = None if counted is None else counted[start : start + size]
            one, other, gradient = parts(F.linear(some, weight), targets[start : start + size], theirs, ce, kl, real)
            nll, divergence = nll + one, divergence + other
            if by_hidden is not None:
                torch.mm(gradient, weight, out=by_hidden[start : start + size])
            if ctx.needs_input_grad[1]:
                product = gradient.T @ some
                if by_weight is None:
                    by_weight = product if size >= len(hidden) else product.float()
                else:
                    by_weight += product
        if by_weight is None and ctx.needs_input_grad[1]:  # no tokens; DDP waits for a gradient of every weight
            by_weight = torch.zeros_like(weight)
        ctx.save_for_backward(by_hidden, None if by_weight is None else by_weight.to(weight.dtype))
        total = ce * nll + kl * divergence if teacher is not None else ce * nll
        ctx.mark_non_differentiable(nll, divergence)
        return total, nll, divergence

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Any) -> tuple[Any, ...]:
        by_hidden, by_weight = ctx.saved_tensors
        if by_hidden is not None:
            by_hidden = by_hidden * scale.to(by_hidden.dtype)
        if by_weight is not None and by_weight.is_cuda and ctx.dtype == torch.float32:
            by_weight = _compiled_scaled()(by_weight, scale)
        elif by_weight is not None:
            by_weight = (by_weight * scale.to(by_weight.dtype)).to(ctx.dtype)
        return by_hidden, by_weight, None, None, None, None, None, None
