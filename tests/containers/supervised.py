"""A scene: machines for rent, and the supervisor in a container of its own. Scenes share nothing and can be played at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from jobs.runs.rundir import RunDir
from tests.containers.engine import IMAGE, container, docker, only_run, wait_for
from tests.containers.rented import DIRECT, PULLED_FROM, Hosts, Network, market
from tests.vast.fakes.fake_market import KEY
from tests.vast.fakes.fake_vast import FakeVast

STAGE = "stage3b"
PATIENCE = 500.0  # seconds: a bound for what takes 40 on an idle machine, and took 300 beside five others
# Seconds in place of minutes where something is waited for; deadlines that a machine with other work to do still keeps.
POLICY: dict[str, Any] = {
    "cadence": {"early_minutes": [0.05], "stable_minutes": 0.05, "alert_minutes": 0.05, "provisioning": 1.0, "urgent": 1.0},
    "pause": {"first": 1.0, "longest": 1.0, "jitter": 0.0},
    "caps": {"dollars": 1.0, "hours": 0.5, "reserve_minutes": 1.5},
    "deadlines": {"search": 120.0, "loading": 240.0, "ssh": 240.0, "collecting": 240.0, "away": 240.0},
    "unreachable": {"looks": 2, "seconds": 2.0, "replace_after": 240.0},
    "reconcile": {"listings": 2, "spacing": 1.0, "visible_after": 2.0, "late": 2.0},
    "burn_in": {"enabled": False},  # these machines have no GPU
    "confirm_after": 1.0,
    "absence_spacing": 1.0,
    "destroy": {"first_pause": 1.0, "longest_pause": 2.0, "alarm_tries": 4},
    "pull_minutes": 0.03,
    "watchdog": {"renew": 20.0, "silent": 600.0, "grace": 30.0, "slack_minutes": 5.0},
}  # fmt: skip
# 80 small steps: a few seconds, a checkpoint after every 20th.
STEPS, EVERY = 80, 20
SIZES = {"batch_size": 2, "micro_batch_size": 1, "max_length": 64}
TRAIN = {"max_steps": STEPS, "save_every": EVERY, "eval_every": STEPS} | SIZES
# The job is frozen at its first checkpoint, so that what a test does next comes in the midst of it, however fast it is.
HOLD = f"""shopt -s nullglob
until held=(/runs/{STAGE}/*/checkpoints/checkpoint-{EVERY}/complete.json); ((${{#held[@]}})); do sleep 0.2; done
kill -STOP -- "-$(sed -n '/"job": {{/,/}}/s/.*"pid": \\([0-9]*\\).*/\\1/p' /runs/.runner/state.json)" && touch /mnt/held"""
SIGNAL = """kill "-$0" -- "-$(sed -n '/"job": {/,/}/s/.*"pid": \\([0-9]*\\).*/\\1/p' /runs/.runner/state.json)" """
# $0: where to put process id, exit code and output. A shell waits, so that a killed supervisor has an exit code too.
BACKGROUND = """python -m vast "$@" > "$0.out" 2>&1 &
echo $! > "$0.pid"; wait $!; echo $? > "$0.tmp"; mv "$0.tmp" "$0.code"
"""


@dataclass
class Watcher:
    """A supervisor in the background."""

    scene: Scene
    name: str

    def __post_init__(self) -> None:
        self._path = self.scene.watch / self.name

    @property
    def output(self) -> str:
        path = self._path.with_suffix(".out")
        return path.read_text(errors="replace") if path.exists() else ""

    def looks(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("time=")]

    def code(self) -> str:
        path = self._path.with_suffix(".code")
        return path.read_text().strip() if path.exists() else ""

    def kill(self) -> None:
        self.scene.inside("kill", "-KILL", self._path.with_suffix(".pid").read_text().strip())
        assert self.ended(10) == 128 + 9

    def says(self, words: str, seconds: float = PATIENCE) -> None:
        wait_for(f"{self.name} to say {words!r}", lambda: words in self.output, seconds)

    def ended(self, seconds: float = PATIENCE) -> int:
        """The exit code, once it is there."""
        return int(wait_for(f"the end of {self.name}", self.code, seconds))


@dataclass
class Scene:
    fake: FakeVast
    hosts: Hosts
    ours: str  # the supervisor's container
    scratch: Path
    serial: Iterator[int] = field(default_factory=lambda: count(1))
    watchers: list[Watcher] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.scratch / "runs"

    @property
    def watch(self) -> Path:
        return self.scratch / "watch"

    # ---- the supervisor

    def inside(self, *argv: str, code: int | None = 0, **env: str) -> str:
        """In the supervisor's container; values of `env` are handed on by name, so that they stand in no argv."""
        env |= {"VAST_URL": self.fake.url, "VAST_HOST_URL": self.fake.url, "VAST_API_KEY": KEY}
        names = [word for name in env for word in ("--env", name)]
        return docker("exec", *names, self.ours, *argv, code=code, timeout=60, **env)

    def vast(self, *words: str, code: int | None = 0) -> str:
        return self.inside("python", "-m", "vast", *words, code=code)

    def background(self, *words: str, **env: str) -> Watcher:
        watcher = Watcher(self, f"{words[0]}-{next(self.serial)}")
        self.watchers.append(watcher)
        env |= {"VAST_URL": self.fake.url, "VAST_HOST_URL": self.fake.url, "VAST_API_KEY": KEY}
        names = [word for name in env for word in ("--env", name)]
        docker("exec", "--detach", *names, self.ours, "sh", "-c", BACKGROUND, f"/watch/{watcher.name}", *words, **env)
        wait_for("the supervisor's process", (self.watch / f"{watcher.name}.pid").exists, 20)
        return watcher

    def up(self, *words: str, image: str = f"{PULLED_FROM}{IMAGE}", **env: str) -> Watcher:
        """`vast up`, not waited for."""
        sets = [word for name, value in TRAIN.items() for word in ("--set", f"train.{name}={value}")]
        options = ["--profile", "ci", "--image", image, "--policy", "/watch/policy.yaml", "--yes"]
        return self.background("up", STAGE, *options, *sets, *words, **env)

    # ---- the host

    def host(self, seconds: float = PATIENCE) -> str:
        """The container of the one machine, once it runs."""
        return str(wait_for("a machine", self.hosts.only, seconds))

    def on_host(self, *argv: str, host: str | None = None, code: int | None = 0) -> str:
        return docker("exec", host or self.hosts.only(), *argv, code=code, timeout=60)

    def job(self, host: str | None = None) -> dict[str, Any]:
        """The runner's state.json, {} while there is none."""
        text = self.on_host("cat", "/runs/.runner/state.json", host=host, code=None)
        return dict(json.loads(text)) if text else {}

    def held(self, seconds: float = PATIENCE) -> str:
        """The container of the machine, once its job is frozen behind its first checkpoint."""
        host = self.host()
        (number,) = self.hosts.living()
        docker("exec", "--detach", host, "bash", "-c", HOLD)
        wait_for("a job at its first checkpoint", (self.hosts.given(number) / "held").exists, seconds)
        return host

    def signal(self, name: str, host: str | None = None) -> None:
        """To the job, all of its processes."""
        self.on_host("bash", "-c", SIGNAL, name, host=host)

    # ---- at home

    @property
    def folder(self) -> Path:
        (path,) = (self.runs / "vast").glob(f"{STAGE}-*")
        return path

    def journal(self) -> list[dict[str, Any]]:
        path = self.folder / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]

    def state(self) -> dict[str, Any]:
        return dict(self.journal()[-1]["state"])

    def happened(self) -> list[str]:
        return [what for _, what in self.state()["history"]]

    def checkpoint_at_home(self) -> bool:
        return bool(list((self.runs / STAGE).glob(f"*/checkpoints/checkpoint-{EVERY}/complete.json")))

    def results(self, steps: int = STEPS) -> dict[str, Any]:
        """metrics.json of the one run that is here, whole, with every hash of its manifest."""
        run = RunDir.open(only_run(self.runs, STAGE))
        assert run.state() == "complete" and run.verify() == []
        assert (run.final / "model.safetensors").stat().st_size > 1_000_000
        metrics = json.loads((run.path / "metrics.json").read_text())
        assert metrics["train"]["steps"] == steps
        return dict(metrics)

    def nothing_is_left(self, machines: int) -> None:
        """What holds at the end of every scene."""
        assert self.hosts.failures == []
        assert self.hosts.living() == [] and self.hosts.left() == []
        assert self.hosts.most <= 1, f"{self.hosts.most} machines at a time"
        assert len(self.fake.market.rentals) == machines
        keys = [KEY.encode(), *(rental.api_key.encode() for rental in self.fake.market.rentals.values())]
        for path in [*self.runs.rglob("*"), *self.watch.rglob("*")]:
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                assert not any(key in data for key in keys), f"a key in {path}"

    def story(self) -> str:
        """What there is to read when something went wrong."""
        parts = [f"== {one.name}: exit code {one.code() or '-'}\n{one.output[-6000:]}" for one in self.watchers]
        calls = re.sub(r"\b(\w+)( \1)+\b", r"\1 ...", " ".join(one.endpoint or "?" for one in self.fake.requests))
        parts.append(f"== calls\n{calls[-2000:]}\n== failures of the engine\n{self.hosts.failures}")
        for path in (self.runs / "vast").glob("*/log.txt"):
            parts.append(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}")
        if list((self.runs / "vast").glob("*/journal.jsonl")):
            last = self.journal()[-1]
            parts.append(f"== journal\n{json.dumps(last, indent=1)[-6000:]}")
        for number in self.hosts.containers:
            self.hosts.keep(number)
            for path in self.hosts.kept(number).glob("*"):
                parts.append(f"== machine {number}: {path.name}\n{path.read_text(errors='replace')[-2500:]}")
        return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Stage:
    """Where scenes are played. `cache`: what machines have as /cache."""

    network: Network
    scratch: Path
    cache: Path

    @contextmanager
    def scene(
        self, name: str, *, offers: int = 3, options: tuple[str, ...] = (), direct: int = DIRECT, **policy: Any
    ) -> Iterator[Scene]:
        """`policy`: sections in place of POLICY's, key by key. Everything is removed at the end."""
        scratch = self.scratch / name
        for part in ("runs", "watch", "hosts"):
            (scratch / part).mkdir(parents=True)
        chosen = dict(POLICY)
        for key, value in policy.items():
            chosen[key] = {**POLICY[key], **value} if isinstance(value, dict) else value
        (scratch / "watch/policy.yaml").write_text(yaml.safe_dump(chosen))
        # ssh asks who the user is, and the image knows two.
        (scratch / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\nme:x:{os.getuid()}:{os.getgid()}::/tmp:/bin/sh\n")
        volumes = [f"{scratch}/runs:/runs", f"{scratch}/watch:/watch", f"{scratch}/passwd:/etc/passwd:ro"]
        given = [word for volume in volumes for word in ("--volume", volume)]
        user = f"{os.getuid()}:{os.getgid()}"
        with market(self.network.gateway, offers) as fake:
            hosts = Hosts(fake, self.network, scratch / "hosts", self.cache, *options, direct=direct)
            try:
                with container("--network", self.network.name, "--user", user, "--env", "HOME=/tmp", *given,
                               "--entrypoint", "sleep", IMAGE, "1800") as ours:  # fmt: skip
                    scene = Scene(fake, hosts, ours, scratch)
                    try:
                        yield scene
                    except BaseException as error:
                        error.add_note(scene.story())
                        raise
            finally:
                hosts.remove()
