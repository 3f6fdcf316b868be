"""A suite on the whole way: what a run records of it, what is compared, and what a stage may start from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.data import contents
from app.data.examples import Encoding, load_examples
from app.data.mixture import prepare
from jobs.config.load import resolve
from jobs.config.profile import TrainData
from jobs.config.suites import SUITES_DIR
from jobs.errors import ConfigError
from jobs.runs.rundir import RunDir, latest_complete
from tests.app.fakes.command_line import Command
from tests.embedded_default import EmbeddedPaths

pytestmark = pytest.mark.usefixtures("few_rows")


def score(command: Command, runs: Path, *sets: str) -> RunDir:
    pairs = [word for pair in sets for word in ("--set", pair)]
    command("run", "stage1", "--profile", "ci", "--runs-dir", runs, "--limit", 2, *pairs).fine()
    found = latest_complete(runs, "stage1")
    assert found is not None
    return found


def test_orders_and_shots_are_recorded_and_never_compared_with_others(command: Command, tmp_path: Path) -> None:
    reading = ("suite=reading", "score.tasks=[boolq, sciq]")
    once = score(command, tmp_path, *reading)
    twice = score(command, tmp_path, *reading, "order=repeat", "shots=1")
    entries = [run.read_metrics()["evaluations"][0] for run in (once, twice)]
    assert [(e["suite"], e["order"], e["shots"]) for e in entries] == [
        ("reading", "context_first", 0), ("reading", "repeat", 1),
    ]  # fmt: skip
    assert set(entries[0]["tasks"]) == {"boolq", "sciq"} and entries[0]["macro"]["chance"] == pytest.approx(
        (1 / 2 + 1 / 4) / 2
    )
    assert {task["metric"] for task in entries[0]["tasks"].values()} == {"acc"}
    assert entries[1]["tokens"] > 3 * entries[0]["tokens"]  # an example more, and all of it twice
    for run in (once, twice):
        for row in run.read_jsonl(
            "samples.jsonl"
        ):  # the gold answer's negative log-likelihood, in nats, and its tokens
            assert row["logprobs"][row["gold"]] < 0 and row["n_tokens"][row["gold"]] > 0
    command("report", "--runs-dir", tmp_path, "--compare", once.id, twice.id).refused(
        "scored in different formats, harness (reading, context_first, 0 shots) and harness (reading, repeat, 1 shots)"
    )


def test_a_stage_starts_from_a_model_trained_for_its_suite_and_order(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "stage3b").symlink_to(trained / "stage3b")
    words = ["run", "stage4", "--profile", "ci", "--runs-dir", tmp_path, "--set", "init_from=stage3b"]
    line = command(*words, "--set", "suite=lookup", "--set", "order=question_first").refused(
        "is of suite short, order context_first, not suite lookup, order question_first"
    )
    assert line.endswith(f"run: make stage3b PROFILE=ci SUITE=lookup ORDER=question_first RUNS={tmp_path}")


def test_the_suites_file_is_part_of_what_a_run_was_made_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = resolve("stage1", "ci", sets=["suite=lookup"])
    before = contents.contents_of(job)
    assert set(before) == {"suite"} and contents.contents_of(resolve("stage1", "ci")) == {}
    shutil.copytree(SUITES_DIR, tmp_path / "suites")
    (tmp_path / "suites" / "lookup.yaml").write_text((SUITES_DIR / "lookup.yaml").read_text() + "\n")
    monkeypatch.setattr(contents, "SUITES_DIR", tmp_path / "suites")
    assert contents.contents_of(job) != before


# ---- training


@pytest.fixture(scope="module")
def tokenizer(embedded: EmbeddedPaths) -> Any:
    return AutoTokenizer.from_pretrained(embedded.model)


def test_a_suite_trains_on_prompts_written_as_its_items_are(tokenizer: Any) -> None:
    for order, opens in (("context_first", False), ("question_first", True)):
        sets = [
            "suite=lookup",
            f"order={order}",
            "data.train.limit=40",
            "data.train.template=chat",
        ]  # of the profile's data
        job = resolve("stage3b", "ci", sets=sets)
        data = prepare(job, tokenizer, [])
        train, counts = data.examples, data.counts()
        assert counts["source"] == "suite lookup" and counts["format"] == "suite" and counts["read"] == 3 * 40
        assert sum(counts["kept_by_set"].values()) == counts["kept"] == 40
        for one in train:
            prompt, answer = tokenizer.decode(one.prompt_ids), tokenizer.decode(one.response_ids)
            assert prompt.startswith("Question: ") == opens and prompt.endswith("\nAnswer:")
            assert answer.startswith(" ") and f"{answer.strip().removesuffix(tokenizer.eos_token)}." in prompt


@pytest.mark.parametrize("data", ["profile", "suite"])
def test_repeat_writes_training_prompts_twice_and_keeps_each_on_its_side(data: str, tokenizer: Any) -> None:
    sets = ["suite=lookup", f"train.data={data}", "data.train.limit=40", "train.max_length=2048"]
    once, twice = (prepare(resolve("stage3b", "ci", sets=[*sets, f"order={order}"]), tokenizer, []).examples
                   for order in ("context_first", "repeat"))  # fmt: skip
    for one, other in zip(once, twice, strict=True):
        prompt = tokenizer.decode(one.prompt_ids)
        assert tokenizer.decode(other.prompt_ids) == f"{prompt}\n\n{prompt}"
        assert (one.key, one.response_ids, one.text) == (other.key, other.response_ids, other.text)


@pytest.mark.parametrize("changes", [{"template": "chat"}, {"source": "path", "path": "x.jsonl", "format": "messages"}])
def test_a_prompt_that_is_not_ours_to_write_is_not_written_twice(changes: dict[str, Any], tokenizer: Any) -> None:
    source = TrainData(**{"source": "embedded", "format": "qa", **changes})
    with pytest.raises(ConfigError, match="order: repeat writes a prompt twice, and .* has none of plain text"):
        load_examples(source, Encoding(tokenizer, max_length=64, repeat=True))
