"""The failure modes that the simulated world has, numbered, and a seed's schedule of them.

A schedule places each fault: at the n-th create, on the n-th machine, or at a time of the run. The world counts the faults
that were met (`World.happened`): a run that ends early never meets the rest of its schedule.
"""

from dataclasses import dataclass, field
from random import Random

FIRST = ("create-ambiguous", "crash-after-create", "offer-gone", "created-stopped", "stuck-loading", "bad-image", "no-ssh",
         "key-denied", "wrong-host", "own-network-down", "offline", "outbid", "container-restart", "hang", "nan", "cuda-oom",
         "host-disk-full", "same-crash", "gpu-fault", "no-manifest", "partial-pull", "local-disk-full", "delete-refused",
         "delete-lingers", "key-refused", "bad-listing", "ends-soon", "wall-jump", "two-supervisors", "killed")  # fmt: skip
# of live markets and hosts
FIELD = ("offer-sold-twice", "price-change", "no-price", "late-create", "stale-replica", "market-hidden", "odd-account",
         "odd-row", "clock-wrong", "commands-hang", "slow-pull", "nvml-error", "renamed")  # fmt: skip
# before the job; of the service's answers, and of our own machine
LATER = ("burn-in-fails", "burn-in-hangs", "burn-in-missing", "slow-gpu",
         "list-retired", "delete-404", "scoped-key", "reap", "reboot", "hook-hangs")  # fmt: skip
# of what is beside the run: the store of its artifacts, ssh of our machine
BESIDE = ("bucket-unreachable", "no-ssh-here")
# of time: our machine stands still with its clocks, as a virtual one does while its host sleeps; every answer comes late
TIME = ("paused", "slow-answers")
# the market's clock is wrong by up to 60 hours, in every answer of a while
CLOCK = ("service-clock",)
# the host makes a container anew, after its own reboot or an update of its docker: the disk is empty, if it comes back at all
ANEW = ("made-anew",)
MODES = {mode: number for number, mode in enumerate((*FIRST, *FIELD, *LATER, *BESIDE, *TIME, *CLOCK, *ANEW), 1)}
BY_CREATE = ("create-ambiguous", "offer-gone", "created-stopped", "crash-after-create",
             "offer-sold-twice", "price-change", "late-create", "scoped-key")  # fmt: skip
BY_TIME = ("own-network-down", "local-disk-full", "delete-refused", "key-refused", "bad-listing", "wall-jump",
           "two-supervisors", "killed",
           "stale-replica", "market-hidden", "odd-account", "odd-row", "clock-wrong",
           "list-retired", "delete-404", "reap", "reboot", "hook-hangs", "no-ssh-here",
           *TIME, *CLOCK)  # fmt: skip  # others: by machine

# Later modes have streams of their own, so that a new one changes no older fault of a seed: names, salt, how many of them.
STREAMS = ((FIELD, 0xF1E1D, (0, 0, 1, 1, 2, 3)), (LATER, 0x1A7E4, (0, 0, 0, 1, 1, 2)),
           (BESIDE, 0xB0CCE7, (0, 0, 0, 0, 1)), (TIME, 0x71CE, (0, 0, 0, 0, 1)),
           (CLOCK, 0xC10C, (0, 0, 0, 0, 0, 0, 0, 1)), (ANEW, 0xA2E3, (0, 0, 0, 0, 0, 1)))  # fmt: skip
STEPS = 6000  # of every job


@dataclass(slots=True)
class Fault:
    mode: str
    at: float  # seconds: after the start of the run, or of the machine's job
    lasts: float  # seconds; for ever, if inf
    variant: float  # 0 to 1


