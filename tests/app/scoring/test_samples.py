"""Answers side by side: the rates by hand, the prompts, the files, and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.report.samples import to_html, to_text
from app.scoring.samples import PROMPTS, echo_rate, read_prompts, repetition_rate
from jobs.errors import ConfigError
from tests.app.fakes.command_line import Command
from tests.app.fakes.judge_endpoint import served
from tests.app.scoring.test_judge import KEY, SECRET


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("The blue box is here", 4 / 5),  # `the blue box is`
        ("THE BLUE box, is under the table!", 1.0),
        ("blue box is it", 0.0),  # runs of three count for nothing
        ("the blue box is near; is under the table", 8 / 9),
        ("no", None),
        ("", None),
    ],
)
def test_echo_is_the_share_of_words_in_a_run_of_four_of_the_prompt(answer: str, want: float | None) -> None:
    assert echo_rate("Where is it? The blue box is under the table.", answer) == want


@pytest.mark.parametrize(
    ("tokens", "want"),
    [([1, 2, 3, 4], 0.0), ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5), ([7] * 13, 0.9), ([1, 2, 3], None), ([], None)],
)
def test_repetition_is_the_share_of_runs_of_four_tokens_seen_before(tokens: list[int], want: float | None) -> None:
    assert repetition_rate(tokens) == (want if want is None else pytest.approx(want))


def test_there_are_24_prompts_and_the_question_first_holds_the_same_words() -> None:
    prompts = {prompt.id: prompt.text for prompt in read_prompts()}
    assert len(prompts) == 24
    for name in ("shelf", "ages", "trip"):
        pair = [sorted(re.findall(r"\w+", prompts[f"{kind}-{name}"])) for kind in ("facts", "question")]
        assert pair[0] == pair[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompts: []", "expected a list that is not empty"),
        ("other: 1", "other: unknown key; known: prompts"),
        ("{}", "prompts: missing, expected a list that is not empty"),
        ("prompts:\n  - {id: a, text: ' '}", r"prompts\[0\]: expected"),
        ("prompts:\n  - {id: a, text: b, more: c}", r"prompts\[0\].more: unknown key"),
        ("prompts:\n  - {id: 1, text: b}", r"prompts\[0\].id: expected text, found 1"),
        ("prompts:\n  - {id: a, text: b}\n  - {id: a, text: c}", r"prompts\[1\]: the id a is there twice"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_prompts(tmp_path / "p.yaml")


FOUND: dict[str, Any] = {
    "profile": "ci", "max_new_tokens": 8, "prompts": [{"id": "a", "text": "Say <b>hi</b> & go"}],
    "judge": {"model": "m", "pairs": [{"left": "stage3b/prefix", "right": "base/causal", "verdicts": {
        "wins": 0, "losses": 0, "ties": 1, "unsure": 1, "firsts": 8, "decided": 8, "p_position": 2 / 2**8}}]},
    "columns": [{"model": "base", "origin": "x", "mask": mask, "answers": [
        {"text": "<script>alert(1)</script>", "tokens": 8, "cut": True, "echo_rate": 0.5, "repetition_rate": None}],
        "means": {"echo_rate": 0.5, "repetition_rate": None, "tokens": 8.0, "cut": 1.0}} for mask in ("causal", "prefix")],
}  # fmt: skip


def test_the_page_escapes_what_models_say_and_refers_to_nothing_outside() -> None:
    page, text = to_html(FOUND), to_text(FOUND)
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "Say &lt;b&gt;hi" in page
    assert not re.search(r"https?:|src=|@import|url\(", page)
    for form in (page, text):
        assert "base/prefix" in form and "8 tokens, cut, echo 50 %" in form and "doubt its verdict" in form
    assert re.search(r"base/causal +50 % +– +8\.0 +100 %", text)


def test_samples_are_made_judged_and_linked(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    (tmp_path / "p.yaml").write_text("prompts:\n  - {id: a, text: The sky is}\n  - {id: b, text: One two three}\n")
    monkeypatch.setenv(KEY, SECRET)
    words = ["samples", "--profile", "ci", "--runs-dir", runs, "--prompts", tmp_path / "p.yaml", "--max-new-tokens", 6]
    command(*words).refused("runs: no such directory")
    command("run", "stage1", "--profile", "ci", "--runs-dir", runs, "--limit", 2).fine()
    with served() as endpoint:
        judged = ["--mask", "causal", "--mask", "segment", "--judge", endpoint.url, "--judge-model", "m"]
        ended = command(*words, *judged)
    said = ended.fine()
    assert "base/segment" in said and "Judge m, base/segment against base/causal: better in 0" in said
    assert "stage3b has no complete run of profile ci" in ended.err
    assert len(endpoint.requests) == 4
    found = json.loads((runs / "samples.json").read_text())
    assert [len(column["answers"]) for column in found["columns"]] == [2, 2]
    assert all(SECRET not in path.read_text(errors="replace") for path in runs.rglob("*") if path.is_file())
    command("report", "--runs-dir", runs).fine()
    assert (
        'href="samples.html"' in (runs / "report.html").read_text()
        and "samples.txt" in (runs / "report.md").read_text()
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--judge", "https://host/v1"], "expected both --judge and --judge-model"),
        (["--judge", "nowhere", "--judge-model", "m"], "--judge: is no address of an endpoint"),
        (["--mask", "prefix", "--mask", "prefix"], "--mask: prefix is named twice"),
        (["--model", "stage3b"], "no such checkpoint"),
        (["--prompts", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(more: list[str], said: str, command: Command, tmp_path: Path) -> None:  # fmt: skip
    command("samples", "--profile", "ci", "--runs-dir", tmp_path, *more).refused(said)
    assert not list(tmp_path.iterdir())


def test_the_default_prompts_are_packed_with_the_jobs() -> None:
    assert PROMPTS.is_file() and PROMPTS.parent.parent.name == "jobs"
