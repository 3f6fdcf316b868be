"""The command line in this process: a fake API, a scripted host, a clock that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from jobs.errors import UserError
from jobs.estimate.estimate import Estimate
from tests.vast.fakes.fake_market import KEY, ManualClock
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast.__main__ import main
from vast.commands.wiring import ShellContext, Wiring
from vast.records.run_dir import Folder, folders
from vast.rental.image_registry import Found, Image
from vast.shell.hostshell import HostShell

IMAGE = "registry.example/you/prefill:1"
UP = ("up", "stage3b", "--profile", "ci", "--yes")
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEFha2U run"


KILLED = 128 + 9


class Killed(BaseException):
    """kill -9 of this process: no handler of an error sees it."""


def make_key(directory: Path) -> str:
    (directory / "key").write_text("the private key")
    return PUBLIC_KEY


def die_at(number: int) -> Callable[[int], None]:
    """For ScriptedShell.on_look: the supervisor dies at that look, and at each later one."""

    def look(looks: int) -> None:
        if looks >= number:
            raise Killed

    return look


@dataclass
class World:
    fake: FakeVast
    clock: ManualClock
    runs: Path
    shell: ScriptedShell = field(default_factory=lambda: ScriptedShell([running(60), running(120), ended()]))
    environ: dict[str, str] = field(default_factory=dict)
    contexts: list[ShellContext] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)  # programs that are not on PATH
    hours: float | None = None  # what the estimate says
    pullable: Found | Image = "there"  # what the image's registry says
    memory: float | None = None
    engine: str | UserError = "test"
    change: Callable[[Wiring], Wiring] = lambda wiring: wiring

    def wiring(self) -> Wiring:
        def make(context: ShellContext) -> HostShell:
            self.contexts.append(context)
            context.folder.nonce()  # the real one reads both
            context.folder.kept_policy()
            self.shell.alive = lambda: bool(self.fake.market.living())
            return self.shell

        def engine(environ: object) -> Any:
            if isinstance(self.engine, UserError):
                raise self.engine
            return None, self.engine

        made = replace(
            Wiring(estimate=lambda job, gpu, gpus: self.estimate(gpu), registry=lambda image, login: self.pulled()),
            environ={"VAST_URL": self.fake.url, "VAST_API_KEY": KEY, **self.environ},
            engine=engine, home=self.runs / "nobody", clock=self.clock, shell=make, make_key=make_key,
            which=lambda name: None if name in self.missing else f"/usr/bin/{name}",
        )  # fmt: skip
        return self.change(made)

    def pulled(self) -> Image:
        return Image(self.pullable) if isinstance(self.pullable, str) else self.pullable

    def estimate(self, gpu: str) -> Estimate:
        """Of every GPU the same; `memory`: GB that the job needs, of which an RTX 4090 has 24."""
        if self.memory is None:
            return estimate_of(self.hours)
        have = {"RTX 4090": 24.0, "A100 SXM4": 80.0}[gpu]
        return estimate_of(self.hours, self.memory, self.memory <= 0.94 * have, "set train.micro_batch_size=1")

    def vast(self, *words: str, **more: Any) -> Result:
        """The exit code and what was printed; a mistake of a user as `main` prints it."""
        if words[0] == "up":
            words = (*words, *([] if "--image" in words else ["--image", IMAGE]))
        if words[0] not in ("offers", "simulate"):
            words = (*words, "--runs-dir", str(self.runs))
        return CliRunner().invoke(_Main(), list(words), obj=self.wiring(), **more)  # type: ignore[arg-type]

    def left_running(self) -> Folder:
        """A run whose job goes on and whose supervisor is dead."""
        self.shell = ScriptedShell([running(step) for step in range(1, 500)], on_look=die_at(3))
        assert self.vast(*UP).exit_code == KILLED
        self.shell.on_look = lambda look: None
        self.shell.calls.clear()
        return self.folder

    @property
    def folder(self) -> Folder:
        return folders(self.runs)[-1]


def estimate_of(
    hours: float | None = None, peak_gb: float | None = None, fits: bool | None = None, remedy: str = ""
) -> Estimate:
    return Estimate("TEST", 1, 80.0, "none", hours=hours, peak_gb=peak_gb, fits=fits, remedy=remedy)


class _Main:
    """What CliRunner calls: `main` of vast/__main__.py, so that its errors and exit codes are tested too."""

    name = "vast"

    def main(self, args: list[str], prog_name: str, obj: Wiring, **_: Any) -> None:
        try:
            raise SystemExit(main(args, obj))
        except Killed:
            raise SystemExit(KILLED) from None
