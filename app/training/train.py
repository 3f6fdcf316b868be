"""One training run: data, model, the training loop, and what it leaves behind."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import torch
from transformers import PreTrainedModel

from app.attention.backends import NAMES
from app.attention.block_mask import TILE
from app.attention.layers import restrict
from app.attention.model_config import text_config
from app.data.mixture import prepare
from app.model.compiled import always_compiled, require_dependence, speed_up, suits
from app.model.load import Loaded, auto_class, cpu_has_bf16, pick_dtype
from app.model.mixed_precision import freeze_unused
from app.model.quantized import onto_whole, parameters
from app.runtime.ending import interrupted
from app.runtime.heartbeat import Heartbeat
from app.runtime.progress import waiting
from app.runtime.ranks import ALONE, Ranks
from app.runtime.signals import StopFlag
from app.runtime.uploads import Uploads
from app.training import checkpoint
from app.training import fsdp as sharded
from app.training.batch import Collator, Schedule, Steps, prepared, tokens_multiple
from app.training.cuda_graph import Graphs, in_shapes
from app.training.early_stopping import Plateau, require_learning
from app.training.loop import TrainingLoop
from app.training.lora import with_adapter
from app.training.optimizers import learning_rate
from app.training.recorder import Recorder
from app.training.saved import Logged, held_out_loss
from jobs.config.job import Job
from jobs.config.schema import Train, mask_by_layer
from jobs.errors import ConfigError, ModelError
from jobs.estimate.graphs import suitable
from jobs.estimate.sizes import DENSE, row_tokens
from jobs.runs.rundir import RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """What surrounds the work of a run: its directory, its heartbeat, the flag that a signal sets, its processes, its uploads."""

    run: RunDir
    heartbeat: Heartbeat
    stop: StopFlag
    ranks: Ranks = ALONE
    uploads: Uploads | None = None


def mixed_precision(wanted: str, device: torch.device) -> bool:
    """Whether to compute in bf16 (weights stay float32). `auto`: where the processor multiplies bf16 natively."""
    if wanted != "auto":
        return wanted == "bf16"
    # A GPU without it (T4, V100) emulates bf16, slower than fp32.
    return torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()


def _trainable(model: PreTrainedModel, train: Train) -> Any:
    """The model with what is to be trained, all that text goes through or an adapter on it, and the rest frozen."""
    freeze_unused(model)
    if train.gradient_checkpointing is True:  # auto is decided in app/stage/capacity.py
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if train.lora is None:
        return model
    return with_adapter(model, train.lora)


class Evaluations:
    """Logs each evaluation, applies the two rules, and restores itself from the log of a run that is resumed."""

    def __init__(self, run: RunDir, train: Train, resumed_step: int | None,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self.run, self.train, self.clock = run, train, clock
        self.plateau = Plateau(train.auto_stop)
        self.started, self.before = clock(), 0.0  # before: seconds of the attempts before this one
        self.losses: list[tuple[int, float]] = []
        for line in run.read_jsonl("eval_log.jsonl") if resumed_step is not None else []:
            self.before = float(line.get("seconds") or 0.0)
            self._take(int(line["step"]), float(line["eval_loss"]))

    def _take(self, step: int, loss: float) -> str:
        self.losses.append((step, loss))
        line = self.plateau.update(step, loss)
        require_learning(self.losses, self.train.kill_after_steps, self.train.min_loss_improvement)
        return line

    def __call__(self, step: int, loss: float) -> bool:
        """Whether training is to stop."""
        if self.losses and self.losses[-1][0] == step:  # a resumed run meets its last evaluation again
            return self.plateau.stop
        self.run.append_jsonl("eval_log.jsonl", {
            "step": step, "eval_loss": loss, "best": min(loss, self.plateau.best), "bad_evals": self.plateau.bad_evals,
            "seconds": round(self.before + self.clock() - self.started, 3),
        })  # fmt: skip
        log.info(self._take(step, loss))
        return self.plateau.stop


def _logged(run: RunDir, eval_every: int) -> int:
    """The last step up to which the logs hold every step and every evaluation; -1 without the first evaluation."""
    steps, evaluated = (
        {int(line["step"]) for line in run.read_jsonl(f"{name}_log.jsonl")} for name in ("train", "eval")
    )
    return next(n for n in count() if n not in steps | {0} or (n % eval_every == 0 and n not in evaluated)) - 1


def require_loadable(model: PreTrainedModel, where: str) -> None:
    """Raises ModelError where what training writes could not be loaded: the text part of some wrappers has no Auto class."""
    try:
        auto_class(model.config, where)
    except ModelError as error:
        fact = (
            f"its language model alone would be written, of type {model.config.model_type}, which no Auto class loads"
        )
        raise ModelError(where, fact, "train another model; this one can be scored") from error


def require_length(section: Train, loaded: Loaded) -> None:
    """Raises ConfigError where an example may be longer than the model's context, or have its other position encoding."""
    if section.max_length > loaded.max_length:
        raise ConfigError("train.max_length", f"{section.max_length} tokens are more than the {loaded.max_length} of the model's "
                          "context", f"set train.max_length: {loaded.max_length}")  # fmt: skip
    if loaded.is_long(section.max_length):
        fact = f"{section.max_length} tokens are more than the {loaded.longest_short} at which the position encoding changes"
        raise ConfigError("train.max_length", f"{fact}: losses would depend on the other examples of a row",
                          f"set train.max_length: {loaded.longest_short}")  # fmt: skip


