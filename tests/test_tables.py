"""Tables on a terminal of 60, 80 and 120 columns: one line a row, numbers to the right, and no broken word."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from app.report.power import power_rows, print_power
from app.report.render import Report, build_report, print_results
from app.report.run_list import list_rows, print_runs
from jobs.columns import table_lines
from jobs.runs.rundir import RunDir
from tests.app.fakes.synthetic_runs import START, write_experiment, write_run
from tests.vast.fakes.states import status_of
from vast.commands import offers
from vast.policy import load as load_policy
from vast.ports import Offer
from vast.records.overview import overview
from vast.records.status import TERMINAL, terminal_rows
from vast.session.view import Board, Line

WIDTHS = (60, 80, 120)
NUMBER = re.compile(r"[+−-]?\$?[\d,.]+([x%]|/[\d.]+|–[\d.]+)?|[–-]")


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Complete, failed and running runs with the longest texts that occur."""
    path = tmp_path_factory.mktemp("runs")
    write_experiment(path)
    write_run(path, "nonprefill", minute=7)
    messages = {
        "nonprefill": "/elsewhere/longer/jobs/stage5b.yaml: train.max_steps: expected a positive integer, found 1k;\nwrite 1000",
        "stage4": "stage4: init_from stage3b has no completed run; run: make stage3b PROFILE=embedded",
    }
    for minute, (stage, message) in enumerate(messages.items(), start=7):
        failed = write_run(path, stage, minute=minute, complete=False)
        (failed.path / "failed.json").write_text(json.dumps({"exit_code": 2, "message": message}))
    write_run(path, "stage2", minute=9, complete=False)
    with RunDir.create(path, "stage5b", START) as run:
        run.heartbeat(1200, 6000, None, None, "train")
    return path


@pytest.fixture(scope="module")
def report_of(runs_dir: Path) -> Callable[..., Report]:
    """Nothing in it depends on a width."""
    return cache(lambda compare=None: build_report(runs_dir, compare=compare))


