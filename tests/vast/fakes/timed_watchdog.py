"""vast.host.watchdog on a clock that a test moves: python -S timed_watchdog.py CLOCK run --dir ...

CLOCK is a file that holds seconds. The watchdog ticks every few milliseconds, and time passes only when a test writes the file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from vast.host import watchdog

POLL = 0.005  # seconds of real time between two ticks

if __name__ == "__main__":
    clock = Path(sys.argv[1])
    sys.exit(watchdog.main(sys.argv[2:], lambda: float(clock.read_text()), lambda _: time.sleep(POLL)))
