"""The page in headless Chromium, where there is one: no overflow on a phone and a desktop, light and dark, no script."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.report.render import build_report
from app.report.samples import to_html
from app.report.study import STAGES
from tests.app.fakes.synthetic_runs import write_campaign, write_run
from vast.records.overview import as_html, overview

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
WIDTHS = (390, 1280)

# Frames of both widths in one window: a window itself cannot be as narrow as a phone. Each reports what sticks out.
_FRAMES = """<!DOCTYPE html><body><pre id="found"></pre><script>
const pages = {pages}, found = document.getElementById("found");
let waiting = pages.length;
for (const [name, width, text] of pages) {{
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${{width}}px; height: 900px; border: 0`;
  frame.onload = () => {{
    const root = frame.contentDocument.documentElement, out = [];
    frame.contentDocument.querySelectorAll("details").forEach(one => one.open = true);
    for (const one of root.querySelectorAll("body *")) {{
      if (one.closest("svg") && one.tagName != "svg" && one.tagName != "text") continue;
      const inside = one.closest(".scroll"), box = one.getBoundingClientRect();
      if (box.width > 1 && box.right > width + 1 && !(inside && one != inside)) out.push(one.tagName + "." + one.className);
      const word = one.children.length ? "" : one.textContent.trim(), range = frame.contentDocument.createRange();
      range.selectNodeContents(one);
      const lines = new Set([...range.getClientRects()].map(part => Math.round(part.top))).size;
      if (/^T[DH]$/.test(one.tagName) && /^[^\\s-]+$/.test(word) && lines > 1) out.push(`${{word}} is broken`);
    }}
    const colour = frame.contentWindow.getComputedStyle(frame.contentDocument.body).backgroundColor;
    found.textContent += `${{name}} ${{width}} ${{root.scrollWidth}} ${{colour.replaceAll(" ", "")}} [${{out}}]\\n`;
    if (!--waiting) found.textContent += "done";
  }};
  frame.srcdoc = text;
  document.body.append(frame);
}}
</script></body>"""


def js(text: str) -> str:
    return json.dumps(text).replace("</", "<\\/")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    runs_dir = tmp_path_factory.mktemp("runs")
    write_campaign(runs_dir)
    return build_report(runs_dir).to_html()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page over the campaigns that docs/results keeps."""
    return (Path(__file__).parents[3] / "docs" / "results" / "index.html").read_text()


def chromium(directory: Path, *words: str) -> str:
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={directory / 'profile'}",
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout


def measured(directory: Path, *shown: str) -> list[tuple[str, int, int, str, str]]:
    """(theme, width, width of the content, background, what sticks out) for each page, theme and width."""
    themes = [
        (theme, page.replace('<html lang="en">', f'<html lang="en" class="{theme}">'))
        for theme in ("light", "dark")
        for page in shown
    ]
    pages = ",".join(f"[{js(theme)}, {width}, {js(text)}]" for theme, text in themes for width in WIDTHS)
    (directory / "frames.html").write_text(_FRAMES.format(pages=f"[{pages}]"))
    dom = chromium(directory, "--virtual-time-budget=20000", "--dump-dom", (directory / "frames.html").as_uri())
    text = html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1])  # type: ignore[index]
    assert text.endswith("done"), dom[:500]
    rows = [re.fullmatch(r"(\w+) (\d+) (\d+) (\S+) \[(.*)\]", line) for line in text.splitlines()[:-1]]
    return sorted((m[1], int(m[2]), int(m[3]), m[4], m[5]) for m in rows if m)  # frames load in any order


@needs_chromium
def test_nothing_sticks_out_on_a_phone_or_a_desktop_in_either_theme(tmp_path: Path, page: str, kept: str) -> None:
    found = measured(tmp_path, page, kept)
    assert [(theme, width) for theme, width, *_ in found] == [
        (t, w) for t in ("dark", "light") for w in WIDTHS for _ in (page, kept)
    ]
    for theme, width, content, background, out in found:
        assert content <= width, f"{theme}: the page scrolls sideways at {width} pixels"
        assert out == "", f"{theme}, {width} pixels"
        assert background == {"light": "rgb(251,250,248)", "dark": "rgb(20,23,26)"}[theme]


@needs_chromium
def test_the_answers_side_by_side_and_the_status_fit_too(tmp_path: Path) -> None:
    answers = [{"text": "yes " * 40, "echo_rate": 0.5, "repetition_rate": None, "tokens": 8, "cut": True}]
    columns = [{"model": "stage3b", "mask": mask, "answers": answers, "means": {
        "echo_rate": 0.5, "repetition_rate": 0.25, "tokens": 8.0, "cut": 1.0}} for mask in ("causal", "prefix", "bidirectional")]  # fmt: skip
    samples = to_html(
        {"profile": "embedded", "max_new_tokens": 64, "prompts": [{"id": "a", "text": "b " * 90}], "columns": columns}
    )
    write_run(tmp_path / ("runs" * 12), "stage1")
    status = as_html(overview(tmp_path / ("runs" * 12), STAGES, ()), tmp_path / ("runs" * 12))
    for theme, width, content, _, out in measured(tmp_path, samples, status):
        assert (content <= width, out) == (True, ""), f"{theme}, {width} pixels"


@needs_chromium
def test_a_line_that_is_too_long_is_noticed(tmp_path: Path, page: str) -> None:
    wide = page.replace("<main>", f"<main><p>{'x' * 300}</p>")
    assert all(content > width for _, width, content, *_ in measured(tmp_path, wide))


@needs_chromium
def test_the_page_prints(tmp_path: Path, page: str) -> None:
    (tmp_path / "page.html").write_text(page)
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", (tmp_path / "page.html").as_uri())
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_there_is_no_script_and_every_plot_has_a_text_alternative(page: str, kept: str) -> None:
    assert re.findall(r"<script|\son\w+=|javascript:", page + kept) == []
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 8
    plots += re.findall(r"<svg.*?</svg>", kept, flags=re.DOTALL)
    assert all(re.search(r"<title id=[^>]+>[^<]+</title><desc id=[^>]+>[^<]{40,}", plot) for plot in plots)
