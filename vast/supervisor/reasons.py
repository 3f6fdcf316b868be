"""Every reason for which a job, a machine or a run ends, and what follows: this one table decides.

again       "here": the job is started again on its machine, as often as `retries` in the policy allows, and then comes `then`;
            "elsewhere": another machine is taken, as long as there are attempts; "stop": the run is over
then        what follows when the retries of `here` are used up
fetch       whether artifacts can be expected from the machine at all
ban         whether the machine is not taken again by this run
alert       whether a person is notified

Every reason but "here" destroys the machine. A job's `end_reason` (vast/host/jobstate.py) that is not in the
table counts as `bug`.
"""

from typing import Literal, NamedTuple

Again = Literal["here", "elsewhere", "stop"]


class Reason(NamedTuple):
    again: Again
    then: Again = "stop"
    fetch: bool = True
    ban: bool = False
    alert: bool = True


REASONS: dict[str, Reason] = {
    # the run is over
    "done": Reason("stop", alert=False),
    "user": Reason("stop"),  # a mistake in the stage, the profile or an option: no machine helps
    "nan": Reason("stop"),
    "no-learning": Reason("stop"),
    "deterministic": Reason("stop"),  # the same fingerprint twice
    "asked": Reason("stop", alert=False),  # SIGTERM, `vast down`
    "budget": Reason("stop"),
    "time-cap": Reason("stop"),
    "low-credit": Reason("stop"),
    "no-credit": Reason("stop", fetch=False),
    "no-offers": Reason("stop", fetch=False),
    "refused": Reason("stop", fetch=False),  # the market refuses every create
    "image": Reason("stop", fetch=False),  # it cannot be pulled anywhere
    "market": Reason("stop"),  # list, show or search hide what the run needs to see
    # the job ended, and may continue on its machine
    "cuda-oom": Reason("here", alert=False),
    "disk-full": Reason("here", alert=False),
    "hub-timeout": Reason("here", alert=False),
    "stale-lock": Reason("here", alert=False),
    "missing-tool": Reason("here"),
    "bug": Reason("here"),
    "killed": Reason("here"),
    "stopped": Reason("here", then="elsewhere", alert=False),
    "lost": Reason("here", then="elsewhere", alert=False),
    "restarted": Reason("here", then="elsewhere", alert=False),
    "incomplete": Reason("here"),  # exit code 0 and no complete manifest
    "hang": Reason("here"),  # killed first
    # the machine is at fault, or is taken from us
    "gpu-fault": Reason("elsewhere", ban=True),
    "host-fault": Reason("elsewhere", fetch=False, ban=True),  # the container engine of the host failed
    "loading": Reason("elsewhere", fetch=False, ban=True),  # its deadline
    "ssh": Reason("elsewhere", fetch=False, ban=True),  # no contact, or no armed dead-man's switch, until its deadline
    "burn-in": Reason("elsewhere", fetch=False, ban=True),  # it failed, or gave no answer
    "slow": Reason("elsewhere", fetch=False, ban=True),  # by its burn-in, the work would not fit into the caps
    "unguarded": Reason("elsewhere"),  # the dead-man's switch of a machine that works is gone
    "not-started": Reason("elsewhere", fetch=False, ban=True),  # the contract came with an error
    "host-lost": Reason("elsewhere", fetch=False, ban=True),
    "away": Reason("elsewhere", fetch=False, ban=True),  # offline or unknown for too long
    "price": Reason("elsewhere", fetch=False, ban=True),  # the contract costs more than the bound
    "not-fetched": Reason("elsewhere", fetch=False, ban=True),  # done, and its machine died in the last pull
    "vanished": Reason("elsewhere", fetch=False),  # two authenticated listings lack it
    "outbid": Reason("elsewhere"),
    "contract-end": Reason("elsewhere"),
}

# Forced by money, time or a person: the job still runs, so it is stopped at a checkpoint first.
FORCED = frozenset({"asked", "budget", "time-cap", "low-credit", "contract-end"})
# Nothing ran there that another machine could collide with: that one is taken at once.
NEXT_AT_ONCE = frozenset({"burn-in", "slow"})
# The machine's status message explains these verdicts, so it is kept with them.
TOLD_BY_THE_HOST = frozenset({"image", "host-fault", "not-started", "loading"})
SUCCESS = "done"


def reason_of_job(end_reason: str | None) -> str:
    """The table's reason for the runner's `end_reason`. A `done` needs a manifest: see vast/supervisor/decide.py."""
    return end_reason if end_reason in REASONS else "bug"


def of_message(message: str) -> str | None:
    """Why a machine does not start, from its status message: `image`, `host-fault`, or None."""
    text = message.lower()
    if any(sign in text for sign in IMAGE_SIGNS):
        return "image"
    return "host-fault" if any(sign in text for sign in HOST_SIGNS) else None


IMAGE_SIGNS = ("manifest unknown", "pull access denied", "repository does not exist", "no matching manifest",
               "unauthorized: authentication required", "invalid reference format",
               # of ghcr.io and of ECR; a host's own "permission denied" is none of them
               "denied: denied", "requested access to the resource is denied", "failed to authorize", "name unknown",
               "no basic auth credentials", "authorization token has expired", "401 unauthorized", "403 forbidden",
               "insufficient_scope")  # fmt: skip
HOST_SIGNS = ("oci runtime create failed", "no space left on device", "failed to create shim", "nvidia-container-cli",
              "failed to inject cdi devices", "port is already allocated", "address already in use",
              "error response from daemon", "tls handshake timeout")  # fmt: skip
