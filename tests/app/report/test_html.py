"""The page stands alone, is well formed and can be read by a screen reader; the terminal shows the same numbers."""

from __future__ import annotations

import io
import itertools
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from app.report import plots
from app.report.chart import WIDTH, Chart, rows_chart
from app.report.render import Report, build_report, print_results
from app.report.run_list import list_rows, print_runs
from tests.app.fakes.synthetic_runs import MODELS, write_experiment, write_run


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    write_experiment(path)
    return path


@pytest.fixture(scope="module")
def report(runs_dir: Path) -> Report:
    return build_report(runs_dir)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return report.to_html()


def test_page_refers_to_nothing_outside_itself(page: str) -> None:
    assert re.findall(r"https?:|//[a-z]|@import|\bsrc=|<script|<link|<iframe", page) == []
    assert set(re.findall(r"(?:url\(|href=\")(.)", page)) == {"#"}


@pytest.fixture(scope="module")
def tree(page: str) -> ElementTree.Element:
    """The page read as XML, which every tag left open or attribute without quotes fails."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))


@pytest.mark.parametrize(("left", "where"), [(40.0, ("215.0", "middle")), (280.0, (f"{WIDTH}.0", "end"))])
def test_the_name_of_an_axis_stays_inside_the_plot(left: float, where: tuple[str, str]) -> None:
    """Beside long names of rows its middle lies so far to the right that half of it would not fit."""
    chart = Chart((0.0, 1.0), (0.0, 1.0), 50, left)
    chart.x_axis("difference in accuracy, points, 95 % interval")
    assert re.search(r'x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)"', chart.parts[-1]).groups() == where  # type: ignore[union-attr]


def test_a_long_name_of_a_row_is_split_after_its_colon_and_before_its_bracket() -> None:
    names = ["short (one)", "as trained: left to right", "reading, context first (reading-seeds)"]
    chart = rows_chart(names, (0.0, 1.0), 30, right=10, top=8)
    assert [re.sub("<[^>]+>", "", part) for part in chart.parts] == [
        "short (one)", "as trained:", "left to right", "reading, context first", "(reading-seeds)",
    ]  # fmt: skip
    both = rows_chart(
        ["stage2: base/bidirectional (leaks)", "SmolLM2: reading, twice (wide)"], (0.0, 1.0), 30, right=10, top=8
    )
    texts = [re.sub("<[^>]+>", "", part) for part in both.parts]
    assert texts == ["stage2:", "base/bidirectional (leaks)", "SmolLM2:", "reading, twice", "(wide)"]
    tops = [float(top) for top in re.findall(r' y="([\d.]+)"', "".join(both.parts))]
    assert all(after - before > 14 for before, after in itertools.pairwise(tops))  # no line on another


@pytest.mark.parametrize("most", [0.3, 0.45, 0.6, 0.85, 1.0, 1.2, 1.7])
def test_an_axis_has_at_least_two_numbers(most: float) -> None:
    chart = Chart((0.19, most), (0, 1), 40, 100)
    chart.x_axis("macro accuracy")
    assert 3 <= sum(part.startswith("<text") for part in chart.parts) <= 8  # its name is one of these


def test_page_has_language_title_and_headings_in_order(tree: ElementTree.Element) -> None:
    assert tree.get("lang") == "en"
    assert "SmolLM2-135M-Instruct" in (tree.findtext("head/title") or "")
    levels = [int(e.tag[1]) for e in tree.iter() if re.fullmatch(r"h\d", str(e.tag))]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    named = {name for group in re.findall(r'aria-labelledby="([^"]+)"', page) for name in group.split()}
    assert named | set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_every_plot_is_an_svg_with_title_description_and_theme_colours(page: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 5
    for text in plots:
        svg = ElementTree.fromstring(text)
        assert svg.get("role") == "img"
        assert svg.get("viewBox")
        assert svg.find("title") is not None
        assert len(svg.findtext("desc") or "") > 40
        assert "var(--ink)" in text
        assert re.findall(r"#0\d0\d0\d", text) == []  # no placeholder colour is left
        assert re.findall(r"(?:fill|stroke): ?#(?!000000)[0-9a-f]{6}", text) == []  # nor a colour of one theme only


def test_every_table_has_a_caption_and_headers(tree: ElementTree.Element) -> None:
    tables = list(tree.iter("table"))
    assert len(tables) > 10
    for table in tables:
        assert (table.findtext("caption") or "").strip()
        columns = table.findall("thead/tr/th[@scope='col']")
        for row in table.iterfind("tbody/tr"):
            assert len(row.findall("th[@scope='row']")) == 1
            assert len(row) == len(columns)


def test_text_from_a_run_is_escaped(report: Report) -> None:
    hostile = Report(report.study)
    hostile.headline, hostile.title = "<b>5 < 6 & `rm`</b>", '"><i>'
    assert "<b>" not in hostile.to_html()
    assert "<i>" not in hostile.to_html()


@pytest.mark.parametrize("width", [80, 120])
def test_results_table_fits_the_terminal(report: Report, width: int) -> None:
    out = io.StringIO()
    print_results(report, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    rows = [line for line in lines if re.match(r" ?(stage|nonprefill)\d?[a-z]* ", line)]
    assert len(rows) == len(report.study.evaluations)
    assert all(re.search(r"0\.\d{3}  0\.\d{3}–0\.\d{3}  ", row) for row in rows)  # no cell is broken or cut
    assert any("stage3b/bidirectional (leaks)" in row for row in rows)
    assert [line for line in lines if line.startswith("missing: stage5b")]


def test_runs_are_printed_with_state_and_headline(runs_dir: Path) -> None:
    out = io.StringIO()
    print_runs(list_rows(runs_dir), Console(file=out, width=120))
    assert re.search(
        r"stage1/20260102-030405 +embedded +complete +0\.\d{3} +base/causal +2026-01-02 03:04", out.getvalue()
    )
    out = io.StringIO()
    print_runs([], Console(file=out, width=120))
    assert "no run yet; run: make demo" in out.getvalue()


def test_a_run_whose_summary_is_damaged_is_listed_as_such(runs_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(runs_dir, tmp_path / "runs")
    for path in (tmp_path / "runs").glob("stage1/*/summary.json"):
        path.write_text("")
    found = {row.id.partition("/")[0]: row.headline for row in list_rows(tmp_path / "runs")}
    assert found.pop("stage1") == "damaged: summary.json cannot be read"
    assert not any("damaged" in headline for headline in found.values())


# ---- on a phone -------------------------------------------------------------------------------------------------------


def test_every_cell_carries_the_name_of_its_column(tree: ElementTree.Element) -> None:
    """On a narrow screen each row is a block, and its numbers stand beside these names: nothing is cut off."""
    for table in tree.iter("table"):
        names = [(cell.text or "").replace("\N{NO-BREAK SPACE}", " ") for cell in table.iterfind("thead/tr/th")]
        for row in table.iterfind("tbody/tr"):
            assert [cell.get("data-name") for cell in row.iterfind("td")] == names[1:]
            roles = [table.get("role"), row.get("role"), row[0].get("role"), *{cell.get("role") for cell in row[1:]}]
            assert roles == ["table", "row", "rowheader", "cell"]  # which a block would not have by itself


def test_the_labels_of_a_plot_are_readable_on_a_phone_and_leave_room_for_it(page: str) -> None:
    shown = 400 - 2 * 6  # pixels of a figure there: see the style
    assert re.search(r"figure \{ margin-left: -16px; margin-right: -16px; padding: 12px 6px", page)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        match = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
        assert match
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
        assert min(sizes) * shown / float(match[1]) >= 11


def test_every_mask_has_a_look_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = ("causal", "prefix", "segment", "prefix@global", "bidirectional")
    for n, mask in enumerate(masks):
        monkeypatch.setitem(MODELS, ("base", mask), (0.1 * n, 2.0 + 0.1 * n))
    write_run(tmp_path, "stage1", scored=[("base", mask) for mask in masks])
    drawn = plots.nll_plot(build_report(tmp_path).study.evaluations).svg
    marks = re.findall(r'<path d="([^"]+)" transform="[^"]+" style="fill: var\(--\w+\); stroke: var\(--(\w+)\)', drawn)
    looks = marks[: len(masks)]  # the legend's
    assert [colour for _, colour in looks] == ["causal", "prefix", "third", "fourth", "leaks"]
    assert len(set(looks)) == len(masks) and looks[1][0] == looks[3][0]  # the same shape where it is the same mask
