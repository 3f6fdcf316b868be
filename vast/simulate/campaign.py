"""Many seeds, summed; and the cost of supervision on a healthy day."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vast import policy as policies
from vast.policy import Policy
from vast.simulate.faults import quiet, schedule
from vast.simulate.invariants import IN_REACH
from vast.simulate.run import SeedOutcome, run
from vast.supervisor.reasons import SUCCESS


def run_seed(seed: int, policy: Policy) -> SeedOutcome:
    """Without what is not summed, so that it is not kept and does not travel between processes."""
    found = run(schedule(seed), policy)
    found.state, found.lines = None, []
    return found


class Summary:
    """The sum over seeds.

    losses: machines given up with work that was not fetched, by cause; `avoidable_losses` of them were within reach at that
        moment, `named_losses` are explained in the state of the run.
    wrong_verdicts: breaches of the invariant `unknown`.
    """

    def __init__(self, found: Sequence[SeedOutcome], seconds: float) -> None:
        broken = [Counter(name for name, _ in one.violations) for one in found]
        self.seeds, self.seconds = len(found), seconds
        self.rentals = sum(one.rentals for one in found)
        self.succeeded = sum(one.result == SUCCESS for one in found)
        self.leaks = sum(one.leaks for one in found)
        self.double_rents = sum("double-rent" in names for names in broken)
        self.wrong_verdicts = sum(names["unknown"] for names in broken)
        self.violations = sum(len(one.violations) for one in found)
        self.overspend_max = max(one.over for one in found)
        self.overspend_mean = sum(one.over for one in found) / len(found)
        self.idle_dollars = sum(one.idle_dollars for one in found)
        self.dollars = sum(one.dollars for one in found)
        self.losses = sum((one.lost for one in found), Counter[str]())
        self.lost_artifacts = self.losses.total()
        self.named_losses = sum(one.named for one in found)
        self.avoidable_losses = sum(count for cause, count in self.losses.items() if cause.startswith(IN_REACH))
        self.results = Counter(str(one.result) for one in found)
        self.modes = Counter(mode for one in found for mode in +one.happened)
        self.broken = Counter(name for names in broken for name in names)
        self.failing = sorted((one.seed, name, what) for one in found for name, what in one.violations[:3])

    def to_dict(self) -> dict[str, Any]:
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in vars(self).items()}


def campaign(seeds: Iterable[int], one: Callable[[int], SeedOutcome], processes: int = 1) -> Summary:
    began = time.perf_counter()
    if processes == 1:
        found = list(map(one, seeds))
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            found = list(pool.imap_unordered(one, seeds, chunksize=50))
    return Summary(found, time.perf_counter() - began)


def day(policy: Policy | None = None) -> SeedOutcome:
    """24 hours without a fault. Idle dollars: for loading, the last poll, the last pull, teardown."""
    return run(quiet(hours=24.0), policies.load() if policy is None else policy)
