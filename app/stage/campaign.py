"""A campaign carried out: its cells one after the other in this process, or dealt over several workers with a GPU each.

A cell that is complete is found and passed over, one that was interrupted goes on (app/stage/run.py), so a killed campaign is
simply started again. What was declared (`primary`) is written down before the first run, and may not change after it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from app.data.contents import contents_of
from app.runtime.ending import RunEnded
from app.runtime.signals import StopFlag
from app.stage.run import AlreadyRunning, Now, run_stage
from jobs.config.campaign import Campaign, Cell
from jobs.errors import EXIT_STOPPED, ConfigError, UserError
from jobs.lock import exclusive
from jobs.runs.atomic import encode, io_errors_reported, make_directory, write_text_atomically
from jobs.runs.records import read_campaign_file
from jobs.runs.rundir import RunDir, list_runs

AGAIN = "start the campaign again: it goes on"
POLL_SECONDS = 1.0
STANDS_STILL = 120  # polls: a disk that a checkpoint keeps busy lets a heartbeat wait
GRACE_SECONDS = 600.0  # for a checkpoint of a large model
Say = Callable[[str], None]


@dataclass(frozen=True)
class Standing:
    """A cell and its newest run, if there is one. state: of that run, or `open`."""

    cell: Cell
    state: str
    run: RunDir | None


class Ledger:
    """Where the cells of a campaign stand, by the fingerprints of their jobs; and the file that declares and lists them."""

    def __init__(self, name: str, campaign: Campaign, cells: Sequence[Cell], runs_dir: Path) -> None:
        self.name, self.campaign, self.cells, self.runs_dir = name, campaign, cells, runs_dir
        self.path = runs_dir / "campaigns" / f"{name}.json"
        self._fingerprints = [
            replace(cell.job, contents=contents_of(cell.job)).fingerprint({"base": "base"}) for cell in cells
        ]

    def standings(self) -> list[Standing]:
        newest: dict[str, RunDir] = {}
        for run in list_runs(self.runs_dir):
            if run.stage in {cell.job.stage.name for cell in self.cells}:
                known = newest.get(key := run.fingerprint() or "")
                newest[key] = known if known is not None and known.state() == "complete" else run
        runs = [newest.get(fingerprint) for fingerprint in self._fingerprints]
        return [Standing(cell, "open" if run is None else run.state(), run)
                for cell, run in zip(self.cells, runs, strict=True)]  # fmt: skip

    def declare(self, now: datetime) -> None:
        """Write down what the campaign is to decide, before anything runs.

        Raises:
            ConfigError: runs have been made under this name for another primary comparison.
        """
        primary = self.campaign.primary.model_dump(mode="json")
        declared = now.isoformat(timespec="seconds")
        with io_errors_reported(self.path), exclusive(self.path.with_suffix(".lock")):
            if not self.path.is_file():
                self._write(
                    {"campaign": self.name, "title": self.campaign.title, "declared": declared, "primary": primary,
                     "cells": len(self.cells), "fingerprints": self._fingerprints}
                )  # fmt: skip
            before = read_campaign_file(self.path)
        if before.get("primary") != primary:
            fact = f"another primary comparison was declared on {before.get('declared')} ({self.path})"
            raise ConfigError(f"campaign {self.name}: primary", fact, "restore it, or give this one a file of its own")

    def record(self) -> None:
        """The runs of the cells that are complete, beside what was declared."""
        complete = [one for one in self.standings() if one.state == "complete"]
        runs = [{"run": one.run.id, **one.cell.place} for one in complete if one.run is not None]
        with io_errors_reported(self.path), exclusive(self.path.with_suffix(".lock")):
            settings = self.campaign.model_dump(mode="json", exclude_unset=True)
            self._write({**read_campaign_file(self.path), "cells": len(self.cells), "fingerprints": self._fingerprints,
                         "runs": runs, "settings": settings})  # fmt: skip

    def _write(self, value: Mapping[str, Any]) -> None:
        write_text_atomically(self.path, encode(value, indent=2) + "\n")


def run_cells(
    cells: Sequence[Cell],
    runs_dir: Path,
    *,
    now: Now,
    say: Say,
    each: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """One after the other in this process; one that fails does not keep the others from running. `each`: after a run is complete.

    What another process is running comes last, once that one has ended or has no heartbeat any more.

    Raises:
        RunEnded: a signal came, or, once all others are done, runs have failed.
    """
    # Not the errors: their tracebacks hold the models, and the next run needs the memory.
    failed: list[tuple[str, int]] = []
    elsewhere: list[tuple[str, Cell, RunDir]] = []

    def attempt(place: str, cell: Cell, *, beside: bool) -> None:
        try:
            outcome = run_stage(cell.job, runs_dir, force=False, resume=False, proceed=True, now=now, beside=beside)
        except AlreadyRunning as error:
            elsewhere.append((place, cell, error.run))
            say(f"{place}: another process is running it, it comes last: {error.run.path}")
        except (UserError, RunEnded) as error:
            if error.exit_code == EXIT_STOPPED:
                raise RunEnded(f"stopped at {place}", EXIT_STOPPED, AGAIN) from error
            failed.append((f"{cell.name} first: {error}", error.exit_code))
            say(f"{place}: failed: {error}")
        else:
            say(f"{place}: {'complete' if outcome.ran else 'complete already'}: {outcome.run.path}")
            each()

    for number, cell in enumerate(cells, 1):
        attempt(f"[{number}/{len(cells)}] {cell.name}", cell, beside=False)
    for place, cell, run in tuple(elsewhere):
        _wait_for(run, sleep)
        attempt(place, cell, beside=True)
    if failed:
        first, code = failed[0]
        raise RunEnded(f"{len(failed)} of {len(cells)} runs failed, {first}", code, AGAIN)


def _wait_for(run: RunDir, sleep: Callable[[float], None]) -> None:
    """Return when no process holds the run's lock, or when its heartbeat, written every five seconds, has stood still: after a
    crash a child may go on holding the lock."""
    last, still = "", 0
    while run.state() == "running" and still < STANDS_STILL:
        with suppress(OSError):
            if (beat := (run.path / "heartbeat.json").read_text(encoding="utf-8")) != last:
                last, still = beat, 0
        sleep(POLL_SECONDS)
        still += 1


# ---- several workers -------------------------------------------------------------------------------------------------


def devices_of(workers: int, environment: Mapping[str, str], gpus: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker; None where there is no GPU. Raises ConfigError for fewer GPUs than workers."""
    if gpus == 0:
        return [None] * workers
    given = environment.get("CUDA_VISIBLE_DEVICES")
    visible = [word.strip() for word in given.split(",") if word.strip()] if given else [str(i) for i in range(gpus)]
    if workers > len(visible):
        raise ConfigError("--workers", f"is {workers}, and {len(visible)} GPUs are visible", "one worker a GPU")
    return list(visible[:workers])


