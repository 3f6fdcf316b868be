"""Everything the supervisor knows about one run, as one frozen value, kept in the journal. `decide` reads nothing else.

    idle -> provisioning -> running -> collecting -> terminating -> closed
                 ^              |           |             |
                 +--------------+-----------+-------------+     another machine

Times (`Seconds`) count from the run's beginning on the monotonic clock, also over restarts of the supervisor, so that a
jump of the wall clock moves no deadline. See vast/supervisor/journal.py: RunClock.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from vast.ports import (
    Account,
    Addresses,
    BurnIn,
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

GRACE = 300.0  # seconds: a last checkpoint, and a minute before a cap

# ---- the request ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """The request of a person. It never changes and holds no secret."""

    run_id: str
    image: str
    command: tuple[str, ...]
    query: OfferQuery
    max_dollars: Dollars
    max_seconds: Seconds
    bid: Dollars | None = None  # dollars per hour: interruptible
    public_key: str = ""
    account: int | None = None  # that rents; see vast/session/guards.py


T = TypeVar("T")


def changed(value: T, **changes: object) -> T:
    """dataclasses.replace, twenty times as fast, for frozen dataclasses without slots: a simulated run makes hundreds."""
    new = object.__new__(type(value))
    fields = value.__dict__.copy()
    fields.update(changes)
    assert len(fields) == len(value.__dict__), f"no such field: {changes.keys() - value.__dict__.keys()}"
    object.__setattr__(new, "__dict__", fields)
    return new


# ---- the state ----------------------------------------------------------------------------------------------------


class Phase(StrEnum):
    IDLE = "idle"
    PROVISIONING = "provisioning"  # from an offer to an armed dead-man's switch
    RUNNING = "running"  # a job was started
    COLLECTING = "collecting"  # after a verdict: artifacts are fetched
    TERMINATING = "terminating"  # machines are destroyed until their absence is proven
    CLOSED = "closed"


@dataclass(frozen=True)
class Intent:
    """A create of unknown outcome: 0, 1 or 2 machines."""

    offer_id: int
    machine_id: int
    price: Dollars  # per hour
    since: Seconds
    unclear_since: Seconds  # of the last answer, or of a restart that lost it
    listings: int = 0  # trusted, spaced listings without a machine of ours
    listed_at: Seconds | None = None
    up_cost: Dollars = 0.0


@dataclass(frozen=True)
class Machine:
    """The one machine that the run uses."""

    id: int
    machine_id: int
    price: Dollars  # per hour
    since: Seconds  # it bills from here
    row_price: Dollars = 0.0  # per hour, in the last trusted answer; 0: not stated
    least_row: Dollars = 0.0  # the least of these since they are dearer than agreed
    renamed: bool = False  # its label in the market is not the run's, or has another deadline
    seen_at: Seconds | None = None  # in a trusted answer
    status: Status = Status.CREATED
    message: str = ""
    start: Seconds | None = None  # unix time, of the contract
    end: Seconds | None = None
    addresses: Addresses = ()
    ran_at: Seconds | None = None  # seen running for the first time
    away_since: Seconds | None = None  # it ran, and its status is neither running nor stopped
    stopped: int = 0  # polls in a row that showed it stopped or exited
    absent: int = 0  # authenticated answers, apart in time, without it
    absent_at: Seconds | None = None
    failed: int = 0  # polls of the host in a row that failed while our own network worked
    failed_since: Seconds | None = None
    denied: bool = False  # the last poll was refused for its key
    key_at: Seconds | None = None  # when the key was last attached
    reached_at: Seconds | None = None  # the last contact
    boot: str = ""
    boot_at: Seconds = 0.0  # when this boot was first seen
    armed: bool = False  # the dead-man's switch was seen armed in this boot
    switch_zero: Seconds | None = None  # when its switch began to count: the latest moment of all reports of its uptime
    burn_in: BurnIn | None = None  # what it showed before its job
    burn_in_lost: int = 0  # tries in a row without an answer, while the host answered polls
    burn_in_next: Seconds = 0.0  # the last try is over by then, on the host too
    pushed: bool = False  # the local checkpoint was sent to it, or it has its own
    starts: int = 0
    started_boot: str = ""
    judged: int = 0  # attempts of the job, in the runner's count, whose end was evaluated
    stop_at: Seconds | None = None  # when the job was asked to end
    job: JobReport | None = None  # as last seen
    gpu_fault: str | None = None
    stalled: int = 0
    moved_at: Seconds | None = None  # the last poll that showed more steps than the one before
    # steps per second between the last two polls; None: unknown, as at the start of a new part
    pace: float | None = None
    up_cost: Dollars = 0.0  # of a GB that is fetched


@dataclass(frozen=True)
class PendingDestroy:
    """A machine that is being destroyed, until its absence is proven."""

    id: int
    price: Dollars
    since: Seconds
    reason: str
    lost: bool = False  # it cannot be reached, or nothing ran there: another machine may be taken before it is gone
    tries: int = 0
    next_try: Seconds = 0.0
    accepted: bool = False  # a DELETE was; absence counts only after it
    addresses: Addresses = ()  # a host that answers here is not absent
    absent: int = 0
    absent_at: Seconds | None = None


@dataclass(frozen=True)
class RunState:
    run_id: str
    deadline: int  # unix time, for the label: by the service's clock as soon as it is known
    cap_dollars: Dollars
    cap_seconds: Seconds
    begun_wall: Seconds  # unix time of t = 0
    bid: Dollars | None = None  # per hour, of an interruptible contract
    max_price: Dollars | None = None  # per hour, of the request
    work_hours: float = 0.0  # expected by the plan; 0: not known
    service_zero: Seconds | None = None  # unix time of t = 0 by the service's clock; None: unknown, as `begun_wall`
    phase: Phase = Phase.IDLE
    phase_since: Seconds = 0.0
    attempt: int = 0  # machines rented, or tried to
    offers: tuple[Offer, ...] = ()
    offers_at: Seconds | None = None  # of the last search
    asked_offers: int = 0  # of this attempt
    pause_until: Seconds = 0.0
    intent: Intent | None = None
    machine: Machine | None = None
    doomed: tuple[PendingDestroy, ...] = ()
    banned: tuple[int, ...] = ()
    created_at: Seconds | None = None  # of the last create
    # The last record before a reboot, until the service's clock has confirmed the time since.
    before_reboot: Seconds | None = None
    jumped_at: Seconds = 0.0  # when its time last jumped: what must last to prove an absence begins anew
    traffic: Dollars = 0.0  # of the machines so far, for loading the image and for what was fetched
    refusal: str = ""  # the market's message, if it refused the last create
    unclear_at: Seconds | None = None  # of the last create of unknown outcome: its machine may show up late
    unclear_price: Dollars = 0.0  # per hour, of that create
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
    pull_seconds: Seconds = 0.0  # that the last whole pull took
    pull_tried_at: Seconds = 0.0  # when the last pull began
    waits_from: Seconds = 0.0  # of the deadlines of searching and collecting; moves while nothing can be seen
    fetched: bool = False  # a pull since the verdict succeeded
    pull_failures: int = 0
    pull_next: Seconds = 0.0
    no_room_here: bool = False  # the local disk is full
    lost_artifacts: str | None = None  # why a machine was destroyed without a verified pull; None: nothing was lost
    # the clocks
    look_at: Seconds = 0.0
    lease_at: Seconds = 0.0
    looks: int = 0  # since the job was started on this machine
    refused_since: Seconds | None = None  # the account could not be seen
    unlisted_since: Seconds | None = None  # the account answers, and neither list nor show shows the run's machines
    unsearched_since: Seconds | None = None  # searches get no answer
    signs: tuple[tuple[str, int, Seconds], ...] = ()  # (sign, polls that showed it, the last): vast/supervisor/signs.py
    network_down: bool = False  # at the last poll
    credit: Dollars | None = None
    alerts: tuple[str, ...] = ()  # those that are up
    history: tuple[tuple[float, str], ...] = ()  # (time, what), for the report

    def ids(self) -> list[int]:
        """Of every machine of the run that is known to exist."""
        return [one.id for one in self.doomed] + ([] if self.machine is None else [self.machine.id])


def begin(plan: Plan, wall: Seconds) -> RunState:
    deadline = int(wall + plan.max_seconds)
    label_text(plan.run_id, deadline)
    bound = plan.query.max_dollars_per_hour if plan.bid is None else None  # a bid is its own bound
    hours = plan.query.work_hours
    return RunState(plan.run_id, deadline, plan.max_dollars, plan.max_seconds, wall, plan.bid, bound, hours)


def with_zero(state: RunState, zero: Seconds) -> RunState:
    """`state` with t = 0 at that time of the service's clock, with which the deadline in labels is compared."""
    return changed(state, service_zero=zero, deadline=int(zero + state.cap_seconds))


