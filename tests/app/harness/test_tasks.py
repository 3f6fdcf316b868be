"""Tasks of lm-evaluation-harness beyond the five, over the embedded data, and the two command lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.harness import tasks as harness_tasks
from app.harness.model import main
from jobs.errors import RunStateError, UserError
from tests.app.conftest import make_model
from tests.app.fakes.command_line import Command
from tests.app.fakes.harness_models import CONTEXT, ours, theirs


@pytest.fixture(scope="module")
def tokenizer(embedded: Any) -> Any:
    return AutoTokenizer.from_pretrained(embedded.model)


def test_tasks_beyond_the_five_under_both_masks(tokenizer: Any, embedded: Any) -> None:
    model = make_model("llama", vocab_size=49152, max_position_embeddings=CONTEXT)
    tasks = harness_tasks.manager(embedded=True)
    names = ["boolq", "sciq", "openbookqa", "commonsense_qa", "mmlu_anatomy"]
    found = {}
    for name, lm in {
        "hf": theirs(model, tokenizer),
        **{m: ours(model, tokenizer, m) for m in ("causal", "prefix")},
    }.items():
        lm.leaks = False
        results = harness_tasks.evaluate(lm, tasks, harness_tasks.build(tasks, names, "prefix"), limit=10, samples=True)
        found[name] = {(t, s["doc_id"]): [r[0][0] for r in s["resps"]] for t in names for s in results["samples"][t]}
    assert results["n-shot"] == dict.fromkeys(names, 0) and results["config"]["mask"] == "prefix"
    assert len(found["causal"]) == 50
    apart = [abs(a - b) for key in found["hf"] for a, b in zip(found["hf"][key], found["causal"][key], strict=True)]
    assert max(apart) < 1e-2
    assert all(found["causal"][key] != found["prefix"][key] for key in found["causal"])


def test_every_embedded_dataset_builds_its_task(embedded: Any) -> None:
    tasks = harness_tasks.manager(embedded=True)
    names = ["hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande", "boolq", "cb", "copa", "mrpc", "rte", "sst2", "sciq",
             "openbookqa", "commonsense_qa", "social_iqa", "triviaqa", "nq_open"]  # fmt: skip
    built = harness_tasks.build(tasks, names, "prefix")
    assert len(built) == len(names) == len(harness_tasks.EMBEDDED)
    for task in built:
        assert len(task.eval_docs) > 50 and isinstance(task.config.custom_dataset, harness_tasks.Saved)


def test_few_shot_examples_are_recorded_and_lengthen_the_prefix(tokenizer: Any, embedded: Any) -> None:
    lm = ours(make_model("llama", vocab_size=49152, max_position_embeddings=CONTEXT), tokenizer, "bidirectional")
    tasks = harness_tasks.manager(embedded=True)
    results = harness_tasks.evaluate(lm, tasks, harness_tasks.build(tasks, ["copa"], lm.mask), limit=2, num_fewshot=3,
                                     samples=True)  # fmt: skip
    assert results["n-shot"] == {"copa": 3} and results["config"]["num_fewshot"] == 3
    assert results["samples"]["copa"][0]["arguments"][0][0].count("\n\n") == 3
    assert "copa (leaks)" in harness_tasks.tables(results)


# ---- the two command lines --------------------------------------------------------------------------------------------


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """A directory with two tasks of one's own that need no network: one scores, one generates."""
    rows = [{"q": f"{a} and {b} make", "a": a + b} for a in range(4) for b in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (f"dataset_path: json\ndataset_kwargs: {{data_files: {{validation: {tmp_path}/rows.jsonl}}}}\n"
              "validation_split: validation\ndoc_to_text: '{{q}}'\n")  # fmt: skip
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\noutput_type: multiple_choice\n{common}doc_to_choice: ['0', '1', '2', '3', '4', '5']\ndoc_to_target: a\n"
        "metric_list: [{metric: acc}]\n"
    )
    (tmp_path / "say.yaml").write_text(
        f"task: say\noutput_type: generate_until\n{common}doc_to_target: '{{{{a}}}}'\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
    )
    return tmp_path


def test_the_command_evaluates_and_writes(command: Command, own_tasks: Path, embedded: Any) -> None:
    out = own_tasks / "out.json"
    done = command("harness", "--profile", "ci", "--mask", "prefix", "--tasks", "s*ms,say,sciq", "--limit", "3",
                   "--num-fewshot", "1", "--include-path", str(own_tasks), "--out", str(out))  # fmt: skip
    assert done.code == 0 and "under prefix, first 3 items" in done.out and "|sums" in done.out and "|sciq" in done.out
    results = json.loads(out.read_text())
    assert results["config"]["mask"] == "prefix" and results["n-shot"] == {"sums": 1, "say": 1, "sciq": 1}
    assert len(results["samples"]["say"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "prefix", "--tasks", "no_such_task"], "knows no task 'no_such_task'"),
        (["--mask", "bidirectional", "--tasks", "nq_open"], "nq_open: generates, which mask bidirectional cannot"),
        (["--mask", "prefix", "--tasks", ","], "names no task"),
    ],
)
def test_mistakes_are_one_line(command: Command, embedded: Any, arguments: list[str], message: str) -> None:
    done = command("harness", "--profile", "ci", *arguments)
    assert done.code == 2 and message in done.err


def test_the_harnesss_own_command_line_knows_the_model(own_tasks: Path, embedded: Any,
                                                       monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # fmt: skip
    arguments = [
        "--model",
        "prefill",
        "--tasks",
        "sums",
        "--include_path",
        str(own_tasks),
        "--limit",
        "2",
        "--model_args",
    ]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, "profile=ci,mask=bidirectional"])
    assert main() == 0
    said = capsys.readouterr().out
    assert "'mask': 'bidirectional'" in said and "|sums" in said and "LEAKS" in said
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, "profile=ci,mask=sideways"])
    assert main() == 2 and "found 'sideways'" in capsys.readouterr().err


def test_without_lm_eval_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "app.harness.model")
    with pytest.raises(UserError, match=r"no module lm_eval.*; make setup, or pip install lm_eval==0\.4\.13"):
        import app.harness.model  # noqa: F401


def test_results_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        RunStateError, match=r"out\.json: cannot be written: No such file or directory; name a file elsewhere"
    ):
        harness_tasks.write(tmp_path / "none/out.json", {})
    harness_tasks.write(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").read_text() == "{}\n"
