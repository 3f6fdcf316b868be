"""The faults of live markets and hosts, each alone in a quiet world: nothing breaks, and without its mend an invariant does."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

import vast.supervisor.advance as advance_module
import vast.supervisor.decide as decide_module
import vast.supervisor.machine_rules as rules_module
import vast.supervisor.observe as observe_module
import vast.supervisor.reasons as reasons_module
import vast.supervisor.schedule as schedule_module
import vast.supervisor.signs as signs_module
from tests.vast.fakes.states import policy_with
from tests.vast.fakes.worlds import HOURS, INF, POLICY, WORK, breaking, broken, schedules
from vast.policy import Policy
from vast.ports import Offer, Status
from vast.simulate.fake_shell import HANG, FakeShell
from vast.simulate.faults import ANEW, BESIDE, FIELD, LATER, TIME, Fault, quiet
from vast.simulate.run import run
from vast.supervisor.loop import Supervisor
from vast.supervisor.state import Action, Do, Observation, Phase, RunState, changed


@pytest.mark.parametrize("mode", (*FIELD, *LATER, *BESIDE, *TIME, *ANEW))
def test_a_fault_of_the_field_is_met_and_breaks_nothing(mode: str) -> None:
    results = [run(made, POLICY) for made in schedules(mode)]
    assert [one.violations for one in results if one.violations] == []
    assert sum(one.leaks for one in results) == 0
    assert any(one.happened[mode] for one in results)


def _early(monkeypatch: pytest.MonkeyPatch) -> None:
    """One poll is enough."""

    def one(state: RunState, sign: str) -> bool:
        return any(name == sign for name, _, _ in state.signs)

    for module in (signs_module, rules_module):
        monkeypatch.setattr(module, "confirmed", one)


def test_mutation_renewals_come_before_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = decide_module
    row = (rules.destroy_due, rules.renew_due, rules.key_lost, rules.collected, rules.collect)
    monkeypatch.setitem(rules.RULES, Phase.COLLECTING, row)
    assert broken("commands-hang") == set()  # the pause after the attempt bounds it alone
    monkeypatch.setattr(advance_module, "_retry_at", lambda action, pause: action.t + min(pause, 20.0))
    assert broken("commands-hang") & {"deadline", "spend", "leak"}


def test_a_renewal_that_hangs_leaves_time_for_everything_else() -> None:
    made = quiet(0, HOURS)
    made.machines[1] = [Fault("commands-hang", 1200.0, INF, 0.9)]
    lines = [line.split() for line in run(made, POLICY, trace=True).lines]
    dead = next(float(line[0]) for line in lines if line[-2:] == ["dead-man's", "switch"])
    failed = [at for line in lines if line[1:] == ["renew", "->", "None"] and (at := float(line[0])) < dead]
    assert len(failed) > 5 and min(b - a for a, b in pairwise(failed)) > 2 * HANG


def test_mutation_a_transfer_does_not_look_at_the_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vast.supervisor.loop.transfer_proceeds", lambda *_: True)
    assert broken("slow-pull", cap_dollars=2.0) == {"spend"}


def test_mutation_contact_over_ssh_does_not_veto_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    original = observe_module._market

    def market(state: RunState, obs: Any, policy: Policy) -> RunState:
        unreached = state if state.machine is None else changed(state, machine=changed(state.machine, reached_at=-1.0))
        new = original(unreached, obs, policy)
        if new.machine is None or state.machine is None:
            return new
        return changed(new, machine=changed(new.machine, reached_at=state.machine.reached_at))

    monkeypatch.setattr(observe_module, "_market", market)
    short = policy_with(absence_spacing=90.0)
    assert "unknown" in breaking("stale-replica", policy=short, times=range(300, 1200, 20))


def _nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a host that is being destroyed answers over ssh does not count."""
    market = observe_module._market

    def deaf(state: RunState, seen: Observation, policy: Policy) -> RunState:
        return market(state, replace(seen, answered=()), policy)

    monkeypatch.setattr(observe_module, "_market", deaf)


def test_mutation_absence_needs_no_accepted_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    original = observe_module._doomed
    monkeypatch.setattr(
        observe_module, "_doomed",
        lambda one, *rest: changed(original(changed(one, accepted=True), *rest), accepted=one.accepted),
    )  # fmt: skip
    _nobody_answers(monkeypatch)
    short = policy_with(absence_spacing=60.0)
    assert "leak" in breaking("stale-replica", policy=short, times=range(int(WORK) + 200, int(WORK) + 700, 20))


def test_mutation_a_hidden_market_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe_module, "_hidden", lambda state, obs: False)
    outbid = Fault("outbid", 1100.0, 0.0, 0.5)
    worlds = (replace(made, interruptible=True) for made in schedules("market-hidden", outbid))
    monkeypatch.setattr("vast.simulate.fakes.FakeCloud.search", _search_works)
    assert "blind" in (name for made in worlds for name, _ in run(made, POLICY).violations)


def _search_works(self: Any, query: Any) -> Any:
    self._call("search")
    price = self.world.schedule.price
    return tuple(Offer(10 * n, n, "A100", 1, 80.0, price, price / 2, 0.99, 900.0, 900.0, 500.0, 8) for n in range(5, 9))


