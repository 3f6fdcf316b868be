"""Observations into the state: counts over several polls, which vast/supervisor/decide.py compares with the policy. Pure.

A poll is trusted if the account answered: a refused key sees no instances, and a 404 then proves nothing. An untrusted
poll, or our own dead network, changes no count.
"""

from vast.policy import Policy
from vast.ports import GONE, Host, Instance, Status, label_text, parse_label
from vast.supervisor.schedule import may_show
from vast.supervisor.signs import count_signs
from vast.supervisor.state import Intent, Machine, Observation, PendingDestroy, Phase, RunState, changed, with_zero

STOPPED = frozenset({Status.STOPPED, Status.EXITED})
AWAY = (
    frozenset(Status) - STOPPED - {Status.RUNNING}
)  # of a machine that ran: its host may make the container anew, or try to


def observe(state: RunState, obs: Observation, policy: Policy) -> RunState:
    changes: dict[str, object] = {"network_down": not obs.network}
    if obs.account is not None:
        changes["refused_since"] = None
        changes["credit"] = obs.account.credit
        if obs.account.at is not None and (state.created_at is None or state.service_zero is None):
            state = with_zero(state, obs.account.at - obs.t)
    elif state.refused_since is None:
        changes["refused_since"] = obs.t
    blind = obs.account is None and state.machine is None
    # A person who asked for the end does not wait for ssh that cannot be started here: the market answers, and can destroy.
    waits = not obs.network and not (obs.asked and obs.account is not None)
    if blind or (state.phase is Phase.COLLECTING and waits):
        changes["waits_from"] = obs.t
    if not obs.network and state.machine is not None and state.machine.ran_at is not None and not state.machine.starts:
        # no job could be started meanwhile
        state = changed(state, machine=changed(state.machine, ran_at=obs.t, burn_in_lost=0))
    if state.machine is not None and obs.host is not None and (obs.network or obs.host.contact == "ok"):
        machine = _host(state.machine, obs.host, obs.t, policy)
        if obs.host.uptime is not None and state.before_reboot is None:
            # Never earlier than before: what it shows as missed is kept until the market's clock agrees.
            known = machine.since if machine.switch_zero is None else machine.switch_zero
            machine = changed(machine, switch_zero=max(known, obs.ended - obs.host.uptime))
        state = changed(state, machine=machine)
        if state.machine is not None and _started_after_all(state, state.machine):
            state = changed(state, phase=Phase.RUNNING, phase_since=obs.t, looks=0, pulled_at=obs.t)
    if obs.account is not None:
        state = _market(state, obs, policy)
        since = obs.t if state.unlisted_since is None else state.unlisted_since
        changes["unlisted_since"] = since if _hidden(state, obs) else None
    return count_signs(changed(state, **changes), obs, policy)


def _hidden(state: RunState, obs: Observation) -> bool:
    """Whether the market hides what the run has: it neither shows the machine nor states that there is none."""
    machine = state.machine
    if machine is None:
        return obs.instances is None
    gone = any(one == machine.id and found is GONE for one, found in obs.single) and obs.instances is not None
    return machine.seen_at != obs.t and not gone


# ---- instances ------------------------------------------------------------------------------------------------------------


