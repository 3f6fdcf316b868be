"""How the report writes numbers, differences, times and names of tasks."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from app.stats.bootstrap import Interval

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
TASK_TITLES = {
    "hellaswag": "HellaSwag",
    "piqa": "PIQA",
    "arc_easy": "ARC easy",
    "arc_challenge": "ARC challenge",
    "winogrande": "WinoGrande",
}


def number(value: float | None, digits: int = 3) -> str:
    """`0.469`, with a true minus sign; an en dash for what is not known or not defined."""
    if value is None or value != value:
        return DASH
    return f"{value:.{digits}f}".replace("-", MINUS if round(value, digits) else "")  # no -0.000


def size(value: float | None, digits: int = 3) -> str:
    """As `number`, of what is never negative: what would be written as 0 without being it keeps its first digit. `none` of an
    infinite one."""
    if value == math.inf:
        return "none"
    return f"{value:.1g}" if value and not round(value, digits) else number(value or None, digits)


def signed(value: float | None, digits: int = 3) -> str:
    """`+0.012`, `−0.053` or `0.000`."""
    return ("+" if value is not None and round(value, digits) > 0 else "") + number(value, digits)


def with_interval(interval: Interval, *, sign: bool = False, unit: str = "", scale: float = 1, digits: int = 3) -> str:
    """`0.469 [0.452, 0.487]`; without bounds where none are defined."""
    if interval.value != interval.value:
        return DASH
    value, lo, hi = (
        (signed if sign else number)(scale * x, digits) for x in (interval.value, interval.lo, interval.hi)
    )
    return f"{value}{unit} [{lo}, {hi}]" if interval.defined else f"{value}{unit}"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def moment(iso: str) -> str:
    """`2026-01-02 03:04` in UTC, of an ISO time; anything else as it is, an en dash for nothing."""
    try:
        return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return iso or DASH


def points(difference: Interval) -> str:
    """`−5.3 points, 95 % interval −7.0 to −3.6`, of accuracy in percent."""
    v, lo, hi = (signed(100 * x, 1) for x in (difference.value, difference.lo, difference.hi))
    return f"{v} points, 95 % interval {lo} to {hi}"


def nats(difference: Interval) -> str:
    """`+0.123 nats a token, 95 % interval +0.045 to +0.201`."""
    v, lo, hi = (signed(x) for x in (difference.value, difference.lo, difference.hi))
    return f"{v} nats a token, 95 % interval {lo} to {hi}"


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min 05 s` or `1 h 02 min`."""
    if seconds is None:
        return DASH
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else DASH


def numbers(values: Iterable[int]) -> str:
    """`0, 1, 2`; four or more in a row as `100 to 119`."""
    groups = groupby(
        enumerate(sorted(values)), lambda at: at[1] - at[0]
    )  # of numbers in a row: the same difference to their places
    found = [[value for _, value in group] for _, group in groups]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 3 else ", ".join(map(str, run)) for run in found)


def short(value: float | None, digits: int = 3) -> str:
    """A number of any kind: a macro accuracy, or a number of steps."""
    return number(value, digits) if value is None or abs(value) < 100 else f"{value:,.0f}"


def task_order(task: str) -> tuple[int, str]:
    known = list(TASK_TITLES)
    return (known.index(task) if task in known else len(known), task)


def task_title(task: str) -> str:
    return TASK_TITLES.get(task, task)
