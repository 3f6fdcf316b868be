"""All machines of the account that are ours, and which of them should not be there: `vast reap`. Pure, but for `Reaper`.

label         here                               before its deadline    past it
not ours      -                                  spared                 spared
ours          a supervisor is alive              spared                 destroyed
ours          none is alive, one was lately      spared                 destroyed     with --all-mine: destroyed
ours          known, nobody looks after          destroyed              destroyed
ours          not known: another machine         spared                 destroyed     with --all-mine: destroyed

Lately: for as long as its dead-man's switch waits too, so that a supervisor that was killed can be resumed by `attach`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vast.ports import GONE, Clock, Cloud, Dollars, Instance, Seconds, parse_label
from vast.records.run_dir import Care

FIRST_PAUSE: Seconds = 5.0  # after a DELETE that was not accepted, doubled up to the longest
LONGEST_PAUSE: Seconds = 60.0


@dataclass(frozen=True)
class ReapVerdict:
    """On one machine with our label."""

    instance: int
    run: str
    deadline: int  # unix time
    dollars_per_hour: Dollars
    status: str
    destroy: bool
    why: str


def judge(
    instances: Iterable[Instance], now: Seconds, here: Mapping[str, Care], all_mine: bool = False
) -> tuple[ReapVerdict, ...]:
    """What to do with each machine that is ours. here: of each run that is known here, whether it is looked after."""
    found = []
    for one in sorted(instances, key=lambda one: one.id):
        label = parse_label(one.label)
        if label is None:
            continue
        destroy, why = _fate(now, label.deadline, here.get(label.run_id), all_mine)
        price, status = one.dollars_per_hour, one.status.value
        found.append(ReapVerdict(one.id, label.run_id, label.deadline, price, status, destroy, why))
    return tuple(found)


def _fate(now: Seconds, deadline: int, care: Care | None, all_mine: bool) -> tuple[bool, str]:
    if now > deadline:
        return True, "past its deadline"
    if care == "nobody":
        return True, "nobody looks after its run"
    if all_mine:
        return True, "all are asked for"
    if care == "alive":
        return False, "its run is looked after"
    if care == "lately":
        return False, "its run was looked after lately: attach goes on with it, down ends it"
    return False, "a run of another machine, before its deadline"


class Reaper:
    """Destroys until an authenticated answer says twice, `spacing` seconds apart, that the machine is gone."""

    def __init__(
        self, cloud: Cloud, clock: Clock, spacing: Seconds, patience: Seconds, say: Callable[[str], None]
    ) -> None:
        self._cloud, self._clock, self._spacing, self._say = cloud, clock, spacing, say
        self._patience = patience  # for each machine; a later call goes on

    def reap(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Returns those that may remain."""
        left = {one: _Trial() for one in ids}
        until = self._clock.monotonic() + self._patience * max(1, len(left))
        while left and self._clock.monotonic() < until:
            self._round(left)
            if left:
                now = self._clock.monotonic()
                self._clock.sleep(max(1.0, min(one.next_at for one in left.values()) - now))
        return tuple(left)

    def _round(self, left: dict[int, _Trial]) -> None:
        seen_by_key = self._cloud.account() is not None
        listed = self._cloud.instances() if seen_by_key else None
        for one, trial in list(left.items()):
            now = self._clock.monotonic()
            if now < trial.next_at:
                continue
            unlisted = listed is not None and one not in {found.id for found in listed}
            if unlisted and self._cloud.instance(one) is GONE:
                trial.proofs += 1
                trial.next_at = now + self._spacing
                if trial.proofs >= 2:
                    self._say(f"{one}: gone, seen twice")
                    del left[one]
                continue
            if listed is not None:
                trial.proofs = 0
            accepted = self._cloud.destroy(one) == "accepted"
            self._say(f"{one}: DELETE {'accepted' if accepted else 'not answered; again'}")
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(trial.tries, 6))
            trial.tries += 1
            trial.next_at = self._clock.monotonic() + pause


class _Trial:
    """What is known of one machine that is being destroyed."""

    def __init__(self) -> None:
        self.proofs = self.tries = 0
        self.next_at: Seconds = 0.0
