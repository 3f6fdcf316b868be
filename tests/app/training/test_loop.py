"""The loss that is trained: right tokens, right mask, right teacher, right scale."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from app.attention.backends import attend
from app.attention.mask import Document, layout
from app.data.examples import TokenExample
from app.model.compiled import speed_up
from app.runtime.ending import RunEnded
from app.runtime.heartbeat import Heartbeat
from app.runtime.ranks import ALONE, Ranks
from app.runtime.signals import StopFlag
from app.training import fsdp
from app.training.batch import Collator, Schedule, Steps, layout_of, prepared, shapes_of
from app.training.checkpoint import complete_checkpoints
from app.training.loop import TrainingLoop
from app.training.master_weights import MasterAdamW
from app.training.objective import objective
from app.training.optimizers import parameter_groups
from app.training.recorder import Recorder
from jobs.config.schema import Objective, Train
from jobs.errors import EXIT_NAN


def examples(n: int, seed: int = 0) -> list[TokenExample]:
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        size = int(torch.randint(low, high, (1,), generator=draw))
        return tuple(torch.randint(3, 97, (size,), generator=draw).tolist())

    return [TokenExample(ids(2, 9), ids(1, 6), f"{seed}-{i}", "") for i in range(n)]


class Log:
    """In place of a run's directory: what was logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.phases: list[str] = []

    def append_jsonl(self, name: str, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def heartbeat(self, step: int, total: int, loss: Any, rate: Any, phase: str, **_: Any) -> None:
        self.phases.append(phase)


def loop_of(model: Any, tmp_path: Path, pattern: str = "prefix", goal: Objective | None = None, *, packing: bool = True,
            data: list[TokenExample] | None = None, row_tokens: int = 1024, micro: int = 4, multiple: int = 1,
            device: str = "cpu", bf16: bool = False, ranks: Ranks = ALONE, recorder: Recorder | None = None,
            optimizer: Callable[[Any], Any] | None = None, on_evaluation: Any = lambda step, loss: False,
            eval_batches: Any = None, graphs: Any = None, **settings: Any) -> TrainingLoop:  # fmt: skip
    found: dict[str, Any] = dict(max_steps=2, batch_size=4, micro_batch_size=1, learning_rate=1e-3, warmup_steps=0, schedule="linear",
                                 eval_every=100, save_every=100, kill_after_steps=None)  # fmt: skip
    train = Train(mask=pattern, objective=goal or Objective(), packing=packing, **{**found, **settings})  # type: ignore[arg-type]
    if recorder is None:
        log: Any = Log()
        recorder = Recorder(log, StopFlag(), Heartbeat(log))
    schedule = Schedule([data or examples(8)], [1.0], train.max_steps, train.batch_size, 0)
    collate = Collator(pattern, packing, train.objective.causal_fraction, multiple=multiple)  # type: ignore[arg-type]
    steps = Steps(collate, row_tokens, micro, ranks.rank, ranks.world)
    if graphs is not None:
        steps = replace(steps, shapes=shapes_of(steps.sizes(schedule), multiple, (1, 1), 0, 3))
    made = (
        patch("app.training.optimizers.make", lambda train, model, **_: optimizer(model))
        if optimizer
        else nullcontext()
    )
    with made:
        return TrainingLoop(
            model, train, accelerator=fsdp.accelerator(torch.device(device), bf16), steps=steps, schedule=schedule, graphs=graphs,
            eval_batches=eval_batches or [examples(3, 9), examples(2, 8)], directory=tmp_path / "checkpoints",
            recorder=recorder, ranks=ranks, on_evaluation=on_evaluation,
        )  # fmt: skip


def prepared_loop(model: Any, tmp_path: Path, *arguments: Any, **settings: Any) -> TrainingLoop:
    loop = loop_of(model, tmp_path, *arguments, **settings)
    loop.prepare()
    return loop


def passes_of(loop: TrainingLoop, data: list[TokenExample]) -> list[dict[str, torch.Tensor]]:
    device = loop.work.device
    return [{name: t.to(device) for name, t in prepared(batch).items()} for batch in loop.steps(data)]


def rows(loop: TrainingLoop) -> list[dict[str, Any]]:
    log: Any = loop.recorder.run
    return list(log.rows)


def nll(model: Any, example: TokenExample, pattern: str) -> torch.Tensor:
    """Sum over the response of one example alone: the definition, written plainly."""
    ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])
    where = layout([[Document(len(example.prompt_ids), ids.shape[1], turns=example.turns)]], pattern)
    with attend(where):
        logits = model(input_ids=ids, position_ids=where.pos.long(), use_cache=False).logits[0]
    answers = example.learnt or ((len(example.prompt_ids), ids.shape[1]),)
    return sum(F.cross_entropy(logits[start - 1 : stop - 1].float(), ids[0, start:stop], reduction="sum") for start, stop in answers)  # fmt: skip


