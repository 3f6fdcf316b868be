"""Which weights of a training are kept, and how they are copied, written and read back."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.training import snapshot
from app.training.checkpoint import complete_checkpoints
from app.training.loop import TrainingLoop
from tests.app.training.test_loop import prepared_loop


class ByStep:
    """The loss of training, and of evaluation what a table says of the step."""

    def __init__(self, loop: TrainingLoop, losses: dict[int, float]) -> None:
        self.loop, self.losses, self.real = loop, losses, loop.work.loss_of

    def __call__(self, model: Any, batch: Any, ce: float | None = None, kl: float | None = None) -> Any:
        if torch.is_grad_enabled():
            return self.real(model, batch)
        return SimpleNamespace(ce=torch.tensor(self.losses[self.loop.step] * len(batch["at"])))


def loop_that_finds(losses: dict[int, float], model: Any, tmp_path: Path, **settings: Any) -> TrainingLoop:
    loop = prepared_loop(model, tmp_path, max_steps=6, eval_every=1, **settings)
    loop.work.loss_of = ByStep(loop, losses)  # type: ignore[assignment]
    return loop


LOSSES = {0: 1.0, 1: 5.0, 2: 3.0, 3: 4.0, 4: 4.0, 5: 6.0, 6: 7.0}


@pytest.mark.parametrize(("losses", "begun"), [(LOSSES, ["begin 1", "begin 2", "begin 3", "drop 3"]),
                                              (LOSSES | {4: 2.0}, ["begin 1", "begin 2", "begin 3", "drop 3", "begin 4", "begin 5", "drop 5"])])  # fmt: skip
def test_weights_are_copied_beside_an_evaluation_while_each_is_the_best_so_far(losses: dict[int, float], begun: list[str], model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A slow bus takes seconds for a copy, which is in vain where the loss falls no more."""
    loop = loop_that_finds(losses, model_of("llama"), tmp_path, keep="best", save_every=100)
    real, calls = loop.memory.copying, list[str]()

    def copying(state: Any) -> Any:
        calls.append(f"begin {loop.step}")
        copy = real(state)
        monkeypatch.setattr(copy, "drop", lambda: calls.append(f"drop {loop.step}"))
        return copy

    monkeypatch.setattr(loop.memory, "copying", copying)
    loop.run()
    assert calls == begun


@pytest.mark.parametrize(("keep", "step"), [("best", 2), ("last", 6)])
def test_the_weights_of_the_best_evaluation_after_the_start_are_kept(keep: str, step: int, model_of: Any, tmp_path: Path) -> None:  # fmt: skip
    loop = loop_that_finds(LOSSES, model_of("llama"), tmp_path, keep=keep, save_every=100)
    seen: dict[int, dict[str, torch.Tensor]] = {}
    loop.on_evaluation = lambda at, loss: seen.update(  # type: ignore[func-returns-value, assignment, return-value]
        {at: {name: w.clone() for name, w in loop.work.weights().items()}}
    )
    loop.run()
    assert loop.finish() == step
    assert all(torch.equal(seen[step][name], weight) for name, weight in loop.work.weights().items())


@pytest.mark.parametrize("at", [2, 4])
def test_the_best_weights_come_out_of_the_checkpoint_that_a_run_goes_on_from(
    at: int, model_of: Any, tmp_path: Path
) -> None:
    whole = loop_that_finds(LOSSES, model_of("llama"), tmp_path, save_every=2, keep_checkpoints=9)
    whole.run()
    whole.writer.wait()
    again = loop_that_finds(LOSSES, model_of("llama"), tmp_path, save_every=100)
    again.restore(tmp_path / "checkpoints" / f"checkpoint-{at}", [(s, loss) for s, loss in LOSSES.items() if s <= at])
    again.run()
    assert whole.finish() == again.finish() == 2
    for one, other in zip(whole.work.inner.parameters(), again.work.inner.parameters(), strict=True):
        assert torch.equal(one, other)


def test_best_weights_are_written_without_a_copy_and_given_back_once_they_are_on_the_disk(model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Step 2 is the best when checkpoint 3 begins, and step 4 is better while it is being written."""
    loop = loop_that_finds(LOSSES | {4: 2.0}, model_of("llama"), tmp_path, save_every=3)
    replaced, real, seen = Event(), snapshot._write, dict[str, Any]()

    def late(path: Path, state: Any) -> None:
        if path.name == "best-2.safetensors":
            seen["written"] = state
            assert replaced.wait(60)
        real(path, state)

    released: list[Any] = []

    def taken_back() -> bool:
        copies = [one for copy in released for one in (copy if isinstance(copy, list) else [copy])]
        return any(copy is seen["best"] for copy in copies)

    monkeypatch.setattr(snapshot, "_write", late)
    monkeypatch.setattr(loop.memory, "release", released.append)
    evaluated = loop.on_evaluation

    def on_evaluation(step: int, loss: float) -> bool:
        if step == 3:
            assert loop.best is not None
            seen["best"] = loop.best.weights
        if step == 4:
            assert not taken_back()
            replaced.set()
        return evaluated(step, loss)

    loop.on_evaluation = on_evaluation
    loop.run()
    loop.writer.wait()
    assert seen["written"] is seen["best"] and taken_back()


def test_the_checkpoint_of_the_best_step_writes_the_copy_that_is_there(
    model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, seen = loop_that_finds(LOSSES, model_of("llama"), tmp_path, save_every=2), dict[str, Any]()
    real = loop.writer.write

    def write(here: Path, files: Any, held: Any, *rest: Any, **more: Any) -> None:
        seen[here.name] = (
            [*files],
            {name: loop.best is not None and state is loop.best.weights for name, state in held.items()},
        )
        real(here, files, held, *rest, **more)

    monkeypatch.setattr(loop.writer, "write", write)
    loop.run()
    loop.writer.wait()
    assert seen["checkpoint-2"] == (["optimizer.pt"], {"model.safetensors": True})
    assert seen["checkpoint-4"] == (["model.safetensors", "optimizer.pt"], {})  # the best is linked
    assert seen["checkpoint-6"] == (["model.safetensors"], {})


def test_the_best_weights_stand_once_on_the_disk(model_of: Any, tmp_path: Path) -> None:
    loop = loop_that_finds(LOSSES, model_of("llama"), tmp_path, save_every=2, keep_checkpoints=9)
    loop.run()
    loop.writer.wait()
    first, second, third = complete_checkpoints(loop.directory)
    assert (second / "best-2.safetensors").stat().st_ino == (first / "model.safetensors").stat().st_ino
    assert (third / "best-2.safetensors").stat().st_ino == (first / "model.safetensors").stat().st_ino
    assert not list(first.glob("best-*"))
