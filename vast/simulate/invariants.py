"""What must hold in every simulated run, whatever goes wrong, and why work is lost. docs/vast.md explains each invariant by its
name; a mutation breaks each.

The fakes check `fencing`, `armed` and `foreign` as they happen.
"""

from vast.policy import Policy
from vast.simulate.machines import INF, SimulatedMachine
from vast.simulate.world import ASKED, GRACE, World
from vast.supervisor.reasons import REASONS, SUCCESS
from vast.supervisor.schedule import LEAD
from vast.supervisor.state import Phase, RunState, kept_for_the_end

DRIFT = 300.0  # seconds by which a label's deadline, or the end of the time, may differ from the run's
IN_REACH = "within reach: "
PULL = 60.0 + 2 * GRACE  # seconds of a pull, with the last checkpoint and a poll before it
RESERVE_MINUTES = 15.0  # of vast/policy.yaml
RESERVE = 60 * RESERVE_MINUTES - LEAD - PULL  # seconds more that the last pull may take
ALERT = 200.0  # seconds between two polls while an alert is up, with their calls
HANG_KNOWN = 140.0  # seconds: a probe, and the last pull that hangs
# Faults of a machine that justify a verdict about it.
JUSTIFIED = {
    "vanished": "dead-man ends-soon reaped", "not-started": "created-stopped outbid", "outbid": "outbid",
    "loading": "stuck-loading bad-image offline made-anew",  # offline before anybody saw it running
    "ssh": "no-ssh wrong-host offline key-denied container-restart commands-hang dead-man made-anew",
    "burn-in": "burn-in-fails burn-in-hangs commands-hang", "slow": "slow-gpu", "unguarded": "container-restart made-anew",
    "host-lost": "no-ssh wrong-host offline outbid dead-man ends-soon made-anew", "away": "offline made-anew",
    "gpu-fault": "gpu-fault", "image": "image", "host-fault": "host-fault created-stopped", "nan": "nan",
    "deterministic": "same-crash", "bug": "same-crash gpu-fault", "cuda-oom": "cuda-oom", "disk-full": "host-disk-full",
    "hang": "hang", "killed": "hang", "incomplete": "no-manifest", "contract-end": "ends-soon", "price": "dearer",
    "restarted": "container-restart made-anew", "lost": "container-restart commands-hang made-anew",
}  # fmt: skip


def of_verdict(world: World, state: RunState, reason: str, machine: SimulatedMachine | None) -> None:
    """Check a verdict against the truth; `state` is the state before it."""
    if reason == SUCCESS:
        if machine is None or not machine.complete:
            world.violate("unknown", "done, but the run is not complete")
    elif reason == "market":
        if not {"market-hidden", "bad-listing", "list-refused", "list-retired"} & world.happened.keys():
            world.violate("unknown", "market, and it has hidden nothing")
    elif reason == "budget" and not world.unrefuted:
        counted = [machine.price] if machine is not None else [world.schedule.price]  # or one to rent
        rate = sum(counted) + sum(world.machines[one.id].price for one in state.doomed)
        kept = kept_for_the_end(state, RESERVE_MINUTES) / 3600
        if countable(world, state) + 2 * rate * kept < world.schedule.cap_dollars * 0.95:
            world.violate("unknown", f"budget, and at most ${countable(world, state):.2f} can be counted")
    elif reason == "time-cap":
        left = world.schedule.cap_seconds - kept_for_the_end(state, RESERVE_MINUTES) - (world.now - world.begun)
        if left > DRIFT and not world.unrefuted:
            world.violate("unknown", f"time-cap, and {left:.0f} s are left")
    elif reason == "low-credit" and world.credit_ends == INF:
        world.violate("unknown", "low-credit, but the account has enough")
    elif reason in JUSTIFIED:
        if machine is not None and machine.truth.isdisjoint(JUSTIFIED[reason].split()):
            truth = sorted(machine.truth) or "nothing"
            world.violate("unknown", f"verdict {reason}, but of machine {machine.id} is true: {truth}")
        if reason == "vanished" and machine is not None and machine.dead_at is None:
            world.violate("unknown", f"machine {machine.id} is there, and was taken for gone")