def printed(show: Callable[[Console], None], width: int) -> list[str]:
    out = io.StringIO()
    show(Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    rule = next(n for n, line in enumerate(lines) if line.startswith("──"))
    end = lines.index("", rule) if "" in lines[rule:] else len(lines)
    return lines[rule:end]


def check(lines: Sequence[str], width: int, cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """The cells shown below the rule that `lines` begins with.

    cells: of the whole table. Fails unless each of its rows is one line of whole words with its numbers to the right.
    """
    columns = [slice(*match.span()) for match in re.finditer("─+", lines[0])]
    rows = lines[1 : 1 + len(cells)]
    assert max(map(len, lines[: 1 + len(cells)])) <= width
    for line, row in zip(rows, cells, strict=True):
        whole = {word for cell in row for word in cell.split()}
        whole |= {"…", *("…/" + word.rpartition("/")[2] for word in whole)}
        # Where one word alone fits, nothing stands for the rest, and what joined it to the rest goes too.
        whole |= {word.rstrip(",:;") for word in whole}
        assert set(line.split()) <= whole, "a word is broken"
        assert "bidirectional" not in re.sub(r"bidirectional \(leaks\)", "", line)
    shown = [[line.ljust(width)[column] for column in columns] for line in rows]
    assert all(cell.strip() for row in shown for cell in row), "a cell is not below its name"
    for column in zip(*shown, strict=True):
        if all(NUMBER.fullmatch(cell.strip()) for cell in column):
            assert not any(cell.endswith(" ") for cell in column), "a number is not at the right"
    return shown


@pytest.mark.parametrize("width", WIDTHS)
def test_runs(runs_dir: Path, width: int) -> None:
    rows = list_rows(runs_dir)
    lines = printed(lambda console: print_runs(rows, console), width)
    shown = check(lines, width, [(r.id, r.profile, r.state, r.result, r.headline, r.when) for r in rows])
    assert {row[0].strip() for row in shown} == {row.id for row in rows}
    assert len(lines) == 1 + len(rows)
    assert sum("failed" in row for row in lines) == 2 and any("0." in row for row in lines)
    if width == 80:
        assert any("…/stage5b.yaml:" in cell for row in shown for cell in row), "the end of a path names the file"


@pytest.mark.parametrize("compare", [None, ("stage2", "stage4")])
@pytest.mark.parametrize("width", WIDTHS)
def test_results(report_of: Callable[..., Report], width: int, compare: tuple[str, str] | None) -> None:
    report = report_of(compare)
    lines = printed(lambda console: print_results(report, console), width)
    (rule, *rows) = printed(lambda console: print_results(report, console), 400)
    columns = [slice(*match.span()) for match in re.finditer("─+", rule)]
    evaluations = report.study.evaluations
    cells = [[line.ljust(400)[column].strip() for column in columns] for line in rows[: len(evaluations)]]
    assert [(row[0], row[1], len(row)) for row in cells] == [(report.study.place(e), e.label, 6) for e in evaluations]
    shown = check(lines, width, cells)
    assert [row[1].strip() for row in shown] == [e.label for e in evaluations]
    assert len(shown[0]) >= 3 and (len(shown[0]) == 6 or width < 120)


LONG = status_of(
    "nonprefill-20261123-101500-ab12", phase="running", attempt=12, step=120, total=6000, loss=1.83124, instance=12345678,
    being_destroyed=(7, 12345679), dollars=12.3, cap_dollars=150, dollars_per_hour=0.412, hours_left=23.5,
    at_home="nonprefill/20261123-101500/checkpoints/checkpoint-90", alerts=("local-disk-full", "unreachable", "ends-soon"),
)  # fmt: skip
STATUSES = [
    LONG,
    status_of("stage1-20261123-101500-ab12", phase="closed", result="deterministic", dollars=0.07, cap_dollars=5),
    status_of("stage2-20261123-101500-ab12", phase="broken"),
    status_of(
        "stage3b-20261123-101500-ab12",
        phase="provisioning",
        supervised=True,
        unclear=True,
        cap_dollars=99.5,
        hours_left=3,
    ),
]


@pytest.mark.parametrize("width", WIDTHS)
def test_status(width: int) -> None:
    cells = terminal_rows(STATUSES)
    head, *lines = table_lines(TERMINAL, cells, width)
    shown = check(lines, width, cells)
    assert [row[0].strip() for row in shown] == [one.run for one in STATUSES]
    assert "$" in head.split() and "phase" in head.split()
    assert ("step" in head.split(), "instance" in head.split()) == (width > 60, width > 80)


@pytest.mark.parametrize("width", WIDTHS)
def test_offers(width: int) -> None:
    found = [
        Offer(12345678 + n, 4567, "RTX PRO 6000 WS", 8, 96.0, 1.2 + n, 0.7, 0.99, 8123.4, 900.0, 1234.5, 8, place="Sweden, SE")
        for n in range(3)
    ]  # fmt: skip
    cells = offers.rows(found, [1.5, 12.5, None], load_policy(), interruptible=False)
    check(table_lines(offers.TERMINAL, cells, width)[1:], width, cells)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_live_table(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    board = Board(console, "nonprefill-20261123-101500-ab12")
    lines = [
        Line("2026-11-23T10:15:00Z", "provisioning", "1", "-", "-", "-", "-", "-", "0.00/150.00", "-"),
        Line("2026-11-23T11:15:00Z", "running", "12", "120/6000", "1.8312", "9100", "97", "81", "12.42/150.00", "cuda-oom:_memory_halved"),
    ]  # fmt: skip
    with board:
        for line in lines:
            board.look(line)
    text = board._table().plain.splitlines()
    cells = [list(vars(replace(line, fix=line.fix.replace("_", " "))).values()) for line in lines]
    check(text[2:], width, cells)


@pytest.mark.parametrize("width", WIDTHS)
def test_power(report_of: Callable[..., Report], width: int) -> None:
    study = report_of(None).study
    lines = printed(lambda console: print_power(study, console, 1.0), width)
    shown = check(lines, width, power_rows(study, 1.0))
    assert len(shown[0]) == 7 or width < 120


@pytest.mark.parametrize("width", WIDTHS)
def test_overview(runs_dir: Path, width: int) -> None:
    stages, rented, _ = overview(runs_dir, ("stage1", "stage2", "stage5a"), STATUSES)
    for part in (stages, rented):
        lines = table_lines(part.columns, part.rows, width)
        shown = check(lines[1:], width, part.rows)
        assert [row[0].strip() for row in shown] == [row[0] for row in part.rows]