def conversations(count: int) -> list[TokenExample]:
    """A system's turn, a user's, an answer, a user's, an answer that is only read, a user's, an answer, each of other lengths."""
    found = []
    for e in examples(count):
        ids, ask = [*e.prompt_ids, *e.response_ids, *e.prompt_ids[:2], *e.response_ids, 5, 6, 7], len(e.prompt_ids)
        ends = list(accumulate([ask, len(e.response_ids), 2, len(e.response_ids), 1, 2]))
        turns = ((0, 1), (1, ends[0]), (ends[1], ends[2]), (ends[3], ends[4]))
        learnt = ((ends[0], ends[1]), (ends[4], ends[5]))
        found.append(TokenExample(tuple(ids[:ask]), tuple(ids[ask:]), e.key, "", turns, learnt))
    return found


@pytest.mark.parametrize("pattern", ["causal", "prefix", "segment"])
@pytest.mark.parametrize("packing", [True, False])
def test_a_chat_s_loss_is_that_of_all_its_learnt_answers(
    pattern: str, packing: bool, model_of: Any, tmp_path: Path
) -> None:
    data = [*conversations(3), *examples(2)]
    model, plain = model_of("gemma3-hybrid"), model_of("gemma3-hybrid")
    loop = prepared_loop(model, tmp_path, pattern, packing=packing, row_tokens=40, micro=3, data=data)
    passes = passes_of(loop, data)
    loss = torch.stack([loop.work.forward_backward(batch) for batch in passes]).sum()
    tokens = sum(sum(b - a for a, b in e.learnt) if e.learnt else len(e.response_ids) for e in data)
    want = torch.stack([nll(plain, e, pattern) for e in data]).sum() / tokens
    want.backward()
    assert len(passes) > 1 and sum(len(batch["at"]) for batch in passes) == tokens
    assert {int(batch["step_tokens"]) for batch in passes} == {tokens}
    torch.testing.assert_close(loss, want.detach(), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            atol = 2e-3 * float(theirs.grad.abs().max() + 1e-6)
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=atol)


def test_annealing_goes_from_causal_steps_to_steps_of_the_mask(model_of: Any, tmp_path: Path) -> None:
    goal = Objective(causal_fraction=1.0, causal_anneal=0.5)
    loop = prepared_loop(model_of("llama"), tmp_path, "prefix", goal, max_steps=4)
    seen = []
    for loop.step in range(4):
        (batch,) = loop._passes()
        seen.append({bool(batch["block"][batch["doc"] == doc].any()) for doc in range(4)})
    assert (seen[0], seen[2], seen[3]) == ({False}, {True}, {True})


