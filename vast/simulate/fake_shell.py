"""The way to a host over the simulated world: every contact takes time, is counted, and may meet a fault."""

from __future__ import annotations

from vast.ports import Address, Contact, Host, JobReport, Pulled, Watchdog
from vast.simulate.machines import INF, Box
from vast.simulate.world import GRACE, World


class FakeShell:
    def __init__(self, world: World) -> None:
        self.world = world

    def _reach(self, addresses: tuple[Address, ...], seconds: float) -> tuple[Contact, Box | None]:
        world = self.world
        world.calls["ssh"] += 1
        world.advance_to(world.now + seconds)
        if world.on("own-network-down"):
            return "unreachable", None
        box = world.boxes.get(int(addresses[0].host.removeprefix("direct").removeprefix("proxy")))
        now = world.now
        if box is None or box.dead_at is not None or box.stopped or now < box.ssh_at or now < box.offline_until:
            return "unreachable", None
        if now < box.no_ssh_until or (box.direct_dead and addresses[0].host.startswith("direct")):
            return "unreachable", None
        if now < box.stranger_until:
            return "wrong-host", box
        if now < box.denied_until:
            return "denied", None
        return "ok", box

    def _reached(self, addresses: tuple[Address, ...], seconds: float, what: str | None = None) -> Box | None:
        """The machine, for `what` may be done by one supervisor alone; None without contact."""
        contact, box = self._reach(addresses, seconds)
        if contact != "ok":
            return None
        if what is not None:
            self.world.act(what)
        return box

    def probe(self, addresses: tuple[Address, ...]) -> Host:
        world = self.world
        contact, box = self._reach(addresses, 2.0)
        if contact == "wrong-host":
            # all that a wrong machine can say, and more than an adapter would pass on
            return Host(
                "wrong-host", "b9", Watchdog(True, 0, 0), JobReport("ended", 9, 0, "done", run="x", complete=True), 0.0
            )
        if contact != "ok" or box is None:
            return Host(contact)
        watchdog = Watchdog(box.armed, world.now - box.lease, world.now - box.ssh_at)
        job, hung = box.job, box.job is not None and box.job.hung_at < INF
        moving = job is not None and job.ended is None and not hung
        gpu = None if world.rng.random() < 0.05 else 95.0 if moving else 0.0
        return Host("ok", f"b{box.boot}", watchdog, self._job(box), gpu, 50.0, 100.0, box.gpu_fault)

    def _job(self, box: Box) -> JobReport:
        job, world = box.job, self.world
        if job is None:
            return JobReport("absent")
        saved = world.checkpoint(box)
        phase = "running" if job.ended is None else "lost" if job.exit is None else "ended"
        return JobReport(
            phase,
            job.attempt,
            end_reason=job.exit,
            fingerprint=job.fingerprint,
            run="stage/1",
            step=world.step_of(box),
            total=world.schedule.steps,
            beat_age=max(2.0, world.now - job.hung_at),
            checkpoint=f"checkpoint-{saved}" if saved else None,
            complete=box.complete and job.ended is not None,
        )

    def start(self, addresses: tuple[Address, ...], command: tuple[str, ...], home: str | None = None) -> bool | None:
        box = self._reached(addresses, 3.0, "start")
        if box is None:
            return None
        if not box.armed:
            self.world.violate("armed", f"job started on {box.id} while its dead-man's switch was not armed")
        if box.job is None or box.job.ended is not None:
            self.world.start_job(box, int(home.removeprefix("checkpoint-")) if home else 0)
        return True

    def push(self, addresses: tuple[Address, ...]) -> bool | None:
        box = self._reached(addresses, 60.0)
        if box is None:
            return None
        box.saved = max(box.saved, self.world.home_step)
        return True

    def stop(self, addresses: tuple[Address, ...]) -> bool | None:
        """A job that listens ends after its checkpoint, one that hangs is killed after the grace."""
        box = self._reached(addresses, 2.0, "stop")
        if box is None:
            return None
        job, world = box.job, self.world
        if job is not None and job.ended is None and not job.stopped:
            job.stopped = True
            hung = job.hung_at < INF

            def end() -> None:
                if box.job is job and box.dead_at is None:
                    world.end_job(box, "killed" if hung else "stopped")

            world.at(world.now + (300.0 if hung else GRACE), end)
        return True

    def renew_lease(self, addresses: tuple[Address, ...], until_deadline: float) -> bool | None:
        box = self._reached(addresses, 1.0)
        if box is None:
            return None
        box.lease = self.world.now
        return True

    def pull(self, addresses: tuple[Address, ...], everything: bool) -> Pulled | None:
        world = self.world
        box = self._reached(addresses, 20.0, "pull")
        if box is None:
            return None
        if world.on("local-disk-full"):
            return Pulled(False, local_disk_full=True, message="no space left on this disk")
        step, complete = world.checkpoint(box), box.complete
        world.advance_to(world.now + 60.0)
        if any(begin <= world.now < end for begin, end in box.partial):
            if "partial-pull" not in box.truth:
                world.hit(box, "partial-pull")
            world.happened["partial-pull"] += 1
            return Pulled(False, "stage/1", message="sha256 differs")
        world.home_step = max(world.home_step, step)
        world.home_complete |= complete
        world.say(f"pulled step {step}{', complete' if complete else ''}")
        return self.local_copy()

    def local_copy(self) -> Pulled | None:
        world = self.world
        step = world.home_step
        return (
            Pulled(True, "stage/1", f"checkpoint-{step}", world.home_complete, 10**9)
            if step
            else Pulled(True, "stage/1")
        )

    def network_is_up(self) -> bool:
        return "own-network-down" not in self.world.active
