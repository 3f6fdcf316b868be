"""A job starts under an armed switch only, and after what mends its last failure. Real processes."""

from __future__ import annotations

import os
from pathlib import Path

from jobs import lock
from jobs.errors import EXIT_STOPPED
from tests.vast.fakes import failures
from tests.vast.fakes.host import gone, until
from tests.vast.fakes.rented import WAITS, Rented, make_checkpoint, make_run
from vast.host.fixes import INSTALLER
from vast.host.start import prune


def dies(failure: failures.Failure) -> str:
    return f"import sys\nprint('words:', sys.argv[1:], flush=True)\nsys.stderr.write({failure.log!r})\nsys.exit({failure.exit_code})"


def words_of(machine: Rented) -> list[list[str]]:
    """The arguments of each attempt, as the job printed them."""
    return [eval(line.partition(" ")[2]) for line in machine.log().splitlines() if line.startswith("words:")]


# ---- start --------------------------------------------------------------------------------------------------------------


def refused(machine: Rented, fact: str) -> None:
    done = machine.call("start", "--command", "touch", "--", "ran")
    assert (done.returncode, done.stdout) == (EXIT_STOPPED, "")
    assert done.stderr.startswith("error: ") and fact in done.stderr and done.stderr.count("\n") == 1
    assert not (machine.work / "ran").exists()


def test_no_job_starts_without_an_armed_switch(machine: Rented) -> None:
    refused(machine, "the dead-man's switch is not armed: no living process watches")
    watchdog = machine.arm()
    watchdog.kill()
    watchdog.wait()
    assert not machine.look()["watchdog"]["armed"]  # although its state says so
    refused(machine, "no living process watches")


def test_a_switch_without_its_key_is_not_armed(machine: Rented) -> None:
    machine.arm(key="")
    refused(machine, "CONTAINER_ID or CONTAINER_API_KEY is missing")
    assert "CONTAINER_API_KEY" in machine.look()["message"]


def test_runs_of_two_machines_have_different_names(machine: Rented) -> None:
    """A run that came home under a name that is taken could not be fetched, and was destroyed with its machine."""
    machine.arm()
    for _ in range(2):
        machine.start(
            "import os; open('serials', 'a').write(os.environ['PREFILL_RUN_SERIAL'] + '\\n')", "run", "stage3b"
        )
        machine.ended()
    serials = (machine.work / "serials").read_text().split()
    assert len(set(serials)) == 2 and all(serial.isdecimal() and int(serial) > 1 for serial in serials)


def test_a_second_start_of_a_job_that_runs_is_fine(machine: Rented) -> None:
    machine.arm()
    assert machine.start(WAITS, "run", "stage3b") == {"started": True, "attempt": 1}
    assert machine.start(WAITS, "run", "stage3b") == {"started": False, "attempt": 1}
    until((machine.work / "up").exists)
    assert words_of(machine) == [["run", "stage3b", "--continue"]]


def test_each_failure_is_named_and_its_fix_applied_recorded_and_kept(machine: Rented) -> None:
    machine.arm()
    machine.start(dies(failures.OOM), "run", "stage3b")
    first = machine.ended()
    assert (first["end_reason"], first["exit_code"], first["fixes"]) == ("cuda-oom", 1, [])
    machine.start(dies(failures.READ_TIMEOUT), "run", "stage3b")
    assert machine.ended()["end_reason"] == "hub-timeout"
    code = (
        "import os; print('words:', __import__('sys').argv[1:]); print('waits', os.environ['HF_HUB_DOWNLOAD_TIMEOUT'])"
    )
    machine.start(code, "run", "stage3b")
    last = machine.ended()
    assert (last["attempt"], last["end_reason"], last["fingerprint"]) == (3, "done", None)
    assert last["fixes"] == [
        "cuda-oom: memory halved, the batch stays",
        "hub-timeout: waits 60 s for an answer",
    ]
    halved = ["run", "stage3b", "--continue", "--halve-memory", "1"]
    assert words_of(machine) == [["run", "stage3b", "--continue"], halved, halved]
    assert "waits 60\n" in machine.log()


def test_the_same_bug_twice_is_deterministic_and_another_one_is_not(machine: Rented) -> None:
    machine.arm()
    ends = []
    for failure in (failures.BUG, failures.ILLEGAL, failures.BUG):
        machine.start(dies(failure), "run", "stage3b")
        job = machine.ended()
        ends.append((job["end_reason"], job["fingerprint"]))
    assert [reason for reason, _ in ends] == ["bug", "bug", "deterministic"]
    assert ends[0][1] == ends[2][1] != ends[1][1]


def test_the_log_of_an_earlier_attempt_explains_nothing_about_this_one(machine: Rented) -> None:
    machine.arm()
    for failure, reason in ((failures.OOM, "cuda-oom"), (failures.SILENT, "bug")):
        machine.start(dies(failure), "run", "stage3b")
        assert machine.ended()["end_reason"] == reason


def test_a_run_halved_on_another_machine_goes_on_halved_here(machine: Rented) -> None:
    machine.arm()
    make_run(machine.root, **{"environment.json": '{"halve_memory": 2}'})
    machine.start("print('words:', __import__('sys').argv[1:])", "run", "stage3b")
    assert len(machine.ended()["fixes"]) == 2
    assert words_of(machine) == [["run", "stage3b", "--continue", "--halve-memory", "2"]]


