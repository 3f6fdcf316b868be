"""vast.shell.hostshell.HostShell over a host that is a few lines of script: what a look shows, one entry a look."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vast.ports import Address, BurnIn, Host, JobReport, Pulled, always

RUN = "stage3b/20270115-080100"


def host(job: JobReport | None, **more: object) -> Host:
    fields: dict[str, object] = {"gpu_percent": 97.0, "gpu_memory_percent": 81.0, **more}
    return Host("ok", "boot-1", True, job, **fields)  # type: ignore[arg-type]


def running(step: int, **more: object) -> Host:
    fields: dict[str, object] = {"loss": 2.0 - step / 1000, "tokens_per_s": 9100.0, "beat_age": 2.0, **more}
    return host(JobReport("running", 1, run=RUN, step=step, total=300, **fields))  # type: ignore[arg-type]


def ended(reason: str = "done", code: int = 0, complete: bool = True, attempt: int = 1, **more: object) -> Host:
    return host(JobReport("ended", attempt, code, reason, run=RUN, step=300, total=300, complete=complete, **more))  # type: ignore[arg-type]


@dataclass
class ScriptedShell:
    """`script`: what each look shows once the job was started; the last entry stays."""

    script: list[Host]
    calls: list[str] = field(default_factory=list)
    started: bool = False
    stopped: bool = False
    complete: bool = False
    on_look: Callable[[int], None] = lambda number: None
    looks: int = 0
    checkpoint: str | None = None  # at home
    text: bytes = b"job: hello\n"
    burned_in: list[BurnIn | None] = field(default_factory=lambda: [BurnIn(True)])  # the last entry stays
    home_path: Path | None = None  # a pull of all writes the run there
    alive: Callable[[], bool] = lambda: True  # a machine that is destroyed answers no more

    def probe(self, addresses: tuple[Address, ...]) -> Host:
        if not self.alive():
            return Host("unreachable")
        if not self.started:
            return host(JobReport("absent"))
        self.looks += 1
        self.on_look(self.looks)
        if self.stopped:
            return ended("stopped", 75, complete=False)
        return self.script[min(self.looks, len(self.script)) - 1]

    def start(self, addresses: tuple[Address, ...], command: tuple[str, ...], home: str | None = None,
              proceed: Callable[[], bool] = always) -> bool | None:  # fmt: skip
        self.calls.append("start " + " ".join(command))
        self.started = True
        return True

    def burn_in(self, addresses: tuple[Address, ...], seconds: float) -> BurnIn | None:
        self.calls.append("burn-in")
        return self.burned_in[0] if len(self.burned_in) == 1 else self.burned_in.pop(0)

    def push(self, addresses: tuple[Address, ...], proceed: Callable[[], bool] = always) -> bool | None:
        self.calls.append("push")
        return True

    def stop(self, addresses: tuple[Address, ...]) -> bool | None:
        self.calls.append("stop")
        self.stopped = True
        return True

    def renew_lease(self, addresses: tuple[Address, ...], until_deadline: float) -> bool | None:
        self.calls.append("renew")
        return True

    def pull(
        self, addresses: tuple[Address, ...], everything: bool, proceed: Callable[[], bool] = always
    ) -> Pulled | None:
        self.calls.append("pull everything" if everything else "pull")
        self.complete = everything and not self.stopped
        if self.home_path is not None:
            self.home_path.mkdir(parents=True, exist_ok=True)
            (self.home_path / "summary.json").write_text(json.dumps({"run": RUN}))
        return self.local_copy()

    def local_copy(self) -> Pulled | None:
        return Pulled(True, RUN, self.checkpoint, self.complete, 1_000_000)

    def network_is_up(self) -> bool:
        return True

    def log(
        self, addresses: tuple[Address, ...], tail: int | None = None, follow_from: int | None = None
    ) -> tuple[str, int] | None:
        offset = follow_from if follow_from is not None and follow_from <= len(self.text) else 0
        if tail is not None:
            offset = len(self.text) - len(b"".join(self.text.splitlines(keepends=True)[-tail:]))
        return self.text[offset:].decode(), len(self.text)

    def close(self) -> None:
        self.calls.append("close")
