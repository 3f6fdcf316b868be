"""`vast reap`: which machines with our label to destroy, and destroying them. Pure except for `Reaper`.

label         here                               before its deadline    past it
not ours      -                                  spared                 spared
ours          a supervisor is alive              spared                 spared        with --all-mine: destroyed
ours          none is alive, one was lately      spared                 destroyed     with --all-mine: destroyed
ours          known, without a supervisor        destroyed              destroyed
ours          not known: another machine         spared                 destroyed     with --all-mine: destroyed

Lately: within the patience of its dead-man's switch, so that `attach` can continue after a killed supervisor.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vast.ports import GONE, Clock, Cloud, Instance, Label, Seconds, parse_label
from vast.records.run_dir import Supervision

PATIENCE: Seconds = 900.0  # for each machine; a later call continues
FIRST_PAUSE: Seconds = 5.0  # after a DELETE that was not accepted; doubled up to LONGEST_PAUSE
LONGEST_PAUSE: Seconds = 60.0


@dataclass(frozen=True)
class ReapVerdict:
    instance: Instance
    label: Label
    destroy: bool
    why: str
    expected: bool  # nothing that a person needs to know: it is spared, and its supervisor is elsewhere or alive


def judge(
    instances: Iterable[Instance],
    now: Seconds,
    here: Mapping[str, Supervision],
    all_mine: bool = False,
    known: Mapping[int, Label] = MappingProxyType({}),
) -> tuple[ReapVerdict, ...]:
    """The decision on each machine with our label. here: for each run kept on this machine, its supervision. known: machines
    whose label is ours, whatever the market shows."""
    found = []
    for one in sorted(instances, key=lambda one: one.id):
        label = parse_label(one.label) or known.get(one.id)
        if label is None:
            continue
        care = here.get(label.run_id)
        destroy, why = _decision(now, label.deadline, care, all_mine)
        found.append(ReapVerdict(one, label, destroy, why, not destroy and care != "lately"))
    return tuple(found)


def _decision(now: Seconds, deadline: int, care: Supervision | None, all_mine: bool) -> tuple[bool, str]:
    if all_mine:
        return True, "all are asked for"
    if care == "alive":
        return False, "its run has a supervisor"  # its supervisor and its switch know the caps better than a label
    if now > deadline:
        return True, "past its deadline"
    if care == "nobody":
        return True, "its run has no supervisor"
    if care == "lately":
        return False, "its run had a supervisor lately: attach continues it, down ends it"
    return False, "a run of another machine, before its deadline"


@dataclass
class _Teardown:
    accepted: bool = False  # a DELETE was; absence counts only after it
    proofs: int = 0
    tries: int = 0
    next_at: Seconds = 0.0


class Reaper:
    """Sends DELETE until two authenticated answers after it, `spacing` seconds apart, show that the machine is gone."""

    def __init__(self, cloud: Cloud, clock: Clock, spacing: Seconds, show: Callable[[str], None]) -> None:
        self._cloud, self._clock, self._spacing, self._show = cloud, clock, spacing, show

    def reap(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Returns the machines that may remain."""
        left = {one: _Teardown() for one in ids}
        until = self._clock.monotonic() + PATIENCE * max(1, len(left))
        while left and self._clock.monotonic() < until:
            self._round(left)
            if left:
                now = self._clock.monotonic()
                self._clock.sleep(max(1.0, min(one.next_at for one in left.values()) - now))
        return tuple(left)

    def _round(self, left: dict[int, _Teardown]) -> None:
        seen_by_key = self._cloud.account() is not None
        listed = self._cloud.instances() if seen_by_key else None
        for one, trial in list(left.items()):
            now = self._clock.monotonic()
            if now < trial.next_at:
                continue
            unlisted = listed is not None and one not in {found.id for found in listed}
            if trial.accepted and unlisted and self._cloud.instance(one) is GONE:
                trial.proofs += 1
                trial.next_at = now + self._spacing
                if trial.proofs >= 2:
                    self._show(f"{one}: gone, seen twice")
                    del left[one]
                continue
            if listed is not None:
                trial.proofs = 0
            accepted = self._cloud.destroy(one) == "accepted"
            trial.accepted |= accepted
            self._show(f"{one}: DELETE {'accepted' if accepted else 'not answered; again'}")
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(trial.tries, 6))
            trial.tries += 1
            trial.next_at = self._clock.monotonic() + pause
