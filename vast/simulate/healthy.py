"""The cost of supervision on a healthy day: 24 hours, 6,000 steps."""

from typing import NamedTuple

from vast import policy as policies
from vast.policy import Policy
from vast.simulate import run
from vast.simulate.faults import quiet


class Day(NamedTuple):
    steps: int
    api_calls: int
    ssh_connections: int
    idle_dollars: float  # billed without steps: loading, the last poll, the last pull, teardown
    dollars: float
    violations: int


def day(policy: Policy | None = None, hours: float = 24.0) -> Day:
    made = quiet(hours=hours)
    one = run.run(made, policies.load() if policy is None else policy)
    return Day(made.steps, one.calls["api"], one.calls["ssh"], one.idle_dollars, one.dollars, len(one.violations))
