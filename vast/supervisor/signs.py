"""Signs that end a run or a machine only when two polls agree, `confirm_after` seconds apart. Pure.

One odd answer must not cost a healthy run: a null that reads as no credit, a price or an end date that is wrong once, an
error of the GPU's driver while the job makes progress. Contact over ssh and progress veto what they contradict.
"""

from vast.policy import Policy
from vast.supervisor import reasons
from vast.supervisor.state import Machine, Observation, RunState, changed, contract_left, kept_for_the_end

TOLERANCE = 1.01  # of a price: the offer and the row round differently


def count_signs(state: RunState, obs: Observation, policy: Policy) -> RunState:
    """The state with its signs counted; the price of the machine follows a confirmed dearer row."""
    old = {name: (count, at) for name, count, at in state.signs}
    new: dict[str, tuple[int, float]] = {}
    for name, is_up in _shown(state, obs, policy).items():
        if name in old and is_up is not False:
            count, at = old[name]
            again = is_up is True and obs.t - at >= policy.confirm_after
            new[name] = (count + 1, obs.t) if again else (count, at)
        elif is_up:
            new[name] = (1, obs.t)
    if old or new:
        state = changed(state, signs=tuple((name, *seen) for name, seen in new.items()))
    machine = state.machine
    if machine is not None and "dearer" in new and machine.seen_at == obs.t:
        # Of rows that differ the cheapest is what all of them agree on: one odd row must not use up the budget.
        least = min(machine.row_price, machine.least_row) if "dearer" in old else machine.row_price
        machine = changed(machine, least_row=least)
        if confirmed(state, "dearer"):  # a row that is dearer still begins anew: it may be the price from now on
            machine = changed(machine, price=max(machine.price, least), least_row=machine.row_price)
            del new["dearer"]
            if machine.row_price > machine.price:
                new["dearer"] = (1, obs.t)
            state = changed(state, signs=tuple((name, *seen) for name, seen in new.items()))
        state = changed(state, machine=machine)
    return state


def confirmed(state: RunState, sign: str) -> bool:
    return any(name == sign and count >= 2 for name, count, _ in state.signs)


def too_dear(state: RunState, machine: Machine, policy: Policy) -> bool:
    """Whether the row's price is above the bound of the request or of the policy."""
    bounds = (policy.market.max_dollars_per_hour, state.max_price)
    return machine.row_price > min(one for one in bounds if one is not None) * TOLERANCE


def _shown(state: RunState, obs: Observation, policy: Policy) -> dict[str, bool | None]:
    """Each sign: whether this poll shows it; None: unknown from this poll."""
    machine = state.machine
    if machine is None:
        return {}
    reserve = kept_for_the_end(state, policy.caps.reserve_minutes)
    credit = None if obs.account is None else obs.account.credit
    listed, reached = machine.seen_at == obs.t, machine.reached_at == obs.t
    left = contract_left(state, obs.t)
    ending = left is not None and left < reserve and not (left < 0 and reached)  # an end that is over, and it works on
    works = machine.moved_at == obs.t and machine.job is not None and machine.job.phase == "running"
    reason = reasons.of_message(machine.message) if machine.ran_at is None else None
    return {
        "low-credit": None if credit is None else credit < machine.price * reserve / 3600,
        "contract-end": ending if listed else None,
        "dearer": machine.row_price > machine.price if listed else None,
        "price": too_dear(state, machine, policy) and not machine.starts if listed else None,
        "image": reason == "image" if listed else None,
        "host-fault": reason == "host-fault" if listed else None,
        "gpu-fault": machine.gpu_fault is not None and not works if reached else None,
    }
