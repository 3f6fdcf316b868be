"""The supervisor's ports: four small protocols, and the values that pass through them.

One rule for all: "unknown" is an answer of its own. An adapter that got no answer returns None, and None never means
"none", "gone" or "failed". The adapter logs the cause, never a key.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

Seconds = float
Dollars = float


# ---- the cloud ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """A machine that could be rented now. `dollars_per_hour` includes the disk asked for. The defaults bound nothing."""

    id: int
    machine_id: int
    gpu: str
    gpus: int
    vram_gb: float  # of one GPU
    dollars_per_hour: Dollars
    min_bid: Dollars | None = None  # dollars per hour, of an interruptible contract
    reliability: float = 1.0  # 0 to 1
    down_mbit: float = 1e6
    up_mbit: float = 1e6
    hours_left: float = 24 * 365.0  # until its owner takes it back
    direct_ports: int = 1
    place: str = ""
    cuda: float | None = None  # the latest version that the driver runs
    driver: int | None = None  # major version
    compute_cap: int | None = None  # 890 for 8.9
    cpu_arch: str = ""
    datacenter: bool = False
    traffic: Dollars = 0.0  # once, for `OfferQuery.down_gb`
    up_cost: Dollars = 0.0  # of a GB that is fetched from it


def hourly(offer: Offer, bid: Dollars | None) -> Dollars:
    """Dollars per hour of a contract for `offer`: the price on demand, or with a bid the bid, which it may come to cost."""
    return offer.dollars_per_hour if bid is None else max(bid, offer.min_bid or 0.0)


@dataclass(frozen=True)
class OfferQuery:
    """What `search` may return, cheapest first. Every bound is inclusive."""

    gpu: str | None = None
    gpus: int = 1
    min_vram_gb: float = 0.0
    max_dollars_per_hour: Dollars | None = None
    min_reliability: float = 0.0
    min_down_mbit: float = 0.0
    min_hours: float = 0.0
    disk_gb: float = 40.0
    interruptible: bool = False
    banned_machines: frozenset[int] = frozenset()
    limit: int = 64
    min_cuda: float = 0.0
    min_driver: int = 0
    compute_caps: tuple[int, ...] = ()  # what the image is built for; a later minor version of one of them fits too
    cpu_arch: str = ""
    compat_cuda: float = 0.0  # enough on a data center GPU, for an image with a newer libcuda; 0: none is
    compat_driver: int = 0
    regions: tuple[str, ...] = ()  # countries, by two letters
    datacenter: bool = False  # only hosts in a data center
    work_hours: float = 0.0  # expected: offers are ranked by what they cost for these
    down_gb: float = 0.0  # that every machine loads: the image


@dataclass(frozen=True)
class Contract:
    """The arguments of `create`. Its only secret is the registry's login, a field of its own in the API."""

    label: str  # run id and deadline, see `label_text`
    image: str
    disk_gb: float
    onstart: str
    env: tuple[tuple[str, str], ...] = ()
    bid: Dollars | None = None  # dollars per hour: interruptible
    registry_login: str | None = field(default=None, repr=False)


class Status(StrEnum):
    """The machine's own `actual_status`. UNKNOWN stands for null and unknown words."""

    CREATED = "created"
    LOADING = "loading"
    RUNNING = "running"
    STOPPED = "stopped"
    FROZEN = "frozen"
    EXITED = "exited"
    REBOOTING = "rebooting"
    OFFLINE = "offline"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Address:
    """One pair of host and port. An instance's pairs are tried in turn and never mixed."""

    host: str
    port: int


Addresses = tuple[Address, ...]


@dataclass(frozen=True)
class Instance:
    id: int
    label: str
    machine_id: int
    status: Status
    message: str  # the host's text, such as why an image cannot be pulled
    dollars_per_hour: Dollars
    end: Seconds | None  # unix time at which the contract ends; None if it has no end
    addresses: Addresses  # direct first, then the proxy's
    start: Seconds | None = None  # unix time at which the contract began


class Gone(Enum):
    """An authenticated answer stated that there is no such instance."""

    GONE = "gone"


GONE = Gone.GONE

Created = Literal["created", "offer-gone", "no-credit", "refused", "unclear"]


@dataclass(frozen=True)
class CreateResult:
    """`created` and `refused` may both carry the id of an instance that exists and costs. `unclear`: 0, 1 or 2 exist."""

    outcome: Created
    instance_id: int | None = None
    message: str = ""  # why, in the service's words; redacted
    lasting: bool = False  # a refusal that no other offer changes: a scope or session of the key, a spending limit


Destroyed = Literal["accepted", "unclear"]  # neither proves absence


@dataclass(frozen=True)
class Account:
    credit: Dollars | None  # None: the service did not state it
    id: int | None = field(default=None, compare=False)  # None: the market has no account numbers
    at: Seconds | None = field(default=None, compare=False)  # unix time of the answer, by the service's clock


class Cloud(Protocol):
    """A market of machines. Failures of the network or the service raise nothing; a bug may raise."""

    def search(self, query: OfferQuery) -> tuple[Offer, ...] | None: ...
    def create(self, offer_id: int, contract: Contract) -> CreateResult: ...
    def instances(self) -> tuple[Instance, ...] | None:
        """Every instance of the account, all pages. () only from an authenticated, well-formed answer."""

    def instance(self, instance_id: int) -> Instance | Gone | None: ...
    def destroy(self, instance_id: int) -> Destroyed: ...
    def attach_key(self, instance_id: int, public_key: str) -> bool: ...

    def set_label(self, instance_id: int, label: str) -> bool: ...
    def account(self) -> Account | None:
        """None also for a refused key: then no other answer is trusted."""


