"""All that the supervisor knows of one run, as one frozen value: it survives in the journal, and `decide` sees nothing else.

    idle -> provisioning -> running -> collecting -> terminating -> closed
                 ^              |           |             |
                 +--------------+-----------+-------------+     another machine

Times (`Seconds`) are the run's own: they count from its beginning on the monotonic clock, also over restarts of the
supervisor, so that a jump of the wall clock moves no deadline. See vast/supervisor/loop.py: RunClock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from vast.ports import (
    Account,
    Address,
    CreateResult,
    Dollars,
    Gone,
    Host,
    Instance,
    JobReport,
    Offer,
    OfferQuery,
    Pulled,
    Seconds,
    Status,
    label_text,
)

# ---- the label --------------------------------------------------------------------------------------------------------


# ---- what is asked for ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What a person asked for. It never changes; no secret is in it."""

    run_id: str
    image: str
    command: tuple[str, ...]
    query: OfferQuery
    max_dollars: Dollars
    max_seconds: Seconds
    onstart: str = ""
    env: tuple[tuple[str, str], ...] = ()
    bid: Dollars | None = None  # dollars per hour: interruptible
    public_key: str = ""
    account: int | None = None  # that rents; see vast/session/account_guard.py


T = TypeVar("T")


def changed(value: T, **changes: object) -> T:
    """dataclasses.replace, ten times as fast, for frozen dataclasses without slots: a simulated run makes hundreds."""
    new = object.__new__(type(value))
    fields = new.__dict__
    fields.update(value.__dict__)
    fields.update(changes)
    assert len(fields) == len(value.__dict__), f"no such field: {changes.keys() - value.__dict__.keys()}"
    return new


# ---- what is known ----------------------------------------------------------------------------------------------------


class Phase(StrEnum):
    IDLE = "idle"
    PROVISIONING = "provisioning"  # an offer, a contract, a container, an armed dead-man's switch
    RUNNING = "running"  # a job was started
    COLLECTING = "collecting"  # a verdict is there; artifacts are fetched
    TERMINATING = "terminating"  # machines are destroyed until their absence is proven
    CLOSED = "closed"


@dataclass(frozen=True)
class Intent:
    """A create that was asked for and whose outcome is not known: 0, 1 or 2 machines."""

    offer_id: int
    machine_id: int
    price: Dollars  # per hour
    since: Seconds
    unclear_since: Seconds  # of the last answer, or of a restart after which none will come
    listings: int = 0  # trusted ones, spaced, in which no machine of ours was
    listed_at: Seconds | None = None


@dataclass(frozen=True)
class Machine:
    """The one machine that the run uses."""

    id: int
    machine_id: int
    price: Dollars  # per hour
    since: Seconds  # it bills from here
    seen_at: Seconds | None = None  # in a trusted answer
    status: Status = Status.CREATED
    message: str = ""
    end: Seconds | None = None  # unix time, of the contract
    addresses: tuple[Address, ...] = ()
    ran_at: Seconds | None = None  # seen running for the first time
    away_since: Seconds | None = None  # status offline, unknown, frozen or rebooting
    stopped: int = 0  # looks in a row that showed it stopped or exited
    absent: int = 0  # authenticated answers, apart in time, that said that it is gone
    absent_at: Seconds | None = None
    failed: int = 0  # looks at the host in a row that failed while our own network worked
    failed_since: Seconds | None = None
    denied: bool = False  # the last look was refused for its key
    key_at: Seconds | None = None  # when the key was last attached
    reached_at: Seconds | None = None  # the last contact
    boot: str = ""
    boot_at: Seconds = 0.0  # when this boot was first seen
    armed: bool = False  # the dead-man's switch was seen armed in this boot
    pushed: bool = False  # what is at home was brought to it, or there was nothing
    starts: int = 0
    started_boot: str = ""
    judged: int = 0  # attempts of the job, as the runner counts them, whose end was judged
    stop_at: Seconds | None = None  # when the job was asked to end
    job: JobReport | None = None  # as last seen
    gpu_fault: str | None = None
    stalled: int = 0
    pace: float | None = None  # steps per second between the last two looks; None: not known, as where a new part began


@dataclass(frozen=True)
class Doomed:
    """A machine that is being destroyed. It stays here until its absence is proven."""

    id: int
    price: Dollars
    since: Seconds
    reason: str
    lost: bool = False  # it cannot be reached, so another machine may be taken before it is gone
    tries: int = 0
    next_try: Seconds = 0.0
    accepted: bool = False
    absent: int = 0
    absent_at: Seconds | None = None


