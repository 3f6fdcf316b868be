"""Several sources, and sources larger than memory: shares, order, resume, what is checked, and what metrics.json keeps of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.data import mixture
from app.data.contents import contents_of
from app.data.mixture import prepare
from app.data.prepared import Prepared
from app.runtime.ending import RunEnded
from app.stage.run import run_stage
from app.training.batch import Schedule, shuffled
from app.training.loop import TrainingLoop
from jobs.config import strict_yaml
from jobs.config.job import Job
from jobs.config.load import JOBS_DIR, resolve
from jobs.errors import ConfigError, DataError
from jobs.runs.rundir import RunDir
from tests.app.fakes.word_tokenizer import word_tokenizer


@dataclass(frozen=True)
class Item:
    """An evaluation item."""

    question: str = "What is the name of the ninth letter of the word that comes after them"
    answers: tuple[str, ...] = ("of course it is h",)
    task: str = "piqa"
    id: str = "piqa/0"


def write(path: Path, count: int, start: int = 0) -> Path:
    rows = ({"instruction": f"{i} a b", "output": "c d e"} for i in range(start, start + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job_of(*sources: dict[str, Any], **sets: Any) -> Job:
    given = [{"source": "path", "format": "alpaca", "limit": None, **one, "path": str(one["path"])} for one in sources]
    pairs = [f"data.train={json.dumps(given if len(given) > 1 else given[0])}", *(f"{k}={v}" for k, v in sets.items())]
    return resolve("stage3b", "ci", sets=[pair.replace("__", ".") for pair in pairs])


def prepared(*sources: dict[str, Any], items: tuple[Item, ...] = (), **sets: Any) -> Prepared:
    return prepare(job_of(*sources, **sets), word_tokenizer(), items)


def schedule(data: Prepared, steps: int = 50, batch: int = 8, seed: int = 3) -> Schedule:
    return Schedule([one.examples for one in data.sources], data.shares, steps, batch, seed)


def keys(one: Schedule, steps: range) -> list[list[str]]:
    return [[example.key for example in one.step(i)] for i in steps]


# ---- shares -------------------------------------------------------------------------------------------------------


def test_sources_are_drawn_by_weight_and_temperature(tmp_path: Path) -> None:
    small, large = {"path": write(tmp_path / "a.jsonl", 40)}, {"path": write(tmp_path / "b.jsonl", 360, 1000)}
    by_size = prepared(small, large)
    sizes = [len(one.examples) for one in by_size.sources]  # type: ignore[arg-type]
    assert by_size.shares == pytest.approx([size / sum(sizes) for size in sizes])
    flat = prepared(small, large, data__temperature=1e9)
    assert flat.shares == pytest.approx([0.5, 0.5])
    weighted = prepared({**small, "weight": 9}, {**large, "weight": 1}, data__temperature=2.0)
    assert weighted.shares == pytest.approx([0.75, 0.25])  # sqrt 9 to sqrt 1
    made = schedule(weighted)
    assert sum(made.drawn(50)) == 400 and 270 < made.drawn(50)[0] < 330
    ours = {example.key for example in weighted.sources[0].examples}  # type: ignore[union-attr]
    assert sum(example.key in ours for i in range(50) for example in made.step(i)) == made.drawn(50)[0]


def test_a_source_that_runs_out_begins_again_in_another_order(tmp_path: Path) -> None:
    data = prepared(
        {"path": write(tmp_path / "a.jsonl", 30), "weight": 1},
        {"path": write(tmp_path / "b.jsonl", 30, 500), "weight": 1},
    )
    ours = [example.key for example in data.sources[0].examples]  # type: ignore[union-attr]
    met = [key for step in keys(schedule(data), range(50)) for key in step if key in ours]
    passes = [met[at : at + len(ours)] for at in range(0, len(met), len(ours))]
    assert all(sorted(one) == sorted(ours) for one in passes[:-1]) and passes[0] != passes[1]


def test_the_order_is_a_matter_of_the_seed_alone_and_one_source_has_the_order_it_always_had(tmp_path: Path) -> None:
    sources = [{"path": write(tmp_path / "a.jsonl", 40)}, {"path": write(tmp_path / "b.jsonl", 40, 500)}]
    data = prepared(*sources)
    whole = keys(schedule(data), range(50))
    assert keys(schedule(prepared(*sources)), range(20, 50)) == whole[20:]
    assert keys(schedule(data, seed=4), range(50)) != whole
    alone = prepared(sources[0])
    order = shuffled(len(alone.examples), 400, 3)
    assert [key for step in keys(schedule(alone), range(50)) for key in step] == [alone.examples[i].key for i in order]


# ---- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_trains_on_what_memory_would_and_holds_out_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 300)
    whole, streamed = prepared({"path": path}), prepared({"path": path, "streaming": True})
    made = schedule(streamed, steps=1, batch=len(whole.examples))
    assert sorted(keys(made, range(1))[0]) == sorted(one.key for one in whole.examples)
    assert {one.key for one in streamed.held_out} <= {
        one.key for one in prepared({"path": path}, train__eval_samples=300).held_out
    }
    assert not {one.key for one in streamed.held_out} & set(keys(made, range(1))[0])
    counts, alone = streamed.counts(made.drawn(1)), whole.counts()
    assert counts["train"] == alone["train"] and counts["read"] == alone["read"] == 300
    assert counts["sources"][0]["drawn"] == len(whole.examples) and counts["sources"][0]["streamed"]


def test_every_example_of_a_stream_is_checked_for_overlap_and_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", 700)
    leaked = {"instruction": Item().question, "output": Item().answers[0]}
    with open(path, "a") as file:  # behind the first batch
        file.write(json.dumps(leaked) + "\n" + json.dumps({"instruction": "699 a b", "output": "c d e"}) + "\n")
    again = write(tmp_path / "b.jsonl", 40)  # all of them in a.jsonl, which is in memory
    data = prepared({"path": path, "streaming": True, "weight": 1}, {"path": again, "weight": 1}, items=(Item(),))
    assert [one.key for one in data.sources] == ["data.train[0]", "data.train[1]"]
    made = schedule(data, steps=200)
    keys(made, range(200))
    counts = data.counts(made.drawn(200))
    assert counts["dropped_duplicate"] == 41 and counts["overlap"]["dropped"] == 1
    assert counts["overlap"]["hits"] == {"piqa/0": 1} and counts["overlap"]["hit_by_task"] == {"piqa": 1}
    for window, found in ((1, 0), (2, 1)):  # of digests: the row that comes twice has one row between
        monkeypatch.setattr(mixture, "RECENT", window)
        few = prepared({"path": path, "streaming": True}, items=(Item(),))
        keys(schedule(few, steps=100), range(100))
        assert few.counts()["dropped_duplicate"] == found


def test_examples_that_two_sources_have_are_taken_once(tmp_path: Path) -> None:
    data = prepared({"path": write(tmp_path / "a.jsonl", 40)}, {"path": write(tmp_path / "b.jsonl", 40, 20)})
    assert max(Counter(one.key for one in data.examples).values()) == 1
    assert data.counts()["dropped_duplicate"] == 20


@pytest.mark.parametrize(
    ("sources", "sets", "words"),
    [
        ([{"count": 40, "streaming": True}], {"train__epochs": 1}, "train.epochs: the number of examples of a streamed source is not known"),
        ([{"count": 0, "streaming": True}], {}, "a.jsonl: holds no examples"),
        ([{"count": 40, "streaming": True}], {"train__max_length": 2}, "no example is left of 40: 40 longer than train.max_length"),
        ([{"count": 40}, {"count": 1}], {"train__eval_fraction": 0.999}, "leaves the training side empty"),
        ([{"count": 1}, {"count": 2}], {"train__eval_fraction": 1e-9}, "leaves the evaluation side empty"),
    ],
)  # fmt: skip
def test_what_a_mixture_cannot_be_is_one_line(
    sources: list[dict[str, Any]], sets: dict[str, Any], words: str, tmp_path: Path
) -> None:
    given = [{"path": write(tmp_path / f"{name}.jsonl", one["count"], 100 * at), **{k: v for k, v in one.items() if k != "count"}}
             for at, (name, one) in enumerate(zip("abc", sources, strict=False))]  # fmt: skip
    with pytest.raises((DataError, ConfigError)) as caught:
        prepared(*given, **sets).passes(1)
    assert words in str(caught.value) and caught.value.remedy


# ---- a run ------------------------------------------------------------------------------------------------------------


def profile(place: Path) -> Path:
    """Profile ci with a mixture of the embedded questions and of a stream."""
    values = strict_yaml.read(JOBS_DIR / "profiles/ci.yaml", "ci.yaml")
    values["name"], values["data"]["train"] = "mix", [
        {"source": "embedded", "format": "qa", "limit": 40, "weight": 1.0},
        {"source": "path", "path": str(write(place / "a.jsonl", 300)), "format": "alpaca", "streaming": True, "weight": 1.0},
    ]  # fmt: skip
    (place / "mix.yaml").write_text(strict_yaml.dump(values))
    return place / "mix.yaml"


def now() -> datetime:
    return datetime.now(UTC)


@pytest.mark.usefixtures("few_rows")
def test_what_is_read_for_the_control_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load = mixture.load_examples

    def counted(*given: Any, **named: Any) -> Any:
        read.append("once")
        return load(*given, **named)

    monkeypatch.setattr(mixture, "load_examples", counted)
    monkeypatch.setattr(mixture, "_HELD", {})
    tokenizer = word_tokenizer()

    def examples(stage: str, *sets: str, items: tuple[Item, ...] = (), **given: Any) -> tuple[Prepared, int]:
        checked: list[int] = []
        job = replace(resolve(stage, "ci", sets=list(sets)), **given)
        found = prepare(job, tokenizer, items, lambda some: checked.append(len(some)))
        assert sum(checked) == len(found.examples) + len(found.held_out)  # against this model's vocabulary, each time
        return found, len(read)

    control, before = examples("stage3a")
    assert examples("stage3b") == (control, before)
    assert examples("stage3b", "train.learning_rate=1.0e-3", items=(Item(),))[1] == before + 1
    assert (
        examples("stage3b", "seed=1", items=(Item(),))[1] == before + 1
    )  # it decides where texts are cut, and nothing else
    assert examples("stage3b", "seed=1", "train.cut=random")[1] == before + 2
    rows = (
        f"data.train={json.dumps({'source': 'path', 'format': 'alpaca', 'path': str(write(tmp_path / 'a.jsonl', 60))})}"
    )
    first, _ = examples("stage3b", rows)
    write(tmp_path / "a.jsonl", 80)  # what it holds is known to a job that was begun by its stage only
    assert len(examples("stage3b", rows)[0].examples) > len(first.examples)
    held, before = examples("stage3b", rows, contents={"data.train": "80 rows"})
    assert examples("stage3a", rows, contents={"data.train": "80 rows"}) == (held, before)
    assert examples("stage3a", rows, contents={"data.train": "other rows"})[1] == before + 1
    before = len(read)
    assert examples("stage3a") and len(read) == before + 1  # the fifth set back
    tokenizer.eos_token = "<unk>"  # what ends an answer is no part of the tokenizer's definition
    assert examples("stage3a")[1] == before + 2
    assert len(mixture._HELD) == mixture.MOST_HELD


@pytest.mark.usefixtures("few_rows")
def test_a_run_on_a_mixture_resumes_exactly_and_records_what_it_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = resolve("stage3b", str(profile(tmp_path)))
    whole = run_stage(job, tmp_path / "whole", force=False, resume=False, now=now).run
    launch = TrainingLoop._launch

    def killed(loop: TrainingLoop, passes: Any) -> None:
        if loop.step == 4:
            raise KeyboardInterrupt
        launch(loop, passes)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "_launch", killed)
        with pytest.raises(RunEnded):
            run_stage(job, tmp_path / "torn", force=False, resume=False, now=now)
    resumed = run_stage(job, tmp_path / "torn", force=False, resume=True, now=now).run

    def losses(run: RunDir) -> list[float]:
        return [row["loss"] for row in run.read_jsonl("train_log.jsonl")]

    assert losses(resumed) == losses(whole) and len(losses(whole)) == 6
    before, after = (run.read_metrics()["train"]["data"] for run in (whole, resumed))
    assert before == after
    assert sum(one["drawn"] for one in before["sources"]) == 6 * 4 and all(one["drawn"] for one in before["sources"])


def test_each_source_has_its_content_in_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    paths = write(tmp_path / "a.jsonl", 3), write(tmp_path / "shards/1.jsonl", 3)
    job = job_of({"path": paths[0]}, {"path": tmp_path / "shards"})
    before = contents_of(job)
    assert {"data.train[0]", "data.train[1]"} <= before.keys()
    write(paths[1], 4)
    changed = contents_of(job)
    assert [key for key in before if before[key] != changed[key]] == ["data.train[1]"]
    (tmp_path / "shards/notes.md").write_text("not read")
    assert contents_of(job) == changed
