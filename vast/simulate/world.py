"""The simulated world behind vast/simulate/fakes.py: machines that bill, jobs that run, a network that fails.

It holds the truth for vast/simulate/invariants.py. Time passes only in `advance_to`, from event to event.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

from vast.ports import Instance, Status
from vast.records import reap
from vast.records.run_dir import Supervision
from vast.simulate.faults import Fault, Schedule
from vast.simulate.machines import INF, OUT_OF_REACH, STRIKES, SimulatedJob, SimulatedMachine, strike

SAVE_EVERY = 100  # steps
WALL = 1_790_000_000.0  # unix time at the beginning
GRACE = 60.0  # seconds that a job takes for its last checkpoint
SCOPE = "the key lacks instance_write"  # the market's words for a refusal that no other offer changes
REAP = 1200.0  # seconds between two calls of cron
UPLOADS = 120.0  # seconds that a job waits at its end for a store that does not answer: app/runtime/uploads.py
ASKED = 1900.0  # seconds: the longest pause between two polls, and some
CONTRACT = 40 * 3600.0  # seconds of every contract: longer than any cap, shorter than the error of a wrong clock


# Faults that end a job: the runner's end_reason, and the fingerprint.
ENDS = {"nan": ("nan", None), "cuda-oom": ("cuda-oom", None), "host-disk-full": ("disk-full", None),
        "same-crash": ("bug", "KeyError@data.py"), "gpu-fault": ("bug", "Xid 79")}  # fmt: skip


class Crash(BaseException):
    """kill -9 of the supervisor, or a second's notice."""


