"""A job started on a host goes on by itself, and what became of it can be read."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs import errors, lock
from tests import warm_python
from tests.vast.fakes.host import ROOT, Host, gone, until
from vast.host.runner import runs_directory

# Says that it is there, and ends well as soon as it may.
WAITS = """
import os, time
print("job", os.getpid(), file=open("up", "w"))
while not os.path.exists("go"):
    time.sleep(0.01)
print("the job is through")
"""


def let_go(host: Host) -> None:
    (host.work / "go").touch()


# ---- start ------------------------------------------------------------------------------------------------------------


def test_start_returns_while_the_job_goes_on(host: Host) -> None:
    state = host.start(WAITS)  # its output are pipes here: it returns only if neither runner nor job holds them
    assert (state["schema"], state["phase"], state["attempt"], state["exit_code"]) == (1, "running", 1, None)
    assert (state["runner_alive"], state["job_alive"]) == (True, True)
    assert host.file("up") == f"job {state['job']['pid']}"
    let_go(host)
    ended = host.ask("wait")
    assert (ended["phase"], ended["exit_code"], ended["end_reason"], ended["signal"]) == ("ended", 0, "done", None)
    assert ended["started"].endswith("+00:00") and ended["started"] <= ended["ended"]
    assert "the job is through\n" in host.log()


def test_no_other_descriptor_of_the_caller_is_kept(host: Host) -> None:
    reading, writing = os.pipe()
    argv = [*host.argv("start", "--command", sys.executable), "--", "-c", WAITS]
    subprocess.run(argv, cwd=host.work, env={**os.environ, "PYTHONPATH": str(ROOT)}, pass_fds=(writing,), check=True, timeout=60,
                   capture_output=True)  # fmt: skip
    os.close(writing)
    assert select.select([reading], [], [], 0)[0] and os.read(reading, 1) == b""
    os.close(reading)
    assert host.ask("status")["job_alive"]


def test_the_job_survives_the_death_of_its_starters_process_group(host: Host) -> None:
    start = [*host.argv("start", "--command", sys.executable), "--", "-c", WAITS]
    session = subprocess.Popen(
        ["sh", "-c", '"$@"; exec sleep 1000', "sh", *start], cwd=host.work, env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    host.file("up")
    os.killpg(session.pid, signal.SIGHUP)
    os.killpg(session.pid, signal.SIGKILL)
    session.wait()
    state = host.ask("status")
    for role in ("runner", "job"):
        os.kill(state[role]["pid"], signal.SIGHUP)
    let_go(host)
    assert host.ask("wait")["end_reason"] == "done"


def test_the_job_gets_the_callers_environment_and_nothing_else(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFILL_RUNS", "results")
    code = """
