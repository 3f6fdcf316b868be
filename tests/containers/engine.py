"""The container engine, for tests: commands with a time limit, and containers that are removed whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGE = "prefill:test"  # of the tests' own: prefill:local may be somebody's
HOST_IMAGE = "prefill:test-host"
# What is the tests' to decide, whatever .env says here: the variant, for one, that any engine can run; and one thread a
# stage, since several are played at once and threads that wait for each other keep the cores busy with it.
SETTINGS = {"ENV_FILE": "/dev/null", "VARIANT": "cpu", "OMP_NUM_THREADS": "1"}
ALL_CORES = {"OMP_NUM_THREADS": ""}  # for a stage: as many threads as there are cores, as when nobody says a number
WAITING = "--env OMP_WAIT_POLICY=passive"  # for `docker run`: a thread that waits leaves its core to others
CACHE = "prefill-test-cache"  # a volume, kept from one test session to the next
LABEL_NAME = "prefill-test"
LABEL = f"{LABEL_NAME}={os.getpid()}"  # whose container it is: several test sessions may share an engine
Done = subprocess.CompletedProcess[str]


def run(*argv: object, code: int | None = 0, timeout: float = 240, cwd: Path = ROOT, **env: object) -> Done:
    """Run a command; fails with what it said unless it ends with `code` (None: any)."""
    full = os.environ | SETTINGS | {name: str(value) for name, value in env.items()}
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, cwd=cwd, env=full, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )
    if code is not None and done.returncode != code:
        raise AssertionError(
            f"{' '.join(words)}: ended with {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
        )
    return done


def docker(*argv: object, code: int | None = 0, timeout: float = 240, **env: object) -> str:
    """`docker ...`; what it prints, without the last newline."""
    return run("docker", *argv, code=code, timeout=timeout, **env).stdout.rstrip("\n")


def stage(
    *argv: object, runs: Path, code: int | None = 0, timeout: float = 240, options: str = "", **env: object
) -> Done:
    """container/run.sh, as make calls it: `stage("run", "stage1", runs=...)`. `options`: more for `docker run`."""
    settings = {"IMAGE": IMAGE, "CACHE": CACHE, "RUNS": runs, "GPU": "none"} | env
    more = f"--label {LABEL} {WAITING} {options}"
    return run(ROOT / "container/run.sh", *argv, code=code, timeout=timeout, DOCKER_ARGS=more, **settings)


@contextmanager
def container(*argv: object, image: str = IMAGE) -> Iterator[str]:
    """A container in the background, by its id: `container("--network", "none", command=...)`; removed at the end.

    `argv` is what follows `docker run --detach`, the image and its command included.
    """
    identity = docker("run", "--detach", "--label", LABEL, *argv)
    try:
        yield identity
    finally:
        remove(identity)


def remove(*identities: str) -> None:
    """Containers with all they have. A paused one first has to go on: the engine waits for it without an end."""
    for identity in identities:
        docker("unpause", identity, code=None)
        docker("rm", "--force", "--volumes", identity, code=None)


def remove_what_tests_left() -> None:
    """Containers of this test session, and of those that are over."""
    rows = docker(
        "ps", "--all", "--filter", f"label={LABEL_NAME}", "--format", f'{{{{.ID}}}} {{{{.Label "{LABEL_NAME}"}}}}'
    )
    for row in rows.splitlines():
        identity, _, owner = row.partition(" ")
        if not owner.isdigit() or int(owner) == os.getpid() or not Path(f"/proc/{owner}").exists():
            remove(identity)


def inspect(identity: str) -> dict[str, Any]:
    (found,) = json.loads(docker("inspect", identity))
    return dict(found)


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 240) -> Any:
    """The first true value of `condition`, asked again and again; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s in vain: {what}")


def only_run(runs: Path, name: str) -> Path:
    """The directory of the one run of a stage."""
    (path,) = [path for path in (runs / name).iterdir() if path.is_dir()]
    return path
