"""One training run: data, model, Trainer, and what it leaves behind."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from app import checkpoint
from app.batch import Collator, Schedule
from app.callbacks import Heart, Recorder, StopFlag
from app.data import TokenExample, load_examples, split
from app.model import Loaded, cpu_has_bf16, pick_dtype, row_multiple
from app.overlap import drop_overlap
from app.stopping import NoLearning, Plateau, interrupted
from app.trainer import PrefillTrainer
from jobs.errors import ConfigError
from jobs.load import Job
from jobs.rundir import RunDir
from jobs.schema import Train

log = logging.getLogger("prefill")


def mixed_precision(wanted: str, device: torch.device) -> bool:
    """Whether to compute in bf16 (weights stay float32). `auto`: where the processor multiplies bf16 natively."""
    if wanted != "auto":
        return wanted == "bf16"
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()


def prepare_data(job: Job, tokenizer: Any,
                 eval_items: Any) -> tuple[list[TokenExample], list[TokenExample], dict[str, Any]]:  # fmt: skip
    """(train, eval) examples of the job, and counts of what was read, dropped and kept."""
    train = job.stage.train
    assert train is not None
    examples, report = load_examples(
        job.profile.data.train, tokenizer, max_length=train.max_length, seed=job.stage.seed
    )
    examples, overlap = drop_overlap(examples, eval_items, n=train.overlap_ngram)
    kept, held_out = split(examples, train.eval_fraction)
    held_out = sorted(held_out, key=lambda e: e.key)[: train.eval_samples]  # by hash: a sample, whatever the order
    counts = {**report.to_dict(), "overlap": overlap.to_dict(), "train": len(kept), "eval": len(held_out)}
    return kept, held_out, counts


def _with_lora(model: PreTrainedModel, train: Train) -> Any:
    if train.lora is None:
        return model
    lora = train.lora
    targets: Any = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets,  # type: ignore[arg-type]
                        task_type="CAUSAL_LM")  # fmt: skip
    model.enable_input_require_grads()  # gradient checkpointing would otherwise see no input that needs a gradient
    return get_peft_model(model, config)


def _arguments(job: Job, run: RunDir, device: torch.device) -> TrainingArguments:
    train = job.stage.train
    assert train is not None
    accumulate = train.batch_size // train.micro_batch_size
    checkpointing: dict[str, Any] = {}  # named only where wanted: newer versions warn about the names
    if train.gradient_checkpointing:
        checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    schedule = {"constant": "constant_with_warmup"}.get(train.schedule, train.schedule)
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints), max_steps=train.max_steps, seed=job.stage.seed,
        per_device_train_batch_size=train.micro_batch_size, gradient_accumulation_steps=accumulate,
        learning_rate=train.learning_rate, lr_scheduler_type=schedule, warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay, max_grad_norm=train.max_grad_norm,
        optim="adafactor" if train.optimizer == "adafactor" else "adamw_torch_fused",
        bf16=mixed_precision(train.precision, device), use_cpu=device.type == "cpu",
        **checkpointing,
        eval_strategy="steps", eval_steps=train.eval_every, eval_on_start=False,
        save_strategy="steps", save_steps=train.save_every, logging_steps=1, logging_nan_inf_filter=False,
        report_to=[], remove_unused_columns=False, dataloader_num_workers=0, dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True, average_tokens_across_devices=True,
    )  # fmt: skip
    if arguments.n_gpu > 1:  # Trainer would spread each batch over all GPUs it sees, and make it that much larger
        arguments._n_gpu = 1
    return arguments


class _Evaluations:
    """Logs each evaluation, applies the two rules, and restores itself from the log of a run that is resumed."""

    def __init__(self, run: RunDir, train: Train, resumed_step: int | None) -> None:
        self.run = run
        self.plateau = Plateau(train.auto_stop)
        self.learning = NoLearning(train.kill_after_steps, train.min_loss_improvement)
        self.started = time.monotonic()
        self.stop = False
        self.losses: list[tuple[int, float]] = []
        for line in run.read_jsonl("eval_log.jsonl") if resumed_step is not None else []:
            self._take(int(line["step"]), float(line["eval_loss"]))

    def _take(self, step: int, loss: float) -> str:
        self.losses.append((step, loss))
        verdict = self.plateau.update(step, loss)
        self.stop = verdict.stop
        self.learning.update(step, loss)
        return verdict.line

    def __call__(self, step: int, loss: float) -> None:
        if self.losses and self.losses[-1][0] == step:  # a resumed run meets its last evaluation again
            return
        self.run.append_jsonl("eval_log.jsonl", {
            "step": step, "eval_loss": loss, "best": min([loss, *(x for _, x in self.losses)]),
            "bad_evals": self.plateau.bad_evals, "seconds": round(time.monotonic() - self.started, 3),
        })  # fmt: skip
        log.info(self._take(step, loss))


def train(job: Job, loaded: Loaded, run: RunDir, *, eval_items: Any, init_run: str, stop: StopFlag,
          heart: Heart, resume: bool, status: Callable[[str], None] = log.info) -> dict[str, Any]:  # fmt: skip
    """Train as the stage says, write `final/`, return the `train` section of metrics.json.

    Args:
        loaded: float32 weights of the starting model.
        resume: go on from the newest complete checkpoint of `run`, if it has one.

    Raises:
        TrainingEnded: not finite, nothing learnt, or a signal.
        DataError: unusable data.
        ConfigError: examples may be longer than the model's context.
    """
    section = job.stage.train
    assert section is not None
    if section.max_length > loaded.max_length:
        raise ConfigError("train.max_length", f"{section.max_length} tokens are more than the {loaded.max_length} of the model's "
                          "context", f"set train.max_length: {loaded.max_length}")  # fmt: skip
    heart.phase("data")
    kept, held_out, counts = prepare_data(job, loaded.tokenizer, eval_items)
    status(f"{counts['train']} training examples, {counts['eval']} held out, "
           f"{counts['overlap']['dropped']} dropped for overlap with evaluation items")  # fmt: skip
    model = _with_lora(loaded.model, section)
    params_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)  # later, LoRA's are merged away
    params_total = sum(p.numel() for p in model.parameters())
    collator = Collator(section.mask, section.packing, section.objective.causal_fraction, job.stage.seed,
                        row_multiple(loaded.device))  # fmt: skip
    size = section.micro_batch_size
    at = checkpoint.newest(run.checkpoints) if resume else None
    step = checkpoint.step_of(at) if at else None
    for name in ("train_log.jsonl", "eval_log.jsonl"):
        run.rewind_jsonl(name, step if step is not None else -1)
    evaluations = _Evaluations(run, section, step)
    recorder = Recorder(run, stop, heart)

    def on_evaluation(at_step: int, loss: float) -> None:
        evaluations(at_step, loss)
        trainer.control.should_training_stop |= evaluations.stop

    trainer = PrefillTrainer(
        model, _arguments(job, run, loaded.device), collator=collator, goal=section.objective,
        train_dataset=Schedule(kept, section.max_steps, section.batch_size, job.stage.seed),
        eval_dataset=held_out, eval_batches=[held_out[i : i + size] for i in range(0, len(held_out), size)],
        keep_checkpoints=section.keep_checkpoints, on_evaluation=on_evaluation, on_phase=heart.phase,
        callbacks=[recorder],
    )  # fmt: skip
    before = (run.read_jsonl("train_log.jsonl") or [{}])[-1]  # of the attempts that this one goes on from
    trainer.tokens_seen = int(before.get("tokens") or 0)
    trainer.response_tokens_seen = int(before.get("response_tokens") or 0)
    recorder.trainer, recorder.seconds_before = trainer, float(before.get("seconds") or 0.0)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    if step is None:
        trainer.evaluate()  # the loss that learning is measured from
    if at is not None:
        status(f"resuming from {at}")
        heart.phase("load")
    if at is not None and evaluations.stop:
        trainer.restore(at)  # what ended this training had been seen before it was interrupted
    else:
        trainer.train(resume_from_checkpoint=str(at) if at else None)
    if stop:
        raise interrupted(trainer.state.global_step)
    if evaluations.losses[-1][0] != trainer.state.global_step:
        trainer.evaluate()
    seconds = time.monotonic() - started + recorder.seconds_before
    steps = trainer.state.global_step
    about = {"mask": section.mask, "origin": loaded.origin if init_run == "base" else init_run, "run": run.id, "steps": steps,
             "objective": section.objective.model_dump(), "data": counts["source"]}  # fmt: skip
    dtype = pick_dtype(job.profile.model.dtype, loaded.device)
    heart.phase("save")
    checkpoint.save_final(trainer.accelerator.unwrap_model(trainer.model), loaded.tokenizer, run.final,
                          dtype=dtype, about=about)  # fmt: skip
    losses = [loss for _, loss in evaluations.losses]
    logged = [row["loss"] for row in run.read_jsonl("train_log.jsonl") if row.get("loss") is not None]
    return {
        "mask": section.mask, "steps": steps, "max_steps": section.max_steps,
        "stopped_by": "max_steps" if steps >= section.max_steps else "auto_stop",
        "train_examples": counts["train"], "eval_examples": counts["eval"],
        "dropped_overlap": counts["overlap"]["dropped"], "dropped_length": counts["dropped_length"], "data": counts,
        "train_loss": logged[-1] if logged else math.nan, "eval_loss_first": losses[0], "eval_loss_best": min(losses),
        "eval_loss_last": losses[-1], "best_step": evaluations.plateau.best_step,
        "tokens": trainer.tokens_seen, "response_tokens": trainer.response_tokens_seen, "seconds": round(seconds, 3),
        "tokens_per_s": trainer.tokens_seen / seconds,
        "params_trained": params_trained, "params_total": params_total,
        "precision": "bf16 autocast, fp32 weights" if trainer.args.bf16 else "fp32",
        "objective": section.objective.model_dump(), "resumed_from_step": step,
    }  # fmt: skip