def test_a_missing_tool_is_installed_by_the_image_in_front_of_the_job(machine: Rented) -> None:
    machine.arm()
    for _ in range(2):  # an image without an installer: the job is tried again as it is
        machine.start(dies(failures.NO_GIT), "run", "stage3b")
        job = machine.ended()
        assert (job["end_reason"], job["fixes"]) == ("missing-tool", [])
    installer = machine.work / INSTALLER
    installer.write_text('#!/bin/sh\necho "asked for $@"\nexit 3\n')
    installer.chmod(0o755)
    path = f"{machine.work}:{os.environ['PATH']}"
    machine.start("print('words:', __import__('sys').argv[1:])", "run", "stage3b", "--set", "a=b c", PATH=path)
    assert machine.ended()["end_reason"] == "done"
    lines = machine.log().splitlines()  # the runner writes its own in between
    assert [line for line in lines if line.startswith(("[fix]", "asked"))] == [
        f"[fix] {INSTALLER} git", "asked for git", "[fix] exit code 3",
    ]  # fmt: skip
    assert words_of(machine)[-1] == ["run", "stage3b", "--set", "a=b c", "--continue"]


def test_after_a_full_disk_what_is_at_home_goes_and_the_newest_stays(machine: Rented) -> None:
    machine.arm()
    run = make_run(machine.root)
    kept = [make_checkpoint(run, step) for step in (100, 200, 300)]
    torn = make_checkpoint(run, 400, complete=False)
    machine.start(dies(failures.OUR_FULL), "run", "stage3b")
    assert machine.ended()["end_reason"] == "disk-full"
    machine.ask("files")
    assert list((machine.root / ".hold").rglob("checkpoint-300"))
    machine.start("", "run", "stage3b", home="stage3b/20261123-101500/checkpoints/checkpoint-200")
    assert [path.exists() for path in (*kept, torn)] == [False, False, True, False]
    assert not list((machine.root / ".hold").rglob("checkpoint-300"))
    assert machine.ended()["fixes"] == ["disk-full: checkpoints that are at home removed"]


def test_the_newest_checkpoint_stays_although_it_is_at_home_and_other_runs_are_not_touched(tmp_path: Path) -> None:
    run, done = (
        make_run(tmp_path),
        make_run(tmp_path, "stage1/20261122-000000", **{"summary.json": "", "manifest.json": ""}),
    )
    kept = [make_checkpoint(run, 300), make_checkpoint(done, 100), make_checkpoint(done, 200)]
    gone_now = [make_checkpoint(run, 200)]
    other = make_checkpoint(make_run(tmp_path, "stage3b/20261123-111111"), 100)
    make_checkpoint(other.parents[1], 200)

    def checkpoints() -> set[Path]:
        return set(tmp_path.glob("*/*/checkpoints/*"))

    before = checkpoints()
    assert {*kept, *gone_now, other} < before
    prune(tmp_path, "stage3b/20261123-101500/checkpoints/checkpoint-300")
    assert before - checkpoints() == set(gone_now)
    prune(tmp_path, None)
    assert before - checkpoints() == set(gone_now)


def test_what_a_link_among_the_stages_leads_to_is_not_pruned(tmp_path: Path) -> None:
    elsewhere = make_run(tmp_path / "elsewhere")
    kept = [make_checkpoint(elsewhere, step) for step in (100, 200)]
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "stage3b").symlink_to(elsewhere.parent)
    prune(tmp_path / "root", "stage3b/20261123-101500/checkpoints/checkpoint-200")
    assert all(path.exists() for path in kept)


def test_without_a_full_disk_nothing_is_pruned(machine: Rented) -> None:
    machine.arm()
    kept = make_checkpoint(make_run(machine.root), 100)
    make_checkpoint(kept.parents[1], 200)
    machine.start(dies(failures.KILLED), "run", "stage3b")
    machine.ended()
    machine.start("", "run", "stage3b", home="stage3b/20261123-101500/checkpoints/checkpoint-200")
    assert kept.exists()


def test_stale_locks_of_the_hub_go_and_those_that_are_held_stay(machine: Rented) -> None:
    machine.arm()
    locks = machine.work / "hf/hub/.locks/models--a--b"
    locks.mkdir(parents=True)
    (locks / "stale.lock").touch()
    with lock.hold(locks / "held.lock"):
        machine.start(dies(failures.HF_LOCK), "run", "stage3b")
        assert machine.ended()["end_reason"] == "stale-lock"
        machine.start("", "run", "stage3b", HF_HOME=str(machine.work / "hf"))
        assert [path.name for path in locks.iterdir()] == ["held.lock"]


def test_a_lost_job_that_still_runs_is_ended_before_the_next_attempt(machine: Rented) -> None:
    machine.arm()
    machine.start(WAITS, "run", "stage3b")
    until((machine.work / "up").exists)
    machine.kill_runner()
    assert machine.job()["phase"] == "lost"
    refused(machine, "the last job outlived its runner and is being ended")
    until(lambda: gone(int((machine.work / "up").read_text())), "the end of the job")
    assert machine.start("", "run", "stage3b") == {"started": True, "attempt": 2}
