"""Which clock is believed where the market's differs from the run's time: every rule on both sides of its edge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.vast.fakes.states import POLICY, START, host, look, machine, running
from vast.simulate.faults import quiet
from vast.simulate.run import Seed
from vast.supervisor.clocks import LAG, Correction, corrected, jumped, missed_by_us, put_back
from vast.supervisor.loop import Supervisor
from vast.supervisor.schedule import may_show
from vast.supervisor.state import Intent, PendingDestroy, Phase, RunState, with_zero

T, HOUR = 10_000.0, 3600.0
BEGUN = START.begun_wall
KNOWN = with_zero(running(), BEGUN + 7200)  # our wall clock is two hours behind the market's, and no witness of it
ALONE = replace(KNOWN, machine=None)
LOST = replace(ALONE, doomed=(PendingDestroy(5, 1.0, 0.0, "host-lost"),))


def judge(
    state: RunState, lag: float, missed: float | None = None, wall: float = 0.0, lasted: float = 0.0
) -> Correction:
    """lag, wall: seconds by which the market's and our wall clock are ahead of the run's time."""
    assert state.service_zero is not None
    at, ours = state.service_zero + T + lag, BEGUN + T + wall
    return corrected(state, T, at, ours, T - lasted, lambda: missed, POLICY)


@pytest.mark.parametrize("lag", [-LAG + 1, 0.0, LAG - 1])
def test_two_clocks_that_agree_change_nothing(lag: float) -> None:
    assert judge(KNOWN, lag, missed=9e9) == Correction(False)
    assert corrected(replace(KNOWN, service_zero=None), T, 9e9, 9e9, T, lambda: 9e9, POLICY) == Correction(False)


def test_a_second_clock_must_agree_that_time_is_missing() -> None:
    differs, moved = Correction(True), Correction(False, HOUR)
    assert judge(KNOWN, HOUR, wall=HOUR + LAG - 1) == judge(KNOWN, HOUR, missed=HOUR) == moved
    assert judge(KNOWN, HOUR, wall=HOUR + LAG) == differs
    assert judge(KNOWN, HOUR, missed=LAG) == Correction(False, LAG)  # no more than the switch has counted
    assert judge(KNOWN, LAG, missed=HOUR) == Correction(False, LAG)
    assert judge(KNOWN, HOUR, missed=LAG - 1, wall=HOUR, lasted=9e9) == differs  # the switch refutes it
    assert judge(KNOWN, HOUR, lasted=9e9) == differs  # a machine that does not answer is given up first


def test_without_a_machine_a_difference_that_lasts_counts_while_something_bills() -> None:
    lasts = POLICY.confirm_after
    assert judge(LOST, HOUR, lasted=lasts - 1) == judge(ALONE, HOUR, lasted=lasts - 1) == Correction(True)
    assert judge(LOST, HOUR, lasted=lasts) == Correction(False, HOUR)
    assert judge(ALONE, HOUR, lasted=lasts) == Correction(False, zero=True)


def test_a_market_that_was_wrong_when_the_run_began_is_corrected() -> None:
    """By our wall clock of that moment, or by the row's own beginning of the contract; a market that is behind must last."""
    assert judge(KNOWN, -7200 + LAG - 1) == Correction(False, zero=True)  # at the wall clock's time
    assert judge(KNOWN, -7200 + LAG) == judge(KNOWN, -HOUR) == Correction(True)
    assert judge(KNOWN, -HOUR, lasted=POLICY.confirm_after) == Correction(True, zero=True)
    rented = replace(KNOWN, machine=replace(machine(KNOWN), since=100.0, start=BEGUN + 7200 - HOUR + 100))
    assert judge(rented, -HOUR) == Correction(False, zero=True)


def test_after_a_reboot_time_goes_back_to_the_last_record_at_most() -> None:
    state = replace(KNOWN, before_reboot=T - HOUR)
    assert judge(state, -LAG) == Correction(False, -LAG)
    assert judge(state, -HOUR - LAG + 1) == Correction(False, -HOUR)
    assert judge(state, -HOUR - LAG) == Correction(False, 0.0)  # before the reboot: that clock is wrong itself
    lease = POLICY.watchdog.silent + POLICY.deadlines.loading
    long = replace(KNOWN, before_reboot=T - lease - HOUR)
    assert judge(long, -9e9) == Correction(False, -HOUR)  # and ours on the wall may be wrong too


def test_the_switch_counts_what_we_have_missed_in_the_same_boot() -> None:
    state = replace(KNOWN, machine=replace(machine(KNOWN), since=100.0, switch_zero=500.0))
    assert missed_by_us(state, host(uptime=9600.0), 10_000.0) == 100.0
    assert (
        missed_by_us(replace(state, machine=replace(machine(state), switch_zero=None)), host(uptime=9950.0), T) == 50.0
    )
    for answer in (host(), host(contact="unreachable", uptime=9.0), replace(host(uptime=9.0), boot="b2")):
        assert missed_by_us(state, answer, T) is None
    assert missed_by_us(ALONE, host(uptime=9.0), T) is None