@pytest.mark.parametrize("mode", ["odd-account", "odd-row", "nvml-error"])
def test_mutation_one_odd_poll_is_enough(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _early(monkeypatch)
    assert broken(mode) == {"unknown"}


def test_mutation_a_machine_that_loads_again_for_ever_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no address meanwhile, so no poll fails; and no switch, which ran in the container that is gone."""
    monkeypatch.setattr(observe_module, "AWAY", observe_module.AWAY - {Status.LOADING})
    assert broken("made-anew") == set()  # its last address does not answer
    original = observe_module._instance
    monkeypatch.setattr(
        observe_module, "_instance",
        lambda machine, found, *rest: changed(original(machine, found, *rest), addresses=found.addresses),
    )  # fmt: skip
    monkeypatch.setattr(FakeShell, "renew_lease", lambda *_: None)  # to no address
    assert broken("made-anew") == {"stuck"}


def test_mutation_a_disk_that_was_emptied_counts_as_having_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide_module, "_push", lambda *_: None)
    assert broken("made-anew", times=(4000.0,)) == {"resume"}


def test_mutation_a_taken_port_is_no_fault_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = tuple(sign for sign in reasons_module.HOST_SIGNS if "already" not in sign)
    monkeypatch.setattr(reasons_module, "HOST_SIGNS", signs)
    assert broken("offer-sold-twice") == {"unknown"}


def test_mutation_the_price_is_not_compared_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (signs_module, decide_module):
        monkeypatch.setattr(module, "too_dear", lambda state, machine, policy: False)
    assert "price" in breaking("price-change")


def test_mutation_a_machine_without_a_price_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = observe_module.adopted
    monkeypatch.setattr(observe_module, "adopted", lambda *args: changed(original(*args), price=0.0))
    lost = {"creates": {1: Fault("create-ambiguous", 0.0, 0.0, 0.5)}, "cap_dollars": 1.0, "cap_seconds": 3e4}
    assert broken("no-price", **lost) == {"spend"}


def test_mutation_a_late_machine_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe_module, "may_show", lambda t, state, policy: False)
    assert "leak" in breaking("late-create", asked_at=60.0)


def test_mutation_the_end_of_a_contract_is_judged_by_our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def left(state: RunState, t: float) -> float | None:
        end = None if state.machine is None else state.machine.end
        return None if end is None else max(0.0, end - state.begun_wall - t)  # and an end that is over counts as near

    for module in (signs_module, schedule_module):
        monkeypatch.setattr(module, "contract_left", left)
    assert broken("clock-wrong") == {"unknown"}


def test_mutation_the_deadline_of_a_label_is_by_our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    original = observe_module.observe
    monkeypatch.setattr(
        advance_module, "observe", lambda state, *seen: changed(original(state, *seen), deadline=state.deadline)
    )
    assert broken("clock-wrong") == {"label"}


def test_mutation_only_the_verdicts_of_a_rule_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Supervisor._advance

    def silent(self: Supervisor, action: Action, result: Any) -> None:
        tell = self.tell
        self.tell = tell if action.do in (Do.LOOK, Do.VERDICT) else lambda what, state: None
        original(self, action, result)
        self.tell = tell

    in_the_last_pull = range(int(WORK) + 100, int(WORK) + 500, 25)
    assert broken("offline", times=in_the_last_pull) == set()
    monkeypatch.setattr(Supervisor, "_advance", silent)
    assert broken("offline", times=in_the_last_pull) == {"told"}


def test_mutation_two_odd_answers_within_a_minute_are_believed() -> None:
    """Seed 21150: a row is odd for 26 s, and 7 s later, with no poll in between, once more."""
    hasty = policy_with(confirm_after=60.0)
    for mode in ("odd-row", "odd-account"):
        worlds = [replace(quiet(0, HOURS), machines={1: [Fault("stuck-loading", 0.0, INF, 0.5)]}) for _ in range(10)]
        for made, at in zip(worlds, range(610, 630, 2), strict=True):
            made.times = [Fault(mode, at, 26.0, 0.5), Fault(mode, at + 33.0, 36.0, 0.5)]
        assert [name for made in worlds for name, _ in run(made, POLICY).violations] == []
        assert {name for made in worlds for name, _ in run(made, hasty).violations} == {"unknown"}


def test_mutation_a_renamed_machine_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    original = observe_module._market

    def market(state: RunState, obs: Any, policy: Policy) -> RunState:
        ours = tuple(one for one in obs.instances or () if observe_module._is_ours(one, state.run_id))
        return original(state, replace(obs, instances=None if obs.instances is None else ours), policy)

    monkeypatch.setattr(observe_module, "_market", market)
    monkeypatch.setattr(rules_module, "_host_trouble", lambda obs, state, machine, policy: None)
    monkeypatch.setattr(decide_module, "relabel", lambda *seen: None)
    assert "stuck" in breaking("renamed", Fault("offline", 1500.0, INF, 0.9), cap_seconds=5e4, cap_dollars=50.0)


def test_mutation_a_host_that_is_being_destroyed_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that does not know the machine yet accepts its DELETE, and nothing is destroyed."""
    short = policy_with(absence_spacing=60.0)
    end = range(int(WORK) + 200, int(WORK) + 700, 20)
    assert broken("stale-replica", policy=short, times=end) == set()
    _nobody_answers(monkeypatch)
    assert "leak" in breaking("stale-replica", policy=short, times=end)