@dataclass(slots=True)
class Schedule:
    seed: int
    steps: int
    steps_per_s: float
    price: float
    cap_dollars: float
    cap_seconds: float
    interruptible: bool
    loading: float  # seconds
    creates: dict[int, Fault] = field(default_factory=dict)  # the n-th call
    machines: dict[int, list[Fault]] = field(default_factory=dict)  # the n-th that is made
    times: list[Fault] = field(default_factory=list)
    crashes: dict[int, float] = field(default_factory=dict)  # the n-th journal write: seconds until a restart
    asked_at: float = float("inf")

    @property
    def work(self) -> float:
        return self.steps / self.steps_per_s


def quiet(seed: int = 0, hours: float = 4.0, price: float = 1.2) -> Schedule:
    return Schedule(
        seed, STEPS, STEPS / (3600 * hours), price, 1.6 * price * hours + 2, 3600 * (1.5 * hours + 2), False, 240
    )


def schedule(seed: int) -> Schedule:
    """The faults of one seed, none to six of them, everything from one random stream."""
    rng = Random(seed)
    hours = rng.uniform(0.3, 7.0)
    made = quiet(seed, hours, rng.uniform(0.4, 2.5))
    made.loading = rng.uniform(60, 600)
    made.interruptible = rng.random() < 0.4
    if rng.random() < 0.12:  # caps too small for the work
        made.cap_dollars *= rng.uniform(0.35, 0.8)
    if rng.random() < 0.08:
        made.cap_seconds *= rng.uniform(0.35, 0.8)
    for mode in rng.choices(FIRST, k=rng.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        _add(made, mode, rng, made.work)
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 4)):
            made.crashes.setdefault(rng.randint(1, 80), rng.choice((2.0, 20.0, 120.0, 900.0, 3 * 3600.0)))
    if rng.random() < 0.08:
        made.asked_at = rng.uniform(0, 1.1 * made.work)
    for names, salt, numbers in STREAMS:
        rng = Random(seed ^ salt)
        for mode in rng.choices(names, k=rng.choice(numbers)):
            _add(made, mode, rng, made.work)
    return made


def _add(made: Schedule, mode: str, rng: Random, work: float) -> None:
    lasts = rng.choice((30.0, 90.0, 300.0, 900.0, 2400.0, 7200.0)) * rng.uniform(0.5, 1.5)
    fault = Fault(mode, rng.uniform(0, 1.05 * work), lasts, rng.random())
    number = rng.choice((1, 1, 1, 2))
    if mode in BY_CREATE:
        if mode in FIRST or number not in made.creates:
            made.creates[number] = fault
        return
    if mode in BY_TIME:
        if mode == "list-retired":
            fault.lasts = rng.uniform(3600, 40_000)
        if mode in ("delete-refused", "delete-404"):
            fault.lasts = rng.uniform(600, 9000)
            fault.at = rng.choice((fault.at, work + rng.uniform(0, 900)))
        if mode == "bad-listing" and fault.variant < 0.7:
            fault.lasts = rng.uniform(5, 45)  # an empty page; a malformed one may last
        if mode == "stale-replica":
            fault.lasts = rng.uniform(30, 120)
            fault.at = rng.choice((fault.at, work + rng.uniform(300, 1500)))
        if mode in ("odd-account", "odd-row"):
            fault.lasts = rng.uniform(20, 50)
            fault.at = rng.choice((fault.at, rng.uniform(300, 1500)))
        if mode == "clock-wrong" or (mode == "service-clock" and rng.random() < 0.3):
            fault.at = 0.0
        made.times.append(fault)
        return
    if mode in ("offline", "no-ssh", "wrong-host") and rng.random() < 0.3:
        fault.lasts = float("inf")
    if mode in ("no-ssh", "key-denied") and rng.random() < 0.3:
        fault.at = 0.0
    if mode == "partial-pull":
        fault.at, fault.lasts = rng.choice((0.0, fault.at)), rng.choice((60.0, 900.0, float("inf")))
    if mode == "commands-hang" and rng.random() < 0.5:
        fault.lasts = float("inf")
    made.machines.setdefault(number, []).append(fault)