def of_destroy(world: World, state: RunState, machine: SimulatedMachine | None, capped: bool) -> None:
    """Check that a machine may be given up; `state` is the state after it."""
    if machine is None or not world.behind(machine):
        return
    obstacle = obstacle_to_a_pull(world, machine, capped)
    world.lost.append(obstacle or f"{IN_REACH}{state.verdict}")
    if state.lost_artifacts is None:
        world.violate("named-loss", f"machine {machine.id} had work that is not at home, and the state does not say so")
    forced = capped or state.verdict in ("host-lost", "away", "ssh")
    if not obstacle and not forced:
        world.violate("fetch", f"machine {machine.id} could be reached and is destroyed with work that is not at home")


SWITCH = 4800.0  # seconds: loading, and the patience of the dead-man's switch


def countable(world: World, state: RunState) -> float:
    """Dollars that the supervisor may count: each machine until its absence was proven, however late that was, and what
    creates without an answer may have made."""
    total = 0.0
    for one in world.ours:
        end = world.proven.get(one.id, world.now if one.id in state.ids() or one.dead_at is None else one.dead_at)
        total += max(one.price, world.schedule.price) * (end - one.born) / 3600
    if state.intent is not None:
        total += state.intent.price * (world.now - world.intents[-1]) / 3600
    # and those after which the supervisor was killed before it could journal the answer
    died = [at for at in world.intents if any(at <= begin < at + 30 for begin, _ in world.supervisor_down)]
    # up to two machines of each, until their switches ended them
    return total + sum(2 * world.schedule.price * min(world.now - at, SWITCH) / 3600 for at in (*world.unclear, *died))


STUCK = 2.0 * 3600  # seconds


def not_stuck(world: World, state: RunState) -> None:
    """While the supervisor sleeps."""
    id_ = None if state.machine is None else state.machine.id
    machine = None if id_ is None else world.machines.get(id_)
    for one in world.ours:
        works = one is not machine or world.reachable(one) or world.active.keys() & BLINDING
        one.dead_since = None if works else world.now if one.dead_since is None else one.dead_since
        down = max((end for _, end in world.supervisor_down), default=-INF)
        since = INF if one.dead_since is None else max(one.dead_since, down)
        if world.now - since > STUCK:
            world.violate("stuck", f"machine {one.id} has not worked for {world.now - since:.0f} s")
            one.dead_since = world.now


BLINDING = frozenset({"own-network-down", "key-refused", "delete-refused", "no-ssh-here"})


def at_rest(world: World, state: RunState, looked_at: float) -> None:
    """While the supervisor sleeps beside a running job."""
    doomed = {one.id for one in state.doomed}
    kept = [machine for machine in world.alive() if machine.id not in doomed and machine.visible_at + 5 < looked_at]
    if len(kept) > 1:
        world.violate("double-rent", f"machines {[machine.id for machine in kept]} at rest")


def of_alerts(world: World, state: RunState, told: list[str]) -> None:
    """Every reason in the state's history must have been told, if the table says so."""
    notes = (note.split(": ") for _, note in state.history if note.startswith(("verdict: ", "destroying ")))
    for reason in {words[1] for words in notes} & REASONS.keys():
        if REASONS[reason].alert and reason not in told:
            world.violate("told", f"{reason} is in the history, and nobody was told")


def at_close(world: World, state: RunState, policy: Policy) -> None:
    if state.created_at is not None:
        answers = world.absence_answers
        if len(answers) < 2 or answers[-1] - answers[0] < policy.absence_spacing - 5:
            world.violate("absence", f"closed after {len(answers)} listings without the run")
    if world.alive():
        world.violate("leak", f"closed, and {[machine.id for machine in world.alive()]} are there")
    if state.result == SUCCESS and not world.home_complete:
        world.violate("hashes", "success, but the complete run is not here")
    if state.result != SUCCESS and world.home_complete and state.verdict == SUCCESS:
        world.violate("unknown", "the complete run is here, and the result is not success")


