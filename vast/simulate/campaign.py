"""Many seeds, summed; and the cost of supervision on a healthy day."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from vast import policy as policies
from vast.policy import Policy
from vast.simulate.faults import quiet, schedule
from vast.simulate.losses import IN_REACH
from vast.simulate.run import SeedOutcome, run
from vast.supervisor.reasons import SUCCESS


def run_seed(seed: int, policy: Policy) -> SeedOutcome:
    return run(schedule(seed), policy)


@dataclass(slots=True)
class Summary:
    """The sum over seeds.

    losses: machines given up with work that was not fetched, by cause; `avoidable_losses` of them were within reach at that
        moment, `named_losses` are explained in the state of the run.
    wrong_verdicts: breaches of the invariant `unknown`.
    """

    seeds: int = 0
    rentals: int = 0
    succeeded: int = 0
    leaks: int = 0
    double_rents: int = 0
    named_losses: int = 0
    wrong_verdicts: int = 0
    violations: int = 0
    overspend_max: float = 0.0
    overspend_mean: float = 0.0
    idle_dollars: float = 0.0
    dollars: float = 0.0
    seconds: float = 0.0
    losses: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    failing: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def lost_artifacts(self) -> int:
        return self.losses.total()

    @property
    def avoidable_losses(self) -> int:
        return sum(count for cause, count in self.losses.items() if cause.startswith(IN_REACH))

    def add(self, one: SeedOutcome) -> None:
        self.seeds += 1
        self.rentals += one.rentals
        self.succeeded += one.result == SUCCESS
        self.leaks += one.leaks
        names = Counter(name for name, _ in one.violations)
        self.double_rents += names["double-rent"] > 0
        self.losses += one.lost
        self.named_losses += one.named
        self.wrong_verdicts += names["unknown"]
        self.violations += len(one.violations)
        self.overspend_max = max(self.overspend_max, one.over)
        self.overspend_mean += (one.over - self.overspend_mean) / self.seeds
        self.idle_dollars += one.idle_dollars
        self.dollars += one.dollars
        self.results[str(one.result)] += 1
        self.modes.update((+one.happened).keys())
        self.broken.update(names.keys())
        self.failing.extend((one.seed, name, what) for name, what in one.violations[:3])

    def to_dict(self) -> dict[str, Any]:
        plain = ((one.name, getattr(self, one.name)) for one in fields(self))
        found = {key: dict(sorted(value.items())) if isinstance(value, Counter) else value for key, value in plain}
        return found | {"lost_artifacts": self.lost_artifacts, "avoidable_losses": self.avoidable_losses}


def campaign(
    seeds: Iterable[int],
    one: Callable[[int], SeedOutcome],
    processes: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Summary:
    began = clock()
    total = Summary()
    if processes == 1:
        for result in map(one, seeds):
            total.add(result)
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            for result in pool.imap_unordered(partial(_light, one), seeds, chunksize=50):
                total.add(result)
    total.failing.sort()
    total.seconds = clock() - began
    return total


def _light(one: Callable[[int], SeedOutcome], seed: int) -> SeedOutcome:
    """Without the parts that are not summed, so that they do not travel between processes."""
    result = one(seed)
    result.state, result.lines = None, []
    return result


def day(policy: Policy | None = None) -> SeedOutcome:
    """24 hours without a fault. Idle dollars: for loading, the last poll, the last pull, teardown."""
    return run(quiet(hours=24.0), policies.load() if policy is None else policy)