def contract_left(state: RunState, t: Seconds) -> Seconds | None:
    """Seconds to the end of the machine's contract, by the service's clock if it is known; None: no end. By its length
    since the create, if that is more: a clock that was wrong when the run began ends no run."""
    machine = state.machine
    if machine is None or machine.end is None:
        return None
    zero = state.begun_wall if state.service_zero is None else state.service_zero
    length = 0.0 if machine.start is None else machine.end - machine.start
    return max(machine.end - zero, machine.since + length) - t


def kept_for_the_end(state: RunState, minutes: float) -> Seconds:
    """What the caps keep for a last checkpoint and a last pull: `minutes`, or more where pulls are seen to take longer."""
    longer = GRACE + 1.25 * state.pull_seconds if state.pull_seconds else 0.0
    return max(60 * minutes, min(longer, state.cap_seconds / 4))


def spent(state: RunState, t: Seconds) -> Dollars:
    """Cost of the run at `t`, if every machine bills until its absence is proven."""
    costs = (part.price * (t - part.since) / 3600 for part in _billing(state))
    return sum(costs, state.settled + state.traffic)


def certain(state: RunState, t: Seconds) -> Seconds:
    """The part of `t` that has passed for certain, by which caps are judged: the time over a reboot may be that of a wall clock
    that is days ahead, until the market has answered, whose clock decides. Where it never does, a run still ends at its caps."""
    if state.before_reboot is None or state.refused_since is None:
        return t
    return min(t, state.before_reboot + t - state.jumped_at)


