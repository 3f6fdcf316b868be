"""This machine's side of a rented run, for tests: a runs directory, and shells that come and go as supervisors do."""

from __future__ import annotations

from pathlib import Path

from tests.vast.fakes.directory_host import DIRECT, NONCE, PROGRAM, PROXY, RUN, DirectoryTransport
from tests.vast.fakes.fake_market import ManualClock
from vast.ports import Pulled
from vast.shell.hostshell import HostShell
from vast.shell.local_copy import LocalCopy

BOTH = (DIRECT, PROXY)
CHECKPOINT = f"{RUN}/checkpoints/checkpoint-"


class Ours:
    def __init__(self, runs: Path, way: DirectoryTransport) -> None:
        self.runs, self.way, self.run = runs, way, runs / RUN
        self.own = runs / "vast" / "stage3b-20261123-101400"
        self.own.mkdir(parents=True)

    def shell(self) -> HostShell:
        return HostShell(self.way, LocalCopy(self.runs, self.own), NONCE, ManualClock(), lambda: True, program=PROGRAM)

    def pull(self, everything: bool = False) -> Pulled:
        pulled = self.shell().pull(BOTH, everything)
        assert pulled is not None
        return pulled

    def files(self) -> set[str]:
        return {path.relative_to(self.runs).as_posix() for path in self.runs.rglob("*") if path.is_file()}
