"""The training loop: schedule, step, evaluation, checkpoint, log, from the first step to the last.

accelerate keeps the device, DDP and FSDP2, and mixed precision. An optimiser step (app/training/step.py) is a list of forward
passes (app/training/batch.py), of which each process has its share; its loss is normalised by the response tokens of the
whole step. Training ends at the first loss or gradient that is not finite, when an evaluation asks for it, on a signal to any
process, or after its last step.
"""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from app.attention.backends import evaluating
from app.data.examples import TokenExample
from app.runtime.ending import not_finite
from app.runtime.progress import Bar
from app.runtime.ranks import ALONE, Ranks
from app.training import checkpoint, fsdp, snapshot
from app.training.batch import Schedule, Steps, causal_left, prepared
from app.training.cuda_graph import Graphs, Inputs
from app.training.host_memory import Copying
from app.training.recorder import Recorder
from app.training.step import Launched, OptimizerStep
from jobs.config.schema import Train


@dataclass(frozen=True)
class Best:
    """The best evaluation after the start, and its weights, on the host; ranks other than 0 have none."""

    step: int
    loss: float
    weights: dict[str, Tensor]


class TrainingLoop:
    """One training of one model: `prepare`, then `restore` where it resumes from a checkpoint, then `run`, then `finish`.

    Args:
        model: float32 weights, on the device, its layers not yet compiled.
        directory: of the checkpoints.
        on_evaluation: called with (step, loss); whether training is to stop.
        on_checkpoint: called with a complete checkpoint, in the thread that wrote it; the ones that must stay.
        at_first: entered for the first evaluation and the first step, which may compile.
        graphs: launch steps as CUDA graphs; None: kernel by kernel.
    """

    def __init__(self, model: Any, train: Train, *, accelerator: Any, steps: Steps, schedule: Schedule,
                 eval_batches: Sequence[Sequence[TokenExample]], directory: Path, recorder: Recorder,
                 on_evaluation: Callable[[int, float], bool] = lambda step, loss: False, ranks: Ranks = ALONE, seed: int = 0,
                 at_first: Callable[[], AbstractContextManager[Any]] = nullcontext, graphs: Graphs | None = None,
                 on_checkpoint: Callable[[Path], Collection[Path]] = lambda here: ()) -> None:  # fmt: skip
        self.train, self.accelerator, self.steps, self.schedule = train, accelerator, steps, schedule
        self.eval_batches, self.eval_collator = eval_batches, replace(steps.collate, causal_fraction=0.0)
        self.directory, self.recorder, self.on_evaluation, self.ranks = directory, recorder, on_evaluation, ranks
        self.seed, self.at_first, self.graphs, self.on_checkpoint = seed, at_first, graphs, on_checkpoint
        self.work = OptimizerStep(model, train, accelerator, ranks, require_finite=self._require_finite, beat=self._beat,
                                  graphs=graphs)  # fmt: skip
        self.writer = snapshot.Writer()
        self.memory = self.writer.memory
        if graphs is not None:
            graphs.alone = self.memory.pinning
        self.step = 0
        self.stopped = False  # by a signal, on some rank
        self.ended = False  # by an evaluation
        self.best: Best | None = None
        self.tokens_seen = self.padded_tokens_seen = 0  # by this rank
        # Steps that are launched and not read.
        self.late = 1 if self.work.guarded and self.work.device.type == "cuda" else 0
        self._first = True
        self._evaluated: int | None = None
        self._unread: list[Launched] = []

    def prepare(self) -> None:
        """Hand the model to accelerate, once its layers are compiled."""
        self.work.prepare()
        torch.manual_seed(self.seed)

    # ---- from start to end

    def run(self) -> None:
        """Train from `step` on.

        Raises:
            RunEnded: a number is not finite, or an evaluation ends the run.
        """
        total = self.train.max_steps
        with ExitStack() as stack:
            stack.push(self._on_error)
            stack.callback(self.memory.stop)
            if self.graphs is not None:
                stack.enter_context(self.graphs.stream())
            if self.step == 0:
                self.evaluate()  # the loss that learning is measured from
            self.recorder.begin(self.step, total)
            stack.callback(self.recorder.close)
            passes = self._passes()
            while not (self._over or self.stopped):
                first = self._first
                with self.at_first() if first else nullcontext():
                    self._launch(passes)
                if first:  # compiling is over, which takes longer beside it (docs/log.md)
                    self._reserve()
                passes = self._passes()  # of the next step, while the device is busy with this one
                self._read(all_but=self.late)
                self._beat(self.step)
                evaluates = self.step % self.train.eval_every == 0
                saves = self.step % self.train.save_every == 0 or self.stopped
                if evaluates or saves:
                    self._read()
                    if evaluates:
                        self.evaluate()
                    if saves or self.stopped:
                        self._save()
                    self._beat(self.step)
            if self._unread:
                self._read()
                if self.stopped:
                    self._save()
            if not self.stopped and self._evaluated != self.step:
                self.evaluate()
            self.recorder.beat(self.step, total, force=True)

    def _reserve(self) -> None:
        """Memory for copies: of a checkpoint, of the best weights, of those that may be better while both are needed.

        A thread takes it beside the first steps.
        """
        if self.ranks.main and not self.work.fsdp:
            weights, every, total = self.work.weights(), self.train.save_every, self.train.max_steps
            # One step was launched. The checkpoint of the last one is weights alone.
            saves = (self.step - 1) // every < (total - 1) // every
            keeps = self.train.keep == "best"
            self.writer.reserve(*[(weights, self.work.optimizer.state_dict())] * saves, *[weights, weights] * keeps)

    @property
    def _over(self) -> bool:
        """Whether no step is to follow, now or after an interruption."""
        return self.step >= self.train.max_steps or self.ended

    def _on_error(self, kind: type[BaseException] | None, *_: Any) -> None:
        """An error ends training only after the checkpoint that is being written is complete."""
        if kind is not None:
            self.writer.wait()

    def _beat(self, step: int) -> None:
        self.recorder.beat(step, self.train.max_steps)

    # ---- a step

    def _passes(self) -> Inputs:
        """The forward passes of the next step, on the host."""
        if self.step >= self.train.max_steps:
            return []
        left = causal_left(self.train.objective, self.step, self.train.max_steps)
        return [prepared(batch, self.steps.shapes) for batch in self.steps(self.schedule.step(self.step), left)]

    def _launch(self, passes: Inputs) -> None:
        launched = self.work.launch(self.step + 1, passes)
        self._unread.append(launched)
        self.step, self._first = launched.step, False
        self.tokens_seen += launched.tokens
        self.padded_tokens_seen += launched.padded_tokens

    def _read(self, all_but: int = 0) -> None:
        """Log the steps that were launched, except for the last `all_but`; all ranks learn of a signal to one of them."""
        while len(self._unread) > all_but:
            one = self._unread.pop(0)
            loss, norm = one.numbers()
            if self.work.guarded:
                self._require_finite(one.step, loss, norm)
            tokens, responses, stops, whole = self.ranks.sum(
                one.tokens, one.response_tokens, bool(self.recorder.stop), loss / self.ranks.world
            )
            self.stopped = self.stopped or stops > 0
            self.recorder.log(one.step, loss=whole, learning_rate=one.rate, grad_norm=norm, tokens=int(tokens),
                              response_tokens=int(responses))  # fmt: skip

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        lost, broken = self.ranks.sum(not math.isfinite(loss), not math.isfinite(norm))
        if lost or broken:  # a loss is each rank's own, the gradient's norm is known to all
            raise not_finite("the loss" if lost else "the gradient", step, self._last_good())

    # ---- evaluation

    def evaluate(self) -> float:
        """Cross-entropy per response token (nats) of the held-out examples, under the training mask."""
        self.recorder.heartbeat.phase("evaluate")
        model, device = self.work.inner, self.work.device
        keeps = self.train.keep == "best" and self.step > 0
        # A copy in vain takes seconds on a slow bus: none is begun once the loss falls no more.
        improves = self.best is None or self.best.step == self._evaluated
        ahead = keeps and improves and self.ranks.main and not self.work.fsdp
        copy = self.memory.copying(self.work.weights()) if ahead else None  # an evaluation changes none
        sums: list[tuple[Tensor, int]] = []
        rank, world = self.ranks.rank, self.ranks.world
        # Every rank runs the same number of batches, since all gather shards of weights at once: the last may repeat.
        mine = [self.eval_batches[min(i + rank, len(self.eval_batches) - 1)]
                for i in range(0, len(self.eval_batches), world)]  # fmt: skip
        with evaluating(model), torch.no_grad(), self.accelerator.autocast():
            for examples in Bar(mine, desc="evaluate", unit="batch", delay=2, leave=False):
                batch = prepared(self.eval_collator(examples))
                here = send_to_device(batch, device, non_blocking=True)
                with self.at_first() if not sums and self.step == 0 else nullcontext():
                    sums.append((self.work.loss_of(model, here, ce=1.0, kl=0.0).ce, len(batch["at"])))
                self.recorder.beat(self.step, self.train.max_steps, "evaluate")
            losses = torch.stack([ce for ce, _ in sums]).tolist()
        pairs = list(zip(losses, (count for _, count in sums), strict=True))
        # In the order of the batches, so that the sum is the same on any number of GPUs.
        gathered = [pair for some in zip(*self.ranks.gather(pairs), strict=True) for pair in some][
            : len(self.eval_batches)
        ]
        loss: float = sum(ce for ce, _ in gathered) / sum(count for _, count in gathered)
        if not math.isfinite(loss):
            raise not_finite("the evaluation loss", self.step, self._last_good())
        self._evaluated = self.step
        if keeps and (self.best is None or loss < self.best.loss):
            if self.best is not None:  # its memory, before that of the next
                self.writer.give_back(self.best.weights)
                self.best = None
            self.best = Best(self.step, loss, self._host_weights(copy))
        elif copy is not None:
            copy.drop()
        self.ended = self.on_evaluation(self.step, loss) or self.ended
        return loss

    def _host_weights(self, copy: Copying | None = None) -> dict[str, Tensor]:
        if self.work.fsdp:
            return fsdp.whole_weights(self.work.model)
        if not self.ranks.main:
            return {}
        weights: dict[str, Tensor] = (copy or self.memory.copying(self.work.weights())).take()
        return weights

    # ---- checkpoints

    def _last_good(self) -> str:
        self.writer.wait()
        path = checkpoint.newest(self.directory)
        return str(path) if path else "none yet: training starts from its beginning"

    def _save(self) -> None:
        """A checkpoint of this step: copied now, written while training goes on."""
        self.recorder.heartbeat.phase("save")
        if self.stopped:  # by a host that does not wait long
            self.memory.stop()
        here = self.directory / f"checkpoint-{self.step}"
        if self.ranks.main:
            self.writer.wait()
            checkpoint.clear(here)  # a damaged one, or one of more ranks: nothing of it may pass for the new one's
        self.ranks.wait()  # the others write into it too
        snapshot.save_rng(here, self.ranks.rank, self.ranks.world)
        if self.work.fsdp:
            fsdp.save(self.accelerator, self.work.model, self.work.optimizer, here)
        self.ranks.wait()
        if self.ranks.main:
            files: dict[str, Any] = {}
            held: dict[str, Any] = {}  # on the host already
            links: dict[str, Path] = {}
            if self.best is not None and (self.best.step != self.step or self.work.fsdp):
                links = snapshot.best_on_disk(self.directory, self.best.step)
                held = {} if links else {snapshot.best_name(self.best.step): self.best.weights}
            elif self.best is not None:
                held = {snapshot.WEIGHTS: self.best.weights}
            if not self.work.fsdp:
                if snapshot.WEIGHTS not in held:
                    files[snapshot.WEIGHTS] = self.work.weights()
                if not self._over:  # two thirds of a checkpoint, which no step would read
                    files[snapshot.OPTIMIZER] = self.work.optimizer.state_dict()
            keep = self.train.keep_checkpoints
            self.writer.write(
                here, files, held, links, done=lambda: checkpoint.prune(self.directory, keep, self.on_checkpoint(here))
            )
        if self.stopped:
            self.writer.wait()

    def restore(self, here: Path, evaluations: Sequence[tuple[int, float]]) -> None:
        """Weights, optimiser, random numbers and step of a checkpoint, and the best of `evaluations`, all up to its step.

        Raises:
            CheckpointError: it is of another version of this program, or of another stage.
        """
        self.step = checkpoint.step_of(here)
        if self.work.fsdp:
            fsdp.restore(self.accelerator, self.work.model, self.work.optimizer, here)
        else:
            path = here / snapshot.WEIGHTS
            self.work.put_weights(snapshot.named_alike(snapshot.load_tensors(path), self.work.inner, path))
            if not self._over:
                snapshot.load_optimizer(self.work.optimizer, here / snapshot.OPTIMIZER)
        snapshot.load_rng(here, self.ranks.rank, self.ranks.world)
        later = [pair for pair in evaluations if pair[0] > 0]
        if self.train.keep == "best" and later:
            step, loss = min(later, key=lambda pair: pair[1])
            path = here / snapshot.best_name(step)
            if step == self.step and not self.ranks.share(path.is_file()):  # they are the checkpoint's own
                self.best = Best(step, loss, self._host_weights())
            else:
                self.best = Best(step, loss, snapshot.load_tensors(path) if self.ranks.main else {})

    # ---- the end

    def finish(self) -> int:
        """Leave the weights that are kept in the model, in float32; return the step that they are of.

        The last checkpoint may still be on its way to the disk: `writer.wait()`.
        """
        kept = self.step if self.best is None else self.best.step
        if self.best is not None and kept != self.step and self.ranks.main and not self.work.fsdp:
            self.work.put_weights(self.best.weights)
        self.work.release()
        return kept

    def whole_model(self) -> Any:
        """The model with the weights that are kept; under FSDP on the CPU, and on the main rank only."""
        if not self.work.fsdp:  # without the autocast around its forward pass
            return self.accelerator.unwrap_model(self.work.model, keep_fp32_wrapper=False)
        kept = self.best.weights if self.best is not None else None
        return fsdp.whole_model(self.accelerator, self.work.model, self.ranks.main, kept)