def warn_of_warmup(section: Train) -> None:
    """A rate that still rises at the last step is seldom meant: `max_steps` or `epochs` was made small, the warm-up was not."""
    if section.max_steps <= section.warmup_steps:
        last = learning_rate(section, section.max_steps - 1)
        log.warning(f"all {section.max_steps} steps lie within train.warmup_steps {section.warmup_steps}: the last one has a "
                    f"learning rate of {last:.2g}, of {section.learning_rate:.2g}; set fewer warm-up steps")  # fmt: skip


def _onto_whole(adapted: Any, base: Any, logged: Logged) -> tuple[Any, Logged, dict[str, float]]:
    """The adapter on the base that was never quantised, what is to be read back of it, and the losses on both bases.

    Of the held-out examples only the first pass is taken: `base` is on the host.
    """
    restrict(base, logged.layers)
    batches = list(islice(logged.batches, 1))
    model = onto_whole(adapted, base)
    before, after = held_out_loss(adapted, batches), held_out_loss(model, batches)
    log.info(
        f"the adapter was trained on 4 bits and is merged into whole weights: loss {before:.5f} there, {after:.5f} here"
    )
    return (
        model,
        replace(logged, loss=after, batches=batches, in_half=False),
        {"loss_in_4bit": before, "loss_whole": after},
    )


