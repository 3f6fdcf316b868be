"""One line for a person: alerts that come and go (vast/supervisor/schedule.py), verdicts (vast/supervisor/reasons.py).

docs/vast.md has details; a test requires each name in both places.
"""

from __future__ import annotations

MEANING = {
    # alerts
    "account": "the account cannot be seen: a refused key or no answer; nothing is judged meanwhile",
    "network": "this machine's own network is down, or ssh cannot be started on it; nothing is judged meanwhile",
    "market": "the account answers, but list or search hide what the run needs to see; nothing is rented meanwhile",
    "destroy": "a machine is not destroyed yet; DELETE is repeated without end, and it bills until then",
    "local-disk-full": "this machine's disk is full, so nothing can be fetched; make room",
    "pull": "three pulls in a row failed",
    "unreachable": "the host does not answer; it is replaced if that lasts",
    "key-denied": "the host refuses the ssh key; it is attached again",
    "stalled": "no step, no heartbeat and an idle GPU; the job is killed if that lasts",
    "ends-soon": "credit or contract are near their end; results are fetched early",
    # verdicts
    "user": "a mistake in the stage, the profile or an option",
    "nan": "the loss became NaN or infinite",
    "no-learning": "the loss did not improve within the steps allowed",
    "deterministic": "the same failure twice; a third attempt would fail the same way",
    "budget": "the cap of dollars is reached",
    "time-cap": "the cap of hours is reached",
    "low-credit": "the account's credit is used up",
    "no-credit": "the account has no credit to rent with",
    "no-offers": "no machine that fits was found in time",
    "refused": "the market refuses every create of a machine: the account, its key or a limit",
    "image": "the image cannot be pulled; push it (make push), or name its registry's login in the policy",
    "missing-tool": "a program is missing in the image; tried again once",
    "bug": "the job failed with an exception; tried again",
    "killed": "the job was killed, such as for its memory; tried again",
    "incomplete": "exit code 0, but no complete manifest",
    "hang": "the job hung and was killed",
    "gpu-fault": "the GPU failed; another machine is taken",
    "host-fault": "the host could not start the container; another machine is taken",
    "loading": "the image was not loaded in time; another machine is taken",
    "ssh": "no contact or no armed dead-man's switch in time; another machine is taken",
    "burn-in": "the machine failed its burn-in, or gave no answer to it; another machine is taken",
    "slow": "by its burn-in the work would not fit into the caps; another machine is taken",
    "unguarded": "the machine's dead-man's switch is gone; results are fetched, and another machine is taken",
    "not-started": "the contract came with an error; another machine is taken",
    "price": "the machine costs more than was agreed; another machine is rented",
    "not-fetched": "the job was done, and its machine died in the last pull; another machine resumes",
    "host-lost": "the host did not answer for too long; another machine is taken",
    "away": "the machine was offline for too long; another machine is taken",
    "vanished": "two authenticated listings lack the machine; another one is taken",
    "outbid": "somebody bid more for the machine; another one is taken",
    "contract-end": "the machine's owner takes it back; another one is taken",
}