import json, os, sys
seen = {
    "environment": dict(os.environ), "cwd": os.getcwd(), "arguments": sys.argv[1:], "stdin": sys.stdin.read(),
    "descriptors": sorted(os.listdir("/proc/self/fd"))[:-1],  # without that of the listing
    "state": json.load(open(sys.argv[1] + "/state.json")),
}
print(json.dumps(seen))
"""
    host.start(code, str(host.directory), "--runs", "a b")
    state = host.ask("wait")
    seen = json.loads(next(line for line in host.log().splitlines() if line.startswith("{")))
    # LC_CTYPE is what every Python sets for itself where the locale is C (PEP 538).
    environments = [seen["environment"], {**os.environ, "PYTHONPATH": str(ROOT)}]
    first, second = ({name: value for name, value in one.items() if name != "LC_CTYPE"} for one in environments)
    assert first == second
    assert (seen["cwd"], seen["stdin"]) == (str(host.work), "")
    assert seen["arguments"] == [str(host.directory), "--runs", "a b"] == state["command"][3:]
    assert seen["descriptors"] == ["0", "1", "2"]
    assert state["runs_dir"] == str(host.work / "results")
    # The state named the job before it ran its first line.
    assert (seen["state"]["phase"], seen["state"]["job"]) == ("running", state["job"])


def test_the_job_receives_every_signal_but_the_end_of_the_session(host: Host) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}  # as nohup and shells do
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        # Not Python, which has its own mind about SIGPIPE.
        host.call("start", "--command", "grep", "--", "-E", "^Sig(Ign|Blk)", "/proc/self/status")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert host.ask("wait")["exit_code"] == 0
    ordinary = (1 << 31) - 1  # signals 1 to 31: what comes after is the C library's, and may be inherited as it is
    masks = {
        name: int(mask, 16) & ordinary for name, mask in re.findall(r"^Sig(\w+):\s*(\w+)$", host.log(), re.MULTILINE)
    }
    assert masks == {"Ign": 1 << signal.SIGHUP - 1, "Blk": 0}


def test_a_second_start_is_refused_while_the_job_runs_and_changes_nothing(host: Host) -> None:
    state = host.start(WAITS)
    host.file("up")
    before = (host.written(), host.log())
    done = host.call("start", "--command", sys.executable, "--", "-c", WAITS)
    assert (done.returncode, done.stdout) == (2, "")
    holder = rf"is in use by process {state['runner']['pid']} on \S+; wait for it, or stop it"
    assert re.fullmatch(rf"error: {re.escape(str(host.directory))}: {holder}\n", done.stderr)
    assert (host.written(), host.log()) == before


def test_of_several_starts_at_once_one_wins(host: Host) -> None:
    command = [*host.argv("start", "--command", sys.executable), "--", "-c", WAITS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    starts = [
        warm_python.Warm(command, cwd=host.work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(5)
    ]
    said = [start.communicate(timeout=60)[1] for start in starts]
    assert sorted(start.returncode for start in starts) == [0, 2, 2, 2, 2]
    assert sorted(text.count(b"\n") for text in said) == [0, 1, 1, 1, 1]
    assert host.log().count("attempt 1: started") == 1


def test_after_an_end_start_begins_the_next_attempt_and_keeps_the_last(host: Host) -> None:
    for number, code in enumerate(("exit(3)", "exit(75)", "print('third')"), start=1):
        assert host.start(code)["attempt"] == number
        until(lambda: host.ask("status")["phase"] == "ended")  # the runner itself may live on for a moment
    state = host.ask("wait")
    assert (state["attempt"], state["end_reason"]) == (3, "done")
    assert [(one["attempt"], one["exit_code"], one["end_reason"]) for one in state["history"]] == [
        (1, 3, "nan"),
        (2, 75, "stopped"),
    ]
    assert state["history"][0]["command"] == [sys.executable, "-c", "exit(3)"]
    assert re.findall(r"attempt \d: ended.*|third", host.log())[-1].startswith("attempt 3: ended, exit code 0: done")
    assert "attempt 1: ended, exit code 3: nan" in host.log()


def test_start_waits_for_a_runner_that_has_written_its_end_to_let_go(host: Host) -> None:
    host.start("exit(0)")
    host.ask("wait")
    held = lock.hold(host.directory / "lock")
    release = threading.Timer(0.5, held.close)
    release.start()
    assert host.start("exit(0)")["attempt"] == 2
    release.join()


def test_a_command_that_is_not_there_is_one_clear_line_and_an_end(host: Host) -> None:
    done = host.call("start", "--command", "no-such-program", "--", "x")
    assert (done.returncode, done.stdout) == (2, "")
    fact = "no-such-program: cannot be started: No such file or directory; name an executable with --command"
    assert done.stderr == f"error: {fact}\n"
    assert fact in host.log()
    state = host.ask("status")
    assert (state["phase"], state["exit_code"], state["end_reason"]) == ("ended", 2, "user")


# ---- ends -------------------------------------------------------------------------------------------------------------


ENDS = [
    ("exit(0)", 0, None, "done"),
    ("1/0", 1, None, "bug"),
    ("exit(2)", 2, None, "user"),
    ("exit(3)", 3, None, "nan"),
    ("exit(4)", 4, None, "no-learning"),
    ("exit(28)", 28, None, "disk-full"),
    ("exit(75)", 75, None, "stopped"),
    ("exit(99)", 99, None, "bug"),
    ("exit(137)", 137, None, "killed"),  # of a shell whose child was killed
    ("import os; os.kill(os.getpid(), 9)", 137, "SIGKILL", "killed"),
    ("import os; os.kill(os.getpid(), 15)", 143, "SIGTERM", "killed"),
    ("import os; os.kill(os.getpid(), 11)", 139, "SIGSEGV", "bug"),
]


@pytest.mark.parametrize(("code", "exit_code", "name", "reason"), ENDS)
def test_exit_code_signal_and_reason_are_recorded(
    host: Host, code: str, exit_code: int, name: str | None, reason: str
) -> None:
    host.start(code)
    done = host.call("wait")
    assert done.returncode == exit_code
    state = host.written()
    assert (state["phase"], state["exit_code"], state["signal"], state["end_reason"]) == (
        "ended",
        exit_code,
        name,
        reason,
    )


def test_every_exit_code_of_the_project_has_a_case_above() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes <= {exit_code for _, exit_code, _, _ in ENDS}


def test_what_the_job_leaves_behind_ends_with_it(host: Host) -> None:
    host.start("import subprocess; print(subprocess.Popen(['sleep', '1000']).pid, file=open('child', 'w'))")
    assert host.call("wait").returncode == 0
    assert gone(int(host.file("child")))
    assert "killed what the job left behind: 1 process(es)" in host.log()


def test_wait_ends_with_124_when_the_time_is_over(host: Host) -> None:
    host.start(WAITS)
    done = host.call("wait", "--timeout", "0.3")
    assert (done.returncode, done.stdout) == (124, "")
    assert done.stderr == f"error: {host.directory}: the job still runs after 0.3 s; wait again, or stop it\n"
    assert host.ask("status")["job_alive"]


# ---- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "runs", "expected"),
    [
        (["prefill", "run", "stage1"], None, "/runs"),
        (["/usr/local/bin/prefill", "run", "stage1"], "/data", "/data"),
        (["prefill", "run", "stage1", "--runs-dir", "here"], "/data", "/cwd/here"),
        (["prefill", "run", "stage1", "--runs-dir=/there"], "/data", "/there"),
        (["sh", "-c", "x"], None, None),
        (["sh", "-c", "x"], "runs", "/cwd/runs"),
    ],
)
def test_where_the_runs_are_follows_option_environment_and_image(
    command: list[str], runs: str | None, expected: str | None
) -> None:
    assert runs_directory(command, runs, Path("/cwd")) == expected


@pytest.mark.parametrize(
    ("argv", "fact"),
    [
        (["status", "--dir", "none"], "none: no job was started here; start one: python3 -m vast.host.runner start"),
        (["stop", "--dir", "none"], "none: no job was started here"),
        (["wait", "--dir", "none"], "none: no job was started here"),
        (["stop", "--dir", "none", "--grace", "-1"], "argument --grace: invalid number of seconds value: '-1'; see"),
        (["wait", "--dir", "none", "--timeout", "nan"], "argument --timeout: invalid number of seconds value: 'nan'"),
        (["start", "--", "run"], "the following arguments are required: --dir"),
        (["start", "--dir", "none", "run"], "unrecognized arguments: run"),
        (
            ["start", "--dir", "file/below", "--", "run"],
            "file/below: cannot be used: Not a directory; choose another --dir",
        ),
        ([], "the following arguments are required: ACTION"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(host: Host, argv: list[str], fact: str) -> None:
    (host.work / "file").touch()
    command = [sys.executable, "-S", "-m", "vast.host.runner", *argv]
    done = warm_python.run(command, cwd=host.work, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ") and fact in done.stderr
