"""What a start changes after a failure: once per failure, bounded, recorded, and standing from then on."""

from __future__ import annotations

import pytest

from tests.vast.fakes import failures
from vast.host.classify import last_failure
from vast.host.fixes import INSTALL, INSTALLER, LIMITS, Start, installing, job_arguments, missing_tool, used
from vast.policy import load


def repeated(reason: str, times: int, failure: str = "") -> list[Start]:
    """As many failures of one kind, each followed by a start."""
    lines: list[str] = []
    starts = []
    for _ in range(times):
        starts.append(Start(reason, lines, failure))
        lines += starts[-1].new
    return starts


def test_out_of_memory_halves_once_a_failure_and_later_starts_keep_it() -> None:
    first = Start("cuda-oom", [])
    assert first.halvings == 1 and len(first.new) == 1
    for reason in ("bug", "killed", "stopped", None):
        later = Start(reason, list(first.new))
        assert (later.new, later.halvings) == ((), 1)
    assert Start("cuda-oom", list(first.new)).halvings == 2


@pytest.mark.parametrize("reason", LIMITS)
def test_every_fix_has_an_end(reason: str) -> None:
    starts = repeated(reason, LIMITS[reason] + 3, failures.NO_GCC.log)
    assert [bool(start.new) for start in starts] == [True] * LIMITS[reason] + [False] * 3
    assert starts[-1].halvings == (LIMITS[reason] if reason == "cuda-oom" else 0)
    assert not (starts[-1].prune or starts[-1].unlock or starts[-1].tool)


def test_the_bounds_leave_room_for_what_the_shipped_policy_allows() -> None:
    retries = load().retries
    assert all(retries.of(reason) <= limit for reason, limit in LIMITS.items())


@pytest.mark.parametrize("reason", ["bug", "killed", "nan", "stopped", "gpu-fault", "done", None])
def test_other_reasons_change_nothing(reason: str | None) -> None:
    assert vars(Start(reason, [])) == {
        "new": (),
        "halvings": 0,
        "environment": {},
        "tool": None,
        "prune": False,
        "unlock": False,
    }


def test_the_hub_is_waited_for_longer_each_time_and_from_then_on() -> None:
    waits = [start.environment["HF_HUB_DOWNLOAD_TIMEOUT"] for start in repeated("hub-timeout", 4)]
    assert waits == ["60", "120", "240", "240"]
    line = repeated("hub-timeout", 1)[0].new
    assert line == ("hub-timeout: waits 60 s for an answer",)
    assert Start("killed", list(line)).environment == {
        "HF_HUB_DOWNLOAD_TIMEOUT": "60",
        "HF_HUB_ETAG_TIMEOUT": "60",
    }


def test_what_another_machine_had_halved_is_taken_over_once() -> None:
    start = Start(None, [], halved_before=2)
    assert start.halvings == 2 and used("cuda-oom", start.new) == 2
    assert Start("killed", list(start.new)).halvings == 2
    assert Start("cuda-oom", list(start.new)).halvings == 3


@pytest.mark.parametrize(("said", "halvings"), [(-1, 0), (0, 0), (3, 3), (4, 3), (10**6, 3)])
def test_what_another_machine_says_of_its_halvings_is_bounded(said: int, halvings: int) -> None:
    """environment.json came from it: a number without bound filled the memory of each machine after it."""
    start = Start(None, [], halved_before=said)
    assert start.halvings == len(start.new) == halvings


@pytest.mark.parametrize(
    ("log", "tool"), [(failures.NO_GCC.log, "C compiler"), (failures.NO_GIT.log, "git"),
                      ("FileNotFoundError: [Errno 2] No such file or directory: 'gcc'", "gcc"),
                      ("FileNotFoundError: [Errno 2] No such file or directory: 'rm -rf'", None),
                      ("tar: gcc: not found", "gcc"), ("nvcc: not found", None), ("libgcc: not found", None)],
)  # fmt: skip
def test_only_known_tools_are_installed(log: str, tool: str | None) -> None:
    failure = "\n".join(last_failure(log))
    assert missing_tool(failure) == tool
    assert Start("missing-tool", [], failure).tool == tool


def test_the_job_comes_after_the_installation_in_the_same_process() -> None:
    assert installing(None, ["prefill", "run"]) == ["prefill", "run"]
    assert installing("C compiler", ["prefill", "run"]) == ["sh", "-c", INSTALL, "C compiler", "prefill", "run"]
    assert Start("missing-tool", [], "git: not found").new == (f"missing-tool: git installed by {INSTALLER}",)


@pytest.mark.parametrize(
    ("given", "halvings", "again", "expected"),
    [
        ("run s --limit 4", 0, False, "run s --limit 4 --continue"),
        ("run s --continue", 1, False, "run s --continue --halve-memory 1"),
        ("run s --resume", 0, True, "run s --resume"),
        ("run s --force", 0, False, "run s --force"),
        ("run s --force", 2, True, "run s --continue --halve-memory 2"),
        ("report --out x", 2, True, "report --out x"),
    ],
)
def test_a_stage_goes_on_with_what_there_is(given: str, halvings: int, again: bool, expected: str) -> None:
    assert job_arguments(given.split(), halvings, again) == expected.split()