def at_end(world: World, state: RunState, policy: Policy) -> None:
    """Checks after the last event of a seed."""
    if state.phase is not Phase.CLOSED:
        world.violate("deadline", f"still {state.phase} at the end of the simulation")
    if world.alive():
        world.violate("leak", f"{[machine.id for machine in world.alive()]} are there at the end")
    if state.home is not None and int(state.home.removeprefix("checkpoint-")) > world.home_step:
        world.violate("last-good", f"{state.home} counts as being at home, {world.home_step} is")
    over = overspend(world)
    dearest = max((machine.price for machine in world.ours), default=0.0)
    poll = 60 * policy.cadence.stable_minutes * dearest / 3600
    if over <= poll + 0.01:
        return
    excuse = excused(world) * dearest / 3600 + unseen(world)
    if over > poll + excuse + 0.01:
        allowed = f"${poll:.2f} for a poll, ${excuse:.2f} when nothing could be done"
        world.violate("spend", f"${over:.2f} over the cap, {allowed}")


def overspend(world: World) -> float:
    return max(0.0, world.bill(world.now) - world.schedule.cap_dollars)


def excused(world: World) -> float:
    """Machine-seconds near or after the cap in which neither the supervisor nor the host could destroy."""
    near = _when_billed(world, world.schedule.cap_dollars - world.schedule.price)
    total, reached = 0.0, near
    for begin, end in sorted(world.down + world.supervisor_down):
        begin, end = max(begin, reached), min(end + 300, world.now)  # and the longest pause between two tries
        if end > begin:
            born = [machine for machine in world.ours if machine.born < end]
            total += sum(one.dead_at is None or one.dead_at > begin for one in born) * (end - begin)
            reached = end
    return total


def unseen(world: World) -> float:
    """Dollars of machines of unclear creates before the market showed them."""
    ends = ((one, min(one.shown_at, world.now if one.dead_at is None else one.dead_at)) for one in world.ours)
    return sum(one.price * (end - one.born) / 3600 for one, end in ends)


def _when_billed(world: World, dollars: float) -> float:
    low, high = 0.0, world.now
    while high - low > 10:
        middle = (low + high) / 2
        low, high = (middle, high) if world.bill(middle) < dollars else (low, middle)
    return low


# ---- losses: what keeps a pull from bringing work home, in words -----------------------------------------------------


def obstacle_to_a_pull(world: World, machine: SimulatedMachine, capped: bool) -> str:
    """Why no pull would bring its work home now; empty if one would.

    capped: a cap ends the wait, so what was over only when less than a pull was left was in the way too.
    """
    most = world.schedule.cap_seconds / 4 - 2 * PULL
    since = world.now - PULL if capped else world.now
    obstacles = {
        "local disk full": _was_active(world, "local-disk-full", since),
        "ssh of our machine": _was_active(world, "no-ssh-here", since),
        "own network down": _was_active(world, "own-network-down", since),
        # a poll takes minutes, and only a poll shows that our machine stood still
        "answers come late": capped and _was_active(world, "slow-answers", since),
        "our machine stood still": capped and any(since - ASKED < end for _, end in world.paused),
        # a pull that hangs notices the end of the hang only in the next try
        "commands hang": since < machine.hangs_until + HANG_KNOWN,
        "files arrive corrupt": any(begin <= world.now and since < end for begin, end in machine.partial),
        # what the caps keep for the end is over before a pull is: none has shown that yet, or too late, or they keep no more
        "pull slower than the reserve": machine.slow > max(RESERVE, min(machine.slowest_pull, most)),
        # what it has cost is known only once the market shows it; until then each poll fetches what is new
        "late machine used up the budget": world.now - machine.pulled_at < PULL + ALERT
        and any(since < one.shown_at <= world.now and one.shown_at - one.born > PULL for one in world.ours),
        "supervisor dead until a cap": any(end > world.now - PULL for _, end in world.supervisor_down),
    }
    return world.out_of_reach(machine, since) or next((why for why, is_so in obstacles.items() if is_so), "")


def _was_active(world: World, mode: str, since: float) -> bool:
    return mode in world.active or world.ended.get(mode, -INF) > since
