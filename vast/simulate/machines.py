"""The truth about one rented machine, and about its job."""

from dataclasses import dataclass, field

from vast.simulate.faults import Fault

INF = float("inf")
ONCE = 0.7  # from this variant on a burn-in hangs only once


@dataclass(slots=True, eq=False)
class SimulatedJob:
    """One attempt of the job, in the runner on a machine. It makes steps from `began` on, once its store has answered or not."""

    attempt: int
    began: float
    first_step: int
    ended: float | None = None
    exit: str | None = None  # the runner's end_reason
    fingerprint: str | None = None
    hung_at: float = INF
    stopped: bool = False


@dataclass(slots=True, eq=False)
class SimulatedMachine:
    """A rented machine. `truth` holds the names of its faults."""

    number: int
    id: int
    machine_id: int
    label: str
    price: float
    born: float
    visible_at: float
    running_at: float = INF
    ssh_at: float = INF
    dead_at: float | None = None
    stopped: bool = False
    message: str = ""
    boot: int = 1
    armed: bool = False
    lease: float = INF
    job: SimulatedJob | None = None
    saved: int = 0  # the newest checkpoint on its disk
    complete: bool = False
    gpu_fault: str | None = None
    end: float | None = None
    offline_until: float = -INF
    no_ssh_until: float = -INF
    denied_until: float = -INF
    stranger_until: float = -INF
    no_ssh_key: bool = False
    direct_dead: bool = False
    lingers: float = 0.0
    deaf_to_delete: float = 0.0
    partial: list[tuple[float, float]] = field(default_factory=list)
    truth: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    priced: bool = True  # whether the market states its price
    hangs_until: float = -INF  # commands
    renews: bool = True  # while commands hang
    slow: float = 0.0  # seconds more for each pull
    slowest_pull: float = 0.0  # seconds more that a whole pull took
    pulled_at: float = -INF  # the end of the last whole pull
    rate: float = 1.0  # of the GPUs, of what was expected
    burn_ins: int = 0  # that were begun
    glitches: int = 0  # probes that will show an error of the GPU's driver
    shown_at: float = INF  # its id was in a list of the market, or in the journal
    dead_since: float | None = None  # no contact since, for the invariant `stuck`

    def fault(self, mode: str) -> Fault | None:
        return next((one for one in self.faults if one.mode == mode), None)

    @property
    def unfit(self) -> bool:
        """Whether its burn-in fails, or never answers."""
        hangs = self.fault("burn-in-hangs")
        if hangs is not None and hangs.variant < ONCE:
            return True
        return self.fault("burn-in-fails") is not None and self.fault("burn-in-missing") is None
