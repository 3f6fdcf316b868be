"""transformers' Trainer under a mask: which tokens see which, which carry a loss, and what ends a run early."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainingArguments

from app.data.examples import TokenExample
from app.model.lm_head import plain_lm_head
from app.runtime.ending import not_finite
from app.runtime.ranks import ALONE, Ranks
from app.training.batch import IGNORE, Schedule, Steps
from app.training.checkpoint import clear, mark_complete, newest, prune, step_of
from app.training.forward import ResponseLoss
from app.training.fsdp import reduce_in_float32, seen_as_plain
from jobs.config.schema import Objective


class PrefillTrainer(ResponseLoss, Trainer):
    """Loss on response tokens only, under the layout that each batch carries.

    One batch of Trainer's is one optimiser step: a list of forward passes (app/training/batch.py), of which this process has its
    share. Differs from Trainer further in: the loss (app/training/objective.py, normalised by the response tokens of the whole
    step), the order of examples (the schedule's own), evaluation (exact token mean), checkpoints (marked complete, then
    pruned), and an end at the first loss or gradient that is not finite. The GPU is waited for once a step, when that
    is looked at, and once more for the log.
    """

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, *, steps: Steps, goal: Objective,
                 eval_batches: Sequence[Sequence[TokenExample]], keep_checkpoints: int,
                 on_evaluation: Callable[[int, float], bool],
                 on_phase: Callable[[str], None] = lambda name: None, ranks: Ranks = ALONE,
                 at_first: Callable[[], AbstractContextManager[Any]] = nullcontext, **kwargs: Any) -> None:  # fmt: skip
        super().__init__(model=model, args=args, data_collator=steps, **kwargs)  # type: ignore[arg-type]
        self.model_accepts_loss_kwargs = True  # so that Trainer leaves scaling to us
        if self.accelerator.ddp_handler is not None:  # gradients stay where they are added up, and are not copied back
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        if self.is_fsdp_enabled:
            reduce_in_float32(self.accelerator)
        self.directory = Path(str(args.output_dir))
        self.goal = goal
        self.eval_batches = eval_batches
        self.eval_collator = replace(steps.collate, causal_fraction=0.0)
        self.keep_checkpoints = keep_checkpoints
        self.on_evaluation = on_evaluation  # (step, loss) -> whether training is to stop
        self.on_phase = on_phase  # called where something begins that Trainer has no callback for
        self.at_first = at_first  # entered for the first evaluation and the first step: they may compile
        self.ranks = ranks
        self._started_at = 0  # the step that `train` goes on from
        self._source: Iterator[Any] = iter(())  # of steps, and the one that is ready ahead of time
        self._ahead: Any = None
        self.lost: Any = False  # whether the loss of this step is not finite, as a tensor: the GPU is asked later
        self.tokens_seen = 0  # by this rank; Recorder adds up all of them
        self.padded_tokens_seen = 0
        self.response_tokens_seen = 0
        self.params = sum(p.numel() for p in model.parameters())
        self.head = plain_lm_head(model)  # None: the loss needs whole logits
        self.teacher: PreTrainedModel | None = None
        if goal.kl > 0 and not hasattr(model, "disable_adapter"):  # with LoRA the start is the model, adapter off
            assert not any("forward" in vars(module) for module in model.modules()), (
                "copied after app.model.compiled.speed_up"
            )
            self.teacher = copy.deepcopy(model).eval().requires_grad_(False)

    # ---- a step

    def prepared(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The collator's tensors on the device, with `at`, flat indices of states that predict, and their `targets`.

        What is to be known of them is asked here, on the CPU: the GPU need not be waited for.
        """
        labels = batch["labels"].flatten()
        at = (labels != IGNORE).nonzero()[:, 0]
        self.tokens_seen += int((batch["doc"] >= 0).sum()) if torch.is_grad_enabled() else 0
        wanted = {
            **{k: v for k, v in batch.items() if k not in ("labels", "step_tokens")},
            "at": at,
            "targets": labels[at],
        }
        return {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in wanted.items()}

    def training_step(self, model: Any, inputs: list[dict[str, Tensor]],  # type: ignore[override]
                      num_items_in_batch: Tensor | int | None = None) -> Tensor:  # fmt: skip
        """Forward and backward of one optimiser step; returns this process's share of its loss."""
        whole: Any = self.model  # a wrapper's own flag says nothing of it
        if not whole.training:
            model.train()  # a walk through all modules, in which a GPU would wait
        total = torch.zeros((), device=self.args.device)
        if self.is_fsdp_enabled and self.state.global_step == self._started_at:
            seen_as_plain(model)
        with self.at_first() if self.state.global_step == self._started_at else nullcontext():
            for i, batch in enumerate(inputs):
                last = i == len(inputs) - 1
                # Gradients that FSDP does not send off at once would be whole on every GPU: what it is there to avoid.
                at_once = last or self.is_fsdp_enabled
                with nullcontext() if at_once else self.accelerator.no_sync(model):
                    total += self._backward(model, batch)
                if not last:
                    self.control = self.callback_handler.on_substep_end(self.args, self.state, self.control)
        self.lost = ~torch.isfinite(total)
        self._ahead = next(self._source, None)  # the GPU is still busy with the backward pass
        return total

    def _backward(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        here = self.prepared(batch)
        with self.compute_loss_context_manager():
            loss = self.batch_loss(model, here).total / batch["step_tokens"].item()
        # Gradients are averaged over processes; step_tokens are those of all of them.
        loss = loss * self.accelerator.num_processes
        self.accelerator.backward(loss)
        self.response_tokens_seen += len(here["at"])
        self.padded_tokens_seen += batch["input_ids"].numel()
        return loss.detach()

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int,
                          device: torch.device) -> tuple[list[Any], Any]:  # fmt: skip
        """One step: a list of passes. Their response tokens stand in each."""
        self._source = epoch_iterator
        step, self._ahead = self._ahead or next(epoch_iterator, None), None
        return [] if step is None else [step], None

    def floating_point_ops(self, inputs: Any) -> int:
        """Trainer's running sum; six for each parameter and token."""
        return sum(6 * self.params * batch["input_ids"].numel() for batch in inputs)

    def store_flos(self) -> None:
        """Trainer asks all GPUs for theirs and waits, at every line of the log; they are as many to within the padding."""
        self.state.total_flos += self.current_flos * self.accelerator.num_processes
        self.current_flos = 0

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of weights that are spread over GPUs
        lost, broken = torch.stack([torch.as_tensor(t, device=self.args.device).any() for t in (
            self.lost, ~torch.isfinite(torch.as_tensor(norm)))]).tolist()  # fmt: skip
        if self.ranks.sum(lost or broken)[0]:  # a loss is each rank's own, the gradient's norm is known to all
            raise not_finite("the loss" if self.ranks.sum(lost)[0] else "the gradient", self.state.global_step + 1,
                             self._last_good())  # fmt: skip
        return norm

    def _last_good(self) -> str:
        path = newest(self.directory)
        return str(path) if path else "none yet: training starts from its beginning"

    def get_train_dataloader(self) -> DataLoader[TokenExample]:
        """Steps in the schedule's order. accelerate does not deal them out: each process takes its passes of each step."""
        data = self.train_dataset
        assert isinstance(data, Schedule)
        return DataLoader(data, batch_size=data.batch_size, collate_fn=self.data_collator,
                          pin_memory=self.args.device.type == "cuda")  # fmt: skip

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._started_at = step_of(Path(resume_from_checkpoint)) if resume_from_checkpoint else 0
        self._ahead = None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # ---- evaluation

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None,
                 metric_key_prefix: str = "eval") -> dict[str, float]:  # fmt: skip
        """Cross-entropy per response token (nats) of the held-out examples, under the training mask."""
        self.on_phase("evaluate")
        model: Any = self.model
        training = model.training
        model.eval()
        sums: list[tuple[float, int]] = []
        started = time.monotonic()
        rank, world = self.ranks.rank, self.ranks.world
        # As many for every rank, since shards of weights are gathered by all at once: the last ones may come twice.
        mine = [self.eval_batches[min(i + rank, len(self.eval_batches) - 1)]
                for i in range(0, len(self.eval_batches), world)]  # fmt: skip
        with torch.no_grad(), self.accelerator.autocast():
            for examples in tqdm(mine, desc="evaluate", unit="batch", delay=2, leave=False):
                batch = self.prepared(self.eval_collator(examples))
                with self.at_first() if not sums and self.state.global_step == 0 else nullcontext():
                    sums.append((float(self.batch_loss(model, batch, ce=1.0, kl=0.0).ce), len(batch["at"])))
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        model.train(training)
        # In the order of the batches, so that the sum is the same on any number of GPUs.
        all_sums = [pair for some in zip(*self.ranks.gather(sums), strict=True) for pair in some][
            : len(self.eval_batches)
        ]
        loss = sum(ce for ce, _ in all_sums) / sum(n for _, n in all_sums)
        if not math.isfinite(loss):
            raise not_finite("the evaluation loss", self.state.global_step, self._last_good())
        metrics = {"eval_loss": loss, "eval_runtime": time.monotonic() - started}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_training_stop |= self.on_evaluation(self.state.global_step, loss)
        return metrics

    # ---- checkpoints

    def restore(self, checkpoint: Path) -> None:
        """The weights and the step of `checkpoint`, where there is nothing left to train."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = step_of(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Not of an output layer that is the input embedding: it stands in the file once, and nothing is missing."""
        inner: Any = self.model
        shared = inner.get_input_embeddings().weight
        twice = {name for name, weight in inner.named_parameters(remove_duplicate=False) if weight is shared}
        missing = [name for name in load_result.missing_keys if name not in twice]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Under FSDP the weights are saved with the optimiser's state (pytorch_model_fsdp.bin): once is enough."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            Path(output_dir or str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.on_phase("save")
        here = self.directory / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            clear(here)  # a damaged one, or one of more ranks: nothing of it may pass for the new one's
        self.ranks.wait()  # the others write into it too
        super()._save_checkpoint(model, trial)
        self.ranks.wait()  # each rank writes the state of its random numbers
        if self.args.should_save:
            mark_complete(here)
            prune(self.directory, self.keep_checkpoints)
