"""What one look changes in what is known, whole: a field that is left out here must not have changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.vast.fakes.states import (
    ADDRESS,
    POLICY,
    START,
    UNREACHABLE,
    after,
    ended,
    fresh,
    host,
    instance,
    job,
    look,
    machine,
    running,
)
from vast.ports import GONE, Account, Address, Host, Status
from vast.supervisor.decide import decide
from vast.supervisor.state import Action, Do, Observation, Phase

NEWS: dict[str, Any] = dict(
    failed=3, failed_since=900.0, denied=True, absent=1, absent_at=950.0, stopped=1, gpu_fault="old"
)


def test_a_market_row_is_taken_whole() -> None:
    row = replace(
        instance(status=Status.STOPPED, message="words"), end=9e9, dollars_per_hour=1.5, addresses=(Address("new", 3),)
    )
    before = running(**NEWS, away_since=900.0)
    assert machine(look(before, 1000.0, instances=(row,), host=None)[0]) == replace(
        machine(before), seen_at=1000.0, status=Status.STOPPED, message="words", end=9e9, row_price=1.5, least_row=1.5, addresses=row.addresses,
        away_since=None, stopped=2, absent=0, absent_at=None,
    )  # fmt: skip
    rented = fresh(addresses=())
    started = machine(look(rented, 30.0, host=None)[0])
    assert started == replace(
        machine(rented), row_price=1.0, seen_at=30.0, status=Status.RUNNING, message="", addresses=ADDRESS, ran_at=30.0
    )
    loading = machine(look(rented, 30.0, instances=(instance(status=Status.LOADING),), host=None)[0])
    assert (loading.ran_at, loading.status) == (None, Status.LOADING)


def test_an_answer_of_the_host_is_taken_whole() -> None:
    now = job(step=7, total=10)
    before = running(**NEWS)
    seen = Host("ok", "b1", True, now, 90.0, gpu_fault="Xid 79")
    assert machine(look(before, 1000.0, instances=None, host=seen)[0]) == replace(
        machine(before),
        failed=0,
        failed_since=None,
        denied=False,
        reached_at=1000.0,
        job=now,
        gpu_fault="Xid 79",
        moved_at=1000.0,
        absent=0,
        absent_at=None,
        pace=None,
    )
    silent = machine(look(running(), 1000.0, instances=None, host=UNREACHABLE)[0])
    assert silent == replace(machine(running()), failed=1, failed_since=1000.0)
    refused = machine(look(running(), 1000.0, instances=None, host=Host("denied"))[0])
    assert refused == replace(machine(running()), failed_since=1000.0, denied=True)


@pytest.mark.parametrize(
    ("boot", "reported", "armed", "boot_at"),
    [
        ("b1", None, True, 50.0),  # not seen in this look: as it was
        ("b2", None, False, 1000.0),  # another boot: it has to be seen again
        ("b2", True, True, 1000.0),
        ("b1", False, False, 50.0),
    ],
)
def test_the_switch_is_believed_armed_only_for_the_boot_it_was_seen_in(
    boot: str, reported: bool | None, armed: bool, boot_at: float
) -> None:
    one = machine(look(running(boot_at=50.0), 1000.0, host=Host("ok", boot, reported, job()))[0])
    assert (one.armed, one.boot, one.boot_at) == (armed, boot, boot_at)
    unarmed = machine(look(running(armed=False), 1000.0, host=Host("ok", "b1", None, job()))[0])
    assert not unarmed.armed


def test_a_job_that_could_not_be_read_is_as_it_was_in_the_same_boot() -> None:
    known = job(step=5)
    assert machine(look(running(job=known), 1000.0, host=host(None))[0]).job == known
    assert machine(look(running(job=known, boot="b0"), 1000.0, host=host(None))[0]).job is None
    assert machine(look(running(judged=2), 1000.0, host=host(None))[0]).judged == 2


@pytest.mark.parametrize("phase", ["starting", "running", "ended"])
def test_a_start_whose_answer_was_lost_is_seen_to_have_worked(phase: str) -> None:
    before = replace(fresh(ran_at=100.0, armed=True, boot="b1", starts=1), looks=4)
    state, _ = look(before, 200.0, host=host(job(phase)))
    assert (state.phase, state.phase_since, state.pulled_at, state.looks) == (Phase.RUNNING, 200.0, 200.0, 1)
    never = replace(before, machine=replace(machine(before), starts=0))
    old = replace(before, machine=replace(machine(before), judged=1))
    for other, seen in ((never, job(phase)), (old, job(phase)), (before, job("absent")), (before, job("lost"))):
        assert look(other, 200.0, host=host(seen))[0].phase is Phase.PROVISIONING
    assert look(never, 200.0, host=host(job("absent")))[0].looks == 4  # looks are counted while a job runs
    later, _ = look(running(), 1000.0)
    assert later.phase_since == START.phase_since  # a run that goes on begins no phase


def test_what_a_look_shows_of_account_and_network_is_kept() -> None:
    state, _ = look(replace(running(), refused_since=5.0, network_down=True), 1000.0, account=Account(7.5))
    assert (state.credit, state.refused_since, state.network_down) == (7.5, None, False)
    blind, _ = look(state, 1100.0, account=None, instances=None)
    assert (blind.credit, blind.refused_since) == (7.5, 1100.0)
    assert look(blind, 1200.0, account=None, instances=None)[0].refused_since == 1100.0


# ---- what follows -------------------------------------------------------------------------------------------------------


def test_a_request_to_end_comes_before_everything_else() -> None:
    for state in (running(), fresh(), replace(START, phase=Phase.PROVISIONING, attempt=1)):
        assert decide(Observation(10.0, asked=True), state, POLICY) == Action(Do.VERDICT, 10.0, "asked")


def test_a_machine_that_is_not_in_this_answer_is_not_judged_by_it() -> None:
    broken = running(gpu_fault="Xid 79")
    assert ended(broken, 1000.0, instances=None, host=None) == ""  # the list failed
    assert ended(broken, 1000.0, instances=(), single=((5, GONE),), host=None) == ""  # absent once
    confirmed = replace(broken, signs=(("gpu-fault", 2, 900.0),))
    assert ended(confirmed, 1000.0, host=None) == "gpu-fault"
    late = fresh(since=900.0)
    loading: dict[str, Any] = {"instances": (instance(status=Status.LOADING),), "host": None}
    assert ended(late, 899 + POLICY.deadlines.loading, **loading) == ""
    assert ended(late, 900 + POLICY.deadlines.loading, **loading) != ""


def test_a_key_is_attached_only_to_a_machine_that_was_seen_to_be_out_of_reach() -> None:
    denied = {"host": Host("denied")}
    assert after(running(), 1000.0, **denied) == Action(Do.ATTACH_KEY, 1000.0, instance_id=5)
    assert after(running(), 1000.0, **denied, network=False).do is not Do.ATTACH_KEY
    assert decide(Observation(1000.0), running(denied=True), POLICY).do is not Do.ATTACH_KEY
    starting = {"instances": (instance(status=Status.LOADING),), "host": None}
    assert after(fresh(denied=True), 100.0, **starting).do is not Do.ATTACH_KEY
