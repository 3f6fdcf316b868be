"""One page about a runs directory: its stages, campaigns and rented runs, and what to do next. Reads files and nothing else."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.columns import Column, table_lines
from jobs.errors import UserError, make_command, runs_setting
from jobs.runs.atomic import finite, read_json_or_nothing
from jobs.runs.rundir import RunDir, list_runs
from jobs.runs.runfiles import State
from vast.records.status import RunStatus

CAMPAIGNS = "campaigns"  # below the runs directory: one JSON file for each, written by `python -m app campaign`
CELL = "cell"  # the stage of a campaign's runs
_COUNTED: tuple[State, ...] = ("complete", "running", "failed", "interrupted")
_NUMBERS = tuple(Column(state, right=True) for state in _COUNTED)

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8" /><meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="color-scheme" content="light dark" /><title>Runs in {title}</title>
<style>body {{ margin: 2em auto; max-width: 72em; padding: 0 1em; font: 1em/1.5 system-ui, sans-serif; }}
h1 {{ overflow-wrap: anywhere; }} pre {{ overflow-x: auto; }}</style></head>
<body><h1>Runs in {title}</h1>
{body}</body></html>
"""


@dataclass(frozen=True)
class Part:
    """A heading with a table; `lines` in its place for text."""

    title: str
    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    lines: tuple[str, ...] = ()

    def text(self, width: int) -> list[str]:
        return [*self.lines, *(table_lines(self.columns, self.rows, width) if self.rows else [])]


def overview(runs_dir: Path, stages: Sequence[str], rented: Sequence[RunStatus]) -> list[Part]:
    """The parts of the page. stages: those of the experiment, in their order. rented: the state of each rented run."""
    by_stage: dict[str, list[RunDir]] = {stage: [] for stage in stages}
    for run in list_runs(runs_dir):
        by_stage.setdefault(run.stage, []).append(run)
    campaigns = {path.stem: read_json_or_nothing(path) for path in sorted((runs_dir / CAMPAIGNS).glob("*.json"))}
    cells = by_stage.pop(CELL, [])
    parts = [Part("Stages", (Column("stage"), *_NUMBERS, Column("newest", least=12)),
                  tuple((stage, *_counts(runs), _newest(runs)) for stage, runs in by_stage.items()))]  # fmt: skip
    if campaigns or cells:
        columns = Column("campaign"), Column("cells", right=True), *_NUMBERS, Column("newest", least=12)
        # the newest of each; a damaged stage.yaml may hold anything
        listed = {str(_job(run).get("fingerprint")): run for run in (*by_stage.get("stage1", ()), *cells)}
        rows = []
        for name, one in campaigns.items():
            prints = one.get("fingerprints")
            known = [listed[str(key)] for key in (prints if isinstance(prints, list) else ()) if str(key) in listed]
            runs = sorted(known, key=lambda run: run.age_key) if "fingerprints" in one else cells
            rows.append((name, str(one.get("cells") or "-"), *_counts(runs), _newest(runs)))
        parts.append(Part("Campaigns", columns, tuple(rows or [("-", "-", *_counts(cells), _newest(cells))])))
    if rented:
        columns = (Column("rented run"), Column("phase"), Column("step", right=True, drop=1), Column("$", right=True),
                   Column("cap", right=True, drop=2), Column("$/h", right=True, drop=3))  # fmt: skip
        machines = [(one.run, one.phase if one.result is None else f"{one.phase}: {one.result}",
                 f"{one.step}/{one.total}" if one.total else "-", f"{one.dollars:.2f}", f"{one.cap_dollars:.2f}",
                 f"{one.dollars_per_hour:.3f}") for one in rented]  # fmt: skip
        now = sum(one.dollars_per_hour for one in rented)
        spent = f"In all ${sum(one.dollars for one in rented):,.2f}, now ${now:.3f} an hour."
        parts.append(Part("Rented machines", columns, tuple(machines), (spent,)))
    todo = _next(runs_dir, by_stage, campaigns, cells, rented)
    return [*parts, Part("What to do next", lines=tuple(todo))]


