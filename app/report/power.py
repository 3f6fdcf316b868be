"""The table behind `python -m app power`: the smallest difference that the items and seeds of each comparison can show."""

from rich.console import Console

from app.report.format import DASH, signed, size
from app.report.study import Study
from app.stats.difference import Variance
from app.stats.power import items_needed, smallest_difference
from jobs.columns import Column, table_lines

_COLUMNS = (
    Column("Comparison"),
    Column("Seeds", right=True, drop=2),
    Column("Points\nfound", right=True),
    Column("Can\nshow", right=True),
    Column("Items\nfor {}", right=True, drop=1),
    Column("Nats\nfound", right=True, drop=4),
    Column("Can\nshow", right=True, drop=3),
)


def power_rows(study: Study, points: float) -> list[tuple[str, ...]]:
    """One row for each comparison that does not leak; the items are those that a difference of `points` would take."""
    rows: list[tuple[str, ...]] = []
    for c in (c for c in study.comparisons if not c.leaks):
        variance, found = c.accuracy.variance, signed(100 * c.accuracy.total.value, 1)
        nll = (signed(c.nll.total.value), can_show(c.nll.variance)) if c.nll else (DASH, DASH)
        accuracy = (str(variance.seeds), found, can_show(variance, 100, 1), needed_for(variance, points / 100))
        rows.append((" - ".join(c.names), *accuracy, *nll))
    return rows


def can_show(variance: Variance, scale: float = 1, digits: int = 3) -> str:
    """The smallest difference; a dash where no item differs, from which nothing can be estimated, and `none` where the
    seeds differ too much to show any."""
    return size(scale * smallest_difference(variance), digits)


def needed_for(variance: Variance, difference: float) -> str:
    """The items that a true difference would take, in words where no number of them is enough or nothing is known."""
    if variance.of_items == 0:
        return DASH
    needed = items_needed(variance, difference)
    return "more seeds" if needed is None else f"{needed:,}"


def print_power(study: Study, console: Console, points: float) -> None:
    """The rows as a table, and how to read it."""
    rows = power_rows(study, points)
    columns = [Column(c.name.format(f"{points:g} pt"), c.right, c.drop, c.least) for c in _COLUMNS]
    for line in table_lines(columns, rows, console.width):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    items = study.comparisons[0].accuracy.variance.items
    note = (
        f"{items:,} items. Can show: the smallest true difference whose 95 % interval excludes zero with 80 % probability, in "
        "points of accuracy and in nats a token; few seeds need a larger one, as their interval is that of Student's t. With one "
        "seed the spread between seeds is unknown and left out."
    )
    console.print(note, markup=False, highlight=False, style="dim")