@dataclass(frozen=True)
class RunState:
    run_id: str
    deadline: int  # unix time, for the label
    cap_dollars: Dollars
    cap_seconds: Seconds
    begun_wall: Seconds  # unix time of t = 0
    interruptible: bool = False
    phase: Phase = Phase.IDLE
    phase_since: Seconds = 0.0
    attempt: int = 0  # machines rented, or tried to
    offers: tuple[Offer, ...] = ()
    offers_at: Seconds | None = None  # of the last search
    asked_offers: int = 0  # of this attempt
    pause_until: Seconds = 0.0
    intent: Intent | None = None
    machine: Machine | None = None
    doomed: tuple[Doomed, ...] = ()
    banned: tuple[int, ...] = ()
    created_at: Seconds | None = None  # of the last create
    settled: Dollars = 0.0  # for machines that are gone
    absences: int = 0  # trusted listings, apart in time, without any machine of this run
    absent_at: Seconds | None = None
    # the job
    retries: tuple[tuple[str, int], ...] = ()
    fingerprints: tuple[str, ...] = ()
    restart: str | None = None  # the reason for which the job is to be started again where it is
    verdict: str | None = None  # why the machine, or the run, ends
    over: bool = False  # no further machine
    result: str | None = None  # the verdict of the run once it is over
    # artifacts
    home: str | None = None  # the newest checkpoint that is here, verified
    complete: bool = False  # the complete run is here, verified
    pulled_at: Seconds = 0.0
    waits_from: Seconds = (
        0.0  # the deadlines of searching and collecting count from here, not while nothing can be seen
    )
    fetched: bool = False  # a pull since the verdict succeeded
    pull_failures: int = 0
    pull_next: Seconds = 0.0
    no_room_here: bool = False  # the local disk is full
    lost_artifacts: str | None = None  # why a machine was destroyed without a verified pull
    # the clocks
    look_at: Seconds = 0.0
    lease_at: Seconds = 0.0
    looks: int = 0  # since the job was started on this machine
    refused_since: Seconds | None = None  # the account could not be seen
    network_down: bool = False  # at the last look
    credit: Dollars | None = None
    alerts: tuple[str, ...] = ()  # those that are up
    history: tuple[tuple[float, str], ...] = ()  # (time, what), for the report


def begin(plan: Plan, wall: Seconds) -> RunState:
    deadline = int(wall + plan.max_seconds)
    label_text(plan.run_id, deadline)
    return RunState(plan.run_id, deadline, plan.max_dollars, plan.max_seconds, wall, plan.bid is not None)


def spent(state: RunState, t: Seconds) -> Dollars:
    """What the run has cost at `t`, if every machine whose absence is not proven bills on."""
    total = state.settled
    for part in (state.machine, state.intent, *state.doomed):
        if part is not None:
            total += part.price * (t - part.since) / 3600
    return total


def burn(state: RunState) -> Dollars:
    """Dollars per hour right now."""
    return sum(part.price for part in (state.machine, state.intent, *state.doomed) if part is not None)


# ---- what is seen and done --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observation:
    """One look. None: could not see, or did not look; it never means none. `t` is always right."""

    t: Seconds
    looked: bool = False
    asked: bool = False  # a person wants the run to end
    account: Account | None = None
    instances: tuple[Instance, ...] | None = None
    single: tuple[tuple[int, Instance | Gone | None], ...] = ()  # own machines that were asked for one by one
    host: Host | None = None
    network: bool = True  # our own; probed when something did not answer


class Do(StrEnum):
    LOOK = "look"
    WAIT = "wait"
    SEARCH = "search"
    CREATE = "create"
    DESTROY = "destroy"
    ATTACH_KEY = "attach-key"
    PUSH = "push"
    START = "start"
    STOP = "stop"
    RENEW = "renew"
    PULL = "pull"
    VERDICT = "verdict"  # pure: the run is judged
    PROCEED = "proceed"  # pure: the next phase
    CLOSE = "close"  # pure


PURE = frozenset({Do.LOOK, Do.WAIT, Do.VERDICT, Do.PROCEED, Do.CLOSE})


@dataclass(frozen=True, slots=True)
class Action:
    do: Do
    t: Seconds  # when it was decided
    why: str = ""
    instance_id: int = 0
    offer: Offer | None = None
    everything: bool = False
    until: Seconds = 0.0  # of a wait; of a lease: seconds to the deadline


Result = Observation | tuple[Offer, ...] | CreateResult | Pulled | str | bool | None
