"""The processes of one run, one a GPU: which rank this is, and how ranks agree.

`accelerate launch` (app/runtime/launch.py, or a person on several machines) starts them with RANK and WORLD_SIZE set.
Rank 0 alone opens and writes the run's directory, and broadcasts its decisions. Decisions travel over a process group of
their own (gloo, on the CPU), so that they neither wait for the GPU nor interleave with its collectives. Every wait has a
time-out: a rank that died raises an error in the others.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from app.runtime.nodes import number_in
from jobs.errors import EXIT_BUG, ConfigError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # for work of one rank while the others wait: downloading, writing a checkpoint
_BY_LAUNCHER = "unset WORLD_SIZE, or start it with `accelerate launch`, which sets all of them"
LAST_WAIT = timedelta(seconds=60)  # at the end, when only the outcome is left to share
SHORT_WAIT = timedelta(seconds=5)  # at the end, for a rank whose error may be its own alone
# Keys on the board: the exit code of rank 0; the ranks that are about to exit.
_ENDED, _LEAVING = "prefill/ended", "prefill/leaving"


@dataclass(frozen=True, eq=False)
class Ranks:
    """`rank` of `world` processes, the `local`-th on its machine. With one process no method costs time or loads torch."""

    rank: int = 0
    world: int = 1
    local: int = 0
    control: Any = None  # the process group of decisions
    board: Any = None  # the launcher's store: its entries outlive the rank that wrote them

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    def share(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        box = [value if self.main else None]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.control)
        return found

    def sum(self, *values: float) -> list[float]:
        """The sums over ranks. Cheap enough for every step: one small message, and no wait for the GPU."""
        if self.world == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, group=self.control)
        return numbers.tolist()

    def wait(self) -> None:
        """Returns when every rank has called it."""
        self.gather(None)

    def together(self, work: Callable[[], T], expected: type[Exception] | tuple[type[Exception], ...]) -> list[T]:
        """Runs `work` on every rank and returns all results. If one rank raises `expected`, all raise it: no rank waits for ever.

        `work` must not use collectives. Any other exception ends this process, and with it the launch.
        """
        mine: T | None = None
        error: Exception | None = None
        try:
            mine = work()
        except expected as caught:
            error = caught
        answers = self.gather((mine, error))
        raised = error or next((theirs for _, theirs in answers if theirs is not None), None)
        if raised is not None:
            raise raised
        return [value for value, _ in answers]  # type: ignore[misc]

    def leave(self, ended: int | None = None) -> None:
        """Waits at the end until rank 0 has reported the outcome: the launcher kills the others when the first exits.

        ended: the exit code of this rank's error, if any. The other ranks may have the same error and arrive here too.
        Otherwise ranks blocked in a collective fail when this one exits; rank 0 records its exit code for them.
        """
        if self.world == 1:
            return
        import torch.distributed as dist

        # The launcher sends SIGTERM to the rest when the first has exited; they only have their outcome left to report.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        alone = ended is not None if self.main else ended == EXIT_BUG
        with suppress(RuntimeError, ValueError):  # a rank has exited: nothing left to wait for
            if self.main and ended is not None:
                self.board.set(_ENDED, str(ended))
            self.board.set(f"{_LEAVING}/{self.rank}", "")
            if not alone or self._all_are_leaving():
                dist.monitored_barrier(self.control, timeout=LAST_WAIT)
        with suppress(RuntimeError, ValueError, AssertionError):
            dist.destroy_process_group()

    def _all_are_leaving(self) -> bool:
        """Whether all ranks reach the end within SHORT_WAIT. Polls, because the store's own wait logs warnings."""
        wanted = [f"{_LEAVING}/{rank}" for rank in range(self.world)]
        until = time.monotonic() + SHORT_WAIT.total_seconds()
        while not (there := bool(self.board.check(wanted))) and time.monotonic() < until:
            time.sleep(0.05)
        return there

    def ended_with(self) -> int | None:
        """The exit code of rank 0's error; None if it had none, or the store is gone."""
        with suppress(RuntimeError):
            return int(self.board.get(_ENDED)) if self.board.check([_ENDED]) else None
        return None


ALONE = Ranks()


def rank_in(environ: Mapping[str, str]) -> int:
    """This process's rank; 0 without a launcher, or where `launched` refuses the environment."""
    try:
        return number_in(environ, "RANK", _BY_LAUNCHER) if launched(environ) else 0
    except ConfigError:
        return 0


def launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one of several.

    Raises:
        ConfigError: WORLD_SIZE asks for several, and the rest of what they need is missing or malformed.
    """
    if environ.get("WORLD_SIZE", "1") == "1":
        return False
    world = number_in(environ, "WORLD_SIZE", _BY_LAUNCHER, least=1)
    for name in ("RANK", "MASTER_ADDR"):
        if not environ.get(name):
            raise ConfigError(name, f"is not set, and WORLD_SIZE is {world}", _BY_LAUNCHER)
    if number_in(environ, "RANK", _BY_LAUNCHER) >= world:
        raise ConfigError("RANK", f"is {environ['RANK']}, and WORLD_SIZE is {world}", _BY_LAUNCHER)
    return world > 1


def join(device: str, environ: Mapping[str, str] = os.environ) -> Ranks:
    """Connect to the other processes of this launch; without a launcher return ALONE.

    Args:
        device: the profile's model.device; under cpu the collectives run on the CPU (gloo).

    Raises:
        ConfigError: fewer GPUs here than processes, or an incomplete environment.
    """
    if not launched(environ):
        return ALONE
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    die_with_the_launcher()
    cpu = device == "cpu" or not torch.cuda.is_available()
    local = number_in(environ, "LOCAL_RANK", _BY_LAUNCHER, "0")
    here = number_in(environ, "LOCAL_WORLD_SIZE", _BY_LAUNCHER, "1", 1)
    if not cpu:
        require_gpus(here, torch.cuda.device_count())
    state = PartialState(cpu=cpu, timeout=TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    host, port = environ["MASTER_ADDR"], number_in(environ, "MASTER_PORT", _BY_LAUNCHER)
    store = dist.TCPStore(host, port, is_master=False, timeout=LAST_WAIT)  # type: ignore[attr-defined]
    # torchrun's store outlives a restart of the processes: keys carry the number of restarts.
    board = dist.PrefixStore(f"prefill/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]
    return Ranks(state.process_index, state.num_processes, local, control, board)


def require_gpus(wanted: int, there: int) -> None:
    """Raises ConfigError where this machine has fewer GPUs than its processes need."""
    if wanted > there:
        few = "none" if there == 0 else f"only {there}"
        raise ConfigError("gpus", f"{wanted} are asked for, and torch sees {few}", f"set gpus: {max(there, 1)}")


def die_with_the_launcher() -> None:
    """Ask Linux for SIGTERM when the launcher dies: otherwise a killed launcher leaves processes that hold the GPUs."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
