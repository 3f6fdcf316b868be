"""What ends a machine, or a run, although its job did not end: caps, the market's status, a host that does not answer. Pure.

The rules of vast/supervisor/decide.py about money, time and machines, and the functions that all rules share.
"""

from vast.policy import Policy
from vast.supervisor import reasons
from vast.supervisor.signs import confirmed
from vast.supervisor.state import Action, Do, Machine, Observation, RunState, burn, certain, kept_for_the_end, spent

KEY_PAUSE = 60.0  # seconds between two tries to attach the key


def forced(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """What ends the run, or the machine, although the job is healthy."""
    reserve = kept_for_the_end(state, policy.caps.reserve_minutes)
    if obs.asked:
        return verdict(obs, "asked")
    t = certain(state, obs.t)
    if t >= state.cap_seconds - reserve:
        return verdict(obs, "time-cap")
    if (rate := burn(state)) and spent(state, t) + rate * reserve / 3600 >= state.cap_dollars:
        return verdict(obs, "budget")
    for sign in ("low-credit", "contract-end"):
        if confirmed(state, sign):
            return verdict(obs, sign)
    return None


def machine_trouble(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Verdicts about the machine, from a trusted poll only."""
    machine, limits = state.machine, policy.deadlines
    if not obs.looked or obs.account is None:
        return None
    if machine is None:
        return verdict(obs, "market") if _hidden_for(state, obs.t) >= limits.search else None
    if machine.absent >= 2:
        return verdict(obs, "vanished")
    if machine.absent and obs.instances is not None:
        return None  # the second proof decides, where there can be one
    if machine.seen_at == obs.t:
        if any(name == "low-credit" for name, _, _ in state.signs) and machine.stopped:
            return None  # the market stops machines without credit: one poll more decides
        if machine.stopped >= 2:
            never = machine.ran_at is None and state.bid is None
            return verdict(obs, reasons.of_message(machine.message) or ("not-started" if never else "outbid"))
        if machine.away_since is not None and obs.t - machine.away_since >= limits.away:
            return verdict(obs, "away")
        if machine.stopped:
            return None
        for sign in ("image", "host-fault", "price"):
            if confirmed(state, sign):
                return verdict(obs, sign)
    if machine.ran_at is None:
        if obs.t - max(machine.since, state.waits_from) < limits.loading:  # nothing was polled before `waits_from`
            return None
        if machine.seen_at == obs.t:  # a message that names the fault needs one poll more, as after a restart
            return None if reasons.of_message(machine.message) else verdict(obs, "loading")
        return verdict(obs, "market") if _hidden_for(state, obs.t) >= limits.loading else None
    return _host_trouble(obs, state, machine, policy)


def _hidden_for(state: RunState, t: float) -> float:
    """Seconds for which list and show, or the search, have hidden what the run needs to see."""
    since = [at for at in (state.unlisted_since, state.unsearched_since) if at is not None]
    return t - min(since) if since else 0.0


def _host_trouble(obs: Observation, state: RunState, machine: Machine, policy: Policy) -> Action | None:
    if machine.gpu_fault is not None and confirmed(state, "gpu-fault"):
        return verdict(obs, "gpu-fault")
    if not obs.network or obs.host is None or machine.ran_at is None:
        return None
    since_running = obs.t - machine.ran_at
    is_unhealthy = unhealthy(obs.t, machine, policy)
    if not machine.armed:
        seen = is_unhealthy or obs.host.contact == "ok" or (machine.denied and not machine.starts)
        late = policy.deadlines.ssh if machine.reached_at is None else policy.deadlines.ssh + policy.unreachable.seconds
        waiting = since_running if not machine.starts or machine.reached_at is None else obs.t - machine.boot_at
        if not seen or waiting < late:
            return None
        return verdict(obs, "unguarded" if machine.starts and obs.host.contact == "ok" else "ssh")
    if not machine.starts and since_running >= policy.deadlines.ssh + policy.deadlines.collecting:
        return verdict(obs, "ssh")
    lost_after = policy.unreachable.seconds + policy.unreachable.replace_after
    if is_unhealthy and obs.t - (machine.failed_since or 0.0) >= lost_after:
        return verdict(obs, "host-lost")
    return None


def key_lost(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Attach the key again when it was refused, and now and then when nothing answers."""
    machine = state.machine
    if machine is None or not obs.looked or not obs.network or machine.ran_at is None:
        return None
    pause = KEY_PAUSE if machine.denied else policy.deadlines.away
    if not machine.denied and not unhealthy(obs.t, machine, policy):
        return None
    if machine.key_at is not None and obs.t - machine.key_at < pause:
        return None
    return Action(Do.ATTACH_KEY, obs.t, instance_id=machine.id)


def relabel(obs: Observation, state: RunState, policy: Policy) -> Action | None:
    """Write the label again: `vast reap` finds machines by it."""
    machine = state.machine
    if machine is None or not machine.renamed or obs.account is None:
        return None
    return Action(Do.RELABEL, obs.t, instance_id=machine.id)


def verdict(obs: Observation, reason: str) -> Action:
    return Action(Do.VERDICT, obs.t, reason)


def in_touch(obs: Observation) -> bool:
    """Whether this very poll reached the run's machine; an answer from the wrong host is no contact."""
    return obs.looked and obs.host is not None and obs.host.contact == "ok"


def unhealthy(t: float, machine: Machine, policy: Policy) -> bool:
    """Both, as in SkyPilot: enough failed polls, and enough time."""
    if machine.failed_since is None or machine.failed < policy.unreachable.looks:
        return False
    return t - machine.failed_since >= policy.unreachable.seconds
