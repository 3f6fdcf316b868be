"""Parses the reports of a host without trusting them: the machine may be somebody else's. No I/O.

An odd or missing value is None. Text is cut, and its control characters are removed before a terminal can show it.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jobs.config.load import stage_names
from jobs.runs.atomic import finite
from jobs.runs.runfiles import ID_PATTERN
from vast.ports import Host, JobReport
from vast.secrets import printable

PHASES = frozenset({"absent", "starting", "running", "ended", "lost"})  # of vast/host/jobstate.py, and none
LONGEST = 500  # characters of a text
MOST = 100  # of a list
LARGEST = 10**15  # of a count: arithmetic with a longer integer of JSON overflows a float
_RUN = re.compile(rf"[a-z0-9][a-z0-9._-]*/{ID_PATTERN.pattern}")
_CHECKPOINT = re.compile(r"(.+)/checkpoints/checkpoint-(\d{1,12})")


def parse(text: str) -> dict[str, Any] | None:
    """The one JSON object of an answer; words before it, as a login may print them, do no harm."""
    for part in (text, text[text.find("\n{") + 1 :]):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None


def host(answer: Mapping[str, Any] | None, nonce: str) -> Host:
    """One probe. Only an answer with our nonce is a contact; an answer without a nonce proves nothing."""
    if answer is None or not answer.get("nonce"):
        return Host("unreachable", message="no answer of a machine of ours")
    if answer["nonce"] != nonce:
        return Host("wrong-host", message="its nonce is that of another run")
    boot, switch = word(answer.get("boot")), answer.get("watchdog")
    if boot is None:
        return Host("unreachable", message="its report has no boot id")
    switch = switch if isinstance(switch, dict) else {}
    armed = switch.get("armed")
    return Host(
        "ok",
        boot,
        armed if isinstance(armed, bool) else None,
        job(answer.get("job")),
        finite(answer.get("gpu_percent")),
        finite(answer.get("gpu_memory_percent")),
        word(answer.get("gpu_fault")),
        word(answer.get("message")) or "",
        finite(switch.get("uptime")),
    )


def job(value: object) -> JobReport | None:
    """Phase, attempt and exit code decide how a run ends and must be valid. The rest may be missing."""
    if not isinstance(value, dict) or value.get("phase") not in PHASES:
        return None
    attempt, code = count(value.get("attempt", 0)), count(value.get("exit_code"))
    if attempt is None or code != value.get("exit_code"):
        return None
    run = run_name(value.get("run"))
    fixes = value.get("fixes")
    texts = map(word, fixes[:MOST]) if isinstance(fixes, list) else ()
    return JobReport(
        value["phase"],
        attempt,
        code,
        word(value.get("end_reason")),
        word(value.get("fingerprint")),
        tuple(filter(None, texts)),
        run,
        count(value.get("step")) or 0,
        count(value.get("total")) or 0,
        finite(value.get("loss")),
        finite(value.get("tokens_per_s")),
        finite(value.get("beat_age")),
        checkpoint_name(value.get("checkpoint"), run),
        value.get("complete") is True,
    )


def run_name(value: object) -> str | None:
    """STAGE/YYYYmmdd-HHMMSS, or None. Of a stage that is known here: `vast` is a directory there too, and a journal or a policy
    of the host's own making in it would be believed."""
    odd = not isinstance(value, str) or len(value) > LONGEST or not _RUN.fullmatch(value)
    return None if odd or str(value).split("/")[0] not in _stages() else str(value)


@cache
def _stages() -> frozenset[str]:
    return frozenset(stage_names())


def checkpoint_name(value: object, run: str | None) -> str | None:
    """RUN/checkpoints/checkpoint-N of this very run, or None."""
    match = _CHECKPOINT.fullmatch(value) if isinstance(value, str) and run is not None else None
    return match[0] if match and match[1] == run else None


def word(value: object) -> str | None:
    """A short text without control characters; None for none."""
    if not isinstance(value, str):
        return None
    return printable(value[:LONGEST]).strip() or None


def count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= LARGEST else None