def as_text(parts: Sequence[Part], width: int) -> str:
    return "\n\n".join("\n".join([part.title, *part.text(width)]) for part in parts) + "\n"


def as_html(parts: Sequence[Part], runs_dir: Path) -> str:
    """The page by itself: no script, nothing from elsewhere."""
    texts = ((part.title, "\n".join(part.text(120))) for part in parts)
    body = "".join(f"<h2>{html.escape(title)}</h2>\n<pre>{html.escape(text)}</pre>\n" for title, text in texts)
    return _PAGE.format(title=html.escape(str(runs_dir)), body=body)


def _counts(runs: Sequence[RunDir]) -> tuple[str, ...]:
    states = [run.state() for run in runs]
    return tuple(str(states.count(state) or "-") for state in _COUNTED)


def _newest(runs: Sequence[RunDir]) -> str:
    """The state of the newest run, with its progress or the reason of its end."""
    if not runs:
        return "not run yet"
    run = runs[-1]
    state = run.state()
    beat, failed = read_json_or_nothing(run.path / "heartbeat.json"), read_json_or_nothing(run.path / "failed.json")
    if state == "running" and beat.get("total"):
        return f"running: {beat.get('phase')} {beat.get('step')} of {beat['total']}"
    return f"{state}: {failed['message']}" if state != "complete" and failed.get("message") else state


def _next(runs_dir: Path, by_stage: Mapping[str, Sequence[RunDir]], campaigns: Mapping[str, Mapping[str, Any]],
          cells: Sequence[RunDir], rented: Sequence[RunStatus]) -> list[str]:  # fmt: skip
    """What to type, most urgent first: machines that cost money, then runs that ended early, then what was never run."""
    found = [f"{one.run}: {one.note}" for one in rented if one.note]
    found += [f"{one.run}: its journal is broken, and it may have a machine: python -m vast reap" for one in rented
              if one.phase == "broken" and "docker rm" not in one.note]  # fmt: skip
    for stage, runs in by_stage.items():
        state = runs[-1].state() if runs else "complete"
        again = make_command(stage, profile=_profile(runs), runs_dir=runs_dir)
        if state == "interrupted":
            found.append(f"resume {runs[-1].id}: {again} RESUME=1")
        elif state == "failed":
            found.append(f"see why {runs[-1].id} failed ({runs[-1].log_path}), then: {again}")
    done = {name: one["runs"] if isinstance(one.get("runs"), list) else [] for name, one in campaigns.items()}
    unfinished = [name for name, one in campaigns.items() if len(done[name]) < (finite(one.get("cells")) or 1)]
    found += [
        f"go on with campaign {name}: make campaign CAMPAIGN={name}{runs_setting(runs_dir)}" for name in unfinished
    ]
    missing = next((stage for stage, runs in by_stage.items() if not runs), None)
    known = sorted((run for runs in by_stage.values() for run in runs), key=lambda run: run.age_key)
    # A stage may start from one that is running; on another profile it would find no run to start from.
    if missing is not None and not cells and all(run.state() != "running" for run in known):
        found.append(f"run the next stage: {make_command(missing, profile=_profile(known), runs_dir=runs_dir)}")
    if any(run.state() == "complete" for runs in (*by_stage.values(), cells) for run in runs):
        found.append(f"read the results: {make_command('report', runs_dir=runs_dir)}")
    return found


def _profile(runs: Sequence[RunDir]) -> str | None:
    """Of the newest run."""
    record = _job(runs[-1]).get("profile") if runs else None
    return str(record.get("name") or "") or None if isinstance(record, dict) else None


def _job(run: RunDir) -> dict[str, Any]:
    try:
        return run.read_job()
    except UserError:
        return {}