# ---- the host -------------------------------------------------------------------------------------------------------------

Contact = Literal["ok", "unreachable", "denied", "wrong-host"]  # wrong-host: the nonce of the run does not match


@dataclass(frozen=True)
class JobReport:
    """The report of the runner on the host, and the heartbeat of its run."""

    phase: str  # absent, starting, running, ended, lost: see vast.host.jobstate
    attempt: int = 0
    exit_code: int | None = None
    end_reason: str | None = None
    fingerprint: str | None = None  # of the failure; the same one twice is deterministic
    fixes: tuple[str, ...] = ()
    run: str | None = None  # such as stage5b/20261123-101500
    step: int = 0
    total: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    beat_age: Seconds | None = None
    checkpoint: str | None = None  # the newest complete one
    complete: bool = False  # summary.json and manifest.json are there


@dataclass(frozen=True)
class Host:
    """One poll of a host over ssh."""

    contact: Contact
    boot: str = ""  # changes when the container is restarted
    armed: bool | None = None  # the dead-man's switch, as it reports itself
    job: JobReport | None = None
    gpu_percent: float | None = None
    gpu_memory_percent: float | None = None
    gpu_fault: str | None = None  # an Xid, "fallen off the bus"
    message: str = ""
    uptime: Seconds | None = None  # by the clock of its dead-man's switch


@dataclass(frozen=True)
class Pulled:
    """The result of a pull. `verified`: every file that the manifest names is here with its sha256."""

    verified: bool
    run: str | None = None
    checkpoint: str | None = None  # the newest checkpoint that is here, whole
    complete: bool = False  # the run itself is complete, and here
    bytes: int = 0  # that came, verified or not: the host's traffic
    local_disk_full: bool = False  # no room on our disk: a retry helps only after a person makes room
    message: str = ""


@dataclass(frozen=True)
class BurnIn:
    """What a machine showed before its job. A machine that is not `good` is left for the next.

    ran: False if the image on the host has no burn-in, so that nothing is known of any of its machines.
    slowdown: how many times longer the work takes than the estimate expects, by the slowest GPU's rate; 1 if not slower.
    """

    good: bool
    problems: tuple[str, ...] = ()  # with their numbers, for people
    numbers: tuple[tuple[str, float], ...] = ()  # such as ("gpu0_tflops", 640.0), by name
    ran: bool = True
    slowdown: float = 1.0


Proceed = Callable[[], bool]


def always() -> bool:
    return True


class Shell(Protocol):
    """Access to the host of a run: ssh and rsync. Each call has its own time limit; network failures raise nothing."""

    def probe(self, addresses: Addresses) -> Host: ...
    def start(
        self, addresses: Addresses, command: tuple[str, ...], home: str | None = None, proceed: Proceed = always
    ) -> bool | None:
        """Start the job; True also if it runs already. `home`: the verified local checkpoint; the host may prune older ones
        when its disk is full. `proceed`: as of `pull`, while the files that the job needs are sent."""

    def burn_in(self, addresses: Addresses, seconds: Seconds) -> BurnIn | None:
        """Try GPUs, disk and network for up to a minute, before the job. None: no answer within `seconds`."""

    def push(self, addresses: Addresses, proceed: Proceed = always) -> bool | None:
        """Send the local run, with its newest checkpoint, to a new host, which continues from it."""

    def stop(self, addresses: Addresses) -> bool | None:
        """Make the job write a checkpoint and end."""

    def renew_lease(self, addresses: Addresses, until_deadline: Seconds) -> bool | None: ...
    def pull(self, addresses: Addresses, everything: bool, proceed: Proceed = always) -> Pulled | None:
        """Fetch what is new: metrics, logs, the newest complete checkpoint; with `everything` also the results.

        proceed: called every second of a transfer, which may take hours; False ends it. The next one continues it."""

    def local_copy(self) -> Pulled | None:
        """The verified local copy, without a call to the host: after a restart, it replaces a lost answer."""

    def network_is_up(self) -> bool:
        """Whether our own network works: a probe independent of the host."""


class Clock(Protocol):
    def now(self) -> Seconds:
        """Unix time, for people and labels."""

    def monotonic(self) -> Seconds:
        """For deadlines; counts on while the machine sleeps."""

    def boot(self) -> str:
        """Changes when this machine reboots, which restarts `monotonic`."""

    def sleep(self, seconds: Seconds) -> None: ...


_LABEL = re.compile(r"prefill/([a-z0-9][a-z0-9._-]*)/(\d+)")


class Label(NamedTuple):
    run_id: str
    deadline: int  # unix time after which `vast reap` destroys the machine wherever it runs


def label_text(run_id: str, deadline: float) -> str:
    """The label of every machine of a run. Raises ValueError for an odd run id."""
    text = f"prefill/{run_id}/{int(deadline)}"
    if _LABEL.fullmatch(text) is None or len(text) > 256:
        raise ValueError(f"run id: expected a-z, 0-9, dots, dashes and underscores, found {run_id!r}")
    return text


@lru_cache(maxsize=1024)  # of the machines of an account the same labels are read in every poll
def parse_label(text: str) -> Label | None:
    """None for a label that is not ours: such machines are never touched."""
    match = _LABEL.fullmatch(text)
    return Label(match[1], int(match[2])) if match else None
