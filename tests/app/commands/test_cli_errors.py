"""Mistakes on the command line and in the files it names: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import EXIT_DISK_FULL, wrong_python
from tests.app.fakes.command_line import Command, Said, everything_in

ROOT = Path(__file__).resolve().parents[3]
HUGE = "9" * 310  # beyond all floats
PAIR = {"context": "The sky is", "continuation": " blue"}
OWN_PROFILE = """\
model: {source: embedded}
data:
  eval: {source: embedded}
  train: {source: embedded, format: qa}
"""


@pytest.fixture(autouse=True)
def torch_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """These mistakes are found before anything heavy is loaded: in a process of their own, before torch is imported."""

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(
        "app.stage.work.work", loaded
    )  # first: it imports app.stage.work, which must take the real `load`
    monkeypatch.setattr("app.model.load.load", loaded)


# ---- words on the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], ["No such command 'nothing'", "see python -m app --help"]),
        (["run"], ["Missing argument 'STAGE...'", "see python -m app run --help"]),
        (["check", "--limit"], ["requires an argument", "see python -m app check --help"]),
        (["run", "stage1", "--limt", "3"], ["No such option", "--limt", "--limit"]),
        (["run", "stage33"], ['unknown stage "stage33"', "did you mean", "known: stage1"]),
        (["run", "stage1", "--profile", "cii"], ['unknown profile "cii"', 'did you mean "ci"?']),
        (["run", "stage1", "--profile", "here/is/none.yaml"], ["here/is/none.yaml: no such profile file"]),
        (
            ["run", "stage1", "--set", "score.tasks=[pica]"],
            ['score.tasks: suite short has no task "pica"', 'did you mean "piqa"?'],
        ),
        (
            ["run", "stage1", "--set", "score.masks=[sideways]"],
            ['found "sideways"', "causal, prefix, segment, bidirectional"],
        ),
        (["run", "stage3b", "--set", "train.mask=bidirectional"], ["see themselves", "use prefix"]),
        (["run", "stage1", "--set", "score.limits=1"], ["score.limits: unknown key", 'did you mean "limit"?']),
        (["run", "stage1", "--set", "score.limit=1k"], ["expected a positive integer", 'found "1k"', "write 1000"]),
        (["run", "stage1", "--set", "score.limit"], ["expected key=value"]),
        (["run", "stage3b", "--set", "max_steps=20"], ['unknown key; did you mean "train.max_steps"? known: title']),
        (["run", "stage1", "--set", "limit=2"], ['did you mean "score.limit"?', "score, reference, model, data, gpus"]),
        (["run", "stage1", "--set", "modell.device=cpu"], ['did you mean "model"?']),
        (["run", "stage1", "--profile", "ci", "--runs-dir", ""], ["'--runs-dir'", "it is empty; name one"]),
        (
            ["run", "stage1", "--profile", "ci", "--runs-dir", "/dev/null"],
            ["'--runs-dir'", "/dev/null is no directory"],
        ),
        (["campaign", "ci", "--runs-dir", f"{__file__}/runs"], ["'--runs-dir'", "test_cli_errors.py is no directory"]),
        (["results", "--results-dir", "/dev/null/results"], ["'--results-dir'", "/dev/null is no directory"]),
        (["loglikelihood", "--mask", "causal", "--pairs", "", "--out", "o"], ["'--pairs'", "it is empty; name one"]),
        (["power", "--points", "nan"], ["'--points'", "'nan' is not a finite number"]),
        (["campaign", "ci", "--plan", "--price", "inf"], ["'--price'", "'inf' is not a finite number"]),
        (
            ["campaign", "ci", "--plan", "--workers", HUGE],
            ["'--workers': '99999999999999999999...' is not a finite", "below 1e+18"],
        ),
        (["estimate", "stage3b", "--gpu", "H200", "--gpus", HUGE], ["'--gpus'", "below 1e+18"]),
        (
            ["estimate", "stage3b", "--gpu", "H200", "--set", f"train.max_steps={HUGE}"],
            ["max_steps=999", "than any key"],
        ),
        (["estimate", "stage3b", "--gpu", "H200", "--set", f"train.max_steps={'9' * 5000}k"], ['found "99999999999']),
        (["campaign", "ci", "--share", f"0/{'9' * 5000}"], ["expected I/N", "such as 0/4"]),
        (["power", "--items", HUGE, "--discordance", "0.1"], ["'--items'", "is not a finite number below 1e+18"]),
        (
            ["power", "--items", "9", "--discordance", "0.1", "--seeds", HUGE],
            ["'--seeds'", "is not a finite number below 1e+18"],
        ),
        (["run", "stage1", "--limit", HUGE], ["'--limit'", "is not a finite number below 1e+18"]),
        (["run", "stage3b", "--set", f"train.batch_size={HUGE}"], ["9... is more than any key takes; write a smaller"]),
        (["campaign", "ci", "--price", "2"], ["--gpu and --price are of a plan; add --plan, or leave them out"]),
        (["run", "stage1", "--set", "train.max_steps=2"], ["stage1 has no section train"]),
        (["run", "stage1", "--limit", "0"], ["'--limit'", "0 is not in the range"]),
        (["run", "stage1", "--seed", "4294967296"], ["'--seed'", "not in the range"]),
        (["run", "stage1", "--resume", "--force"], ["exclude each other", "leave one out"]),
        (
            ["run", "stage1", "--resume", "--continue"],
            ["--continue does without: they exclude each other", "leave one out"],
        ),
        (["run", "stage1", "--profile", "ci", "--resume"], ["nothing to resume", "run without --resume"]),
        (["run", "stage4", "--profile", "ci"], ["init_from stage3b has no completed run", "make stage3b PROFILE=ci"]),
        (["demo", "--force", "--continue"], ["exclude each other"]),
        (["demo", "--set", "train.max_stepz=3"], ["train.max_stepz: unknown key", 'did you mean "max_steps"?']),
        (["check"], ["expected a stage or --all"]),
        (["check", "stage1", "--all"], ["expected a stage or --all"]),
        (
            ["check", "stage1", "--set", "seed=4294967296"],
            ["seed: expected an integer of at least 0 and below 4294967296"],
        ),
        (["check", "stage1", "--set", "seed=-1"], ["seed: expected an integer of at least 0"]),
        (["probe", "--profile", "nope"], ["unknown profile"]),
        (
            ["probe", "--set", "model.attention=flash_attention_2"],
            ["FlashAttention drops custom masks", "use auto, sdpa"],
        ),
        (["generate"], ["expected one of --prompt, --prompts and --chats"]),
        (["generate", "--prompt", "a", "--prompts", "b"], ["expected one of --prompt, --prompts and --chats"]),
        (
            ["generate", "--prompt", "a", "--mask", "bidirectional"],
            ["'--mask'", "not one of 'causal', 'prefix', 'segment'"],
        ),
        (["generate", "--prompt", "\udcff"], ["--prompt: holds half of a surrogate pair"]),
        (["generate", "--prompts", "nowhere.txt"], ["nowhere.txt: cannot be read: No such file"]),
        (["report", "--runs-dir", ".", "--compare", "stage1", "stage2"], ["stage1: no such run or stage"]),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(
    words: list[str], said: list[str], command: Command, tmp_path: Path
) -> None:
    if words[0] in ("run", "probe", "generate", "report") and "--runs-dir" not in words:
        words = [*words, "--runs-dir", str(tmp_path / "runs")]
    command(*words).refused(*said)
    assert everything_in(tmp_path) == []


def test_without_a_command_the_help_is_shown(command: Command) -> None:
    said = command()
    assert said.code == 2 and "Commands:" in said.err


# ---- profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"model: {source: embedded\ndata: x\n", ["mine.yaml:2: malformed YAML"]),
        (b"model:\n\tsource: embedded\n", ["mine.yaml:2: malformed YAML", "indent with spaces"]),
        (b"gpus: 1\nmodel: {}\ngpus: 2\n", ["mine.yaml:3: gpus: given twice, first in line 1"]),
        (b"", ["expected a mapping of keys, found nothing"]),
        (b"- a\n- b\n", ["expected a mapping of keys"]),
        (b"name: caf\xe9\n", ["expected UTF-8 text"]),
        (OWN_PROFILE.encode() + b"modle: {}\n", ['modle: unknown key; did you mean "model"?']),
        (OWN_PROFILE.encode() + b"stages: {stage33: {}}\n", ["stages.stage33: unknown stage"]),
        (OWN_PROFILE.encode() + b"score: {masks: [both]}\n", ["score.masks[0]: expected one of", 'found "both"']),
    ],
)
def test_a_malformed_profile_is_named_with_its_line(
    text: bytes, said: list[str], command: Command, tmp_path: Path
) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_bytes(text)
    for words in (["run", "stage1", "--runs-dir", tmp_path / "runs"], ["check", "--all"]):
        result = command(*words, "--profile", profile)
        assert result.code == 2 and "Traceback" not in result.err
        for word in said:
            assert word in result.err
    assert everything_in(tmp_path) == ["mine.yaml"]


# ---- runs directories ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["run", "stage1", "--profile", "ci"], ["runs"], ["report"]])
def test_a_runs_directory_that_is_a_file_is_refused(words: list[str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    command(*words, "--runs-dir", tmp_path / "file").refused("is a file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_runs_directory_below_a_file_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    words = ["run", "stage1", "--profile", "ci", "--runs-dir", tmp_path / "file" / "runs"]
    command(*words).refused("'--runs-dir'", "/file is no directory; name one")


@pytest.mark.parametrize("exists", [True, False])
def test_without_runs_the_list_names_a_first_command_and_the_report_is_refused(
    exists: bool, command: Command, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    if exists:
        runs.mkdir()
        said = command("runs", "--runs-dir", runs).fine()
        assert said == f"no run yet; run: make demo RUNS={runs}, or one stage: make stage1 RUNS={runs}\n"
        command("report", "--runs-dir", runs).refused("no run to report", f"make stage1 RUNS={runs}")
    else:  # a mistyped directory is not an empty one
        for words in (["runs"], ["report"]):
            command(*words, "--runs-dir", runs).refused(f"{runs}: no such directory", f"make demo RUNS={runs}")
    assert everything_in(tmp_path) == ["runs"] * exists


# ---- pairs and prompts -----------------------------------------------------------------------------------------------


def line(**values: object) -> bytes:
    return json.dumps({**PAIR, **values}).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ["cannot be read: No such file or directory"]),
        (b"", ["holds no pairs", '{"context": "..."']),
        (b"\n  \n", ["holds no pairs"]),
        (line() + b"\xff\xfe\n", ["pairs.jsonl:2: is not UTF-8"]),
        (line() + b"\n" + b'{"context":\n', ["pairs.jsonl:3: malformed JSON", "column 12"]),
        (line() + b'["a"]\n', ["pairs.jsonl:2: expected a JSON object"]),
        (line(context=3), ["pairs.jsonl:1: context: expected a string, found 3"]),
        (line(continuation=None), ["pairs.jsonl:1: continuation: expected a string, found null"]),
        (b'{"context": "a"}\n', ["continuation: expected a string, found no such key"]),
        (b'{"context": "a", "context": "b", "continuation": "c"}\n', ["'context' is given twice"]),
        (b'{"context": "a", "continuation": "b", "x": NaN}\n', ["NaN is not JSON"]),
        (b'{"context": "a", "continuation": "b", "x": 1e999}\n', ["1e999 is too large"]),
        (b"[" * 100_000 + b"\n", ["malformed JSON"]),
        (b'{"n": ' + b"1" * 5000 + b"}\n", ["malformed JSON"]),
        (line(greedy=True), ["pairs.jsonl:1: the key greedy is one that the scores are written under; rename it"]),
        (line() + line(logprob=None), ["pairs.jsonl:2: the key logprob is one"]),
        (line(context="half \ud800 a pair"), ["pairs.jsonl:1: context: holds half of a surrogate pair"]),
    ],
)
def test_malformed_pairs_are_named_with_their_line(
    content: bytes | None, said: list[str], command: Command, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    if content is not None:
        pairs.write_bytes(content)
    command("loglikelihood", "--mask", "prefix", "--pairs", pairs, "--out", tmp_path / "out.jsonl").refused(*said)
    assert everything_in(tmp_path) == ["pairs.jsonl"] * (content is not None)


def in_a_missing_directory(tmp_path: Path) -> Path:
    return tmp_path / "missing" / "out.jsonl"


def below_a_file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl" / "out.jsonl"


def a_pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")  # as /dev/stdout may be: a rename would put a file in its place
    return tmp_path / "pipe"


def a_directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.parametrize("out", [in_a_missing_directory, below_a_file, a_pipe, a_directory])
def test_a_place_that_cannot_hold_the_results_is_refused_before_the_work(
    out: Callable[[Path], Path], command: Command, tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(line())
    target = out(tmp_path)
    before = everything_in(tmp_path)
    command("loglikelihood", "--mask", "prefix", "--pairs", tmp_path / "pairs.jsonl", "--out", target).refused(
        str(target)
    )
    assert everything_in(tmp_path) == before


def test_a_directory_that_is_not_writable_is_refused_before_the_work(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(line())
    monkeypatch.setattr(
        "app.commands.textfiles.os.access", lambda path, mode: path != tmp_path
    )  # root may write anywhere
    words = ["--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "out.jsonl"]
    command("loglikelihood", "--mask", "prefix", *words).refused("its directory is not writable")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"one\ncaf\xe9\n", ["prompts.txt:2: is not UTF-8", "save the file as UTF-8"]),
        (b"\n \n", ["holds no prompts", "one prompt a line"]),
    ],
)
def test_a_file_of_prompts_that_is_none(content: bytes, said: list[str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    command("generate", "--prompts", tmp_path / "prompts.txt").refused(*said)


# ---- an output that takes nothing, or not every letter ------------------------------------------------------------------


def test_an_output_that_takes_nothing_or_not_every_letter_is_no_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "█").mkdir()
    words = ("runs", "--runs-dir", tmp_path / "█")
    shown = command(*words).out
    assert any(ord(letter) > 255 for letter in shown)
    narrow = TextIOWrapper(BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert command(*words).code == 0
    narrow.seek(0)
    assert narrow.read() == shown.replace("█", "\\u2588"), "in a file no letter is lost"
    narrow = TextIOWrapper(BytesIO(), encoding="latin-1")
    monkeypatch.setattr(narrow, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", narrow)
    assert command(*words).code == 0
    narrow.seek(0)
    assert narrow.read() == shown.replace("█", "?")
    with suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        done = command(*words)
    assert done.code == EXIT_DISK_FULL
    assert done.err == "error: standard output: no space left on the disk; free some space, or write it elsewhere\n"


# ---- another Python ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["app", "vast"])
def test_a_python_without_our_modules_is_one_line(package: str) -> None:
    words = [sys.executable, "-S", "-m", package, "--help"]  # -S: nothing but the standard library
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert Said(done.returncode, done.stdout, done.stderr).refused(
        "has no module click; use .venv/bin/python, which make"
    )


def test_a_module_that_only_some_commands_need_is_named_too(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    command("runs", "--runs-dir", tmp_path).refused(
        f"error: {sys.executable}: has no module rich; use .venv/bin/python"
    )
    monkeypatch.setitem(sys.modules, "app.report.run_list", None)
    monkeypatch.delitem(sys.modules, "rich.console")
    with pytest.raises(ModuleNotFoundError):  # a mistake of ours keeps its traceback
        command("runs", "--runs-dir", tmp_path)


def test_an_older_python_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert "is Python 3.9, and 3.11 is the least; use" in str(wrong_python(ImportError("cannot import name UTC")))