def _market(state: RunState, obs: Observation, policy: Policy) -> RunState:
    """Apply an authenticated poll of the market. An empty or partial answer alone proves no absence."""
    machine, intent = state.machine, state.intent
    own = state.ids()  # they need no label: a person may rename a machine
    listed = {one.id: one for one in obs.instances or () if one.id in own or _is_ours(one, state.run_id)}
    seen = listed | {one: found for one, found in obs.single if isinstance(found, Instance)}
    gone = {one for one, found in obs.single if found is GONE and obs.instances is not None} - seen.keys()
    # What is younger may not be known to every copy of the market's data.
    young = obs.t - policy.reconcile.visible_after
    gone -= {one.id for one in (machine, *state.doomed) if one is not None and max(one.since, state.jumped_at) > young}
    alive = seen.keys() | set(obs.answered)
    doomed = [_doomed(one, one.id in alive, one.id in gone, obs, policy) for one in state.doomed]
    settled = state.settled + sum(one.price * (obs.t - one.since) / 3600 for one in doomed if one.absent >= 2)
    doomed = [one for one in doomed if one.absent < 2]
    strays = sorted(listed.keys() - own)
    if intent is not None:
        if strays and state.phase is Phase.PROVISIONING:
            found = listed[strays.pop(0)]
            machine, intent = adopted(intent, found.id, found.machine_id), None
        elif strays:
            intent = None
        elif obs.instances is not None:
            intent = _listing_without_it(intent, obs, policy)
            if intent is None and state.intent is not None:
                settled += _unseen(state.intent, obs.t, policy)
    since = state.intent.since if state.intent is not None else state.created_at
    for one in strays:  # a second machine of an unclear create, or one that showed up late
        agreed = state.unclear_price if state.intent is None else state.intent.price
        price = agreed or listed[one].dollars_per_hour  # one odd row must not use up the budget
        doomed.append(PendingDestroy(one, price, obs.t if since is None else since, "extra"))
    if machine is not None:
        if machine.id in seen:
            machine = _instance(machine, seen[machine.id], obs.t, label_text(state.run_id, state.deadline))
        elif machine.reached_at == obs.t:
            machine = changed(machine, absent=0, absent_at=None)  # contact over ssh: a stale replica answered
        elif machine.id in gone:
            absent, at = _counted(machine.absent, machine.absent_at, obs, policy.absence_spacing)
            machine = changed(machine, absent=absent, absent_at=at)
    absences, absent_at = state.absences, state.absent_at
    if listed:
        absences, absent_at = 0, None
    elif obs.instances is not None and intent is None and machine is None and _had_time_to_show(state, obs.t, policy):
        absences, absent_at = _counted(absences, absent_at, obs, policy.absence_spacing)
    return changed(state, machine=machine, intent=intent, doomed=tuple(doomed), settled=settled,
                   absences=absences, absent_at=absent_at)  # fmt: skip


def _had_time_to_show(state: RunState, t: float, policy: Policy) -> bool:
    """Whether a listing without the run counts: every machine that was created must have had time to show up."""
    if state.created_at is None:
        return False
    since = max(state.created_at, state.jumped_at)
    return t - since >= policy.reconcile.visible_after and not may_show(t, state, policy)


def _is_ours(instance: Instance, run_id: str) -> bool:
    label = parse_label(instance.label)
    return label is not None and label.run_id == run_id


def _counted(count: int, at: float | None, obs: Observation, spacing: float) -> tuple[int, float | None]:
    """Add a proof, if the poll of the last one had ended at least `spacing` seconds before this one began."""
    if at is not None and obs.t - at < spacing:
        return count, at
    return count + 1, max(obs.t, obs.ended)


def _doomed(one: PendingDestroy, seen: bool, gone: bool, obs: Observation, policy: Policy) -> PendingDestroy:
    if seen:
        return changed(one, absent=0, absent_at=None) if one.absent else one
    if not gone or not one.accepted:
        return one
    absent, at = _counted(one.absent, one.absent_at, obs, policy.absence_spacing)
    return changed(one, absent=absent, absent_at=at)


def _listing_without_it(intent: Intent, obs: Observation, policy: Policy) -> Intent | None:
    """None once enough listings, over enough time, showed no machine of the run: the create made none."""
    rule = policy.reconcile
    listings, at = _counted(intent.listings, intent.listed_at, obs, rule.spacing)
    if listings >= rule.listings and obs.t - intent.unclear_since >= rule.visible_after:
        return None
    return changed(intent, listings=listings, listed_at=at)


def _unseen(intent: Intent, t: float, policy: Policy) -> float:
    """Dollars that the create may have cost although no machine is listed: while the supervisor was dead, up to two
    machines may have lived until their own dead-man's switch ended them."""
    if t - intent.since < 3 * policy.reconcile.visible_after + policy.reconcile.spacing * policy.reconcile.listings:
        return 0.0
    longest = policy.watchdog.silent + policy.deadlines.loading
    return 2 * intent.price * min(t - intent.since, longest) / 3600


