"""`python -m vast` as a process of its own, with a scripted host: RUNS KILL SECONDS WORDS...

KILL: at which look it kills itself, and by which signal, such as 2 or 2:TERM; 0: never. `wait`: a supervisor in the background
interrupts its parent, as Ctrl-C does, and waits to be interrupted. SECONDS: on its clock, which nobody waits for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

from tests.vast.fakes.command_line import estimate_of, make_key
from tests.vast.fakes.fake_market import ManualClock
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast.__main__ import _flushed, main
from vast.commands.wiring import Wiring

START = 1_800_000_000.0


def living() -> bool:
    """Whether the fake of the market, at VAST_URL, still has a machine."""
    address = f"{os.environ['VAST_URL']}/api/v1/instances/"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {os.environ['VAST_API_KEY']}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bool(json.load(answer)["instances"])


if __name__ == "__main__":
    runs, kill, seconds, *words = sys.argv[1:]
    kill_at, _, name = kill.partition(":")
    number = signal.Signals[f"SIG{name or 'KILL'}"]
    asked = os.getpid()
    shell = ScriptedShell([running(60), running(120), ended()])

    def look(looks: int) -> None:
        if kill_at != "wait" and looks == int(kill_at):
            os.kill(os.getpid(), number)

    def make_shell(context: object) -> ScriptedShell:
        if kill_at == "wait" and os.getpid() != asked:
            os.kill(asked, signal.SIGINT)
            signal.pause()
        return shell

    shell.on_look, shell.alive = look, living
    wiring = replace(
        Wiring(estimate=lambda job, gpu, gpus: estimate_of()), home=Path(runs), clock=ManualClock(START + float(seconds)), which=lambda name: name,
        shell=make_shell, make_key=make_key,
    )  # fmt: skip
    sys.exit(_flushed(main([*words, "--runs-dir", runs], wiring)))
