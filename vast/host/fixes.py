"""Changes on the machine that prevent a failure from repeating; each bounded, each recorded. Pure.

A fix is a line of `fixes` in state.json, "reason: what was done". Later attempts inherit the lines, so they are also the count,
and lasting changes (a halved batch, longer time-outs) are read from them at every start. The policy decides how often a reason
is answered with a new start; the bounds here hold under any policy.
"""

import re
from collections.abc import Sequence

LIMITS = {"cuda-oom": 3, "disk-full": 5, "hub-timeout": 3, "stale-lock": 3, "missing-tool": 2}
HUB_SECONDS = 60  # huggingface_hub waits 10 by itself
INHERITED = "on another machine"

# A program that an image of the user's own may bring, called with what is missing; ours has no use for one and brings none.
INSTALLER = "prefill-install-tool"
# The job is started even if this fails: its own error names what is missing best. One process group, so that a stop reaches both.
INSTALL = f"""
echo "[fix] {INSTALLER} $0"
timeout --foreground 600 {INSTALLER} "$0" </dev/null || echo "[fix] exit code $?"
exec "$@"
"""
_TOOLS = r"(?<![\w.-])(?:gcc|g\+\+|cc|c\+\+|clang|ninja|git|make)"
_MISSING = (
    re.compile(rf"No such file or directory: '({_TOOLS})'"),
    re.compile(rf"({_TOOLS}): (?:command )?not found"),
    re.compile(r"Failed to find (C compiler)"),
    re.compile(r"(Ninja) is required"),
    re.compile(r"(Python\.h): No such file"),
)


def used(reason: str, lines: Sequence[str]) -> int:
    return sum(line.startswith(f"{reason}: ") for line in lines)


class Start:
    """What is changed for the next start of the job."""

    def __init__(self, reason: str | None, lines: Sequence[str], failure: str = "", halved_before: int = 0) -> None:
        """
        reason: of the last attempt's end on this machine, None if there was none.
        lines: the fixes so far.
        failure: the words of the last failure, for the name of a missing tool; none if nothing installs it.
        halved_before: how often another machine, which may say anything, had halved the batch of the run that is continued.
        """
        new = [f"cuda-oom: memory halved, {INHERITED}"] * (
            min(halved_before, LIMITS["cuda-oom"]) - used("cuda-oom", lines)
        )
        allowed = reason is not None and used(reason, [*lines, *new]) < LIMITS.get(reason, 0)
        tool = missing_tool(failure) if reason == "missing-tool" else None
        done = {
            "cuda-oom": "memory halved, the batch stays",
            "hub-timeout": f"waits {HUB_SECONDS * 2 ** used('hub-timeout', lines)} s for an answer",
            "stale-lock": "lock files that nobody holds removed",
            "disk-full": "checkpoints that are at home removed",
            "missing-tool": f"{tool} installed by {INSTALLER}",
        }
        if allowed and reason is not None and (reason != "missing-tool" or tool is not None):
            new.append(f"{reason}: {done[reason]}")
        self.new = tuple(new)  # lines to record
        self.halvings = used("cuda-oom", [*lines, *new])
        waits = used("hub-timeout", [*lines, *new])
        names = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT") if waits else ()
        self.environment = dict.fromkeys(names, str(HUB_SECONDS * 2 ** max(0, waits - 1)))
        self.tool = tool if allowed else None  # to be installed first
        self.prune = allowed and reason == "disk-full"  # checkpoints that the local copy has
        self.unlock = allowed and reason == "stale-lock"  # lock files that nobody holds


def missing_tool(failure: str) -> str | None:
    """The first tool that `failure` names as missing; None if it names none."""
    return next((match[1] for pattern in _MISSING if (match := pattern.search(failure))), None)


def job_arguments(arguments: Sequence[str], halvings: int, again: bool) -> list[str]:
    """The arguments of `run STAGE ...`, so that it continues an unfinished run. Other commands are left as they are.

    again: it is not the first attempt: --force would throw away what the first one did.
    """
    words = list(arguments)
    if words[:1] != ["run"]:
        return words
    if again:
        words = [word for word in words if word != "--force"]
    if not {"--continue", "--resume", "--force"} & set(words):
        words.append("--continue")
    return [*words, "--halve-memory", str(halvings)] if halvings else words


def installing(tool: str | None, command: Sequence[str]) -> list[str]:
    return list(command) if tool is None else ["sh", "-c", INSTALL, tool, *command]
