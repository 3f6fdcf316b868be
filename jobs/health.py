"""Does the run that is being written here still make progress? `python -m jobs.health [RUNS_DIR]`, the image's health check.

A hung trainer keeps its process and its lock, so we measure the time since its last progress against the limit of its phase.
The heartbeat records that time; the beats themselves come out of a thread and prove only that the process lives. A heartbeat of
older code, without that time, is judged by its own age. Only runs whose lock is held and names this host count: a container,
whose host name is its id, judges its own runs where it shares the directory with others.

Exit code 0: healthy, or no run is being written here. 1: a run makes no progress. 2: a setting is wrong.
It is started every half minute beside a run: standard library only.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs import lock
from jobs.errors import EXIT_OK, EXIT_USER, ConfigError, UserError, expanded
from jobs.runs.atomic import finite, read_json_or_nothing

if TYPE_CHECKING:
    from jobs.clock import Clock

UNHEALTHY = 1
SETTING = "PREFILL_HEALTH_SILENCE"

# Phase -> seconds it may take without progress. A phase is the first word of the heartbeat's: "score base/prefix" is "score".
SILENCE: Mapping[str, float] = {
    "start": 1800,  # also the limit until a run's first beat
    "load": 1800,  # the download of a model of 3B parameters, or the optimiser's state of a resumed run
    "data": 900,  # reading, tokenising, and the search for evaluation items among the examples
    "check": 600,
    "save": 900,
    "compile": 180,  # counts as progress for ten minutes at most
    "train": 180,  # each micro-batch is progress
    "evaluate": 180,
    "score": 180,
}
WORKING = ("train", "evaluate", "score")  # the phases that $PREFILL_HEALTH_SILENCE changes
_OTHERWISE = "train"  # a phase that is not in the table is held to the strictest limit


class HealthVerdict(NamedTuple):
    """Whether one run is healthy, and the reason as a sentence."""

    healthy: bool
    sentence: str


# ---- the judgement: no clock, no files -------------------------------------------------------------------------------


def limits(silence: str | None) -> dict[str, float]:
    """The table, its working phases set to `silence` seconds where that is given. Raises ConfigError."""
    if not silence:  # unset, or passed on empty
        return dict(SILENCE)
    try:
        seconds = float(silence)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(SETTING, f'expected a positive number of seconds, found "{silence}"',
                          f"correct it, or unset it for {SILENCE[_OTHERWISE]:.0f}")  # fmt: skip
    return {**SILENCE, **dict.fromkeys(WORKING, seconds)}


def judge(
    beat: Mapping[str, Any] | None, run_age: float, monotonic: float, wall: float, limits: Mapping[str, float]
) -> HealthVerdict:
    """Healthy unless the last progress is longer ago than the phase allows.

    Args:
        beat: the content of heartbeat.json; None, or a malformed beat, counts as no beat since the run was started.
        run_age: seconds since then.
        monotonic, wall: the time now. The monotonic clock decides, since nobody can set it; it begins anew when the
            machine does, so that a beat from its future is judged by the wall clock.
        limits: seconds by phase, see `limits`.
    """
    beat = beat or {}
    phase, at = beat.get("phase"), times(beat, "")
    if not isinstance(phase, str) or at is None:
        silent, allowed = max(run_age, 0.0), limits["start"]
        if silent <= allowed:
            return HealthVerdict(True, f"no heartbeat yet, {silent:.0f} s after its start")
        return HealthVerdict(False, f"no heartbeat in the {silent:.0f} s since its start, {_remedy(allowed)}")
    step, total = finite(beat.get("step")), finite(beat.get("total"))
    progress = f"{phase} {step or 0:.0f}/{total:.0f}" if total else phase  # such as train 340/1200
    silent, stuck = (ago(*then, wall, monotonic) for then in (at, times(beat, "progress_") or at))
    allowed = limits.get(phase.partition(" ")[0], limits[_OTHERWISE])
    if silent > allowed:
        return HealthVerdict(False, f"{progress}: no heartbeat for {silent:.0f} s, {_remedy(allowed)}")
    if stuck > allowed:
        return HealthVerdict(False, f"{progress}: it beats, but made no progress for {stuck:.0f} s, {_remedy(allowed)}")
    return HealthVerdict(True, f"{progress}, last beat {silent:.0f} s ago")


def ago(then: float, then_monotonic: float, wall: float, monotonic: float) -> float:
    """Seconds since a time by both clocks. The monotonic one begins anew when the machine does."""
    ago = monotonic - then_monotonic
    return ago if ago >= 0 else max(wall - then, 0.0)


def _remedy(allowed: float) -> str:
    return f"allowed {allowed:.0f} s; see log.txt of the run"


def times(beat: Mapping[str, Any], of: str) -> tuple[float, float] | None:
    """Wall and monotonic clock of a beat, or with `of` "progress_" of its last progress; None without both numbers."""
    wall, monotonic = finite(beat.get(f"{of}unix_time")), finite(beat.get(f"{of}monotonic"))
    return None if wall is None or monotonic is None else (wall, monotonic)


# ---- the runs that are being written here ----------------------------------------------------------------------------


def check(runs_dir: Path, host: str, limits: Mapping[str, float], clock: Clock) -> Iterator[tuple[str, HealthVerdict]]:
    """The id of each run below `runs_dir` that a process of `host` writes, with the verdict on it."""
    for path in sorted(runs_dir.glob("*/*/lock")):
        try:
            holder = path.read_text(encoding="utf-8").strip()  # jobs.lock.hold writes: process PID on HOST
            written_here = holder.partition(" on ")[2] == host and lock.is_held(path)
            locked_at = path.stat().st_mtime
        except (OSError, ValueError):  # another user's, or removed meanwhile: not a run of ours
            continue
        if written_here:
            # Before the clocks, or a new beat would be from the future.
            beat = read_json_or_nothing(path.with_name("heartbeat.json"))
            wall = clock.time()
            verdict = judge(beat, wall - locked_at, clock.monotonic(), wall, limits)
            yield f"{path.parent.parent.name}/{path.parent.name}", verdict


# ---- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str], environment: Mapping[str, str], host: str, clock: Clock) -> int:
    """Print a line for each run that is being written here and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.health",
        description="Exit 1 if a run that is being written on this host stands still.",
        epilog=f"${SETTING}: seconds without a heartbeat allowed while training or scoring, "
        f"{SILENCE[_OTHERWISE]:.0f} if unset.",
    )
    runs = environment.get("PREFILL_RUNS") or "runs"
    parser.add_argument("runs_dir", metavar="RUNS_DIR", nargs="?", type=Path, default=Path(runs),
                        help="where runs are kept; $PREFILL_RUNS, or runs, if not given")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        runs_dir = expanded(given.runs_dir)
        verdicts = list(check(runs_dir, host, limits(environment.get(SETTING)), clock))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    for run, verdict in verdicts:
        print(f"{'healthy' if verdict.healthy else 'unhealthy'}: {run}: {verdict.sentence}")
    if not verdicts:
        print(f"healthy: {runs_dir}: no run is being written here")
    return EXIT_OK if all(verdict.healthy for _, verdict in verdicts) else UNHEALTHY


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ, socket.gethostname(), time))