@pytest.mark.parametrize("pattern", ["causal", "prefix"])
@pytest.mark.parametrize("packing", [True, False])
def test_a_step_s_loss_and_gradients_equal_one_example_at_a_time(architecture: str, pattern: str, packing: bool, model_of: Any, tmp_path: Path) -> None:  # fmt: skip
    data = examples(7)
    model, plain = model_of(architecture), model_of(architecture)
    loop = prepared_loop(model, tmp_path, pattern, packing=packing, row_tokens=24, micro=3)
    passes = passes_of(loop, data)
    assert len(passes) > 2  # several rows, whose shares add up to the mean over the step
    loss = torch.stack([loop.work.forward_backward(batch) for batch in passes]).sum()
    tokens = sum(len(e.response_ids) for e in data)
    want = torch.stack([nll(plain, e, pattern) for e in data]).sum() / tokens
    want.backward()
    assert sum(len(batch["at"]) for batch in passes) == tokens
    torch.testing.assert_close(loss, want.detach(), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(
                mine.grad, theirs.grad, rtol=1e-3, atol=2e-3 * float(theirs.grad.abs().max() + 1e-6)
            )


def test_evaluation_is_the_exact_mean_over_response_tokens(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    loop = prepared_loop(model, tmp_path)
    held_out = [e for batch in loop.eval_batches for e in batch]
    with torch.no_grad():
        total = sum(float(nll(model, e, "prefix")) for e in held_out)
    assert loop.evaluate() == pytest.approx(total / sum(len(e.response_ids) for e in held_out), rel=1e-5)


@pytest.mark.parametrize("rows", [dict(row_tokens=30), dict(packing=False, micro=4), dict(packing=False, micro=2)])
def test_how_a_step_is_cut_into_passes_does_not_change_it(rows: dict[str, Any], model_of: Any, tmp_path: Path) -> None:
    def after(**how: Any) -> torch.Tensor:
        model = model_of("llama")
        sgd = lambda m: torch.optim.SGD(m.parameters(), lr=0.05)  # noqa: E731
        prepared_loop(model, tmp_path, data=examples(16), batch_size=8, optimizer=sgd, learning_rate=0.05, **how).run()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(after(**rows), after(), rtol=1e-4, atol=1e-5)


# ---- KL to the frozen start ------------------------------------------------------------------------------------------


def test_objective_is_the_weighted_sum_of_its_terms() -> None:
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
    loss_of = prepared_loop(model, tmp_path, goal=Objective(ce=0.0, kl=1.0)).work.loss_of
    if not lora:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))  # the student has moved; the teacher must not have
    batch = Collator("prefix")(examples(4))
    where = layout_of(batch)
    flat = (batch["labels"].flatten() >= 0).nonzero()[:, 0]
    assert loss_of.head is not None
    states = loss_of.teacher_states(prepared(batch), where)
    assert states is not None
    got = states.hidden @ states.weight.T
    causal = layout([[Document(len(e.prompt_ids), len(e)) for e in examples(4)]], "causal")
    with torch.no_grad(), attend(causal):
        want = start(input_ids=batch["input_ids"], position_ids=causal.pos.long(), use_cache=False).logits[0][flat]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    whole = loss_of.teacher_logits(prepared(batch), where)
    torch.testing.assert_close(whole, want, rtol=1e-4, atol=1e-4)


