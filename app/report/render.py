"""The report of a runs directory: to the terminal, as Markdown and as one self-contained HTML page.

    report = build_report(runs_dir)  # or compare=("stage1/...", "stage4"); two runs on different items are refused
    print_results(report, console)
    write_report(report, runs_dir)              # report.md and report.html, each written atomically

A report depends only on the runs, not on clock or chance: equal runs give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from rich.console import Console
from rich.text import Text

from app.report import tables
from app.report.campaign import Setting
from app.report.chart import Plot
from app.report.format import DASH, number
from app.report.profile_runs import study_of_profile
from app.report.run_list import RunRow, list_rows, print_runs
from app.report.sections import Section, plots, sections
from app.report.sentences import Fact, cautions, details, facts, headline, question
from app.report.study import Study
from app.report.tables import Table
from app.report.two_runs import study_of_two
from jobs.columns import Column, table_lines
from jobs.errors import runs_setting
from jobs.runs.rundir import write_text_atomically

__all__ = [
    "Report", "RunRow", "build_report", "list_rows", "print_results", "print_runs", "write_report",
]  # fmt: skip

_COLUMNS = (  # of the terminal's table
    Column("Stage"),
    Column("Model/mask"),
    Column("Macro", right=True),
    Column("95 %\ninterval", right=True, drop=1),
    Column("Retention", right=True, drop=2),
    Column("Above\nchance", right=True, drop=3),
)
_TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Report:
    """The content of a report, ready to be rendered."""

    study: Study
    title: str
    question: str
    headline: str
    details: tuple[str, ...]
    facts: tuple[Fact, ...]
    cautions: tuple[str, ...]
    sections: tuple[Section, ...]
    samples: bool = False  # samples.html lies beside the report

    def to_markdown(self) -> str:
        """The tables and sentences; the plots are in the HTML page."""
        lines = [f"# {self.title}", "", f"**{self.headline}**", ""]
        if self.details:
            lines += [*(f"- {text}" for text in self.details), ""]
        if self.cautions:
            lines += ["Before relying on these numbers:", "", *(f"- {text}" for text in self.cautions), ""]
        for section in self.sections:
            lines += [f"## {section.title}", ""]
            for text in section.text:
                lines += [text, ""]
            for table in section.tables:
                lines += [f"### {table.title}", "", *_markdown_rows(table), ""]
                if table.note:
                    lines += [table.note, ""]
        if self.samples:
            lines += ["Answers side by side: [samples.txt](samples.txt)"]
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self) -> str:
        """One page with style and plots inside, without references to other files."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters["code"] = _code
        drawn: dict[str, Plot] = plots(self.study)
        return environment.get_template("report.html.j2").render(report=self, plots=drawn, svg=Markup) + "\n"


def build_report(runs_dir: Path, *, profile: str | None = None, compare: tuple[str, str] | None = None) -> Report:
    """The report of the newest completed run of each stage of `profile` (default: of the newest run), or of two runs.

    Raises:
        RunStateError: nothing completed to report, or a named run is missing or incomplete.
        DataError: two named runs on different items or formats (names both and what differs), or damaged files.
    """
    study = study_of_two(runs_dir, compare, profile) if compare else study_of_profile(runs_dir, profile)
    return Report(
        study=study,
        title=f"Prefix-LM experiment: {study.base_model}, profile {study.profile}"
        + (f", {study.setting}" if study.setting != Setting() else ""),
        question=question(study),
        headline=headline(study),
        details=tuple(details(study)),
        facts=tuple(facts(study)),
        cautions=tuple(cautions(study)),
        sections=tuple(sections(study)),
    )


def print_results(report: Report, console: Console, runs_dir: Path | None = None) -> None:
    """The headline, the results table and what is missing, with the commands for `runs_dir`."""
    console.print()
    console.print(report.headline, markup=False, highlight=False, style="bold")
    for text in report.details:
        console.print(text, markup=False, highlight=False)
    if report.study.evaluations:
        console.print()
        _print_results_table(report.study, console)
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
    report = replace(report, samples=(runs_dir / "samples.html").is_file())
    markdown, html = runs_dir / "report.md", runs_dir / "report.html"
    rendered = report.to_markdown(), report.to_html()  # render both before writing either
    for path, text in zip((markdown, html), rendered, strict=True):
        write_text_atomically(path, text)
    return markdown, html


def _markdown_rows(table: Table) -> list[str]:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = tuple("---:" if right else "---" for right in table.right)
    return [line(table.names), line(rule), *(line(row.cells) for row in table.rows)]


def _print_results_table(study: Study, console: Console) -> None:
    """The results with the interval of the macro accuracy; the written report has the intervals of retention too."""
    full = tables.results(study)
    cells = []
    for e, row in zip(study.evaluations, full.rows, strict=True):
        place, _, _, _, _, retention, above = row.cells
        interval = f"{number(e.macro.lo)}\N{EN DASH}{number(e.macro.hi)}" if e.macro.defined else DASH
        cells.append((place, e.label, number(e.macro.value), interval, _first(retention), _first(above)))
    console.print(full.title, style="bold", highlight=False)
    styles = {"leaks": "dim", "base": "bold"}
    lines = table_lines(_COLUMNS, cells, console.width)
    kinds = ["", *[""] * (len(lines) - len(cells) - 1), *(row.kind for row in full.rows)]
    for line, kind in zip(lines, kinds, strict=True):
        console.print(Text(line, style=styles.get(kind, "")), soft_wrap=True)
    console.print(full.note.replace("`", ""), markup=False, highlight=False, style="dim")


def _first(cell: str) -> str:
    return "1" if cell == "baseline" else cell.partition(" ")[0]


def _code(text: str) -> Markup:
    """Escaped text with `backticks` as <code>."""
    parts = str(escape(text)).split("`")
    return Markup("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))
