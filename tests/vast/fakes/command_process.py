"""`python -m vast` as a process of its own, with a scripted host: RUNS KILL-AT-LOOK (0: never) SECONDS WORDS...

SECONDS: on its clock, which nobody waits for.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from tests.vast.fakes.fake_market import ManualClock
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast.__main__ import _flushed, main
from vast.commands.wiring import Wiring

START = 1_800_000_000.0


def make_key(directory: Path) -> str:
    (directory / "key").write_text("the private key")
    return "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEFha2U run"


if __name__ == "__main__":
    runs, kill_at, seconds, *words = sys.argv[1:]
    shell = ScriptedShell([running(60), running(120), ended()])

    def look(number: int) -> None:
        if number == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    shell.on_look = look
    wiring = replace(
        Wiring(estimate=lambda job, gpu, gpus: None), home=Path(runs), clock=ManualClock(START + float(seconds)), which=lambda name: name,
        shell=lambda context: shell, make_key=make_key,
    )  # fmt: skip
    sys.exit(_flushed(main([*words, "--runs-dir", runs], wiring)))
