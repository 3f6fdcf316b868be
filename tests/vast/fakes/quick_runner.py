"""vast.host.runner with pauses of milliseconds: python -S quick_runner.py ACTION --dir DIR ..."""

from __future__ import annotations

import sys

from vast.host import attempt, runner

if __name__ == "__main__":
    attempt.PAUSES = (0.01, 0.02, 0.04, *(0.1,) * 500)
    if sys.argv[1] != "start":  # its patience with a runner that is just ending is a number of polls
        runner.POLL = 0.01
    sys.exit(runner.main(sys.argv[1:]))