def test_no_teacher_is_copied_from_a_model_with_compiled_layers(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    speed_up(model, backend="eager")
    run_as_it_is = torch.compiler.set_stance("force_eager")  # or a C++ compiler runs for FlexAttention's tiles
    with run_as_it_is, pytest.raises(AssertionError, match=r"copied after app\.model\.compiled\.speed_up"):
        loop_of(model, tmp_path, goal=Objective(kl=0.5))


def test_the_teacher_has_no_dropout_although_the_student_trains_with_it(model_of: Any, tmp_path: Path) -> None:
    model = get_peft_model(model_of("llama", attention_dropout=0.5), LoraConfig(r=4, target_modules="all-linear"))
    loss_of = prepared_loop(model, tmp_path, goal=Objective(ce=0.0, kl=1.0)).work.loss_of
    model.train()
    batch = prepared(Collator("prefix")(examples(4)))
    once, again = (loss_of.teacher_logits(batch, layout_of(batch)) for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    assert model.training


def test_kl_is_zero_at_a_causal_start_and_positive_at_a_prefix_one(model_of: Any, tmp_path: Path) -> None:
    def kl(pattern: str) -> float:
        model = model_of("llama")
        loss_of = prepared_loop(model, tmp_path, pattern, Objective(ce=0.0, kl=1.0)).work.loss_of
        return float(loss_of(model, prepared(Collator(pattern)(examples(4)))).kl)

    assert kl("causal") == pytest.approx(0.0, abs=1e-3) and kl("prefix") > 0.1


# ---- what ends a run -------------------------------------------------------------------------------------------------


def past_the_evaluation(loop: TrainingLoop) -> TrainingLoop:
    """So that what is not finite is met by a step."""
    loop.step, loop.schedule = 0, loop.schedule
    loop.evaluate = lambda: 0.0  # type: ignore[method-assign]
    return loop


def test_a_loss_that_is_not_finite_ends_training(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(RunEnded, match="the loss is not finite at step 1") as caught:
        past_the_evaluation(prepared_loop(model, tmp_path)).run()
    assert caught.value.exit_code == EXIT_NAN


def test_a_gradient_that_is_not_finite_ends_training_before_the_step(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    before = copy.deepcopy(model.state_dict())
    model.model.norm.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(RunEnded, match="the gradient is not finite at step 1"):
        prepared_loop(model, tmp_path).run()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_an_evaluation_that_is_not_finite_ends_training(model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("inf")
    with pytest.raises(RunEnded, match="the evaluation loss is not finite at step 0"):
        prepared_loop(model, tmp_path).run()


@pytest.mark.parametrize("late", [0, 1])
def test_an_optimizer_that_guards_the_weights_leaves_them_as_they_were_although_it_is_read_late(late: int, model_of: Any, tmp_path: Path) -> None:  # fmt: skip
    model = model_of("llama")
    loop = prepared_loop(
        model, tmp_path, optimizer=lambda m: MasterAdamW(parameter_groups(m, 0.0), lr=1e-3), max_steps=6
    )
    loop.late = late
    third: list[dict[str, torch.Tensor]] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        if loop.step == 2:
            third.append(copy.deepcopy(model.state_dict()))
            return gradient * float("nan")
        return gradient

    model.model.norm.weight.register_hook(spoil)
    with pytest.raises(RunEnded, match="the gradient is not finite at step 3"):
        loop.run()
    assert [row["step"] for row in rows(loop)] == [1, 2]
    assert loop.step == 3 + late
    if not late:
        assert all(torch.equal(third[0][k], v) for k, v in model.state_dict().items())


def read_late(model: Any, directory: Path, log: Any, steps: int) -> tuple[TrainingLoop, Recorder]:
    """A loop of the optimiser that guards its own numbers, which reads each step one step late, as on a GPU."""
    recorder = Recorder(log, StopFlag(), Heartbeat(log))
    loop = prepared_loop(model, directory, recorder=recorder, max_steps=steps, save_every=2,
                         optimizer=lambda m: MasterAdamW(parameter_groups(m, 0.0), lr=1e-3))  # fmt: skip
    loop.late = 1
    return loop, recorder


def test_a_signal_and_a_save_see_every_step_read_although_they_are_read_late(model_of: Any, tmp_path: Path) -> None:
    log: Any = Log()
    loop, recorder = read_late(model_of("llama"), tmp_path, log, 9)
    saved: list[tuple[int, int]] = []
    real = loop._save

    def save() -> None:
        saved.append((loop.step, len(log.rows)))
        recorder.stop.name = "SIGTERM" if loop.step == 4 else None
        real()

    loop._save = save  # type: ignore[method-assign]
    loop.run()
    loop.writer.wait()
    assert saved == [(2, 2), (4, 4), (6, 6)] and loop.stopped
    assert [path.name for path in complete_checkpoints(loop.directory)] == ["checkpoint-4", "checkpoint-6"]


def test_a_signal_after_the_last_step_was_launched_is_a_checkpoint_of_that_step(model_of: Any, tmp_path: Path) -> None:
    loop, recorder = read_late(model_of("llama"), tmp_path, Log(), 5)
    beat = loop._beat

    def then_a_signal(step: int) -> None:
        beat(step)
        recorder.stop.name = "SIGTERM" if step == 5 else None

    loop._beat = then_a_signal  # type: ignore[method-assign]
    loop.run()
    assert loop.stopped
    assert [path.name for path in complete_checkpoints(loop.directory)] == ["checkpoint-4", "checkpoint-5"]


def test_the_heart_beats_through_an_evaluation(model_of: Any, tmp_path: Path) -> None:
    from itertools import count

    from app.runtime.heartbeat import HEARTBEAT_SECONDS

    clock = count(0, HEARTBEAT_SECONDS + 1)
    log: Any = Log()
    loop = prepared_loop(
        model_of("llama"), tmp_path, recorder=Recorder(log, StopFlag(), Heartbeat(log, lambda: float(next(clock))))
    )
    loop.evaluate()
    assert log.phases == ["evaluate"] * (1 + len(loop.eval_batches))  # the first says that it begins
