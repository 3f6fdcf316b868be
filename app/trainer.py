"""transformers' Trainer under a pattern: which tokens see which, which carry a loss, and what ends a run early."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainingArguments

from app.attention import attend
from app.batch import IGNORE, Collator, layout_of
from app.checkpoint import mark_complete, newest, prune, step_of
from app.data import TokenExample
from app.mask import Layout
from app.objective import Loss, objective
from app.score import only_at
from app.stopping import not_finite
from jobs.schema import Objective


class PrefillTrainer(Trainer):
    """Loss on response tokens only, under the layout that each batch carries.

    Differs from Trainer in: the loss (app/objective.py, normalised by the response tokens of the whole optimiser step),
    the order of examples (the dataset's own), evaluation (exact token mean), checkpoints (marked complete, then
    pruned), and an end at the first loss or gradient that is not finite.
    """

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, *, collator: Collator, goal: Objective,
                 eval_batches: Sequence[Sequence[TokenExample]], keep_checkpoints: int,
                 on_evaluation: Callable[[int, float], None],
                 on_phase: Callable[[str], None] = lambda name: None, **kwargs: Any) -> None:  # fmt: skip
        super().__init__(model=model, args=args, data_collator=collator, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that Trainer counts response tokens and leaves scaling to us
        self.directory = Path(str(args.output_dir))
        self.goal = goal
        self.eval_batches = eval_batches
        self.eval_collator = replace(collator, causal_fraction=0.0)
        self.keep_checkpoints = keep_checkpoints
        self.on_evaluation = on_evaluation
        self.on_phase = on_phase  # called where something begins that Trainer has no callback for
        self.tokens_seen = 0
        self.response_tokens_seen = 0
        self.teacher: PreTrainedModel | None = None
        if goal.kl > 0 and not hasattr(model, "disable_adapter"):  # with LoRA the start is the model, adapter off
            self.teacher = copy.deepcopy(model).eval().requires_grad_(False)

    # ---- the loss

    def _logits(self, model: Any, batch: dict[str, Tensor], where: Layout, flat: Tensor) -> Tensor:
        """(tokens, vocabulary) at the flat indices, under `where`."""
        inner = self.accelerator.unwrap_model(model)
        with attend(where), only_at(inner, flat):
            out = model(input_ids=batch["input_ids"], position_ids=where.pos.long(), use_cache=False)
        logits: Tensor = out.logits[0]
        return logits

    def _teacher_logits(self, model: Any, batch: dict[str, Tensor], where: Layout, flat: Tensor) -> Tensor | None:
        if self.goal.kl <= 0:
            return None
        causal = replace(where, block=torch.zeros_like(where.block))
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(self.accelerator.autocast())
            if self.teacher is not None:
                return self._logits(self.teacher, batch, causal, flat)
            inner = self.accelerator.unwrap_model(model)
            stack.enter_context(inner.disable_adapter())
            stack.callback(inner.train, inner.training)
            inner.eval()  # the frozen start knows no dropout
            return self._logits(inner, batch, causal, flat)

    def batch_loss(self, model: Any, batch: dict[str, Tensor]) -> tuple[Loss, int]:
        """Sums over the batch's response tokens, and how many there are."""
        where = layout_of(batch)
        labels = batch["labels"].flatten()
        flat = (labels != IGNORE).nonzero()[:, 0]
        teacher = self._teacher_logits(model, batch, where, flat)
        logits = self._logits(model, batch, where, flat)
        return objective(logits, labels[flat], teacher, ce=self.goal.ce, kl=self.goal.kl), len(flat)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Tensor | int | None = None) -> Any:  # fmt: skip
        loss, n = self.batch_loss(model, inputs)
        share = loss.total / (n if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(share.detach()):
            raise not_finite("the loss", self.state.global_step + 1, self._last_good())
        self.tokens_seen += int((inputs["doc"] >= 0).sum())
        self.response_tokens_seen += n
        # Gradients are averaged over processes; the token count above is already that of all of them.
        return share * self.accelerator.num_processes if num_items_in_batch is not None else share

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int,
                          device: torch.device) -> tuple[list[Any], Any]:  # fmt: skip
        """The micro-batches of one optimiser step and their response tokens, over all processes (labels are shifted)."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if not samples:
            return samples, None
        count = torch.stack([batch["labels"].ne(IGNORE).sum() for batch in samples]).sum().to(device)
        return samples, self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if not torch.isfinite(torch.as_tensor(norm)).all():
            raise not_finite("the gradient", self.state.global_step + 1, self._last_good())
        return norm

    def _last_good(self) -> str:
        path = newest(self.directory)
        return str(path) if path else "none yet: training starts from its beginning"

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)  # type: ignore[arg-type]

    # ---- evaluation

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None,
                 metric_key_prefix: str = "eval") -> dict[str, float]:  # fmt: skip
        """Cross-entropy per response token (nats) of the held-out examples, under the training mask."""
        self.on_phase("evaluate")
        model: Any = self.model
        training = model.training
        model.eval()
        total, tokens = 0.0, 0
        started = time.monotonic()
        with torch.no_grad(), self.accelerator.autocast():
            for examples in tqdm(self.eval_batches, desc="evaluate", unit="batch", delay=2, leave=False):
                batch = self._prepare_inputs(self.eval_collator(examples))
                labels = batch["labels"].flatten()
                flat = (labels != IGNORE).nonzero()[:, 0]
                logits = self._logits(model, batch, layout_of(batch), flat)
                total += float(objective(logits, labels[flat], None, ce=1.0, kl=0.0).ce)
                tokens += len(flat)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        model.train(training)
        loss = total / tokens
        if not math.isfinite(loss):
            raise not_finite("the evaluation loss", self.state.global_step, self._last_good())
        metrics = {"eval_loss": loss, "eval_runtime": time.monotonic() - started}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.on_evaluation(self.state.global_step, loss)
        return metrics

    # ---- checkpoints

    def restore(self, checkpoint: Path) -> None:
        """The weights and the step of `checkpoint`, where there is nothing left to train."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = step_of(checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.on_phase("save")
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            mark_complete(self.directory / f"checkpoint-{self.state.global_step}")
            prune(self.directory, self.keep_checkpoints)
