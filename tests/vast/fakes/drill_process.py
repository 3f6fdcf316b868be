"""`python -m vast drill` many times at once: reads scenes as JSON from standard input, and forks a process for each.

A scene is {"directory", "url", "start", "factor", "script", "words"}. Its directory gets the files pid, out, err and code. script:
"machines" of tests/vast/fakes/machines.py, or a scripted host whose job "ends" or is "endless".
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.vast.fakes.command_line import estimate_of, make_key
from tests.vast.fakes.fake_market import KEY
from tests.vast.fakes.machines import PROGRAM, FastClock, MachineTransport
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast.__main__ import _flushed, main
from vast.commands.wiring import ShellContext, Wiring
from vast.rental.image_registry import Image
from vast.shell.hostshell import HostShell
from vast.shell.local_copy import LocalCopy


def play(scene: dict[str, Any]) -> int:
    directory, clock = Path(scene["directory"]), FastClock(scene["start"], scene["factor"])
    runs = directory / "runs"

    def shell(context: ShellContext) -> HostShell:
        folder = context.folder
        if scene["script"] == "machines":
            way = MachineTransport(directory / "machines", Path((directory / "secrets").read_text()))
            copy = LocalCopy(runs, folder.path)
            return HostShell(way, copy, folder.nonce(), clock, lambda: True, program=PROGRAM)
        last = ended() if scene["script"] == "ends" else running(120)
        made = ScriptedShell([running(60), running(120), last])
        made.alive = lambda: not (directory / "gone").exists()
        return made

    environ = {"VAST_URL": scene["url"], "VAST_HOST_URL": scene["url"], "VAST_API_KEY": KEY, "PATH": os.environ["PATH"]}
    wiring = replace(
        Wiring(estimate=lambda job, gpu, gpus: estimate_of()), environ=environ, home=directory, clock=clock, which=lambda name: name,
        shell=shell, make_key=make_key, registry=lambda image, login: Image("there"),
    )  # fmt: skip
    return _flushed(main([*scene["words"], "--runs-dir", str(runs)], wiring))


def begin(scene: dict[str, Any]) -> None:
    """In a process of its own, whose output goes to files."""
    if os.fork():
        return
    directory = Path(scene["directory"])
    (directory / "pid").write_text(str(os.getpid()))
    for number, name in ((0, os.devnull), (1, directory / "out"), (2, directory / "err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    code = 1
    try:
        code = play(scene)
    finally:
        sys.stderr.flush()
        (directory / "code").write_text(str(code))
        os._exit(code)


if __name__ == "__main__":
    for one in json.load(sys.stdin):
        begin(one)