def test_what_we_have_missed_is_known_until_the_market_has_answered() -> None:
    """After a suspension the switch often reports first: its address needs no name to be looked up."""
    seen = look(running(), 1000.0, ended=1000.0, host=host(uptime=900.0))[0]
    assert seen.machine is not None and seen.machine.switch_zero == 100.0
    blind = look(seen, 1100.0, ended=1100.0, host=host(uptime=1000.0 + HOUR), account=None, instances=None)[0]
    assert missed_by_us(blind, host(uptime=1100.0 + HOUR), 1200.0) == HOUR
    rebooted = look(replace(seen, before_reboot=1000.0), 9e5, ended=9e5, host=host(uptime=1000.0), account=None)[0]
    assert rebooted.machine is not None and rebooted.machine.switch_zero == 100.0  # that time may be wrong
    stands = look(seen, 1100.0, ended=1100.0, host=host(uptime=940.0))[
        0
    ]  # it does not count while its container restarts
    assert missed_by_us(stands, host(uptime=1040.0), 1200.0) == 0.0


def test_a_switch_that_stands_still_refutes_no_clock() -> None:
    assert missed_by_us(running(), host(armed=False, uptime=900.0), T) is None


def test_a_jump_proves_no_absence_and_no_fault() -> None:
    state = running(absent=1, absent_at=5.0, failed=9, failed_since=1.0, away_since=1.0)
    state = replace(
        state, absences=1, absent_at=3.0, doomed=(PendingDestroy(6, 1.0, 0.0, "extra", absent=1, absent_at=2.0),),
        intent=Intent(1, 1, 1.0, 0.0, 0.0, listings=2, listed_at=9.0),
    )  # fmt: skip
    after = jumped(state, T)
    assert after == replace(
        state, jumped_at=T, absences=0, absent_at=None, machine=machine(running()),
        doomed=(PendingDestroy(6, 1.0, 0.0, "extra"),), intent=Intent(1, 1, 1.0, 0.0, T),
    )  # fmt: skip


def test_what_was_recorded_in_time_that_was_counted_too_much_moves_back_with_it() -> None:
    doomed = PendingDestroy(6, 1.0, 500.0, "asked", tries=2, next_try=9700.0)
    state = replace(
        running(reached_at=9000.0, key_at=9500.0, ran_at=100.0, stop_at=None), before_reboot=1000.0, lease_at=9900.0, pulled_at=900.0,
        pause_until=9600.0, doomed=(doomed,), signs=(("gpu-fault", 1, 9000.0),),
    )  # fmt: skip
    after = put_back(state, -8000.0)
    assert after == replace(
        state, machine=replace(machine(state), reached_at=1000.0, key_at=1500.0), lease_at=1900.0, pause_until=1600.0, signs=(),
        doomed=(replace(doomed, next_try=1700.0),),
    )  # fmt: skip
    assert put_back(replace(START, before_reboot=0.0), -1.0) == replace(START, before_reboot=0.0)


def test_after_a_jump_a_machine_has_the_whole_time_again_to_show_up() -> None:
    rule = POLICY.reconcile
    unclear = jumped(replace(START, unclear_at=0.0, created_at=0.0, phase=Phase.TERMINATING), T)
    assert may_show(T + rule.late - 1, unclear, POLICY) and not may_show(T + rule.late, unclear, POLICY)
    for after, counted in ((rule.visible_after - 1, 0), (rule.visible_after, 1)):
        seen = look(replace(unclear, unclear_at=None), T + after, instances=(), host=None)[0]
        assert seen.absences == counted


def at_work() -> tuple[Seed, Supervisor]:
    seed = Seed(quiet(hours=4.0), POLICY, trace=False)
    supervisor = seed._supervisor()
    while supervisor.state.phase is not Phase.RUNNING:
        supervisor.step()
    return seed, supervisor


def test_after_time_that_was_not_counted_deadlines_begin_anew() -> None:
    seed, supervisor = at_work()
    seed.clock.offset += HOUR
    seed.world.advance_to(seed.world.now + HOUR)
    while not supervisor.state.jumped_at:
        supervisor.step()
    assert supervisor.state.waits_from == supervisor.state.jumped_at > HOUR


def test_two_reboots_before_the_market_answers_count_as_one() -> None:
    """What was counted over the first one may be wrong too; what is counted after the market's answer is not."""
    seed, _ = at_work()
    assert seed.journal.last is not None
    first = seed.journal.last.stamp.t
    for boot in (1, 2):
        seed.clock.boots, seed.clock.offset = boot, seed.world.now
        seed.world.wall_shift += 86400.0
        supervisor = seed._supervisor()
        assert supervisor.state.before_reboot == first
    supervisor.step()
    assert supervisor.state.before_reboot is None and supervisor.run_clock.t() - first < HOUR
