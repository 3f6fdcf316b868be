"""The list of runs behind `python -m app runs`: state, headline number and when, newest first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.report.format import DASH, moment, number
from jobs.config.schema import LEAKING
from jobs.errors import make_command
from jobs.runs.rundir import RunDir, list_runs


@dataclass(frozen=True)
class RunRow:
    """One run; `headline` is its macro accuracies, its best eval loss, or why it ended."""

    id: str
    stage: str
    profile: str
    state: str  # complete, running, failed or interrupted
    headline: str
    when: str  # of its end, or of its start while it is not complete


def list_rows(runs_dir: Path) -> list[RunRow]:
    """All runs under `runs_dir`, newest first; a damaged one is listed as such instead of hiding the rest."""
    return [_row(run) for run in reversed(list_runs(runs_dir))]


def print_runs(rows: list[RunRow], console: Console, runs_dir: Path | None = None) -> None:
    """The rows as a table; says so when there are none."""
    if not rows:
        begin = make_command("demo", runs_dir=runs_dir), make_command("stage1", runs_dir=runs_dir)
        text = "no run yet; run: {}, or one stage: {}".format(*begin)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    styles = {"complete": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Run", "Profile", "State", "Headline", "When (UTC)"):
        table.add_column(name, overflow="fold", no_wrap=name != "Headline")
    for row in rows:
        state = Text(row.state, style=styles.get(row.state, ""))
        table.add_row(Text(row.id), row.profile, state, Text(row.headline), row.when)
    console.print(table)


def _row(run: RunDir) -> RunRow:
    state = run.state()
    summary, metrics, failed, beat = (
        _read(run.path / f"{name}.json") for name in ("summary", "metrics", "failed", "heartbeat")
    )
    profile = summary.get("profile") or _read(run.path / "stage.yaml").get("profile", {}).get("name") or DASH
    if state == "complete":
        headline, when = _headline(summary, metrics), summary.get("finished")
    elif state != "running" and failed:
        headline, when = str(failed.get("message", "")), beat.get("wall_time")
    else:
        done = str(beat.get("phase") or "")
        if beat.get("total"):  # 0 while it is not known: "check 0 of 0" tells nobody anything
            done += f" {beat['step']} of {beat['total']}"
        headline, when = done.strip(), beat.get("wall_time")
    return RunRow(run.id, run.stage, str(profile), state, headline or DASH, moment(str(when or "")))


def _headline(summary: dict[str, Any], metrics: dict[str, Any]) -> str:
    scores = summary.get("headline") or {}
    if scores:
        leaks = {e["label"] for e in metrics.get("evaluations") or [] if e.get("leaks")}
        return ", ".join(
            f"{label}{' (leaks)' if label in leaks or label.endswith(LEAKING) else ''} {number(value)}"
            for label, value in scores.items()
        )
    train = metrics.get("train") or {}
    return f"eval loss {number(train['eval_loss_best'])}" if train.get("eval_loss_best") is not None else ""


def _read(path: Path) -> dict[str, Any]:
    """A JSON or YAML mapping; {} when missing or damaged: a list of runs must not die of one of them."""
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}