def burn(state: RunState) -> Dollars:
    """Dollars per hour right now."""
    return sum((part.price for part in _billing(state)), 0.0)


def left(state: RunState, t: Seconds) -> tuple[Dollars, Seconds]:
    """Of both caps, for the dead-man's switch of the next machine."""
    return max(0.0, state.cap_dollars - spent(state, t)), max(0.0, state.cap_seconds - t)


def _billing(state: RunState) -> Iterator[Machine | Intent | PendingDestroy]:
    return (part for part in (state.machine, state.intent, *state.doomed) if part is not None)


# ---- observations and actions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observation:
    """One poll. None: no answer, or not asked; it never means "none". `t`, when it began, is always right."""

    t: Seconds
    looked: bool = False
    asked: bool = False  # a person wants the run to end
    account: Account | None = None
    instances: tuple[Instance, ...] | None = None
    # own machines that the list does not show, asked for one by one
    single: tuple[tuple[int, Instance | Gone | None], ...] = ()
    host: Host | None = None
    # pending destroys whose host answered over ssh although the market shows them as gone
    answered: tuple[int, ...] = ()
    network: bool = True  # our own; probed when something did not answer
    ended: Seconds = 0.0  # when the last answer was here: two polls are as far apart as from this to the next `t`


class Do(StrEnum):
    LOOK = "look"
    WAIT = "wait"
    SEARCH = "search"
    CREATE = "create"
    DESTROY = "destroy"
    ATTACH_KEY = "attach-key"
    RELABEL = "relabel"
    BURN_IN = "burn-in"
    PUSH = "push"
    START = "start"
    STOP = "stop"
    RENEW = "renew"
    PULL = "pull"
    VERDICT = "verdict"  # pure: apply a reason
    PROCEED = "proceed"  # pure: the next phase
    CLOSE = "close"  # pure


@dataclass(frozen=True)
class Action:
    do: Do
    t: Seconds  # when it was decided
    why: str = ""
    instance_id: int = 0
    offer: Offer | None = None
    everything: bool = False
    until: Seconds = 0.0  # of a wait; of a lease: seconds to the deadline
    ended: Seconds = 0.0  # when its result came; 0: unknown


Result = Observation | tuple[Offer, ...] | CreateResult | BurnIn | Pulled | str | bool | None
