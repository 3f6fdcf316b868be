"""Logs of JSON lines: readable while they grow, whole after a kill, rewound by a resume."""

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import DataError
from jobs.runs import atomic
from jobs.runs.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs", "stage3b", datetime(2026, 11, 22, 23, 45, 1))


def test_a_log_line_is_readable_at_once_and_writes_nan_as_null(run: RunDir) -> None:
    run.append_jsonl("train_log.jsonl", {"step": 1, "loss": float("inf"), "more": [float("nan"), {"a": 1.5}]})
    assert RunDir.open(run.path).read_jsonl("train_log.jsonl") == [
        {"step": 1, "loss": None, "more": [None, {"a": 1.5}]}
    ]


def test_a_log_that_is_not_there_has_no_lines(run: RunDir) -> None:
    assert run.read_jsonl("train_log.jsonl") == []


@given(
    lines=st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=2), max_size=4), cut=st.integers(1)
)
def test_a_torn_last_line_is_dropped_and_never_joined_with_the_next(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, object]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    whole = "".join(atomic.encode(line) + "\n" for line in lines).encode()
    torn = atomic.encode({"step": 12, "loss": 0.25}).encode()
    path.write_bytes(whole + torn[: cut % len(torn)])
    assert atomic.read_jsonl(path) == lines
    log = atomic.JsonlLog(path)
    log.append({"step": 13})
    log.close()
    assert atomic.read_jsonl(path) == [*lines, {"step": 13}]


def test_a_bad_line_in_the_middle_is_named(run: RunDir) -> None:
    (run.path / "eval_log.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match=r"eval_log\.jsonl:2: malformed JSON.*; delete the line"):
        run.read_jsonl("eval_log.jsonl")


def test_a_resumed_run_rewinds_its_log_to_the_checkpoint(run: RunDir) -> None:
    for step in range(1, 6):
        run.append_jsonl("train_log.jsonl", {"step": step})
    run.rewind_jsonl("train_log.jsonl", 3)
    run.append_jsonl("train_log.jsonl", {"step": 4, "again": True})
    assert [line["step"] for line in run.read_jsonl("train_log.jsonl")] == [1, 2, 3, 4]
    run.rewind_jsonl("eval_log.jsonl", 3)
    assert not (run.path / "eval_log.jsonl").exists()
