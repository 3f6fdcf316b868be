"""Every reason for which a job, a machine or a run ends, and what follows: this one table decides.

again       "here": the job is started again on its machine, as often as `retries` in the policy allows, and then comes `then`;
            "elsewhere": another machine is taken, as long as there are attempts; "stop": the run is over
then        what follows when the retries of `here` are used up
meaning     the line for the person who is notified; "": nobody is. docs/vast.md has details
fetch       whether artifacts can be expected from the machine at all
ban         whether the machine is not taken again by this run
exit_code   of the supervisor, when the run ends with this reason

Every reason but "here" destroys the machine. A job's `end_reason` (vast/host/jobstate.py) that is not in the
table counts as `bug`.
"""

from functools import partial
from typing import Literal, NamedTuple

from jobs import errors

Again = Literal["here", "elsewhere", "stop"]


class Reason(NamedTuple):
    again: Again
    meaning: str = ""
    then: Again = "stop"
    fetch: bool = True
    ban: bool = False
    exit_code: int = errors.EXIT_BUG

    @property
    def alert(self) -> bool:
        return bool(self.meaning)


_unfit = partial(Reason, "elsewhere", fetch=False, ban=True)  # nothing is to be had from that machine

REASONS: dict[str, Reason] = {
    # the run is over
    "done": Reason("stop", exit_code=errors.EXIT_OK),
    "user": Reason("stop", "a mistake in the stage, the profile or an option", exit_code=errors.EXIT_USER),
    "nan": Reason("stop", "the loss became NaN or infinite", exit_code=errors.EXIT_NAN),
    "no-learning": Reason("stop", "the loss did not improve within the steps allowed", exit_code=errors.EXIT_NO_LEARNING),
    "deterministic": Reason("stop", "the same failure twice; a third attempt would fail the same way"),
    "asked": Reason("stop", exit_code=errors.EXIT_STOPPED),  # SIGTERM, `vast down`
    "budget": Reason("stop", "the cap of dollars is reached"),
    "time-cap": Reason("stop", "the cap of hours is reached"),
    "low-credit": Reason("stop", "the account's credit is used up"),
    "no-credit": Reason("stop", "the account has no credit to rent with", fetch=False),
    "no-offers": Reason("stop", "no machine that fits was found in time", fetch=False),
    "refused": Reason("stop", "every create of a machine is refused: by the market (account, key, limit), or by the engine here",
                      fetch=False),
    "image": Reason("stop", "the image cannot be pulled; push it (make push), or name its registry's login in the policy",
                    fetch=False),
    "market": Reason("stop", "account or engine answer, but list or search hide what the run needs to see; no machine is "
                     "taken meanwhile"),
    # the job ended, and may continue on its machine
    "cuda-oom": Reason("here"),
    "disk-full": Reason("here"),
    "hub-timeout": Reason("here"),
    "stale-lock": Reason("here"),
    "missing-tool": Reason("here", "a program is missing in the image; tried again once"),
    "bug": Reason("here", "the job failed with an exception; tried again"),
    "killed": Reason("here", "the job was killed, such as for its memory; tried again"),
    "stopped": Reason("here", then="elsewhere"),
    "lost": Reason("here", then="elsewhere"),
    "restarted": Reason("here", then="elsewhere"),
    "incomplete": Reason("here", "exit code 0, but no complete manifest"),
    "hang": Reason("here", "the job hung and was killed"),
    # the machine is at fault, or is taken from us
    "gpu-fault": Reason("elsewhere", "the GPU failed; another machine is taken", ban=True),
    "host-fault": _unfit("the host could not start the container; another machine is taken"),
    "loading": _unfit("the image was not loaded in time; another machine is taken"),
    "ssh": _unfit("no contact or no armed dead-man's switch in time; another machine is taken"),
    "burn-in": _unfit("the machine failed its burn-in, or gave no answer to it; another machine is taken"),
    "slow": _unfit("by its burn-in the work would not fit into the caps; another machine is taken"),
    "unguarded": Reason("elsewhere", "the machine's dead-man's switch is gone; results are fetched, and another machine is "
                        "taken"),
    "not-started": _unfit("the contract came with an error; another machine is taken"),
    "host-lost": _unfit("the host did not answer for too long; another machine is taken"),
    "away": _unfit("the machine was offline for too long; another machine is taken"),
    "price": _unfit("the machine costs more than was agreed; another machine is rented"),
    "not-fetched": _unfit("the job was done, and its machine died in the last pull; another machine resumes"),
    "vanished": Reason("elsewhere", "two authenticated listings lack the machine; another one is taken", fetch=False),
    "outbid": Reason("elsewhere", "somebody bid more for the machine; another one is taken"),
    "contract-end": Reason("elsewhere", "the machine's owner takes it back; another one is taken"),
}  # fmt: skip

# Forced by money, time or a person: the job still runs, so it is stopped at a checkpoint first.
FORCED = frozenset({"asked", "budget", "time-cap", "low-credit", "contract-end"})
# Nothing ran there that another machine could collide with: that one is taken at once.
NEXT_AT_ONCE = frozenset({"burn-in", "slow"})
# The machine's status message explains these verdicts, so it is kept with them.
TOLD_BY_THE_HOST = frozenset({"image", "host-fault", "not-started", "loading"})
SUCCESS = "done"


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
