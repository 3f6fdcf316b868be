"""What goes wrong in a container: signals, kills, too little memory, a full or unwritable runs directory, a hang."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.errors import EXIT_DISK_FULL, EXIT_STOPPED, EXIT_USER
from jobs.runs.rundir import RunDir
from tests.containers import native
from tests.containers.engine import IMAGE, LABEL, ROOT, SETTINGS, docker, inspect, only_run, run, stage, wait_for
from tests.containers.test_stages import losses

# Long enough to be caught in the middle of it, with many checkpoints.
LONG = ("run", "stage3b", "--profile", "ci", "--set", "train.max_steps=200", "--set", "train.save_every=10", "--set",
        "train.eval_every=200", "--set", "train.learning_rate=1.0e-4")  # fmt: skip
KILLED = 137


@pytest.fixture(scope="module")
def undisturbed(few_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The losses of the long run when nothing happens to it."""
    runs = tmp_path_factory.mktemp("undisturbed")
    native.app(*LONG, runs=runs, PREFILL_CACHE=few_rows / "prefill")
    return losses(only_run(runs, "stage3b"))


def settings(runs: Path, cache: Path, more: str = "") -> dict[str, str]:
    return {
        "IMAGE": IMAGE,
        "CACHE": str(cache),
        "RUNS": str(runs),
        "GPU": "none",
        "DOCKER_ARGS": f"--label {LABEL} {more}",
    }


