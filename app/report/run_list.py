"""The list of runs behind `python -m app runs`: state, headline number and when, newest first."""

from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from app.report.format import DASH, moment, number
from jobs.columns import Column, table_lines
from jobs.config.schema import LEAKING
from jobs.errors import UserError, make_command
from jobs.runs.atomic import read_json_or_nothing
from jobs.runs.rundir import RunDir, list_runs

_COLUMNS = (
    Column("Run"),
    Column("Profile", drop=2, least=12),
    Column("State"),
    Column("Result", right=True),
    Column("Headline", drop=1, least=12),
    Column("When (UTC)", drop=3),
)
_STYLES = {"complete": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


class RunRow(NamedTuple):
    """One run. `profile`: with seed, suite and order of a complete run where they are not the usual ones. `result` is its first
    macro accuracy or its eval loss; `headline` names it, or is the reason why the run ended."""

    id: str
    profile: str
    state: str  # complete, running, failed or interrupted
    result: str
    headline: str
    when: str  # of its end, or of its last heartbeat while it is not complete


def list_rows(runs_dir: Path) -> list[RunRow]:
    """All runs under `runs_dir`, newest first; a damaged one is listed as such instead of hiding the rest."""
    return [row_of(run) for run in reversed(list_runs(runs_dir))]


def print_runs(rows: list[RunRow], console: Console, runs_dir: Path | None = None) -> None:
    """The rows as a table, or the command that makes a first run."""
    if not rows:
        begin = make_command("demo", runs_dir=runs_dir), make_command("stage1", runs_dir=runs_dir)
        text = "no run yet; run: {}, or one stage: {}".format(*begin)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    lines = [Text(line) for line in table_lines(_COLUMNS, rows, console.width)]
    for row, line in zip(rows, lines[-len(rows) :], strict=True):
        start = line.plain.index(row.state, len(row.id))
        line.stylize(_STYLES[row.state], start, start + len(row.state))
    for line in lines:
        console.print(line, soft_wrap=True)


def row_of(run: RunDir) -> RunRow:
    state = run.state()
    summary, metrics, failed, beat = (
        read_json_or_nothing(run.path / f"{name}.json") for name in ("summary", "metrics", "failed", "heartbeat")
    )
    profile, scored = summary.get("profile") or _profile(run) or DASH, _scored(metrics)
    result, when = DASH, beat.get("wall_time")
    if state == "complete":
        (result, headline), when = _result(summary, scored), summary.get("finished")
        headline = headline if summary else "damaged: summary.json cannot be read"
    elif state != "running" and failed:
        headline = str(failed.get("message", ""))
    else:
        headline = str(beat.get("phase") or "")
        if beat.get("total"):  # 0 while it is not known: "check 0 of 0" would mean nothing
            headline += f" {beat.get('step')} of {beat['total']}"
    named = " ".join([str(profile), *_unusual(metrics.get("seed"), scored[0] if scored else {})])
    return RunRow(run.id, named, state, result, headline or DASH, moment(str(when or "")))


def _result(summary: dict[str, Any], scored: list[dict[str, Any]]) -> tuple[str, str]:
    """The first number and its name; the other names follow, each with its number."""
    leaks = [str(e.get("label")) for e in scored if e.get("leaks")]
    texts = {name: number(value) if isinstance(value, int | float) else str(value)
             for name, value in _mapping(summary.get("headline")).items()}  # fmt: skip
    found = [(f"{name}{' (leaks)' * (name in leaks or name.endswith(LEAKING))}", text) for name, text in texts.items()]
    if not found:
        return DASH, ""
    (first, result), *others = found
    return result, ", ".join([first.replace("_", " "), *map(" ".join, others)])


def _scored(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    found = metrics.get("evaluations")
    return list(map(_mapping, found)) if isinstance(found, list) else []


def _unusual(seed: Any, first: dict[str, Any]) -> list[str]:
    """Seed, suite and order, by which the run differs from others of its stage."""
    words = f"seed {seed}" if seed else None, first.get("suite"), first.get("order")
    return [str(word) for word in words if word and word not in ("short", "context_first")]


def _mapping(value: Any) -> dict[str, Any]:
    """A part of a file that may be damaged."""
    return value if isinstance(value, dict) else {}


def _profile(run: RunDir) -> str | None:
    """None for a run that was killed before it wrote its job, or whose record is damaged."""
    try:
        return _mapping(run.read_job().get("profile")).get("name")
    except UserError:
        return None
