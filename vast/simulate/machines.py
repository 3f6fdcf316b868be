"""What is true of one rented machine, and of the job on it."""

from __future__ import annotations

from vast.simulate.faults import Fault

INF = float("inf")


class SimulatedJob:
    """One attempt at the job, in the runner on a machine."""

    __slots__ = ("attempt", "began", "ended", "exit", "fingerprint", "first_step", "hung_at", "serial", "stopped")

    def __init__(self, attempt: int, began: float, first_step: int) -> None:
        self.attempt, self.began, self.first_step = attempt, began, first_step
        self.ended: float | None = None
        self.exit: str | None = None  # the runner's word
        self.fingerprint: str | None = None
        self.hung_at = INF
        self.stopped = False


class Box:
    """A rented machine. `truth` has the names of what went wrong on it."""

    __slots__ = (
        "absent_for_list",
        "armed",
        "armed_ever",
        "boot",
        "born",
        "complete",
        "dead_at",
        "deaf_to_delete",
        "denied_until",
        "direct_dead",
        "end",
        "faults",
        "gpu_fault",
        "id",
        "job",
        "key",
        "label",
        "lease",
        "lingers",
        "machine_id",
        "message",
        "no_ssh_key",
        "no_ssh_until",
        "number",
        "offline_until",
        "partial",
        "price",
        "running_at",
        "saved",
        "ssh_at",
        "stopped",
        "stranger_until",
        "truth",
        "uptime",
        "visible_at",
    )  # fmt: skip

    def __init__(self, number: int, ident: int, machine_id: int, label: str, price: float, born: float) -> None:
        self.number, self.id, self.machine_id, self.label, self.price, self.born = (
            number, ident, machine_id, label, price, born)  # fmt: skip
        self.visible_at = born
        self.running_at = self.ssh_at = INF
        self.dead_at: float | None = None
        self.stopped = False
        self.message = ""
        self.boot = 1
        self.armed = self.armed_ever = False
        self.lease = INF
        self.job: SimulatedJob | None = None
        self.saved = 0  # the newest checkpoint on its disk
        self.complete = False
        self.gpu_fault: str | None = None
        self.end: float | None = None
        self.offline_until = self.no_ssh_until = self.denied_until = self.stranger_until = -INF
        self.no_ssh_key = self.direct_dead = False
        self.lingers = self.deaf_to_delete = 0.0
        self.partial: list[tuple[float, float]] = []
        self.truth: set[str] = set()
        self.faults: list[Fault] = []