class Background:
    """container/run.sh in a process group of its own, as a shell with job control starts it."""

    def __init__(self, runs: Path, cache: Path, *argv: str) -> None:
        self.runs, self.cache = runs, cache
        self.process = subprocess.Popen(
            [ROOT / "container/run.sh", *argv], env=os.environ | SETTINGS | settings(runs, cache), cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def until_it_trains(self) -> Path:
        """The run's directory once there is a checkpoint to go on from."""

        def ready() -> Path | None:
            assert self.process.poll() is None, self.process.communicate()[0]
            found = list((self.runs / "stage3b").glob("*/checkpoints/checkpoint-*/complete.json"))
            return found[0].parents[2] if found else None

        return wait_for("a checkpoint", ready)

    def ended(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=240)
        return self.process.returncode, out


@pytest.fixture
def long_run(few_rows: Path, tmp_path: Path) -> Iterator[Background]:
    background = Background(tmp_path / "runs", few_rows, *LONG)
    yield background
    if background.process.poll() is None:
        os.killpg(background.process.pid, signal.SIGTERM)
        background.process.wait(60)


def container_of(background: Background) -> str:
    return docker("ps", "--quiet", "--filter", f"name=prefill-stage3b-{background.process.pid}$")


def goes_on(background: Background, path: Path, undisturbed: list[dict[str, float]]) -> None:
    """The rest of it, in the same run, to the losses that it would have had."""
    from app.training.checkpoint import (
        complete_checkpoints,  # here: it takes torch along, and every worker reads this file
    )

    newest = complete_checkpoints(path / "checkpoints")[-1]
    assert 0 < int(newest.name.removeprefix("checkpoint-")) < 200
    said = stage(*LONG, "--resume", runs=background.runs, CACHE=background.cache).stderr
    assert "resuming from" in said
    assert only_run(background.runs, "stage3b") == path and RunDir.open(path).state() == "complete"
    assert losses(path) == undisturbed


# ---- signals -----------------------------------------------------------------------------------------------------------


def test_docker_stop_saves_a_checkpoint_and_resume_goes_on_to_the_same_losses(
    long_run: Background, undisturbed: list[dict[str, float]]
) -> None:
    path = long_run.until_it_trains()
    docker("stop", container_of(long_run))
    code, said = long_run.ended()
    assert code == EXIT_STOPPED, said
    assert "Traceback" not in said and "stopped by a signal at step" in said and "the checkpoint is saved" in said
    assert RunDir.open(path).state() == "interrupted"
    goes_on(long_run, path, undisturbed)


def test_sigkill_leaves_an_interrupted_run_that_resumes_to_the_same_losses(
    long_run: Background, undisturbed: list[dict[str, float]]
) -> None:
    path = long_run.until_it_trains()
    docker("kill", container_of(long_run))
    code, said = long_run.ended()
    assert code == KILLED and "killed; the run counts as interrupted" in said
    assert RunDir.open(path).state() == "interrupted"
    goes_on(long_run, path, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_script_reaches_the_stage_once(long_run: Background, number: signal.Signals) -> None:
    """Ctrl-C in a shell without a terminal for the container: the whole process group gets it."""
    path = long_run.until_it_trains()
    identity = container_of(long_run)
    if number == signal.SIGINT:
        os.killpg(long_run.process.pid, number)
    else:
        os.kill(long_run.process.pid, number)
    code, said = long_run.ended()
    assert code == EXIT_STOPPED and "the checkpoint is saved" in said, said  # twice would be: interrupted at once
    assert RunDir.open(path).state() == "interrupted"
    assert not docker("ps", "--all", "--quiet", "--filter", f"id={identity}"), "the container is removed"


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM", "the terminal is closed"])
def test_in_a_terminal_too_it_saves_a_checkpoint(few_rows: Path, tmp_path: Path, how: str) -> None:
    process, terminal = pty.fork()
    if process == 0:
        given = os.environ | SETTINGS | settings(tmp_path, few_rows)
        os.execve(ROOT / "container/run.sh", ["run.sh", *LONG], given)
    said = b""

    def training() -> bool:
        nonlocal said
        if select.select([terminal], [], [], 0)[0]:
            said += os.read(terminal, 65536)
        return bool(list(tmp_path.glob("stage3b/*/checkpoints/checkpoint-*/complete.json")))

    def status() -> int | None:
        nonlocal said
        if how != "the terminal is closed" and select.select([terminal], [], [], 0)[0]:
            with suppress(OSError):  # the other end is closed
                said += os.read(terminal, 65536)
        pid, found = os.waitpid(process, os.WNOHANG)
        return os.waitstatus_to_exitcode(found) if pid else None

    try:
        wait_for("a checkpoint", training)
        if how == "ctrl-c":
            os.write(terminal, b"\x03")
        elif how == "SIGTERM":
            os.kill(process, signal.SIGTERM)
        else:
            os.close(terminal)
        ended = wait_for("the end of the script", lambda: [code] if (code := status()) is not None else None)
    finally:
        with suppress(OSError):
            os.close(terminal)
    (path,) = tmp_path.glob("stage3b/*")
    assert ended == [EXIT_STOPPED] and RunDir.open(path).state() == "interrupted", said.decode(errors="replace")


# ---- limits --------------------------------------------------------------------------------------------------------------


def manifest(runs: Path) -> dict[str, int]:
    return {str(path.relative_to(runs)): path.stat().st_mtime_ns for path in runs.rglob("*")}


def test_too_little_memory_is_named_and_earlier_runs_are_untouched(warm: Path) -> None:
    before = manifest(warm)
    done = stage("run", "stage2", "--profile", "ci", runs=warm, options="--memory 150m --memory-swap 150m", code=KILLED)
    assert done.stderr.strip().splitlines()[-1].startswith("error: run stage2: killed, out of memory; give it more")
    after = manifest(warm)
    assert {name: after.get(name) for name in before if name != "."} == {k: v for k, v in before.items() if k != "."}
    assert not list(warm.glob("stage2/*/summary.json"))


def test_a_full_volume_ends_with_its_own_code_and_keeps_what_was_there(warm: Path, few_rows: Path) -> None:
    volume = "prefill-test-full"
    docker("volume", "rm", "--force", volume)
    docker(
        "volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1500k,mode=1777", volume
    )
    # The volume lives as long as something has it mounted.
    keeper = docker(
        "run", "--detach", "--label", LABEL, "--volume", f"{volume}:/full", "--entrypoint", "sleep", IMAGE, "600"
    )
    options = f"--volume {volume}:/full --env PREFILL_RUNS=/full"
    try:
        stage("run", "stage1", "--profile", "ci", "--limit", "2", runs=warm, options=options, CACHE=few_rows)
        listing = "cd /full && find . -type f ! -path './stage3b/*' -exec sha256sum {} + | sort"
        before = docker("exec", keeper, "sh", "-c", listing)
        words = ("run", "stage3b", "--profile", "ci")
        done = stage(*words, runs=warm, options=options, CACHE=few_rows, code=EXIT_DISK_FULL)
        assert "no space left on the disk; free some space or choose another --runs-dir" in done.stderr
        assert "Traceback" not in done.stderr
        assert docker("exec", keeper, "sh", "-c", listing) == before
        left = docker(
            "exec",
            keeper,
            "find",
            "/full/stage3b",
            "-name",
            "summary.json",
            "-o",
            "-name",
            "*.tmp",
            "-o",
            "-name",
            "final",
        )
        assert left == ""
    finally:
        docker("rm", "--force", keeper)
        docker("volume", "rm", "--force", volume)


def refused_and_empty(done: subprocess.CompletedProcess[str], runs: Path, *words: str) -> None:
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert list(runs.iterdir()) == []


def test_a_read_only_runs_directory_is_refused(warm: Path, tmp_path: Path) -> None:
    options = f"--mount type=bind,src={tmp_path},dst=/readonly,readonly --env PREFILL_RUNS=/readonly"
    done = stage("run", "stage1", "--profile", "ci", runs=tmp_path, options=options, code=EXIT_USER)
    refused_and_empty(
        done, tmp_path, "/readonly/stage1: cannot be written: Read-only file system; choose another --runs-dir"
    )


def test_a_uid_that_may_not_write_is_refused_and_named(warm: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = stage("run", "stage1", "--profile", "ci", runs=tmp_path, options="--user 4242:4242", code=EXIT_USER)
    refused_and_empty(
        done, tmp_path, "cannot be written: Permission denied", "uid 4242", f"belongs to uid {os.getuid()}"
    )


# ---- a hang --------------------------------------------------------------------------------------------------------------


def test_a_stopped_trainer_turns_unhealthy_and_well_again_when_it_goes_on(few_rows: Path, tmp_path: Path) -> None:
    quick = "--health-interval 1s --health-start-period 0s --health-retries 1 --env PREFILL_HEALTH_SILENCE=7"
    endless = [
        *LONG[:4],
        "--set",
        "train.max_steps=100000",
        "--set",
        "train.eval_every=100000",
        "--set",
        "train.save_every=100000",
    ]
    command = run(ROOT / "container/run.sh", *endless, DRY_RUN=1, **settings(tmp_path, few_rows, quick)).stdout.replace(
        "docker run", "docker run -d", 1
    )
    identity = run("bash", "-c", command).stdout.strip()

    def health() -> tuple[str, str]:
        state = inspect(identity)["State"]
        assert state["Running"], docker("logs", identity)
        checks = state["Health"]["Log"] or [{"Output": ""}]
        return state["Health"]["Status"], checks[-1]["Output"]

    try:
        wait_for("training, and well", lambda: health()[0] == "healthy" and "train " in health()[1])
        trainer = (only_run(tmp_path, "stage3b") / "lock").read_text().split()[1]  # process 7 on 0123abcd
        docker("exec", identity, "kill", "-STOP", trainer)
        wait_for("unhealthy", lambda: health()[0] == "unhealthy", 60)
        assert "no heartbeat for" in health()[1] and "allowed 7 s" in health()[1]
        docker("exec", identity, "kill", "-CONT", trainer)
        wait_for("well again", lambda: health()[0] == "healthy", 60)
    finally:
        docker("rm", "--force", identity)