class World:
    def __init__(self, schedule: Schedule, watchdog: bool, silent: float, trace: bool = False) -> None:
        self.schedule = schedule
        self.rng = Random(schedule.seed ^ 0x5EED)
        self.now = 0.0
        self.begun = 0.0  # when the journal was: a crash before that begins the run anew
        self.wall_shift = 0.0
        self.watchdog, self.silent = watchdog, silent
        self.bound = INF  # dollars per hour, of the policy
        self.burns_in = False  # by the policy
        self.machines: dict[int, SimulatedMachine] = {}
        self.ours: list[SimulatedMachine] = []
        self.foreign: list[SimulatedMachine] = []
        self.creates = 0
        self.happened: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.lines: list[str] | None = [] if trace else None
        self.violations: list[tuple[str, str]] = []
        self.home_step = 0
        self.home_complete = False
        self.busy_dollars = 0.0
        self.absence_answers: list[float] = []
        self.listed_at = -INF  # when the list was asked for
        self.intents: list[float] = []  # when creates were journalled
        self.unclear: list[float] = []  # when creates without an answer were sent
        self.proven: dict[int, float] = {}  # when the supervisor stopped counting a machine
        self.credit_ends = INF
        self.down: list[tuple[float, float]] = []  # when destroying was impossible
        self.supervisor_down: list[tuple[float, float]] = []
        self.unrefuted = False  # a wrong clock of the market was believed: the run had no machine that could refute it
        self.paused: list[tuple[float, float]] = []  # those of them in which our machine stood still
        self.active: dict[str, Fault] = {}
        self.ended: dict[str, float] = {}  # when a fault was last over
        self.token = self.actor = 1  # the fencing token that is valid, and that of who acts
        self.crash_next = False  # at the next journal write
        self.refused_for_good = False  # and the journal knows it
        self.leave: Fault | None = None  # SIGTERM, of a reboot of our machine: in the midst of the next call
        self.care: Callable[[], Supervision] = lambda: "alive"  # of the run, as `reap` beside it sees it
        self.lost: list[str] = []  # of each loss its cause: an obstacle, or IN_REACH and the verdict
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        for number in range(2):
            machine = self._machine(7000 + number, ("somebody-else", "prefill/other-run/1790000000")[number], -1000.0)
            machine.running_at = machine.ssh_at = -900.0
            self.foreign.append(machine)
        for fault in schedule.times:
            if fault.mode == "clock-wrong":  # from the beginning
                self._begin(fault)
            else:
                self.at(fault.at, partial(self._begin, fault))

    # ---- time ----------------------------------------------------------------------------------------------------------

    def at(self, when: float, event: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, event))

    def advance_to(self, t: float) -> None:
        events = self._events
        while events and events[0][0] <= t:
            when, _, event = heapq.heappop(events)
            if when > self.now:
                self.now = when
            event()
        if t > self.now:
            self.now = t

    def say(self, text: str) -> None:
        if self.lines is not None:
            self.lines.append(f"{self.now:9.0f}  {text}")

    def violate(self, invariant: str, what: str) -> None:
        self.violations.append((invariant, f"t={self.now:.0f}: {what}"))
        self.say(f"VIOLATION {invariant}: {what}")

    def interrupt(self) -> None:
        """In the midst of a call of the supervisor."""
        if self.leave is not None:
            self.happened["reboot"] += 1
            raise Crash

    def act(self, what: str) -> None:
        """Record an act of a supervisor, which must hold the run."""
        if self.actor != self.token:
            self.violate("fencing", f"{what} by a supervisor that was superseded")

    def on(self, mode: str) -> bool:
        """Whether a timed fault is active; it counts only where something meets it."""
        if mode in self.active:
            self.happened[mode] += 1
        return mode in self.active

    def unsupervised(self) -> float:
        """Seconds so far in which no supervisor worked. While nothing bills they need not count."""
        return sum(min(end, self.now) - begin for begin, end in self.supervisor_down)

    def service_shift(self) -> float:
        """Seconds by which the market's clock is ahead of the truth."""
        return (self.active["service-clock"].variant - 0.5) * 120 * 3600 if self.on("service-clock") else 0.0

    def _begin(self, fault: Fault) -> None:
        mode = fault.mode
        self.say(f"begins: {mode} for {fault.lasts:.0f} s")
        if mode in ("wall-jump", "clock-wrong"):
            self.wall_shift += (fault.variant - 0.5) * 4 * 86400
            self.happened[mode] += 1
            return
        self.active[mode] = fault
        if mode == "reap":
            self._reap(fault)
        elif mode == "reboot":
            self.leave = fault
        elif mode not in ("two-supervisors", "killed", "paused"):  # those the campaign acts on
            if mode in ("own-network-down", "delete-refused", "key-refused", "stale-replica", "delete-404"):
                self.down.append((self.now, self.now + fault.lasts))
            self.at(self.now + fault.lasts, lambda: self._end(fault))

    def _end(self, fault: Fault) -> None:
        if self.active.get(fault.mode) is fault:
            del self.active[fault.mode]
            self.ended[fault.mode] = self.now
            self.say(f"ends: {fault.mode}")

    def _reap(self, fault: Fault) -> None:
        """Cron's `vast reap`, every 20 minutes: beside the run, or on another machine with the same key."""
        care = {"run": self.care()} if fault.variant >= 0.5 else {}
        rows = [Instance(one.id, one.label, 1, Status.RUNNING, "", 1.0, None, ()) for one in self.alive()]
        for found in reap.judge(rows, WALL + self.now + self.service_shift(), care):
            self.happened["reap"] += 1
            if found.destroy:
                machine = self.machines[found.instance.id]
                early = self.now < self.begun + self.schedule.cap_seconds and care.get("run") != "nobody"
                early &= "service-clock" not in self.happened  # by which the label was written, or is read
                if early or care.get("run") == "alive":
                    self.violate("reap", f"machine {machine.id} is reaped: {found.why}")
                machine.truth.add("reaped")
                self.kill(machine, "reap")
        if self.now < self.schedule.cap_seconds + 86_400:
            self.at(self.now + REAP, lambda: self._reap(fault))

    # ---- machines --------------------------------------------------------------------------------------------------------

    def _machine(self, machine_id: int, label: str, born: float) -> SimulatedMachine:
        ident = 100 + len(self.machines)
        machine = SimulatedMachine(ident, machine_id, label, self.schedule.price, born, visible_at=born)
        self.machines[ident] = machine
        return machine

    def rent(self, machine_id: int, label: str, mode: str = "", variant: float = 0.0) -> SimulatedMachine:
        """A new machine; half of them show in the listing late. mode: the fault of its create."""
        machine = self._machine(machine_id, label, self.now)
        if mode == "price-change":
            machine.price *= 1.2 + 5 * variant
            machine.truth.add("dearer")
        machine.end = self.now + CONTRACT
        self.ours.append(machine)
        machine.visible_at = self.now + (0.0 if self.rng.random() < 0.5 else self.rng.uniform(5, 140))
        machine.visible_at += 200 + 1200 * variant if mode == "late-create" else 0.0
        machine.faults = self.schedule.machines.get(len(self.ours), [])
        self.say(f"machine {machine.id} exists")
        if machine.fault("no-price") is not None:
            self.hit(machine, "no-price")
            machine.price = self.schedule.price
        slow, bad = machine.fault("slow-gpu"), machine.fault("bad-image")
        machine.rate = 1.0 if slow is None else 1 / (1.2 + slow.variant)
        if mode == "offer-sold-twice":
            machine.message = "Bind for 0.0.0.0:8080 failed: port is already allocated"
            machine.truth.add("host-fault")
        elif mode == "created-stopped":
            machine.stopped, machine.message = True, "OCI runtime create failed"
            machine.truth.add("created-stopped")
        elif bad is not None:
            self.hit(machine, "bad-image")
            machine.message = "manifest unknown" if bad.variant < 0.5 else "nvidia-container-cli: driver error"
            machine.truth.add("image" if bad.variant < 0.5 else "host-fault")
        elif machine.fault("stuck-loading") is not None:
            self.hit(machine, "stuck-loading")
        else:
            machine.running_at = self.now + self.schedule.loading * self.rng.uniform(0.7, 1.2)
            machine.ssh_at = machine.running_at + self.rng.uniform(5, 60)
            self.at(machine.ssh_at, lambda: self._up(machine))
        return machine

    def hit(self, machine: SimulatedMachine, mode: str) -> None:
        self.happened[mode] += 1
        machine.truth.add(mode)
        self.say(f"machine {machine.id}: {mode}")

    def _up(self, machine: SimulatedMachine) -> None:
        """onstart: the dead-man's switch first."""
        if machine.dead_at is not None:
            return
        machine.armed = self.watchdog
        machine.lease = self.now
        if self.watchdog:
            self.at(self.now + self.silent, lambda: self._watchdog(machine))
        for fault in machine.faults:
            if fault.mode in STRIKES:
                self.at(self.now + fault.at, partial(strike, self, machine, fault))
            elif fault.mode == "partial-pull":
                machine.partial.append((self.now + fault.at, self.now + fault.at + fault.lasts))
            elif fault.mode == "delete-lingers":
                machine.lingers = min(fault.lasts, 1800.0)
                machine.deaf_to_delete = 2.0 if fault.variant < 0.4 else 0.0

    def _watchdog(self, machine: SimulatedMachine) -> None:
        """The host destroys itself once its lease expired. That needs the market's API and the host's network."""
        if machine.dead_at is not None or machine.stopped or not self.watchdog:
            return
        due = machine.lease + self.silent
        if self.now < due:
            self.at(due, lambda: self._watchdog(machine))
        elif (
            self.now < machine.ssh_at
            or machine.is_offline(self.now)
            or self.active.keys() & {"delete-refused", "delete-404"}
        ):
            self.at(self.now + 60.0, lambda: self._watchdog(machine))
        else:
            machine.truth.add("dead-man")
            self.happened["dead-man's switch"] += 1
            since = self.now - self.silent
            blind = any(end > since for _, end in self.down + self.supervisor_down)
            blind |= "no-ssh-here" in self.active or self.ended.get("no-ssh-here", -INF) > since
            # a machine of an unclear create has no id and no address until the market shows it, which is asked for that
            blind |= machine.shown_at == INF and self.now - self.listed_at < ASKED
            lost_touch = {
                "no-ssh",
                "wrong-host",
                "key-denied",
                "offline",
                "container-restart",
                "commands-hang",
                "made-anew",
            }
            if not blind and not machine.truth & lost_touch:
                self.violate("lease", f"machine {machine.id} ended itself, and could have been reached all the time")
            self.end_job(machine, "stopped")
            self.kill(machine, "its dead-man's switch")

    def show(self, machine: SimulatedMachine) -> None:
        if self.now < machine.shown_at:
            machine.shown_at = self.now

    def kill(self, machine: SimulatedMachine, by: str) -> None:
        if machine.dead_at is None:
            self.end_job(machine, None)
            machine.dead_at = self.now
            self.say(f"machine {machine.id} is destroyed by {by}")

    def status(self, machine: SimulatedMachine) -> Status:
        if machine.is_offline(self.now):
            return Status.OFFLINE
        if machine.stopped:
            return Status.STOPPED
        if self.now >= machine.running_at:
            return Status.RUNNING
        return Status.LOADING if self.now > machine.born + 20 else Status.UNKNOWN

    def alive(self) -> list[SimulatedMachine]:
        return [machine for machine in self.ours if machine.dead_at is None]

    def bill(self, until: float) -> float:
        ends = ((one, until if one.dead_at is None else min(until, one.dead_at)) for one in self.ours)
        return sum(one.price * max(0.0, end - one.born) / 3600 for one, end in ends)

    def reachable(self, machine: SimulatedMachine) -> bool:
        return not self.out_of_reach(machine, self.now)

    def out_of_reach(self, machine: SimulatedMachine, since: float) -> str:
        """Why it could not be reached at any time from `since` on, or could not at first; empty if it could."""
        if machine.stopped or machine.dead_at is not None:
            return "stopped"
        until = {**machine.until, "container starting": machine.ssh_at}
        return next((why for why in OUT_OF_REACH if since < until.get(why, -INF)), "")

    def behind(self, machine: SimulatedMachine) -> bool:
        """Whether the machine holds work without a local copy: a checkpoint, or the results."""
        if machine.job is None or machine.dead_at is not None:
            return False
        return self.checkpoint(machine) - self.home_step >= SAVE_EVERY or (machine.complete and not self.home_complete)

    # ---- jobs --------------------------------------------------------------------------------------------------------------

    def step_of(self, machine: SimulatedMachine) -> int:
        job = machine.job
        if job is None:
            return machine.saved
        until = min(self.now, job.hung_at, INF if job.ended is None else job.ended)
        made = int(max(0.0, until - job.began) * machine.rate * self.schedule.steps_per_s)
        return min(self.schedule.steps, job.first_step + made)

    def start_job(self, machine: SimulatedMachine, home: int) -> None:
        old = machine.job
        bucket = machine.fault("bucket-unreachable")
        asks = uploads = 0.0
        if bucket is not None:
            self.hit(machine, "bucket-unreachable")
            asks, uploads = 60 + 1200 * bucket.variant, UPLOADS
        job = machine.job = SimulatedJob(1 if old is None else old.attempt + 1, self.now + asks, machine.saved)
        self.say(f"machine {machine.id}: job attempt {job.attempt} from step {job.first_step}")
        work = (self.schedule.steps - job.first_step) / (machine.rate * self.schedule.steps_per_s)
        self.at(job.began + work + 1 + uploads, lambda: self._complete(machine, job))
        for fault in machine.faults:
            if fault.mode == "hang" or fault.mode in ENDS:
                self._plan(machine, job, fault, home)

    def _plan(self, machine: SimulatedMachine, job: SimulatedJob, fault: Fault, home: int) -> None:
        """What goes wrong in this attempt."""
        again = {"host-disk-full": not home, "same-crash": True, "gpu-fault": False}.get(
            fault.mode, fault.variant < 0.4
        )
        if job.attempt == 1 or again:
            after = {"cuda-oom": 60.0, "same-crash": min(fault.at, 900.0)}.get(fault.mode, fault.at)
            self.at(self.now + after, lambda: self._fail(machine, job, fault.mode))

    def _works(self, machine: SimulatedMachine, job: SimulatedJob) -> bool:
        return machine.job is job and job.ended is None and machine.dead_at is None

    def _fail(self, machine: SimulatedMachine, job: SimulatedJob, mode: str) -> None:
        if not self._works(machine, job):
            return
        if mode == "hang":
            self.hit(machine, mode)
            job.hung_at = self.now
        elif self.now < job.hung_at:
            self.hit(machine, mode)
            exit_reason, fingerprint = ENDS[mode]
            machine.gpu_fault = fingerprint if mode == "gpu-fault" else None
            self.end_job(machine, exit_reason, fingerprint)

    def _complete(self, machine: SimulatedMachine, job: SimulatedJob) -> None:
        if not self._works(machine, job) or job.hung_at < INF:
            return
        fault = machine.fault("no-manifest")
        if fault is not None and (job.attempt == 1 or fault.variant < 0.4):
            self.hit(machine, "no-manifest")
        else:
            machine.complete = True
        self.end_job(machine, "done")

    def end_job(self, machine: SimulatedMachine, exit_reason: str | None, fingerprint: str | None = None) -> None:
        """`exit_reason` None: the runner died without a record of the end."""
        job = machine.job
        if job is None or job.ended is not None:
            return
        step = self.step_of(machine)
        moved = max(0.0, min(self.now, job.hung_at) - job.began)
        self.busy_dollars += moved * machine.price / 3600
        machine.saved = step if exit_reason in ("stopped", "done") else max(machine.saved, step - step % SAVE_EVERY)
        job.ended, job.exit, job.fingerprint = self.now, exit_reason, fingerprint
        self.say(f"machine {machine.id}: job ended: {exit_reason} at step {step}")

    def checkpoint(self, machine: SimulatedMachine) -> int:
        """The newest complete checkpoint on the machine's disk."""
        if machine.job is not None and machine.job.ended is None:
            step = self.step_of(machine)
            return max(machine.saved, step - step % SAVE_EVERY)
        return machine.saved
