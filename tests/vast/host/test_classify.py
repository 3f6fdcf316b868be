"""A job's last words give the reason of its end, and the same cause the same fingerprint."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vast.fakes import failures
from tests.vast.fakes.failures import ALL, Failure
from vast.host.classify import classify, last_failure
from vast.host.jobstate import END_REASONS
from vast.supervisor.reasons import REASONS


def end(failure: Failure, log: str | None = None) -> tuple[str, str | None]:
    found = classify(failure.exit_code, failure.log if log is None else log, END_REASONS.get(failure.exit_code, "bug"))
    return found.reason, found.fingerprint


@pytest.mark.parametrize("name", ALL)
def test_each_failure_has_its_reason(name: str) -> None:
    assert end(ALL[name])[0] == ALL[name].reason


def test_every_reason_is_one_of_the_supervisors_table() -> None:
    assert {failure.reason for failure in ALL.values()} <= REASONS.keys()


@pytest.mark.parametrize(("code", "reason"), [(0, "done"), (3, "nan"), (4, "no-learning"), (75, "stopped")])
def test_an_exit_code_of_ours_wins_over_the_log(code: int, reason: str) -> None:
    found = classify(code, failures.OOM.log, END_REASONS[code])
    assert found.reason == reason
    assert (found.fingerprint is None) == (code in (0, 75))


def test_a_warning_before_the_failure_is_no_reason() -> None:
    earlier = "retrying: ReadTimeout, CUDA out of memory in a probe, No space left on device\n" + "step\n" * 50
    assert end(failures.BUG, earlier + failures.BUG.log)[0] == "bug"
    assert end(failures.BUG, failures.OOM.log + "went on with less\n" * 30 + failures.BUG.log)[0] == "bug"


def test_a_traceback_that_was_handled_is_no_reason() -> None:
    log = failures.OOM.log + "".join(f"train: {n}/1200\r" for n in range(100)) + failures.SEGFAULT.log
    assert end(failures.SEGFAULT, log)[0] == "bug"
    assert (
        end(failures.KILLED, failures.OOM.log)[0] == "killed"
    )  # a signal has no words: these are about something else
    assert end(failures.KILLED, failures.XID.log)[0] == "gpu-fault"


def test_a_users_mistake_stays_one_although_its_words_sound_like_something_else() -> None:
    said = (
        "error: profile p: data.eval.path: /data/CUDA out of memory/gcc: not found does not exist; correct the path\n"
    )
    assert classify(2, said, "user").reason == "user"


# ---- fingerprints -----------------------------------------------------------------------------------------------------


def another_day(log: str) -> str:
    """The same cause on another machine: other numbers, addresses, directories, times, progress."""
    log = re.sub(r"0x[0-9a-f]+", "0x55d0deadbeef", log)
    log = log.replace("/opt/venv/lib/python3.11/site-packages", "/usr/lib/python3/dist-packages")
    log = log.replace("20261123-101500", "20270101-000000-2").replace(
        "5c2d1b70-5d3c-4f59-9d5e-3a6a1f2b8c11", "00000000-0000-4000-8000-00000000abcd"
    )
    log = re.sub(r"(?<=[ :=(])\d+(?=[ ,.)\n])", lambda match: str(int(match[0]) * 7 + 1), log)
    log = re.sub(r"\d+\.\d+ GiB", "3.25 GiB", log)
    return (
        "2027-01-01 03:04:05,678 INFO prefill started\ntrain:   1%|1  | 2/9\r"
        + log
        + "[runner 2027-01-01T03:04:06+00:00] x\n"
    )


@pytest.mark.parametrize("name", [name for name in ALL if name != "SILENT"])
def test_the_same_cause_has_the_same_fingerprint_on_another_day(name: str) -> None:
    assert another_day(ALL[name].log) != ALL[name].log
    assert end(ALL[name], another_day(ALL[name].log)) == end(ALL[name])


def test_different_causes_have_different_fingerprints() -> None:
    found = [end(failure)[1] for failure in ALL.values() if failure.reason != "stopped"]
    assert len(set(found)) == len(found)


def test_another_line_of_code_is_another_cause() -> None:
    other = failures.BUG.log.replace("in layout", "in pack")
    assert end(failures.BUG, other)[1] != end(failures.BUG)[1]


def test_another_exit_code_is_another_cause() -> None:
    """A process that was killed and one that failed leave the same last words: two such ends are no repeated failure."""
    assert classify(1, failures.BUG.log, "bug").fingerprint != classify(139, failures.BUG.log, "bug").fingerprint


def test_what_is_printed_after_a_traceback_does_not_change_its_fingerprint() -> None:
    after = failures.BUG.log + "wandb: 3 files synced\nException ignored in atexit callback\n"
    assert end(failures.BUG, after) == end(failures.BUG)


@given(st.text(max_size=400), st.sampled_from([1, 2, 28, 137, 139]))
def test_any_log_is_judged(log: str, code: int) -> None:
    found = classify(code, log, END_REASONS.get(code, "bug"))
    assert found.reason in REASONS and re.fullmatch("[0-9a-f]{16}", found.fingerprint or "")


def test_a_log_that_ends_in_a_traceback_without_its_exception_is_taken() -> None:
    assert last_failure('Traceback (most recent call last):\n  File "a.py", line 1, in b')[0].startswith("Traceback")
    assert classify(137, "Traceback (most recent call last):", "killed").reason == "killed"


def test_a_traceback_counts_until_too_many_lines_follow_it() -> None:
    """Of what follows, 20 lines may belong to it. With more than 60, the traceback was a handled one."""
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in b\nRuntimeError: CUDA out of memory\n'
    steps = [f"step {n}\n" for n in range(61)]
    near = last_failure(trace + "".join(steps[:59]))
    assert near[0].startswith("Traceback") and near[3:] == [line.strip() for line in steps[:19]]
    assert last_failure(trace + "".join(steps[:60])) == ["step 59"]


def test_without_a_traceback_the_last_twenty_lines_are_read() -> None:
    log = "error: the disk is gone\n" + "step\n" * 19
    assert last_failure(log) == ["error: the disk is gone"]
    assert last_failure(log + "step\n") == ["step"]