def train(job: Job, loaded: Loaded, context: RunContext, *, eval_items: Any, init_run: str,
          resume: bool, whole: Callable[[], Loaded]) -> dict[str, Any]:  # fmt: skip
    """Train as the stage asks, write `final/`, return the `train` section of metrics.json. Every rank calls it.

    Args:
        job: with `sharding` resolved (app.stage.capacity.resolved).
        loaded: float32 weights of the starting model.
        resume: begin at the newest complete checkpoint of the run, if it has one.
        whole: loads the starting model on the host, not quantised, for an adapter that is trained on 4 bits.

    Raises:
        RunEnded: not finite, nothing learnt, or a signal.
        DataError: unusable data.
        ConfigError: examples may be longer than the model's context.
        ModelError: the compiled attention does not obey the mask.
    """
    run, heartbeat, ranks = context.run, context.heartbeat, context.ranks
    section, spread = job.train, job.profile.sharding == "fsdp"
    assert section is not None
    require_length(section, loaded)
    require_loadable(loaded.model, loaded.origin)
    if spread:
        sharded.require_shardable(section)
    heartbeat.phase("data")
    data = prepare(job, loaded.tokenizer, eval_items, lambda some: loaded.require_rows(
        ((*e.prompt_ids, *e.response_ids) for e in some), (f"training example {e.key}" for e in some)))  # fmt: skip
    held_out, counts = data.held_out, data.counts()
    if section.epochs is not None:
        steps = math.ceil(data.passes(section.epochs) / section.batch_size)
        section = section.model_copy(update={"max_steps": min(section.max_steps, steps)})
    warn_of_warmup(section)
    if unlearnt := counts["unlearnt_answers"]:
        log.info(f"{unlearnt} answers are only read: the chat template writes them otherwise once further turns follow")
    model = _trainable(loaded.model, section)
    params_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)  # later, LoRA's are merged away
    params_total = parameters(model)
    in_4bit = section.lora is not None and section.lora.quantization is not None
    fast, attention = suits(loaded) and not in_4bit, loaded.attention
    if attention == NAMES["flex_attention"]:  # for the model that is read back, whose layers are not compiled
        attention = NAMES["sdpa"]
    steps_of = Steps(
        Collator(section.mask, section.packing, section.objective.causal_fraction, job.stage.seed,
                 tokens_multiple(fast, loaded.device)),
        job.halved(row_tokens(section.pack_tokens, fast, params_total, cpu=loaded.device.type == "cpu")),
        section.micro_batch_size, ranks.rank, ranks.world,
    )  # fmt: skip
    schedule = Schedule([one.examples for one in data.sources], data.shares, section.max_steps, section.batch_size,
                        job.stage.seed)  # fmt: skip
    known = held_out if data.streamed else data.examples
    mean = sum(len(e) for e in known) / len(known)
    tokens = min(section.batch_size * mean, steps_of.row_tokens)
    graphed, why = suitable(section, cuda=loaded.device.type == "cuda", compiled=fast, world=ranks.world, streamed=data.streamed,
                            parameters=params_total, tokens=tokens)  # fmt: skip
    eval_batches = replace(steps_of, rank=0, world=1).passes(held_out)
    if graphed:
        steps_of = in_shapes(steps_of, schedule, model, params_total)
    if resume:
        heartbeat.phase("load")
    at = None
    if resume and ranks.main:
        at = checkpoint.newest_verified(run.checkpoints, log.warning, _logged(run, section.eval_every))
    at = ranks.share(at)
    if resume and at is None:
        log.info("no checkpoint to go on from: training begins from its start")
    if at is not None:
        sharded.require_resumable(at, job.profile.sharding)
    step = checkpoint.step_of(at) if at else None
    for name in ("train_log.jsonl", "eval_log.jsonl"):
        run.rewind_jsonl(name, step if step is not None else -1)
    ranks.wait()  # all of them read the logs next
    evaluations = Evaluations(run, section, step)
    recorder = Recorder(run, context.stop, heartbeat)
    bf16 = mixed_precision(section.precision, loaded.device)
    loop = TrainingLoop(
        model, section, accelerator=sharded.accelerator(loaded.device, bf16, spread), steps=steps_of, schedule=schedule,
        eval_batches=eval_batches, directory=run.checkpoints, recorder=recorder, on_evaluation=evaluations, ranks=ranks,
        seed=job.stage.seed, at_first=lambda: heartbeat.beating("compile") if fast else nullcontext(),
        graphs=Graphs() if graphed else None, on_checkpoint=(context.uploads or Uploads(None, run)).checkpoint,
    )  # fmt: skip
    for one in (model, loop.work.loss_of.teacher) if fast else ():
        if one is not None:
            speed_up(one, tokens=tokens)
            # The self-check of the start ran on another attention. Autocast as in training: what runs is what is checked.
            with heartbeat.beating("compile"), loop.accelerator.autocast():
                require_dependence(one, sorted({section.mask, "causal"}), loaded.origin, 4 * TILE)
    loop.prepare()
    recorder.resume()
    started = time.monotonic()
    if at is not None:
        log.info(f"resuming from {at}")
        heartbeat.phase("load")
        loop.ended = evaluations.plateau.stop  # what ended this training had been seen before it was interrupted
        with waiting("load the checkpoint"):
            loop.restore(at, evaluations.losses)
        if data.streamed:
            with waiting(f"read the streams up to step {loop.step}"):
                schedule.skip(loop.step, lambda: heartbeat.beat(loop.step, section.max_steps, "data"))
    with always_compiled(model):
        loop.run()
    if loop.stopped:
        raise interrupted(loop.step)
    seconds = time.monotonic() - started + recorder.seconds_before
    heartbeat.phase("save")
    steps, kept_step = loop.step, loop.finish()
    losses = dict(evaluations.losses)
    mask = mask_by_layer(section.mask, section.layers)
    about = {"mask": mask, "origin": loaded.origin if init_run == "base" else init_run, "run": run.id,
             "steps": kept_step, "objective": section.objective.model_dump(), "data": counts["source"]}  # fmt: skip
    dtype = pick_dtype(job.profile.model.dtype, loaded.device)
    saved = None
    try:
        finished = loop.whole_model()
        if ranks.main:
            plain = replace(steps_of, rank=0, world=1, shapes=(), row_tokens=min(steps_of.row_tokens, DENSE))
            rows = plain.passes(held_out)
            logged = Logged(losses[kept_step], (prepared(loop.eval_collator(some)) for some in rows), attention, bf16,
                            section.layers, merged=section.lora is not None)  # fmt: skip
            losses_of_base: dict[str, float] = {}
            if in_4bit:
                finished, logged, losses_of_base = _onto_whole(finished, whole().model, logged)
                heartbeat.phase("save")
            device = torch.device("cpu") if in_4bit else loaded.device  # where the whole base is
            with heartbeat.beating("save"):
                saved = checkpoint.save_final(finished, loaded.tokenizer, run.final, dtype=dtype, about=about,
                                              logged=logged, device=device)  # fmt: skip
            saved |= losses_of_base
    finally:  # the last checkpoint is written meanwhile; after an error too it is complete before anybody reads it
        with heartbeat.beating("save"):
            loop.writer.wait()
    ranks.wait()
    counts = data.counts(schedule.drawn(steps))
    return {
        "mask": mask, "steps": steps, "max_steps": section.max_steps,
        "stopped_by": "max_steps" if steps >= section.max_steps else "auto_stop",
        "train_examples": counts["train"], "eval_examples": counts["eval"],
        "dropped_overlap": counts["overlap"]["dropped"], "dropped_length": counts["dropped_length"], "data": counts,
        "train_loss": run.read_jsonl("train_log.jsonl")[-1]["loss"], "eval_loss_first": evaluations.losses[0][1],
        "eval_loss_best": min(losses.values()), "eval_loss_last": losses[steps], "best_step": evaluations.plateau.best_step,
        "saved": saved,  # how far final/, read back, is from what was trained
        "keep": section.keep, "kept_step": kept_step, "eval_loss": losses[kept_step],
        "tokens": recorder.tokens, "response_tokens": recorder.response_tokens, "seconds": round(seconds, 3),
        "tokens_per_s": recorder.tokens / seconds, "processes": ranks.world,
        "params_trained": params_trained, "params_total": params_total,
        "precision": ("bf16 autocast, fp32 weights" if bf16 else "fp32") + (", base in 4 bits (NF4)" if in_4bit else ""),
        "attention": text_config(model)._attn_implementation, "compiled": fast, "row_tokens": steps_of.row_tokens,
        "graph": graphed, "graph_reason": why, "row_shapes": [shape.columns for shape in steps_of.shapes],
        # Of this attempt: null where it had no step left.
        "padding": 1 - loop.tokens_seen / loop.padded_tokens_seen if loop.padded_tokens_seen else None,
        "gradient_checkpointing": section.gradient_checkpointing is True,
        "objective": section.objective.model_dump(), "resumed_from_step": step,
    }  # fmt: skip
