"""The report of a runs directory: to the terminal, as Markdown and as one self-contained HTML page.

A report depends only on the runs, not on clock or chance: equal runs give equal bytes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from app.report import tables
from app.report.campaign import Setting
from app.report.format import DASH, number
from app.report.page import Page
from app.report.plots import answer_plot
from app.report.profile_runs import study_of_profile
from app.report.sections import sections
from app.report.sentences import cautions, details, facts, headline, question
from app.report.study import Study
from app.report.tables import Table, TableRow
from app.report.two_runs import study_of_two
from jobs.columns import Column, table_lines
from jobs.errors import runs_setting
from jobs.runs.atomic import write_text_atomically

_NAMES = ("Stage", "Model/mask", "Macro", "95 %\ninterval", "Retention", "Above\nchance")  # of the terminal's table
_STYLES = {"leaks": "dim", "base": "bold"}
_LEAST = {"First minus second": 29, "Reading": 20}  # columns of print_table that may be cut
_KEPT = ("First minus second", "Points [95 %]", "Macro accuracy")
_PRINTED = ("when", "recovery")  # sections whose first table the terminal shows too


class Report(Page):
    """The content of a report, ready to be rendered."""

    def __init__(self, study: Study) -> None:
        self.study = study
        setting = f", {study.setting}" if study.setting != Setting() else ""
        super().__init__(
            title=f"Prefix-LM experiment: {study.base_model}, profile {study.profile}{setting}",
            question=question(study), headline=headline(study), details=details(study), facts=facts(study),
            cautions=cautions(study), sections=sections(study), answer=answer_plot(study) if study.evaluations else None,
        )  # fmt: skip


def build_report(runs_dir: Path, *, profile: str | None = None, compare: tuple[str, str] | None = None) -> Report:
    """The report of the newest completed run of each stage of `profile` (default: of the newest run), or of two runs.

    Raises:
        RunStateError: nothing completed to report, or a named run is missing or incomplete.
        DataError: two named runs on different items or formats (names both and what differs), or damaged files.
    """
    return Report(study_of_two(runs_dir, compare, profile) if compare else study_of_profile(runs_dir, profile))


def print_results(report: Report, console: Console, runs_dir: Path | None = None) -> None:
    """The headline, the results table and what is missing, with the commands for `runs_dir`."""
    console.print()
    console.print(report.headline, markup=False, highlight=False, style="bold")
    for text in report.details:
        console.print(text, markup=False, highlight=False)
    if report.study.evaluations:
        console.print()
        _print_results_table(report.study, console)
        for section in report.sections:
            if section.key in _PRINTED:
                print_table(section.tables[0], console)
    if report.study.missing:
        console.print()
    for m in report.study.missing:
        text = f"missing: {m.stage} ({m.fact}); run: {m.command}{runs_setting(runs_dir)}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def write_report(report: Report, runs_dir: Path) -> tuple[Path, Path]:
    """Write `runs_dir`/report.md and report.html, each atomically; returns both paths.

    Raises:
        DiskFull: no space left; files of an earlier report are untouched.
    """
    samples = (runs_dir / "samples.html").is_file()
    texts = report.to_markdown(samples=samples), report.to_html(samples=samples)  # both before writing either
    paths = runs_dir / "report.md", runs_dir / "report.html"
    for path, text in zip(paths, texts, strict=True):
        write_text_atomically(path, text)
    return paths


def _print_results_table(study: Study, console: Console) -> None:
    """The results with the interval of the macro accuracy; the written report has the intervals of retention too."""
    full = tables.results(study)
    rows = []
    for e, row in zip(study.evaluations, full.rows, strict=True):
        place, _, _, _, _, retention, above = row.cells
        interval = f"{number(e.macro.lo)}\N{EN DASH}{number(e.macro.hi)}" if e.macro.defined else DASH
        cells = (place, e.label, number(e.macro.value), interval, _first(retention), _first(above))
        rows.append(replace(row, cells=cells))
    columns = [Column(name, right=at > 1, drop=max(0, at - 2)) for at, name in enumerate(_NAMES)]
    _print_rows(full.title, columns, rows, console)
    console.print(full.note.replace("`", ""), markup=False, highlight=False, style="dim")


def print_page(page: Page, console: Console) -> None:
    """The answer of a page and the tables that matter most; all others are in the files."""
    console.print()
    for text in (page.question, page.headline):
        console.print(text, markup=False, highlight=False, style="bold" * (text is page.headline))
    for section in page.sections:
        if section.key in _PRINTED:
            print_table(section.tables[0], console)


def print_table(table: Table, console: Console) -> None:
    """A table of the page on the terminal: on a narrow one the columns from the right go first, but for _KEPT."""
    columns = [
        Column(name, right, drop=0 if name in _KEPT else at, least=_LEAST.get(name, 0))
        for at, (name, right) in enumerate(zip(table.names, table.right, strict=True))
    ]
    console.print()
    _print_rows(table.title, columns, table.rows, console)


def _print_rows(title: str, columns: Sequence[Column], rows: Sequence[TableRow], console: Console) -> None:
    console.print(title, style="bold", highlight=False)
    lines = table_lines(columns, [row.cells for row in rows], console.width)
    kinds = [*[""] * (len(lines) - len(rows)), *(row.kind for row in rows)]
    for line, kind in zip(lines, kinds, strict=True):
        console.print(Text(line, style=_STYLES.get(kind, "")), soft_wrap=True)


def _first(cell: str) -> str:
    return "1" if cell == "baseline" else cell.partition(" ")[0]
