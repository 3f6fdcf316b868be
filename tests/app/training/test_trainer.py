"""The loss that is trained: right tokens, right mask, right teacher, right scale."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from app.attention.backends import attend
from app.attention.mask import Document, layout
from app.data.examples import TokenExample
from app.model.compiled import speed_up
from app.runtime.ending import RunEnded
from app.training.batch import Collator, Schedule, Steps, layout_of
from app.training.checkpoint import mark_complete
from app.training.objective import objective
from app.training.trainer import PrefillTrainer
from jobs.config.schema import Objective
from jobs.errors import EXIT_NAN


def examples(n: int, seed: int = 0) -> list[TokenExample]:
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        size = int(torch.randint(low, high, (1,), generator=draw))
        return tuple(torch.randint(3, 97, (size,), generator=draw).tolist())

    return [TokenExample(ids(2, 9), ids(1, 6), f"{seed}-{i}", "") for i in range(n)]


def trainer_of(model: Any, tmp_path: Path, pattern: str = "prefix", goal: Objective | None = None, *, packing: bool = True,
               data: list[TokenExample] | None = None, batch_size: int = 4, row_tokens: int = 1024, micro: int = 4,
               multiple: int = 1, **arguments: Any) -> PrefillTrainer:  # fmt: skip
    settings: dict[str, Any] = dict(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=2,
                                    per_device_train_batch_size=batch_size, learning_rate=1e-3, remove_unused_columns=False,
                                    save_strategy="no", logging_steps=1, logging_nan_inf_filter=False)  # fmt: skip
    arguments = {**settings, **arguments}
    return PrefillTrainer(
        model, TrainingArguments(**arguments), steps=Steps(Collator(pattern, packing, multiple=multiple), row_tokens, micro),
        goal=goal or Objective(), train_dataset=Schedule(data or examples(8), arguments["max_steps"], batch_size, 0),
        eval_batches=[examples(3, 9), examples(2, 8)], keep_checkpoints=2, on_evaluation=lambda step, loss: False,
    )  # fmt: skip


def nll(model: Any, example: TokenExample, pattern: str) -> torch.Tensor:
    """Sum over the response of one example alone: the definition, written plainly."""
    ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])
    where = layout([[Document(len(example.prompt_ids), ids.shape[1])]], pattern)
    with attend(where):
        logits = model(input_ids=ids, position_ids=where.pos.long(), use_cache=False).logits[0]
    start = len(example.prompt_ids)
    return F.cross_entropy(logits[start - 1 : -1].float(), ids[0, start:], reduction="sum")


@pytest.mark.parametrize("pattern", ["causal", "prefix"])
@pytest.mark.parametrize("packing", [True, False])
def test_a_step_s_loss_and_gradients_equal_one_example_at_a_time(architecture: str, pattern: str, packing: bool, model_of: Any, tmp_path: Path) -> None:  # fmt: skip
    data = examples(7)
    model, plain = model_of(architecture), model_of(architecture)
    trainer = trainer_of(model, tmp_path, pattern, packing=packing, row_tokens=24, micro=3)
    step = trainer.data_collator(data)
    assert len(step) > 2  # several rows, whose shares add up to the mean over the step
    loss = trainer.training_step(model, step)
    tokens = sum(len(e.response_ids) for e in data)
    want = torch.stack([nll(plain, e, pattern) for e in data]).sum() / tokens
    want.backward()
    assert trainer.response_tokens_seen == tokens and trainer.tokens_seen == sum(map(len, data))
    torch.testing.assert_close(loss, want.detach(), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(
                mine.grad, theirs.grad, rtol=1e-3, atol=2e-3 * float(theirs.grad.abs().max() + 1e-6)
            )


def test_evaluation_is_the_exact_mean_over_response_tokens(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    trainer = trainer_of(model, tmp_path)
    held_out = [e for batch in trainer.eval_batches for e in batch]
    with torch.no_grad():
        total = sum(float(nll(model, e, "prefix")) for e in held_out)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        total / sum(len(e.response_ids) for e in held_out), rel=1e-5
    )


@pytest.mark.parametrize("rows", [dict(row_tokens=30), dict(packing=False, micro=4), dict(packing=False, micro=2)])
def test_how_a_step_is_cut_into_passes_does_not_change_it(rows: dict[str, Any], model_of: Any, tmp_path: Path) -> None:
    def after(**how: Any) -> torch.Tensor:
        model = model_of("llama")
        trainer_of(model, tmp_path, data=examples(16), batch_size=8, optim="sgd", learning_rate=0.05, **how).train()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(after(**rows), after(), rtol=1e-4, atol=1e-5)


# ---- KL to the frozen start ------------------------------------------------------------------------------------------


def test_objective_is_the_sum_it_says() -> None:
    torch.manual_seed(0)
    student, teacher, targets = torch.randn(6, 11), torch.randn(6, 11), torch.randint(11, (6,))
    loss = objective(student, targets, teacher, ce=0.3, kl=2.0)
    p = teacher.softmax(-1)
    kl = (p * (p.log() - student.log_softmax(-1))).sum()
    ce = -student.log_softmax(-1)[torch.arange(6), targets].sum()
    torch.testing.assert_close(loss.total, 0.3 * ce + 2.0 * kl)
    torch.testing.assert_close(loss.kl, kl)


@pytest.mark.parametrize("lora", [False, True])
def test_the_teacher_is_the_start_under_its_causal_mask(lora: bool, model_of: Any, tmp_path: Path) -> None:
    model, start = model_of("llama"), model_of("llama")
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    trainer = trainer_of(model, tmp_path, goal=Objective(ce=0.0, kl=1.0))
    if not lora:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))  # the student has moved; the teacher must not have
    batch = Collator("prefix")(examples(4))
    where = layout_of(batch)
    flat = (batch["labels"].flatten() >= 0).nonzero()[:, 0]
    assert trainer.head is not None
    states = trainer._teacher_states(model, trainer.prepared(batch), where)
    assert states is not None
    got = states.hidden @ states.weight.T
    causal = layout([[Document(len(e.prompt_ids), len(e)) for e in examples(4)]], "causal")
    with torch.no_grad(), attend(causal):
        want = start(input_ids=batch["input_ids"], position_ids=causal.pos.long(), use_cache=False).logits[0][flat]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    whole = trainer._teacher_logits(model, batch, where, flat)
    torch.testing.assert_close(whole, want, rtol=1e-4, atol=1e-4)


def test_no_teacher_is_copied_from_a_model_with_compiled_layers(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    speed_up(model, backend="eager")
    with pytest.raises(AssertionError, match=r"copied after app\.model\.compiled\.speed_up"):
        trainer_of(model, tmp_path, goal=Objective(kl=0.5))


def test_the_teacher_has_no_dropout_although_the_student_trains_with_it(model_of: Any, tmp_path: Path) -> None:
    model = get_peft_model(model_of("llama", attention_dropout=0.5), LoraConfig(r=4, target_modules="all-linear"))
    trainer = trainer_of(model, tmp_path, goal=Objective(ce=0.0, kl=1.0))
    model.train()
    batch = Collator("prefix")(examples(4))
    flat = (batch["labels"].flatten() >= 0).nonzero()[:, 0]
    once, again = (trainer._teacher_logits(model, batch, layout_of(batch), flat) for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    assert model.training


def test_kl_is_zero_at_a_causal_start_and_positive_at_a_prefix_one(model_of: Any, tmp_path: Path) -> None:
    def kl(pattern: str) -> float:
        model = model_of("llama")
        trainer = trainer_of(model, tmp_path, pattern, Objective(ce=0.0, kl=1.0))
        return float(trainer.batch_loss(model, trainer.prepared(Collator(pattern)(examples(4)))).kl)

    assert kl("causal") == pytest.approx(0.0, abs=1e-3) and kl("prefix") > 0.1


# ---- what ends a run -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_training(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(RunEnded, match="the loss is not finite at step 1") as caught:
        trainer_of(model, tmp_path).train()
    assert caught.value.exit_code == EXIT_NAN


def test_a_gradient_that_is_not_finite_ends_training_before_the_step(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    before = copy.deepcopy(model.state_dict())
    model.model.norm.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(RunEnded, match="the gradient is not finite at step 1"):
        trainer_of(model, tmp_path).train()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_an_evaluation_that_is_not_finite_ends_training(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("inf")
    with pytest.raises(RunEnded, match="the evaluation loss is not finite at step 0"):
        trainer_of(model, tmp_path).evaluate()


def test_all_gpus_of_a_machine_do_not_make_the_batch_larger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from app.training.train import _arguments
    from jobs.config.load import resolve
    from jobs.runs.rundir import RunDir

    # what TrainingArguments says of a machine with four GPUs
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self._n_gpu or 4))
    with RunDir.create(tmp_path, "stage3b", datetime.now(UTC)) as run:
        arguments = _arguments(resolve("stage3b", "ci"), run, torch.device("cpu"))
    assert arguments.train_batch_size == 4


def test_the_heart_beats_through_an_evaluation(model_of: Any, tmp_path: Path) -> None:
    from itertools import count
    from types import SimpleNamespace

    from app.runtime.heartbeat import HEARTBEAT_SECONDS, Heartbeat
    from app.runtime.signals import StopFlag
    from app.training.callbacks import Recorder

    phases: list[str] = []
    run: Any = SimpleNamespace(heartbeat=lambda step, total, loss, rate, phase: phases.append(phase))
    clock = count(0, HEARTBEAT_SECONDS + 1)
    trainer = trainer_of(model_of("llama"), tmp_path)
    trainer.add_callback(Recorder(run, StopFlag(), Heartbeat(run, lambda: float(next(clock)))))
    trainer.evaluate()
    assert phases == ["evaluate"] * len(trainer.eval_batches)


def test_a_checkpoint_that_is_there_counts_no_longer_once_it_is_being_written_again(model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A kill while it is written would leave the old mark over files of two attempts."""
    old = tmp_path / "checkpoint-1"
    old.mkdir()
    (old / "rng_state_1.pth").write_bytes(b"of a process that there is no longer")
    mark_complete(old)
    seen: list[list[str]] = []

    def killed(*_: Any) -> None:
        seen.append([path.name for path in old.glob("*")])
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.Trainer._save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(model_of("llama"), tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    assert seen == [[]]


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_output_layer_is_not_called_missing_in_a_checkpoint(tied: bool, model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    model = model_of("llama", tie_word_embeddings=tied)
    said: list[str] = []
    monkeypatch.setattr("transformers.trainer.logger.warning", said.append)
    checkpoint = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    trainer_of(model, tmp_path)._issue_warnings_after_load(model.load_state_dict(checkpoint, strict=False))
    assert bool(said) is not tied
