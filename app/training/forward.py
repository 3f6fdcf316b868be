"""The forward pass of training: from a packed row to the loss of its response tokens, and what a frozen start says to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.attention.backends import attend
from app.attention.mask import Layout
from app.model import onednn
from app.model.lm_head import instead_of_logits, only_at
from app.training.batch import layout_of
from app.training.objective import Loss, Teacher, from_hidden, objective
from jobs.config.schema import Objective


class ResponseLoss:
    """Of PrefillTrainer, which sets the attributes.

    goal: weights of the loss. head: the output layer, if the loss can be computed from the states before it
    (app/model/lm_head.py); None where it needs whole logits. teacher: a frozen copy of the initial model; None where there
    is none, or where the initial model is this one with its adapter off.
    """

    accelerator: Any
    goal: Objective
    head: nn.Linear | None
    teacher: PreTrainedModel | None

    def _products(self, model: Any, device: torch.device) -> AbstractContextManager[Any]:
        """Not with gradient checkpointing: what is computed again in the backward pass would be computed otherwise."""
        if device.type != "cpu":  # before the walk below, in which a GPU would wait
            return nullcontext()
        again = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        return nullcontext() if again and torch.is_grad_enabled() else onednn.on_cpu(device)

    def _logits(self, model: Any, batch: dict[str, Tensor], where: Layout, flat: Tensor) -> Tensor:
        """(tokens, vocabulary) at the flat indices, under `where`."""
        inner = self.accelerator.unwrap_model(model)
        with attend(where), self._products(model, flat.device), only_at(inner, flat):
            out = model(input_ids=batch["input_ids"], position_ids=where.pos.long(), use_cache=False)
        logits: Tensor = out.logits[0]
        return logits

    def _states(self, model: Any, batch: dict[str, Tensor], where: Layout,
                compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:  # fmt: skip
        """What `compute` makes of the states that predict response tokens, (tokens, hidden), and of the head's weight."""
        head = self.accelerator.unwrap_model(model).get_output_embeddings()

        def at_response(hidden: Tensor) -> Tensor:
            rows, weight = hidden.flatten(0, 1).index_select(0, batch["at"]), head.weight
            if torch.is_autocast_enabled(rows.device.type):  # as it would be for the layer itself
                dtype = torch.get_autocast_dtype(rows.device.type)
                rows, weight = rows.to(dtype), weight.to(dtype)
            with torch.autocast(rows.device.type, enabled=False):
                return compute(rows, weight)[None]

        with attend(where), self._products(model, where.pos.device), instead_of_logits(head, at_response):
            out = model(input_ids=batch["input_ids"], position_ids=where.pos.long(), use_cache=False)
        found: Tensor = out.logits[0]
        return found

    def _of_teacher(self, model: Any, where: Layout, ask: Callable[[Any, Layout], Any]) -> Any:
        """What `ask` gets from the frozen start under its causal mask; None where nothing is learnt from it."""
        if self.goal.kl <= 0:
            return None
        causal = replace(where, block=torch.zeros_like(where.block))
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(self.accelerator.autocast())
            if self.teacher is not None:
                return ask(self.teacher, causal)
            inner = self.accelerator.unwrap_model(model)
            stack.enter_context(inner.disable_adapter())
            stack.callback(inner.train, inner.training)
            inner.eval()  # the frozen start knows no dropout
            return ask(inner, causal)

    def _teacher_logits(self, model: Any, batch: dict[str, Tensor], where: Layout, flat: Tensor) -> Tensor | None:
        logits: Tensor | None = self._of_teacher(model, where, lambda m, causal: self._logits(m, batch, causal, flat))
        return logits

    def _teacher_states(self, model: Any, batch: dict[str, Tensor], where: Layout) -> Teacher | None:
        weights: list[Tensor] = []

        def keep(hidden: Tensor, weight: Tensor) -> Tensor:
            weights.append(weight)
            return hidden

        hidden = self._of_teacher(model, where, lambda m, causal: self._states(m, batch, causal, keep))
        return None if hidden is None else Teacher(hidden, weights[0])

    def batch_loss(
        self, model: Any, batch: dict[str, Tensor], ce: float | None = None, kl: float | None = None
    ) -> Loss:
        """Sums over the response tokens of one forward pass. ce, kl: weights, in place of the goal's."""
        ce, kl = self.goal.ce if ce is None else ce, self.goal.kl if kl is None else kl
        where = layout_of(batch)
        if self.head is None:
            theirs = self._teacher_logits(model, batch, where, batch["at"]) if kl > 0 else None
            logits = self._logits(model, batch, where, batch["at"])
            return objective(logits, batch["targets"], theirs, ce=ce, kl=kl)
        teacher = self._teacher_states(model, batch, where) if kl > 0 else None
        found: list[Loss] = []

        def compute(hidden: Tensor, weight: Tensor) -> Tensor:
            found.append(from_hidden(hidden, weight, batch["targets"], teacher, ce=ce, kl=kl))
            return found[0].total[None]

        self._states(model, batch, where, compute)
        return found[0]
