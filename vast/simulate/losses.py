"""Why work is lost with a machine: what keeps a pull from bringing it home, in words."""

from vast.simulate.machines import INF, SimulatedMachine
from vast.simulate.world import ASKED, GRACE, World
from vast.supervisor.schedule import LEAD

IN_REACH = "within reach: "
PULL = 60.0 + 2 * GRACE  # seconds of a pull, with the last checkpoint and a poll before it
RESERVE_MINUTES = 15.0  # of vast/policy.yaml
RESERVE = 60 * RESERVE_MINUTES - LEAD - PULL  # seconds more that the last pull may take
ALERT = 200.0  # seconds between two polls while an alert is up, with their calls
HANG_KNOWN = 140.0  # seconds: a probe, and the last pull that hangs


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
