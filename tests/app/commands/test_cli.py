"""The commands doing what they are for, on profile ci: the whole way through, and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.attention.selfcheck import Finding
from app.stage.run import Outcome
from jobs.config.job import Job
from jobs.config.load import stage_names
from jobs.runs.rundir import RunDir
from tests.app.fakes.command_line import Command, everything_in

PAIRS = [
    {"context": "The sky is", "continuation": " blue", "id": 7, "of": {"deep": [1, None, True]}},
    {"context": "", "continuation": "Hello"},
    {"context": "Trailing space ", "continuation": "moves", "note": "kept as it is", "number": 3},
    {"context": "The sky is", "continuation": " green as grass is"},
    {"context": "Zeile\u2028ohne \u0085Ende", "continuation": " 天気\U0001f600"},
    {"context": "word " * 40, "continuation": "word", "half": "\ud800"},
]


def write_pairs(path: Path, pairs: list[dict[str, Any]] = PAIRS) -> Path:
    path.write_text("\n\n".join(json.dumps(pair, ensure_ascii="half" in pair) for pair in pairs), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


# ---- run -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_rows_here")
def test_stages_run_end_to_end_and_are_listed_and_reported(trained: Path, command: Command, tmp_path: Path) -> None:
    """stage1, stage4 after the trained stage3b, then the list and the report. Nothing is repeated."""
    (tmp_path / "stage3b").symlink_to(trained / "stage3b")
    words = ["--profile", "ci", "--runs-dir", tmp_path, "--limit", 2]
    for stage, more in (("stage1", []), ("stage4", ["--set", "init_from=stage3b"])):
        assert command("run", stage, *words, *more).fine().startswith(f"{stage}: complete: {tmp_path / stage}")
        again = command("run", stage, *words, *more)
        assert "complete already; --force (make: FORCE=1) repeats it" in again.fine() and again.err == ""
    assert "complete already" in command("run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path).fine()

    (stage3b, stage4) = (RunDir.open(next((tmp_path / stage).iterdir())) for stage in ("stage3b", "stage4"))
    entries = stage4.read_metrics()["evaluations"]
    assert [entry["label"] for entry in entries] == ["stage3b/prefix", "stage3b/bidirectional"]
    assert {entry["model_run"] for entry in entries} == {stage3b.id}
    assert len(stage4.read_jsonl("samples.jsonl")) == 2 * 10  # masks, items
    assert (stage3b.final / "model.safetensors").is_file() and not stage3b.checkpoints.exists()
    for run in (stage3b, stage4):
        assert run.state() == "complete" and run.verify() == []

    listed = command("runs", "--runs-dir", tmp_path).fine()
    assert listed.count("complete") == 3 and stage4.id in listed
    assert "wrote" in command("report", "--runs-dir", tmp_path, "--profile", "ci").fine()
    assert (tmp_path / "report.md").is_file() and (tmp_path / "report.html").is_file()


# The first module that torch imports after its own library ends the process: the others take four seconds.
UNTIL_TORCH = """
import os, sys
class End:
    def find_spec(self, name, *_):
        if "torch._C" in sys.modules and name.startswith("torch."):
            os._exit(0)
sys.meta_path.insert(0, End())
"""


@pytest.mark.parametrize(("module", "given", "spins"), [
    ("app.__main__", {}, "1000"), ("app.harness.model", {}, "1000"), ("benchmarks.profiled", {}, "1000"),
    ("app.__main__", {"GOMP_SPINCOUNT": "77"}, "77"), ("app.__main__", {"OMP_WAIT_POLICY": "active"}, "30000000000"),
])  # fmt: skip
def test_torch_s_threads_leave_the_cores_to_others(module: str, given: dict[str, str], spins: str) -> None:
    """What the OpenMP of torch itself says, not the environment: it reads that once, when it is loaded. Then all is known."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    code = f"{UNTIL_TORCH}import {module}, torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**clean, **given, "OMP_DISPLAY_ENV": "verbose"})  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr, done.stderr