def deal(
    words: Sequence[str], devices: Sequence[str | None], logs: Path, *, stop: StopFlag, look: Callable[[], None]
) -> None:
    """Run `python -m app WORDS --share I/N` on each of N devices until all have ended; `look` is called in between.

    Args:
        logs: a directory; what worker I prints goes into its worker-I.log.

    Raises:
        RunEnded: a signal came, which is passed on, or a worker failed.
    """
    make_directory(logs)
    with ExitStack() as stack:
        children: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, children)  # also of those that were started before one could not be
        for part, device in enumerate(devices):
            log = stack.enter_context(open(logs / f"worker-{part}.log", "ab"))
            environment = os.environ if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
            command = [sys.executable, "-m", "app", *words, "--share", f"{part}/{len(devices)}", "--worker"]
            children.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        while any(child.poll() is None for child in children) and not stop:
            time.sleep(POLL_SECONDS)
            look()
    codes = [child.returncode for child in children]
    if stop:
        raise RunEnded("stopped by a signal", EXIT_STOPPED, AGAIN)
    failed = [part for part, code in enumerate(codes) if code]
    if failed:
        where = logs / f"worker-{failed[0]}.log"
        code = codes[failed[0]]
        reason = f"{len(failed)} of {len(codes)} workers failed, see {where}"
        raise RunEnded(reason, code if code > 0 else EXIT_STOPPED, AGAIN)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let the children write a checkpoint and end; kill those that do not."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
