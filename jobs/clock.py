"""The clock that callers pass in, so that no test waits on real time; the module `time` is one."""

from typing import Protocol


class Clock(Protocol):
    def time(self) -> float: ...
    def monotonic(self) -> float: ...
