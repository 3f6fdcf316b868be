"""`python -m app` as a process of its own, forked off one that has imported torch and transformers already.

Such a process can be signalled, killed and left as one that was started anew. What it is spared are the imports: six seconds
of a core for each start. Nothing else has happened in the one that it is forked off.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

WARM: Final = "forkserver"
_CONTEXT = multiprocessing.get_context(WARM)
_CONTEXT.set_forkserver_preload(["accelerate", "datasets", "peft", "transformers"])


def _become_the_command(words: Sequence[str], environment: dict[str, str], output: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        with (output / name).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    from app.__main__ import main

    sys.argv = ["app", *words]
    sys.exit(main())


@dataclass(frozen=True)
class WarmProcess:
    """`words`: those behind `python -m app`."""

    words: Sequence[str]
    process: ForkServerProcess
    output: Path

    @classmethod
    def start(cls, words: Sequence[str], output: Path, **environment: str) -> WarmProcess:
        """output: a directory for what it writes to stdout and stderr."""
        output.mkdir(parents=True, exist_ok=True)
        process = _CONTEXT.Process(target=_become_the_command, args=(words, {**os.environ, **environment}, output))
        process.start()
        return cls(words, process, output)

    def runs(self) -> bool:
        return self.process.is_alive()

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def ended(self, seconds: float) -> subprocess.CompletedProcess[str]:
        """Killed if it has not ended within `seconds`."""
        self.process.join(seconds)
        code = self.process.exitcode
        self.kill()
        if code is None:
            raise subprocess.TimeoutExpired(list(self.words), seconds)
        out, err = ((self.output / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(self.words, code, out, err)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