# ---- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["ci", "embedded", "ministral-3b"])
def test_check_accepts_every_stage_and_touches_nothing(
    profile: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFILL_CACHE", str(tmp_path / "cache"))
    said = command("check", "--all", "--profile", profile)
    assert said.fine().splitlines() == [f"{stage}: valid with profile {profile}" for stage in stage_names()]
    assert said.err == "" and everything_in(tmp_path) == []


def test_check_takes_one_key_of_a_random_models_config(command: Command) -> None:
    command("check", "stage1", "--profile", "ci", "--set", "model.config.hidden_size=32").fine()


# ---- loglikelihood ---------------------------------------------------------------------------------------------------


def score(
    command: Command, tmp_path: Path, *more: object, mask: str = "prefix", pairs: list[dict[str, Any]] = PAIRS
) -> list[dict[str, Any]]:
    path, out = write_pairs(tmp_path / "pairs.jsonl", pairs), tmp_path / "out.jsonl"
    command("loglikelihood", "--profile", "ci", "--mask", mask, "--pairs", path, "--out", out, *more).fine()
    assert everything_in(tmp_path) == ["out.jsonl", "pairs.jsonl"]
    return read(out)


def test_loglikelihood_keeps_order_and_keys_and_adds_its_own(command: Command, tmp_path: Path) -> None:
    rows = score(command, tmp_path)
    added = {"logprob", "n_tokens", "n_chars", "greedy"}
    for row, pair in zip(rows, PAIRS, strict=True):
        assert set(row) == set(pair) | added
        assert {key: row[key] for key in set(pair) - added} == {key: pair[key] for key in set(pair) - added}
        assert isinstance(row["logprob"], float) and row["logprob"] < 0
        assert isinstance(row["n_tokens"], int) and row["n_tokens"] > 0
        assert row["n_chars"] == len(pair["continuation"])
        assert isinstance(row["greedy"], bool)


@pytest.mark.parametrize("backwards", [False, True])
def test_loglikelihood_depends_on_neither_batches_nor_order(backwards: bool, command: Command, tmp_path: Path) -> None:
    step = -1 if backwards else 1
    together = score(command, tmp_path)
    alone = score(command, tmp_path, "--batch-tokens", 1, pairs=PAIRS[::step])
    for one, other in zip(together, alone[::step], strict=True):
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
        assert {**one, "logprob": 0} == {**other, "logprob": 0}


def test_masks_differ_where_the_context_has_more_than_one_token(command: Command, tmp_path: Path) -> None:
    by_mask = {mask: score(command, tmp_path, mask=mask) for mask in ("causal", "prefix", "bidirectional")}
    first = {mask: rows[0]["logprob"] for mask, rows in by_mask.items()}
    assert len({round(value, 5) for value in first.values()}) >= 2
    empty = {mask: rows[1]["logprob"] for mask, rows in by_mask.items()}
    assert empty["causal"] == pytest.approx(empty["prefix"], abs=1e-5)  # a prefix of one token is causal


def test_loglikelihood_does_not_replace_its_input(command: Command, tmp_path: Path) -> None:
    pairs, link = write_pairs(tmp_path / "pairs.jsonl", PAIRS[:2]), tmp_path / "link"
    link.symlink_to(pairs)
    before = pairs.read_bytes()
    for out in (pairs, link):
        words = ["loglikelihood", "--profile", "ci", "--mask", "causal", "--pairs", pairs, "--out", out]
        command(*words).refused("--out", "is what --pairs reads", "name another file")
    assert pairs.read_bytes() == before


def test_a_byte_order_mark_and_windows_line_ends_are_taken(command: Command, tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    pairs.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(pair).encode() for pair in PAIRS[:2]) + b"\r\n")
    command("loglikelihood", "--profile", "ci", "--mask", "causal", "--pairs", pairs, "--out", out).fine()
    assert len(read(out)) == 2


@pytest.mark.parametrize(
    ("bad", "more", "said"),
    [
        ({"context": "word " * 3000, "continuation": " x"}, [], ["pairs.jsonl:3: is 3002 tokens long", "holds 2048"]),
        ({"context": "a", "continuation": ""}, [], ["pairs.jsonl:3: its continuation has no tokens"]),
        (
            {"context": "", "continuation": "a"},
            ["--format", "reference"],
            ["its context has no tokens", "format harness"],
        ),
    ],
)
def test_a_pair_that_cannot_be_scored_is_named_and_nothing_is_written(
    bad: dict[str, str], more: list[str], said: list[str], command: Command, tmp_path: Path
) -> None:
    pairs, out = write_pairs(tmp_path / "pairs.jsonl", [PAIRS[0], bad]), tmp_path / "out.jsonl"
    command("loglikelihood", "--profile", "ci", "--mask", "causal", "--pairs", pairs, "--out", out, *more).refused(
        *said
    )
    assert not out.exists()


