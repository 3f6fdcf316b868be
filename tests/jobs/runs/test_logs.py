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


LINES = b'{"step": 10, "loss": 2.0}\n{"step": 11, "loss": 1.5}\n'


def resumed(run: RunDir, content: bytes, *checkpoints: int) -> list[int]:
    """The steps of the log once the run is reopened with these checkpoints."""
    run.close()
    (run.path / "train_log.jsonl").write_bytes(content)
    for step in checkpoints:
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
        (run.checkpoints / f"checkpoint-{step}/complete.json").write_text("{}")
    with RunDir.reopen(run.path) as again:
        return [line["step"] for line in again.read_jsonl("train_log.jsonl")]


@pytest.mark.parametrize(
    "torn", [b'{"step": 12, "lo', b'{"step": 12, "loss": 1', b"\0" * 30, b"\xff\xfe", b"[" * 99999]
)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_resume_cuts_off_a_damaged_last_line(
    torn: bytes, end: bytes, run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    assert resumed(run, LINES + torn + end, 11, 8) == [10, 11]
    assert (run.path / "train_log.jsonl").read_bytes() == LINES
    assert [one.message.partition(": ")[2] for one in caplog.records] == [
        "its last line was damaged, as by a power cut, and is cut off"
    ]


@pytest.mark.parametrize(
    ("content", "checkpoints", "line"),
    [
        (LINES + b"\0\n", (12, 15), 3),  # it may be step 12: a run that goes on from there never logs it again
        (LINES + b'{"step": 12, "lo\n', (12,), 3),
        (LINES + b'{"step": 12, "lo\n', (), 3),
        (b"\0\n" + LINES, (11,), 1),
        (LINES + b'\0\0\n{"step": 13}\n', (11,), 3),
    ],
)
def test_damage_that_no_checkpoint_makes_good_is_refused(
    content: bytes, checkpoints: tuple[int, ...], line: int, run: RunDir
) -> None:
    with pytest.raises(DataError, match=rf"train_log\.jsonl:{line}: malformed JSON.*; delete the line"):
        resumed(run, content, *checkpoints)
    assert (run.path / "train_log.jsonl").read_bytes() == content


def test_a_log_of_whole_lines_stays_as_it_is(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    assert resumed(run, LINES, 8) == [10, 11] and resumed(run, b"", 8) == [] and not caplog.records


def test_a_resumed_run_rewinds_its_log_to_the_checkpoint(run: RunDir) -> None:
    for step in range(1, 6):
        run.append_jsonl("train_log.jsonl", {"step": step})
    run.rewind_jsonl("train_log.jsonl", 3)
    run.append_jsonl("train_log.jsonl", {"step": 4, "again": True})
    assert [line["step"] for line in run.read_jsonl("train_log.jsonl")] == [1, 2, 3, 4]
    run.rewind_jsonl("eval_log.jsonl", 3)
    assert not (run.path / "eval_log.jsonl").exists()
