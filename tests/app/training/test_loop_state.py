"""What a training loop writes and goes on from: checkpoints, made while it trains."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier, Event, get_ident
from typing import Any

import pytest
import torch

from app.training import checkpoint, snapshot
from app.training.checkpoint import complete_checkpoints, mark_complete
from app.training.loop import TrainingLoop
from app.training.master_weights import MasterAdamW, linear_weights
from app.training.optimizers import parameter_groups
from app.training.saved import probe_logits
from jobs.errors import CheckpointError
from tests.app.training.test_loop import prepared_loop, rows


def test_a_checkpoint_that_is_there_counts_no_longer_once_it_is_being_written_again(model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A kill while it is written would leave the old mark over files of two attempts."""
    old = tmp_path / "checkpoints" / "checkpoint-1"
    old.mkdir(parents=True)
    (old / "rng_state_1.pth").write_bytes(b"of a process that there is no longer")
    mark_complete(old)
    seen: list[list[str]] = []

    def killed(*_: Any) -> None:
        seen.append([path.name for path in old.glob("*")])
        raise KeyboardInterrupt

    monkeypatch.setattr("app.training.snapshot.save_rng", killed)
    with pytest.raises(KeyboardInterrupt):
        prepared_loop(model_of("llama"), tmp_path, max_steps=1, save_every=1).run()
    assert seen == [[]]


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_output_layer_is_not_missing_in_a_checkpoint(tied: bool, model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama", tie_word_embeddings=tied)
    found = {name: weight + 1 for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    if not tied:
        with pytest.raises(CheckpointError, match=r"it has no weight lm_head\.weight.*start anew with --force"):
            snapshot.named_alike(found, model, tmp_path)
        return
    alike = snapshot.named_alike(found, model, tmp_path)
    assert alike.keys() == dict(model.named_parameters()).keys()
    # And under the other of the two names, as the version before wrote it for some models.
    found["lm_head.weight"] = found.pop("model.embed_tokens.weight")
    assert torch.equal(
        snapshot.named_alike(found, model, tmp_path)["model.embed_tokens.weight"], found["lm_head.weight"]
    )


@pytest.mark.parametrize("how", ["adamw", "masters", "halved masters"])
def test_a_restored_loop_goes_on_as_if_nothing_had_happened(how: str, model_of: Any, tmp_path: Path) -> None:
    def make(model: Any) -> Any:
        if how == "adamw":
            return None
        return MasterAdamW(
            parameter_groups(model, 0.0), lr=1e-3, halved=linear_weights(model) if "halved" in how else ()
        )

    def loop() -> TrainingLoop:
        model = model_of("llama", attention_dropout=0.0)
        return prepared_loop(model, tmp_path, optimizer=make if how != "adamw" else None, max_steps=6, save_every=3,
                             bf16="halved" in how, keep_checkpoints=9)  # fmt: skip

    whole, again = loop(), loop()
    whole.run()
    whole.writer.wait()
    again.restore(tmp_path / "checkpoints" / "checkpoint-3", [])
    again.run()
    assert [row["loss"] for row in rows(again)] == [row["loss"] for row in rows(whole)][3:]
    whole.finish(), again.finish()
    for one, other in zip(whole.work.inner.parameters(), again.work.inner.parameters(), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


def test_checkpoints_fit_the_other_way_of_stepping(model_of: Any, tmp_path: Path) -> None:
    """A run that began on a GPU goes on on a CPU, and the other way round."""
    masters = lambda m: MasterAdamW(parameter_groups(m, 0.1), lr=1e-3, halved=linear_weights(m))  # noqa: E731
    first = prepared_loop(model_of("llama"), tmp_path, optimizer=masters, max_steps=3, save_every=2, bf16=True)
    first._beat = lambda step: setattr(first, "stopped", step == 2)  # type: ignore[method-assign]
    first.run()
    first.writer.wait()
    second = prepared_loop(model_of("llama"), tmp_path / "other", max_steps=5, save_every=4, weight_decay=0.1)
    second.restore(tmp_path / "checkpoints" / "checkpoint-2", [])
    assert second.work.optimizer.param_groups[0]["weight_decay"] == 0.1
    first.finish()
    for one, other in zip(first.work.inner.parameters(), second.work.inner.parameters(), strict=True):
        assert torch.equal(one, other)
    second.run()
    second.writer.wait()
    third = prepared_loop(model_of("llama"), tmp_path / "third", optimizer=masters, max_steps=5, bf16=True)
    third.restore(tmp_path / "other" / "checkpoints" / "checkpoint-4", [])
    assert isinstance(third.work.optimizer, MasterAdamW) and float(third.work.optimizer.steps) == 4


def test_the_finished_model_computes_in_float32_again(model_of: Any, tmp_path: Path) -> None:
    """What is written is compared with it: autocast around its forward pass would be a difference."""
    masters = lambda m: MasterAdamW(parameter_groups(m, 0.0), lr=1e-3, halved=linear_weights(m))  # noqa: E731
    loop = prepared_loop(model_of("llama"), tmp_path, optimizer=masters, bf16=True)
    loop.run()
    loop.finish()
    plain = model_of("llama")
    plain.load_state_dict(loop.whole_model().state_dict())
    assert torch.equal(probe_logits(loop.whole_model()), probe_logits(plain))


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_loaded(model_of: Any, tmp_path: Path) -> None:
    first = prepared_loop(model_of("llama"), tmp_path, max_steps=1, save_every=1)
    first.run()
    first.finish()
    other = prepared_loop(model_of("llama", intermediate_size=64), tmp_path)
    with pytest.raises(CheckpointError, match=r"has the shape \[48, 32\], the model's \[64, 32\]"):
        other.restore(tmp_path / "checkpoints" / "checkpoint-1", [])


def test_a_checkpoint_without_the_best_weights_is_refused(model_of: Any, tmp_path: Path) -> None:
    """The last ones would be kept in their place, and the run would go on as if they were the best."""
    settings: dict[str, Any] = dict(max_steps=2, save_every=2, keep="best")
    loop = prepared_loop(model_of("llama"), tmp_path, **settings)
    loop.run()
    loop.writer.wait()
    again = prepared_loop(model_of("llama"), tmp_path / "again", **settings)
    with pytest.raises(CheckpointError, match=r"best-1\.safetensors: no such file.*start anew with --force"):
        again.restore(tmp_path / "checkpoints" / "checkpoint-2", [(0, 3.0), (1, 1.0), (2, 2.0)])


def test_the_logs_of_a_run_are_on_the_disk_before_its_checkpoint_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, flushed = tmp_path / "checkpoints" / "checkpoint-1", list[tuple[str, bool]]()
    here.mkdir(parents=True)
    for path in (here / "weights", tmp_path / "train_log.jsonl", tmp_path / "eval_log.jsonl"):
        path.write_text("1\n")
    monkeypatch.setattr(
        checkpoint, "_flush", lambda path: flushed.append((path.name, (here / checkpoint.MARK).exists()))
    )
    mark_complete(here)
    assert sorted(flushed) == [("eval_log.jsonl", False), ("train_log.jsonl", False), ("weights", False)]


def test_an_error_of_the_thread_that_writes_ends_training(model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.training.snapshot._write", full)
    with pytest.raises(OSError, match="No space left"):
        prepared_loop(model_of("llama"), tmp_path, max_steps=4, save_every=1).run()
    last = prepared_loop(model_of("llama"), tmp_path / "last", max_steps=4, save_every=4)
    last.run()
    last.finish()
    with pytest.raises(OSError, match="No space left"):
        last.writer.wait()


@pytest.mark.parametrize("copied", [True, False])
def test_the_files_of_a_copy_are_written_at_once_and_those_of_the_gpu_one_by_one(copied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(snapshot, "free_memory", lambda: float("inf") if copied else 0.0)
    real, both, threads = snapshot._write, Barrier(2), set[int]()

    def write(path: Path, state: Any) -> None:
        if copied:
            both.wait(60)
        threads.add(get_ident())
        real(path, state)

    monkeypatch.setattr(snapshot, "_write", write)
    writer, files = snapshot.Writer(), {name: {"w": torch.ones(3)} for name in (snapshot.WEIGHTS, snapshot.OPTIMIZER)}
    writer.write(tmp_path / "checkpoint-1", files, {}, {}, lambda: None)
    writer.wait()
    assert complete_checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]
    assert len(threads) == 2 and get_ident() not in threads if copied else threads == {get_ident()}


@pytest.mark.parametrize("memory", [float("inf"), 0.0])
def test_a_checkpoint_is_of_the_step_that_it_names_whatever_is_trained_meanwhile(memory: float, model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Written in a thread that starts late; without the memory for a copy it is written at once."""
    monkeypatch.setattr("app.training.snapshot.free_memory", lambda: memory)
    loop = prepared_loop(model_of("llama"), tmp_path, max_steps=5, save_every=2, keep_checkpoints=9)
    trained, real, then = Event(), snapshot._write, {}

    def late(path: Path, state: Any) -> None:
        if memory:
            assert trained.wait(60)
        real(path, state)

    monkeypatch.setattr("app.training.snapshot._write", late)
    launch = loop._launch

    def launched(passes: Any) -> None:
        if loop.step in (2, 4):
            then[loop.step] = {name: w.clone() for name, w in loop.work.weights().items()}
        launch(passes)
        if loop.step in (3, 5):
            trained.set()

    loop._launch = launched  # type: ignore[method-assign]
    loop.run()
    loop.writer.wait()
    for step, weights in then.items():
        found = snapshot.load_tensors(loop.directory / f"checkpoint-{step}" / snapshot.WEIGHTS)
        assert all(torch.equal(found[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("every", "keep", "step", "copies"),
    [
        (2, "best", 0, 3),
        (2, "last", 0, 1),
        (4, "best", 0, 2),
        (2, "best", 2, 2),
        (3, "last", 0, 0),
        (3, "best", 0, 2),
        (2, "last", 1, 1),
    ],
)
def test_memory_for_copies_is_taken_while_training_runs_and_no_longer(every: int, keep: str, step: int, copies: int, model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Of weights and moments for checkpoints, twice of the best weights; beside what is compiled both would take long.

    An error too ends the thread that takes it.
    """

    def broken(step: int) -> None:
        raise OSError("no kernel")

    loop = prepared_loop(model_of("llama"), tmp_path, max_steps=3, save_every=every, keep=keep)
    loop.step = step  # of a checkpoint that it goes on from
    calls: list[str] = []
    launch, evaluate = loop._launch, loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda: calls.append("evaluate") or evaluate())  # type: ignore[func-returns-value]
    monkeypatch.setattr(loop, "_launch", lambda passes: launch(passes) or calls.append("launch"))  # type: ignore[func-returns-value]
    monkeypatch.setattr(loop.writer, "reserve", lambda *states: calls.append(f"reserve {len(states)}"))
    monkeypatch.setattr(loop.memory, "stop", lambda: calls.append("stop"))
    monkeypatch.setattr(loop, "_beat", broken)
    with pytest.raises(OSError, match="no kernel"):
        loop.run()
    assert calls == [*["evaluate"] * (step == 0), "launch", f"reserve {copies}", "stop"]


def test_a_run_that_is_to_stop_waits_for_no_memory(
    model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, calls = prepared_loop(model_of("llama"), tmp_path), list[str]()
    monkeypatch.setattr(loop.memory, "stop", lambda: calls.append("stop"))
    monkeypatch.setattr(loop.writer, "write", lambda *_, **__: calls.append("write"))
    loop.stopped = True
    loop._save()
    assert calls == ["stop", "write"]


@pytest.mark.parametrize("ends", [3, 4])
def test_the_checkpoint_after_which_no_step_follows_has_no_moments(ends: int, model_of: Any, tmp_path: Path) -> None:
    """They are two thirds of it, and the stage's end would wait for them. ends: by an evaluation, or with the last step."""

    def begun() -> TrainingLoop:
        return prepared_loop(model_of("llama"), tmp_path, max_steps=4, save_every=1, eval_every=1, keep_checkpoints=9)

    loop = begun()
    loop.on_evaluation = lambda step, loss: step == ends
    loop.run()
    loop.writer.wait()
    found = complete_checkpoints(loop.directory)
    assert [(one / snapshot.OPTIMIZER).is_file() for one in found] == [True] * (ends - 1) + [False]
    again = begun()
    again.ended = ends == 3
    again.restore(found[-1], [])
    again.run()
    assert again.step == ends
    for one, other in zip(loop.work.inner.parameters(), again.work.inner.parameters(), strict=True):
        assert torch.equal(one, other)
    (found[0] / snapshot.OPTIMIZER).unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: no such file"):
        begun().restore(found[0], [])
