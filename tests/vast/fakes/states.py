"""States of the supervisor made by hand, and one look at them: for tests of its pure core."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.vast.fakes.fake_market import ManualClock
from vast import policy
from vast.policy import Policy
from vast.ports import (
    Account,
    Address,
    BurnIn,
    Host,
    Instance,
    JobReport,
    Offer,
    OfferQuery,
    Status,
    label_text,
)
from vast.records.status import RunStatus
from vast.supervisor.advance import advance
from vast.supervisor.decide import decide
from vast.supervisor.state import Action, Do, Machine, Observation, Phase, Plan, RunState, begin

POLICY = policy.load()
PLAN = Plan("run", "image", ("prefill", "stage"), OfferQuery(), 20.0, 36000.0)
OFFER = Offer(11, 1, "A100", 1, 80.0, 1.0, None, 0.99, 900.0, 900.0, 500.0, 8)
ADDRESS = (Address("direct", 1), Address("proxy", 2))
RICH = Account(100.0)
START = begin(PLAN, 1000.0)
LABEL = label_text("run", START.deadline)
UNREACHABLE = Host("unreachable")


def policy_with(**sections: Any) -> Policy:
    """The package's policy with some keys of its sections changed: policy_with(destroy_on={"fail": False})."""
    changed = {
        name: getattr(POLICY, name).model_copy(update=keys) if isinstance(keys, dict) else keys
        for name, keys in sections.items()
    }
    return POLICY.model_copy(update=changed)


def status_of(run: str, **fields: Any) -> RunStatus:
    """The status of a run that was not begun, with other fields."""
    made = RunStatus(run, False, None, ManualClock())
    assert fields.keys() <= vars(made).keys()
    vars(made).update(fields)
    return made


def instance(ident: int = 5, status: Status = Status.RUNNING, label: str = LABEL, **more: Any) -> Instance:
    return Instance(ident, label, 1, status, more.pop("message", ""), 1.0, more.pop("end", None), ADDRESS)


def job(phase: str = "running", attempt: int = 1, **more: Any) -> JobReport:
    return JobReport(phase, attempt, **more)


def host(one: JobReport | None = None, contact: Any = "ok", armed: bool = True, **more: Any) -> Host:
    return Host(contact, "b1", armed, one, more.pop("gpu", 90.0), **more)


def running(**more: Any) -> RunState:
    machine = Machine(5, 1, 1.0, 0.0, status=Status.RUNNING, addresses=ADDRESS, ran_at=100.0, reached_at=200.0, boot="b1",
                      armed=True, starts=1, started_boot="b1", job=job())  # fmt: skip
    machine = replace(machine, **more)
    return replace(
        START, phase=Phase.RUNNING, attempt=1, machine=machine, created_at=0.0, lease_at=1e9, pulled_at=900.0
    )


def collecting(verdict: str = "nan", **more: Any) -> RunState:
    """After a verdict at t = 1000; the job was asked to end."""
    state = replace(running(stop_at=0.0), phase=Phase.COLLECTING, verdict=verdict, over=True, waits_from=1000.0)
    return replace(state, **more)


def look(state: RunState, t: float, **seen: Any) -> tuple[RunState, Observation]:
    seen = {"account": RICH, "instances": (instance(),), "host": host(job()), **seen}
    obs = Observation(t, True, **seen)
    return advance(state, Action(Do.LOOK, t), obs, POLICY), obs


def after(state: RunState, t: float, **seen: Any) -> Action:
    state, obs = look(state, t, **seen)
    return decide(obs, state, POLICY)


def provisioning(**more: Any) -> RunState:
    return replace(START, phase=Phase.PROVISIONING, attempt=1, offers=(OFFER,), offers_at=0.0, **more)


def fresh(**more: Any) -> RunState:
    """A machine that has just been rented, at t = 0; its burn-in, which most tests are not about, is behind it."""
    blank: dict[str, Any] = dict(
        starts=0, armed=False, reached_at=None, boot="", ran_at=None, job=None, burn_in=BurnIn(True)
    )
    return replace(running(**{**blank, **more}), phase=Phase.PROVISIONING)


def ended(state: RunState, t: float, **seen: Any) -> str:
    """The verdict after a look, or "" while there is none."""
    action = after(state, t, **seen)
    return action.why if action.do is Do.VERDICT else ""


def twice(state: RunState, t: float, **seen: Any) -> str:
    """The verdict after a second poll that agrees with the first; the first alone gives none."""
    first, obs = look(state, t - POLICY.confirm_after, **seen)
    assert decide(obs, first, POLICY).do is not Do.VERDICT
    return ended(first, t, **seen)


def then(state: RunState, do: Do, t: float, result: Any, **action: Any) -> RunState:
    return advance(state, Action(do, t, **action), result, POLICY)


def machine(state: RunState) -> Machine:
    assert state.machine is not None
    return state.machine
