"""The forward pass of training: from a packed row to the loss of its response tokens, and the frozen start beside it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from app.attention.backends import attend, evaluating
from app.attention.mask import Layout
from app.model import onednn as products
from app.model.lm_head import instead_of_logits, only_at, plain_lm_head
from app.training.batch import layout_of
from app.training.objective import Loss, Teacher, from_hidden, objective
from jobs.config.schema import Objective


class ResponseLoss:
    """The objective of a model's response tokens, under the layout that each batch carries.

    model: without wrappers of DDP or accelerate. head: its output layer, if the loss can be computed from the states before
    it (app/model/lm_head.py); None where it needs whole logits. teacher: a frozen copy of the start; None where there is none, or
    the start is the model with its adapter off. To be made before the model's layers are compiled.
    """

    def __init__(self, model: Any, goal: Objective) -> None:
        self.model, self.goal = model, goal
        self.head: nn.Linear | None = plain_lm_head(model)
        self.teacher: Any = None
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext  # accelerate's, once it has the model
        if goal.kl > 0 and not hasattr(model, "disable_adapter"):  # with LoRA the start is the model, adapter off
            assert not any("forward" in vars(one) for one in model.modules()), (
                "copied after app.model.compiled.speed_up"
            )
            self.teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def __call__(self, model: Any, batch: dict[str, Tensor], ce: float | None = None, kl: float | None = None) -> Loss:
        """Sums over the response tokens of one forward pass.

        Args:
            model: this object's model, or a wrapper around it.
            ce, kl: weights, in place of the goal's.
        """
        ce, kl = self.goal.ce if ce is None else ce, self.goal.kl if kl is None else kl
        where, targets, counted = layout_of(batch), batch["targets"], batch.get("counted")
        if self.head is None:
            theirs = self.teacher_logits(batch, where) if kl > 0 else None
            return objective(self._logits(model, batch, where), targets, theirs, ce=ce, kl=kl, counted=counted)
        teacher = self.teacher_states(batch, where) if kl > 0 else None
        found: list[Loss] = []

        def compute(hidden: Tensor, weight: Tensor) -> Tensor:
            found.append(from_hidden(hidden, weight, targets, teacher, ce=ce, kl=kl, counted=counted))
            return found[0].total[None]

        self._states(model, batch, where, compute)
        return found[0]

    # ---- the frozen start

    def teacher_logits(self, batch: dict[str, Tensor], where: Layout) -> Tensor:
        with self._frozen() as start:
            return self._logits(start, batch, where.causal())

    def teacher_states(self, batch: dict[str, Tensor], where: Layout) -> Teacher:
        weights: list[Tensor] = []

        def keep(hidden: Tensor, weight: Tensor) -> Tensor:
            weights.append(weight.to(hidden.dtype))
            return hidden

        with self._frozen() as start:
            return Teacher(self._states(start, batch, where.causal(), keep), weights[0])

    @contextmanager
    def _frozen(self) -> Iterator[Any]:
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(self.autocast())
            if self.teacher is None:
                stack.enter_context(self.model.disable_adapter())
                stack.enter_context(evaluating(self.model))  # the frozen start knows no dropout
            yield self.model if self.teacher is None else self.teacher

    # ---- the model

    def _run(self, model: Any, batch: dict[str, Tensor], where: Layout) -> Tensor:
        # The mask comes out of the layout. Without any attention mask transformers would look for packed documents in the
        # positions, and the host would wait for the GPU to see whether there are some.
        every = torch.ones_like(batch["input_ids"], dtype=torch.bool)
        with attend(where), self._products(model, every.device):
            out = model(
                input_ids=batch["input_ids"], attention_mask=every, position_ids=where.pos.long(), use_cache=False
            )
        return out.logits[0]

    def _logits(self, model: Any, batch: dict[str, Tensor], where: Layout) -> Tensor:
        """(tokens, vocabulary) at the states that predict response tokens, under `where`."""
        inner = self.teacher if model is self.teacher else self.model
        with only_at(inner, batch["at"]):
            return self._run(model, batch, where)

    def _states(self, model: Any, batch: dict[str, Tensor], where: Layout,
                compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:  # fmt: skip
        """What `compute` makes of the states that predict response tokens, (tokens, hidden), in the type to multiply in, and of
        the head's weight."""
        head = (self.teacher if model is self.teacher else self.model).get_output_embeddings()

        def at_response(hidden: Tensor) -> Tensor:
            rows, weight = hidden.flatten(0, 1).index_select(0, batch["at"]), head.weight
            if torch.is_autocast_enabled(rows.device.type):  # as it would be for the layer itself
                dtype = torch.get_autocast_dtype(rows.device.type)
                rows = rows.to(dtype)
            with torch.autocast(rows.device.type, enabled=False):
                return compute(rows, weight)[None]

        with instead_of_logits(head, at_response):
            return self._run(model, batch, where)

    def _products(self, model: Any, device: torch.device) -> AbstractContextManager[Any]:
        """oneDNN on a CPU, except with gradient checkpointing: the backward pass would recompute activations by MKL."""
        if device.type != "cpu":  # before the walk below, in which a GPU would wait
            return nullcontext()
        again = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        return nullcontext() if again and torch.is_grad_enabled() else products.on_cpu(device)