def test_a_full_disk_leaves_no_part_of_the_results(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    pairs, out = write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "out.jsonl"
    monkeypatch.setattr("jobs.runs.atomic.os.fsync", no_space)
    said = command("loglikelihood", "--profile", "ci", "--mask", "causal", "--pairs", pairs, "--out", out)
    said.refused("out.jsonl: no space left", "name a file elsewhere", code=28, alone=False)
    assert everything_in(tmp_path) == ["pairs.jsonl"]


# ---- generate and probe ----------------------------------------------------------------------------------------------


def test_generate_prints_an_answer(trained: Path, command: Command) -> None:
    words = ["generate", "--profile", "ci", "--max-new-tokens", 3, "--runs-dir", trained, "--model", "stage3b"]
    assert command(*words, "--prompt", "The sky is").fine().strip()
    assert command(*words, "--prompt", "The sky is", "--chat", "--mask", "causal").code == 0


def test_generate_answers_every_line_of_a_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_bytes("one\r\n\r\ntwo\u2028lines\r\n".encode())
    said = command("generate", "--profile", "ci", "--max-new-tokens", 3, "--prompts", tmp_path / "prompts").fine()
    assert [line for line in said.split("\n") if line.startswith("> ")] == ["> one", "> two\u2028lines"]


def test_generate_answers_each_turn_of_a_chat(command: Command, tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "one"), ("assistant", "1"), ("user", "two"), ("user", "three")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps(row)}\n\n{json.dumps({'messages': row['messages'][1:2]})}\n")
    words = [
        "generate",
        "--profile",
        "ci",
        "--mask",
        "segment",
        "--max-new-tokens",
        3,
        "--chats",
        tmp_path / "chats.jsonl",
    ]
    said = command(*words).fine()
    assert [line for line in said.split("\n") if line.startswith("> ")] == ["> two", "> three", "> one"]
    command(*words, "--prompt", "a").refused("--chats takes no --prompt")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"messages": [{"role": "user", "content": 1}]}',
            ["chats.jsonl:1: messages[0]: field content: expected text"],
        ),
        (
            '{"messages": [{"role": "assistant", "content": "a"}]}',
            ["chats.jsonl:1: the last message is by role assistant"],
        ),
        ('{"messages": []}', ["chats.jsonl:1: expected messages, a list that is not empty"]),
        ("[1]", ["chats.jsonl:1: expected messages"]),
        ("", ["chats.jsonl: holds no chats"]),
    ],
)
def test_a_chat_that_cannot_be_read_is_refused(line: str, said: list[str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text(line)
    command("generate", "--profile", "ci", "--chats", tmp_path / "chats.jsonl").refused(*said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", ""], ["prompt 1: is empty"]),
        (["--prompt", "word " * 3000], ["prompt 1: 3001 tokens", "context of 2048", "shorten the prompt"]),
        (["--prompt", "a", "--max-new-tokens", 5000], ["5000 new ones exceed", "lower --max-new-tokens"]),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused(words: list[Any], said: list[str], command: Command) -> None:
    command("generate", "--profile", "ci", *words).refused(*said)


@pytest.mark.parametrize("way", [[], ["--stream"]])
def test_a_prompt_of_a_file_that_cannot_be_answered_is_named_before_any_is(way: list[str], command: Command, tmp_path: Path) -> None:  # fmt: skip
    (tmp_path / "prompts").write_text(f"one\n{'word ' * 2500}\n{'word ' * 3000}\nfour\n")
    said = command("generate", "--profile", "ci", "--prompts", tmp_path / "prompts", *way)
    said.refused("prompt 2: 2501 tokens", "context of 2048")
    assert not said.out


@pytest.mark.parametrize("profile", ["ci", "embedded"])
def test_probe_prints_the_laws_by_layer_type(profile: str, command: Command) -> None:
    lines = command("probe", "--profile", profile, "--set", "model.device=cpu").fine().splitlines()
    assert "full_attention layers" in lines[0]
    assert len(lines) > 20 and all(line.startswith("holds ") for line in lines[1:])
    assert {line.split()[1] for line in lines[1:]} == {"causal", "prefix", "segment", "bidirectional"}


def test_probe_ends_with_2_where_a_law_does_not_hold(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [Finding("mask reaches full_attention layers", "prefix", False, "another mask arrived")]
    monkeypatch.setattr("app.attention.selfcheck.check_dependence", lambda *_: broken)
    said = command("probe", "--profile", "ci")
    said.refused("random llama: 1 of", "laws do not hold", alone=False)
    assert "FAILS  prefix" in said.out


# ---- several stages in one process -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_rows_here")
def test_several_stages_run_in_turn_and_take_the_overrides_of_their_sections(command: Command, tmp_path: Path) -> None:
    words = ["run", "stage3a", "stage3b", "stage4", "--profile", "ci", "--runs-dir", tmp_path, "--limit", 2,
             "--set", "train.max_steps=2", "--set", "score.batch_tokens=512"]  # fmt: skip
    text = command(*words).fine()
    assert [line.partition(":")[0] for line in text.splitlines()] == ["stage3a", "stage3b", "stage4"]
    alone = ["run", "stage3b", "--profile", "ci", "--runs-dir", tmp_path, "--limit", 2, "--set", "train.max_steps=2"]
    assert "complete already" in command(*alone).fine()  # the job that it would have been by itself
    assert command(*words).fine().count("complete already") == 3


@pytest.mark.parametrize(("profile", "words", "limit", "steps"),
                         [("embedded", [], 32, 20), ("embedded", ["--limit", "5", "--set", "train.max_steps=7"], 5, 7),
                          ("ci", [], 4, 6)])  # fmt: skip
def test_a_demo_is_small_with_the_default_profile_and_is_what_the_command_line_makes_it(
    profile: str, words: list[str], limit: int | None, steps: int, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    jobs: list[Job] = []

    def kept(job: Job, *_: object, **__: object) -> Outcome:
        jobs.append(job)
        return Outcome(RunDir(tmp_path), ran=True)

    monkeypatch.setattr("app.commands.run.run_stage", kept)
    done = command("demo", "--profile", profile, "--runs-dir", tmp_path, *words)
    assert done.code == 2 and "no run to report" in done.err, "the report comes last"
    assert [job.stage.name for job in jobs] == ["stage1", "stage2", "stage3a", "stage3b", "stage4", "nonprefill"]
    assert {job.stage.score.limit for job in jobs if job.stage.score} == {limit}
    assert {job.stage.train.max_steps for job in jobs if job.stage.train} == {steps}


@pytest.mark.parametrize(("words", "says"), [
    (["stage1", "nosuch"], "nosuch"),
    (["stage1", "stage1"], "run: stage1 is named twice; name it once"),
    (["stage1", "stage2", "--set", "train.max_steps=2"], "none of stage1, stage2 has a section train"),
])  # fmt: skip
def test_a_mistake_about_any_of_several_stages_starts_none(
    words: list[str], says: str, command: Command, tmp_path: Path
) -> None:
    assert says in command("run", *words, "--profile", "ci", "--runs-dir", tmp_path).refused()
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("few_rows_here")
def test_a_run_under_segment_and_by_layer_ends_with_its_mask_named(command: Command, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = ["--profile", "ci", "--runs-dir", runs]
    sets = ["train.mask=segment", "train.layers=first:1", "train.max_steps=2", "data.train.template=chat"]
    command("run", "stage3b", *words, *(word for one in sets for word in ("--set", one))).fine()
    (metrics,) = runs.glob("stage3b/*/metrics.json")
    found = json.loads(metrics.read_text())["train"]
    assert found["mask"] == "segment@first:1" and found["data"]["answers"] == found["data"]["kept"]
    options = "--mask segment --layers first:1"
    assert f"generate {options}` reads it as trained" in (metrics.parent / "final" / "README.md").read_text()
    command("generate", *words, "--model", "stage3b", *options.split(), "--max-new-tokens", 2, "--prompt", "a").fine()
    (tmp_path / "pairs").write_text('{"context": "a b", "continuation": " c"}\n')
    (tmp_path / "prompts.yaml").write_text("prompts: [{id: one, text: a b}]\n")
    asked = ("--model", "stage3b", "--mask", "segment")
    pairs = ("--pairs", tmp_path / "pairs", "--out", tmp_path / "scored")
    assert "under segment@first:1" in command("loglikelihood", *words, *asked, *pairs).fine()  # as it was trained
    assert "under segment\n" in command("loglikelihood", *words, *asked, *pairs, "--layers", "all").fine()
    shown = command("samples", *words, *asked, "--prompts", tmp_path / "prompts.yaml", "--max-new-tokens", 2).fine()
    assert "stage3b/segment@first:1" in shown
    command("generate", *words, "--layers", "every:9", "--prompt", "a").refused(
        "layers: every:9: the model has 2 layers"
    )
    command("generate", *words, "--layers", "some", "--prompt", "a").refused("expected all, global, first:N or every:K")