def adopted(intent: Intent, ident: int, machine_id: int) -> Machine:
    """At the agreed price: the row's may be missing, and is believed once two polls agree (vast/supervisor/signs.py)."""
    return Machine(ident, machine_id, intent.price, intent.since, up_cost=intent.up_cost)


def _instance(machine: Machine, found: Instance, t: float, label: str) -> Machine:
    # a new machine begins with null; and a host that answers over ssh is not away, whatever the market lists
    away = found.status in AWAY and machine.ran_at is not None and machine.reached_at != t
    return changed(
        machine,
        seen_at=t,
        status=found.status,
        message=found.message,
        start=found.start,
        end=found.end,
        row_price=found.dollars_per_hour,
        renamed=found.label != label,
        addresses=found.addresses or machine.addresses,
        ran_at=t if machine.ran_at is None and found.status is Status.RUNNING else machine.ran_at,
        away_since=None if not away else t if machine.away_since is None else machine.away_since,
        stopped=machine.stopped + 1 if found.status in STOPPED and machine.reached_at != t else 0,
        absent=0,
        absent_at=None,
    )


# ---- the host ----------------------------------------------------------------------------------------------------------------


def _host(machine: Machine, host: Host, t: float, policy: Policy) -> Machine:
    """Ignores a reply from the wrong host."""
    if host.contact != "ok":
        since = t if machine.failed_since is None else machine.failed_since
        denied = host.contact == "denied"
        failed = machine.failed + (not denied)  # a refused key does not mean a dead host
        return changed(machine, failed=failed, failed_since=since, denied=denied, burn_in_lost=0)
    rebooted = host.boot != machine.boot
    job = host.job if host.job is not None else None if rebooted else machine.job
    armed = host.armed if host.armed is not None else machine.armed and not rebooted
    absent = job is not None and job.phase == "absent"
    return changed(
        machine,
        failed=0,
        failed_since=None,
        denied=False,
        reached_at=t,
        boot=host.boot,
        boot_at=t if rebooted else machine.boot_at,
        armed=armed,
        job=job,
        judged=0 if absent else machine.judged,
        pushed=machine.pushed
        and not (rebooted and absent),  # the container may be made anew, and its disk is empty then
        gpu_fault=host.gpu_fault,
        stalled=_stalled(machine, host, policy),
        moved_at=t if _moved(machine, host) else machine.moved_at,
        pace=_pace(machine, host, t),
    )


def _stalled(machine: Machine, host: Host, policy: Policy) -> int:
    """Polls in a row without a step, a heartbeat or work on the GPU. Missing values are no sign of a hang."""
    job, last = host.job, machine.job
    if job is None or host.gpu_percent is None:
        return machine.stalled
    old = job.beat_age is not None and job.beat_age > policy.stall.beat_age
    idle = host.gpu_percent < policy.stall.idle_gpu_percent
    same = last is not None and last.phase == job.phase == "running" and last.step == job.step
    same = same and last is not None and last.attempt == job.attempt
    return machine.stalled + 1 if same and old and idle else 0


def _moved(machine: Machine, host: Host) -> bool:
    job, last = host.job, machine.job
    return job is not None and last is not None and job.attempt == last.attempt and job.step > last.step


def _pace(machine: Machine, host: Host, t: float) -> float | None:
    """Steps per second since the last poll. Another total means another part of the run: scoring counts tokens."""
    job, last = host.job, machine.job
    if job is None or last is None or machine.reached_at is None or t <= machine.reached_at:
        return machine.pace
    if (job.phase, job.attempt, job.total) != ("running", last.attempt, last.total) or job.step < last.step:
        return None
    return machine.pace if job.step == last.step else (job.step - last.step) / (t - machine.reached_at)


def _started_after_all(state: RunState, machine: Machine) -> bool:
    """A start whose answer was lost: the job is there."""
    if state.phase is not Phase.PROVISIONING or machine.job is None or not machine.starts:
        return False
    return machine.job.phase in ("starting", "running", "ended") and machine.job.attempt > machine.judged
