"""The system clock, and a clock whose sleep a request of a person interrupts."""

import time
from collections.abc import Callable

from vast.host.processes import boot_id
from vast.ports import Clock, Seconds

SLICE: Seconds = 1.0  # the longest delay before a request is noticed


class SystemClock:
    """vast.ports.Clock."""

    def now(self) -> Seconds:
        return time.time()

    def monotonic(self) -> Seconds:
        return time.clock_gettime(time.CLOCK_BOOTTIME)  # includes suspend: a rented machine bills meanwhile

    def boot(self) -> str:
        return boot_id()

    def sleep(self, seconds: Seconds) -> None:
        time.sleep(seconds)


class WakingClock:
    """Sleeps in slices. When `wake` first becomes true it ends that sleep early, once. `each` is called in every slice."""

    def __init__(self, clock: Clock, wake: Callable[[], bool], each: Callable[[], None] = lambda: None) -> None:
        self._clock, self._wake, self._each = clock, wake, each
        self.now, self.monotonic, self.boot = clock.now, clock.monotonic, clock.boot
        self._woken = wake()

    def sleep(self, seconds: Seconds) -> None:
        until = self.monotonic() + seconds
        while (left := until - self.monotonic()) > 0:
            if not self._woken and self._wake():
                self._woken = True
                return
            self._each()
            self._clock.sleep(min(SLICE, left))
