"""The world that the supervisor sees through vast/simulate/fakes.py: machines that bill, jobs that run, a network that fails.

It knows the truth, and keeps it for vast/simulate/invariants.py. Time passes only in `advance_to`, from event to event.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random

from vast.ports import Status
from vast.simulate.faults import Fault, Schedule
from vast.simulate.machines import INF, Box, SimulatedJob

SAVE_EVERY = 100  # steps
WALL = 1_790_000_000.0  # unix time at the beginning
GRACE = 60.0  # seconds that a job takes for its last checkpoint
STRIKES = ("no-ssh", "key-denied", "wrong-host", "offline", "ends-soon", "outbid", "container-restart")  # once it is up


class World:
    def __init__(self, schedule: Schedule, watchdog: bool, silent: float, trace: bool = False) -> None:
        self.schedule = schedule
        self.rng = Random(schedule.seed ^ 0x5EED)
        self.now = 0.0
        self.wall_shift = 0.0
        self.watchdog, self.silent = watchdog, silent
        self.boxes: dict[int, Box] = {}
        self.ours: list[Box] = []
        self.foreign: list[Box] = []
        self.creates = 0
        self.happened: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.lines: list[str] | None = [] if trace else None
        self.violations: list[tuple[str, str]] = []
        self.home_step = 0
        self.home_complete = False
        self.busy_dollars = 0.0
        self.absence_answers: list[float] = []
        self.credit_ends = INF
        self.down: list[tuple[float, float]] = []  # when destroying was impossible
        self.supervisor_down: list[tuple[float, float]] = []
        self.active: dict[str, Fault] = {}
        self.token = self.actor = 1  # the fencing token that is valid, and that of who acts
        self.crash_next = False  # at the next journal write
        self.lost: list[tuple[str, bool]] = []  # the reason, and whether the machine could be reached
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        for number in range(2):
            box = self._box(7000 + number, ("somebody-else", "prefill/other-run/1790000000")[number], -1000.0)
            box.running_at = box.ssh_at = -900.0
            self.foreign.append(box)
        for fault in schedule.times:
            self.at(fault.at, lambda fault=fault: self._begin(fault))  # type: ignore[misc]

    # ---- time ----------------------------------------------------------------------------------------------------------

    def at(self, when: float, event: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, event))

    def advance_to(self, t: float) -> None:
        events = self._events
        while events and events[0][0] <= t:
            when, _, event = heapq.heappop(events)
            self.now = max(self.now, when)
            event()
        self.now = max(self.now, t)

    def say(self, text: str) -> None:
        if self.lines is not None:
            self.lines.append(f"{self.now:9.0f}  {text}")

    def violate(self, invariant: str, what: str) -> None:
        self.violations.append((invariant, f"t={self.now:.0f}: {what}"))
        self.say(f"VIOLATION {invariant}: {what}")

    def act(self, what: str) -> None:
        """Every act of a supervisor, which must be the one that holds the run."""
        if self.actor != self.token:
            self.violate("fencing", f"{what} by a supervisor that was superseded")

    def on(self, mode: str) -> bool:
        """Whether a fault with a time is going on; to be hit by it is what counts."""
        if mode in self.active:
            self.happened[mode] += 1
        return mode in self.active

    def _begin(self, fault: Fault) -> None:
        mode = fault.mode
        if mode in ("two-supervisors", "killed"):
            self.active[mode] = fault  # the campaign acts on it
            return
        self.say(f"begins: {mode} for {fault.lasts:.0f} s")
        if mode == "wall-jump":
            self.wall_shift += (fault.variant - 0.5) * 4 * 86400
            self.happened[mode] += 1
            return
        self.active[mode] = fault
        if mode in ("own-network-down", "delete-refused", "key-refused"):
            self.down.append((self.now, self.now + fault.lasts))
        self.at(self.now + fault.lasts, lambda: self._end(fault))

    def _end(self, fault: Fault) -> None:
        if self.active.get(fault.mode) is fault:
            del self.active[fault.mode]
            self.say(f"ends: {fault.mode}")

    # ---- machines --------------------------------------------------------------------------------------------------------

    def _box(self, machine_id: int, label: str, born: float) -> Box:
        number = len(self.ours) + 1
        box = Box(number, 100 + len(self.boxes), machine_id, label, self.schedule.price, born, visible_at=born)
        self.boxes[box.id] = box
        return box

    def rent(self, machine_id: int, label: str, loads: bool = True) -> Box:
        """A new machine, visible in the listing only after a while."""
        box = self._box(machine_id, label, self.now)
        self.ours.append(box)
        box.visible_at = self.now + (0.0 if self.rng.random() < 0.5 else self.rng.uniform(5, 140))
        box.faults = self.schedule.machines.get(box.number, [])
        self.say(f"machine {box.id} exists")
        modes = {fault.mode for fault in box.faults}
        if not loads:
            box.stopped, box.message = True, "OCI runtime create failed"
            box.truth.add("created-stopped")
            return box
        if "bad-image" in modes:
            self.hit(box, "bad-image")
            fault = next(one for one in box.faults if one.mode == "bad-image")
            box.message = "manifest unknown" if fault.variant < 0.5 else "nvidia-container-cli: driver error"
            box.truth.add("image" if fault.variant < 0.5 else "host-fault")
            return box
        if "stuck-loading" in modes:
            self.hit(box, "stuck-loading")
            return box
        box.running_at = self.now + self.schedule.loading * self.rng.uniform(0.7, 1.2)
        box.ssh_at = box.running_at + self.rng.uniform(5, 60)
        self.at(box.ssh_at, lambda: self._up(box))
        return box

    def hit(self, box: Box, mode: str) -> None:
        self.happened[mode] += 1
        box.truth.add(mode)
        self.say(f"machine {box.id}: {mode}")

    def _up(self, box: Box) -> None:
        """onstart: the dead-man's switch first."""
        if box.dead_at is not None:
            return
        box.armed = self.watchdog
        box.lease = self.now
        if self.watchdog:
            self.at(self.now + self.silent, lambda: self._watchdog(box))
        for fault in box.faults:
            if fault.mode in STRIKES:
                self.at(self.now + fault.at, lambda fault=fault: self._strike(box, fault))  # type: ignore[misc]
            elif fault.mode == "partial-pull":
                box.partial.append((self.now + fault.at, self.now + fault.at + fault.lasts))
            elif fault.mode == "delete-lingers":
                box.lingers = min(fault.lasts, 1800.0)
                box.deaf_to_delete = 2.0 if fault.variant < 0.4 else 0.0

    def _watchdog(self, box: Box) -> None:
        """The host ends itself: the lease is too old. It needs the market's API, and its own network."""
        if box.dead_at is not None or box.stopped or not self.watchdog:
            return
        due = box.lease + self.silent
        if self.now < due:
            self.at(due, lambda: self._watchdog(box))
        elif self.now < box.offline_until or "delete-refused" in self.active:
            self.at(self.now + 60.0, lambda: self._watchdog(box))
        else:
            box.truth.add("dead-man")
            self.happened["dead-man's switch"] += 1
            blind = any(end > self.now - self.silent for _, end in self.down + self.supervisor_down)
            if not blind and not box.truth & {"no-ssh", "wrong-host", "key-denied", "offline", "container-restart"}:
                self.violate("lease", f"machine {box.id} ended itself, and could have been reached all the time")
            self.end_job(box, "stopped")
            self.kill(box, "its dead-man's switch")

    def _strike(self, box: Box, fault: Fault) -> None:
        if box.dead_at is not None or box.stopped:
            return
        mode, until = fault.mode, self.now + fault.lasts
        self.hit(box, mode)
        if mode == "no-ssh" and 0.3 <= fault.variant < 0.6:
            box.direct_dead = True  # for ever, and no reason to give the machine up: the other address works
            box.truth.discard(mode)
        elif mode == "no-ssh":
            box.no_ssh_until, box.no_ssh_key = until, fault.variant < 0.3
        elif mode == "key-denied":
            box.denied_until = INF
        elif mode == "wrong-host":
            box.stranger_until = until
        elif mode == "offline":
            box.offline_until = until
        elif mode == "ends-soon" and fault.variant < 0.3:
            self.credit_ends = min(self.credit_ends, self.now + 600 + 30_000 * fault.variant)
            self.at(self.credit_ends, self._credit_is_used_up)
        elif mode == "ends-soon":
            box.end = self.now + 600 + 9000 * fault.variant
            self.at(box.end, lambda: self._owner_takes_back(box))
        elif mode == "outbid":
            self.end_job(box, None)
            box.stopped = True
        elif mode == "container-restart":
            self.end_job(box, None)
            box.boot += 1
            box.armed = False
            box.ssh_at = self.now + 40
            self.at(self.now + 90, lambda: setattr(box, "armed", box.dead_at is None and self.watchdog))

    def _owner_takes_back(self, box: Box) -> None:
        if box.dead_at is None:
            self.end_job(box, None)
            self.kill(box, "the end of its contract")

    def _credit_is_used_up(self) -> None:
        for box in self.alive():
            self.end_job(box, None)
            box.stopped = True
            self.say(f"machine {box.id} is stopped: no credit")

    def kill(self, box: Box, by: str) -> None:
        if box.dead_at is None:
            self.end_job(box, None)
            box.dead_at = self.now
            self.say(f"machine {box.id} is destroyed by {by}")

    def status(self, box: Box) -> Status:
        if self.now < box.offline_until:
            return Status.OFFLINE
        if box.stopped:
            return Status.STOPPED
        if self.now >= box.running_at:
            return Status.RUNNING
        return Status.LOADING if self.now > box.born + 20 else Status.UNKNOWN

    def alive(self) -> list[Box]:
        return [box for box in self.ours if box.dead_at is None]

    def bill(self, until: float) -> float:
        return sum(box.price * ((until if box.dead_at is None else box.dead_at) - box.born) / 3600 for box in self.ours)

    def reachable(self, box: Box) -> bool:
        until = max(box.no_ssh_until, box.stranger_until, box.offline_until, box.denied_until, box.ssh_at)
        return self.now >= until and not box.stopped and box.dead_at is None

    def behind(self, box: Box) -> bool:
        """Whether the machine has work that is not at home: a checkpoint, or the results."""
        if box.job is None or box.dead_at is not None:
            return False
        return self.checkpoint(box) - self.home_step >= SAVE_EVERY or (box.complete and not self.home_complete)

    # ---- jobs --------------------------------------------------------------------------------------------------------------

    def step_of(self, box: Box) -> int:
        job = box.job
        if job is None:
            return box.saved
        until = min(self.now, job.hung_at, INF if job.ended is None else job.ended)
        return min(self.schedule.steps, job.first_step + int(max(0.0, until - job.began) * self.schedule.steps_per_s))

    def start_job(self, box: Box, home: int) -> None:
        old = box.job
        job = box.job = SimulatedJob(1 if old is None else old.attempt + 1, self.now, box.saved)
        self.say(f"machine {box.id}: job attempt {job.attempt} from step {job.first_step}")
        end = self.now + (self.schedule.steps - job.first_step) / self.schedule.steps_per_s + 1
        self.at(end, lambda: self._complete(box, job))
        for fault in box.faults:
            self._plan(box, job, fault, home)

    def _plan(self, box: Box, job: SimulatedJob, fault: Fault, home: int) -> None:
        """What goes wrong in this attempt."""
        again, mode = fault.variant < 0.4, fault.mode
        if mode == "hang" and (job.attempt == 1 or again):
            self.at(self.now + fault.at, lambda: self._hang(box, job))
        elif mode == "nan" and (job.attempt == 1 or again):
            self.at(self.now + fault.at, lambda: self._fail(box, job, mode, "nan"))
        elif mode == "cuda-oom" and (job.attempt == 1 or again):
            self.at(self.now + 60, lambda: self._fail(box, job, mode, "cuda-oom"))
        elif mode == "host-disk-full" and (job.attempt == 1 or not home):
            self.at(self.now + fault.at, lambda: self._fail(box, job, mode, "disk-full"))
        elif mode == "same-crash":
            self.at(self.now + min(fault.at, 900.0), lambda: self._fail(box, job, mode, "bug", "KeyError@data.py"))
        elif mode == "gpu-fault" and job.attempt == 1:
            self.at(self.now + fault.at, lambda: self._fail(box, job, mode, "bug", "Xid 79"))

    def _hang(self, box: Box, job: SimulatedJob) -> None:
        if box.job is job and job.ended is None and box.dead_at is None:
            self.hit(box, "hang")
            job.hung_at = self.now

    def _fail(self, box: Box, job: SimulatedJob, mode: str, exit_reason: str, fingerprint: str | None = None) -> None:
        if box.job is job and job.ended is None and box.dead_at is None and self.now < job.hung_at:
            self.hit(box, mode)
            box.gpu_fault = fingerprint if mode == "gpu-fault" else None
            self.end_job(box, exit_reason, fingerprint)

    def _complete(self, box: Box, job: SimulatedJob) -> None:
        if box.job is not job or job.ended is not None or box.dead_at is not None or job.hung_at < INF:
            return
        fault = next((one for one in box.faults if one.mode == "no-manifest"), None)
        if fault is not None and (job.attempt == 1 or fault.variant < 0.4):
            self.hit(box, "no-manifest")
        else:
            box.complete = True
        self.end_job(box, "done")

    def end_job(self, box: Box, exit_reason: str | None, fingerprint: str | None = None) -> None:
        """`None`: nobody could write the end."""
        job = box.job
        if job is None or job.ended is not None:
            return
        step = self.step_of(box)
        moved = max(0.0, min(self.now, job.hung_at) - job.began)
        self.busy_dollars += moved * box.price / 3600
        box.saved = step if exit_reason in ("stopped", "done") else max(box.saved, step - step % SAVE_EVERY)
        job.ended, job.exit, job.fingerprint = self.now, exit_reason, fingerprint
        self.say(f"machine {box.id}: job ended: {exit_reason} at step {step}")

    def checkpoint(self, box: Box) -> int:
        """The newest complete checkpoint on the machine's disk."""
        if box.job is not None and box.job.ended is None:
            step = self.step_of(box)
            return max(box.saved, step - step % SAVE_EVERY)
        return box.saved
