"""Training examples kept on the disk by content: the same as without the cache, and never those of another job."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer

from app.data import array_cache, mixture, prepared
from app.data.contents import contents_of
from app.data.mixture import prepare
from app.data.prepared import Prepared, key_of
from app.data.suites import suite_of
from app.embedded import cache as embedded
from app.stage.run import run_stage
from jobs.config.job import Job
from jobs.config.load import resolve
from tests.app.data.test_mixture import Item
from tests.app.fakes.word_tokenizer import word_tokenizer

CHAT = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} <end> {% endfor %}"


ITEMS = (Item(),)


def tokenizer_of(chat_template: str = CHAT, template: str = "$A") -> Any:
    made = word_tokenizer(template)
    made.chat_template = chat_template
    return made


def job_of(path: Path | None = None, *sets: str, stage: str = "stage3b", format: str = "messages") -> Job:
    data = [] if path is None else [
        f"data.train={json.dumps({'source': 'path', 'path': str(path), 'format': format})}"]  # fmt: skip
    job = resolve(stage, "ci", sets=[*data, *sets])
    return replace(job, contents={"data.train": contents_of(job)["data.train"]}) if path else job


def chats(path: Path, count: int = 60) -> Path:
    """Chats of two rounds, the last of which is the evaluation item; every third begins with a round that is only read."""
    rows = [
        [("user", f"talk {at}"), ("assistant", "a b \u00e9"), ("user", "c"), ("assistant", f"d {at}")]
        for at in range(count)
    ]
    rows.append([("user", Item().question), ("assistant", Item().answers[0])])
    turns = [[{"role": role, "content": text, **({"weight": 0} if at == 1 and len(row) > 2 and n % 3 == 0 else {})}
              for at, (role, text) in enumerate(row)] for n, row in enumerate(rows)]  # fmt: skip
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, which is used."""
    monkeypatch.setattr(mixture, "lasts", prepared.lasts)
    monkeypatch.setattr(array_cache, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each job whose examples were read from their source."""
    made: list[str] = []
    read = mixture._read

    def counted(*given: Any) -> Prepared:
        made.append("read")
        return read(*given)

    monkeypatch.setattr(mixture, "_read", counted)
    return made


def another_process(job: Job, tokenizer: Any, items: Any = ITEMS) -> Prepared:
    mixture._HELD.clear()
    checked: list[int] = []
    found = prepare(job, tokenizer, items, lambda some: checked.append(len(some)))
    assert sum(checked) == len(found.examples) + len(found.held_out)
    return found


def test_what_is_found_is_what_was_read(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    job, tokenizer = job_of(chats(tmp_path / "a.jsonl")), tokenizer_of()
    first = another_process(job, tokenizer)
    assert {one.turns is None for one in first.examples} == {False} and any(one.rounds for one in first.examples)
    assert first.counts()["overlap"]["hits"] == {"piqa/0": 1}
    again = another_process(job_of(tmp_path / "a.jsonl", "train.learning_rate=1.0e-3", stage="stage3a"), tokenizer)
    assert again == first and again.counts() == first.counts() and reads == ["read"]
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_several_sources_keep_their_order_their_weights_and_their_shares(
    tmp_path: Path, cache: Path, reads: list[str]
) -> None:
    texts = tmp_path / "b.txt"
    texts.write_text("\n\n".join(f"a b c {at}" for at in range(50)))
    paths = {chats(tmp_path / "a.jsonl"): "messages", texts: "text"}
    given = [
        {"source": "path", "path": str(path), "format": kind, "weight": n}
        for n, (path, kind) in enumerate(paths.items(), 1)
    ]
    job = resolve("stage3b", "ci", sets=[f"data.train={json.dumps(given)}", "data.temperature=3"])
    job = replace(job, contents={key: value for key, value in contents_of(job).items() if key.startswith("data.train")})
    first, again = (another_process(job, tokenizer_of()) for _ in range(2))
    assert again == first and again.counts() == first.counts() and reads == ["read"]
    assert len({one.weight for one in first.sources}) == 2 == len(first.shares)


@pytest.mark.usefixtures("few_rows")
def test_a_run_is_the_same_with_a_cold_cache_a_warm_one_and_none(
    tmp_path: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def numbers(name: str) -> Any:
        mixture._HELD.clear()
        run = run_stage(job_of(), tmp_path / name, force=False, resume=False, now=lambda: datetime.now(UTC)).run
        return run.read_metrics()["train"]["data"], [line["loss"] for line in run.read_jsonl("train_log.jsonl")]

    embedded_sets = embedded.fetch_datasets()
    monkeypatch.setattr(embedded, "fetch_datasets", lambda: embedded_sets)
    cold, warm = numbers("cold"), numbers("warm")
    assert reads == ["read"]
    monkeypatch.setattr(mixture, "lasts", lambda tokenizer: False)
    assert cold == warm == numbers("none") and reads == ["read"] * 2 and cold[0]["read"] > 100


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "of another job"])
def test_a_damaged_file_is_never_trusted(
    damage: str, tmp_path: Path, cache: Path, reads: list[str], caplog: Any
) -> None:
    caplog.set_level(logging.WARNING)
    job = job_of(chats(tmp_path / "a.jsonl"))
    first = another_process(job, tokenizer_of())
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "of another job":
        another_process(job_of(tmp_path / "a.jsonl", "train.max_length=33"), tokenizer_of())
        (other,) = set(cache.iterdir()) - {path}
        other.replace(path)
        reads.pop()
    else:
        path.write_bytes({"cut": whole[:-3], "empty": b"", "flipped": whole[:-1] + bytes([whole[-1] ^ 4])}[damage])
    assert another_process(job, tokenizer_of()) == first == another_process(job, tokenizer_of())
    assert reads == ["read"] * 2 and path.read_bytes() == whole and f"{path}: damaged" in caplog.text


def test_data_that_change_while_they_are_read_are_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, read = job_of(chats(tmp_path / "a.jsonl")), mixture._read

    def late(*given: Any) -> Prepared:
        chats(tmp_path / "a.jsonl", count=70)
        return read(*given)

    monkeypatch.setattr(mixture, "_read", late)
    assert len(another_process(job, tokenizer_of()).examples) > 60 and not cache.exists()
    job = job_of(tmp_path / "a.jsonl")
    another_process(job, tokenizer_of())
    assert cache.exists()


def test_rows_of_a_suite_that_change_while_they_are_read_are_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = suite_of(resolve("stage3b", "ci", sets=["suite=reading"]).stage).reading["openbookqa"]
    rows = [{"question_stem": f"q {n}", "choices": {"text": ["yes", f"no {n}"], "label": ["A", "B"]}, "answerKey": "A"}
            for n in range(99)]  # fmt: skip

    def write(some: list[dict[str, Any]]) -> None:
        shutil.rmtree(tmp_path / task.directory, ignore_errors=True)
        Dataset.from_list(some).save_to_disk(str(tmp_path / task.directory / task.split))

    write(rows)
    stage, read = "app.data.suites.scored_tasks", mixture._read
    monkeypatch.setattr(stage, lambda stage: ["openbookqa"])
    job = resolve(
        "stage3b",
        "ci",
        sets=["suite=reading", f"data.eval={{source: path, path: {tmp_path}}}", "train.eval_fraction=0.3"],
    )
    job = replace(job, contents={"data.eval": contents_of(job)["data.eval"]})

    def late(*given: Any) -> Prepared:
        write(rows[:90])
        return read(*given)

    monkeypatch.setattr(mixture, "_read", late)
    another_process(job, tokenizer_of(), ())
    assert not cache.exists()
    another_process(replace(job, contents={"data.eval": contents_of(job)["data.eval"]}), tokenizer_of(), ())
    assert cache.exists()


def test_more_examples_than_are_kept_are_not_copied_for_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_cache, "MOST", 2000)
    monkeypatch.setattr(prepared, "joined", lambda ids: pytest.fail("copied"))
    assert another_process(job_of(chats(tmp_path / "a.jsonl")), tokenizer_of()).examples and not cache.exists()


def test_a_cache_that_this_user_may_not_enter_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("stat", "mkdir"):  # root, as whom tests may run, enters everywhere
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(array_cache, "safe_open", refuse)
    assert array_cache.kept(tmp_path / "x", lambda: 3, lambda _: {"a": array_cache.numbers([3])}, len) == 3


def test_streams_and_templates_that_write_the_date_are_not_kept(tmp_path: Path, cache: Path) -> None:
    path = chats(tmp_path / "a.jsonl")
    another_process(job_of(path), tokenizer_of("{{ strftime_now('%d') }} " + CHAT))
    streamed = {"source": "path", "path": str(path), "format": "messages", "streaming": True, "limit": None}
    job = resolve("stage3b", "ci", sets=[f"data.train={json.dumps(streamed)}"])
    mixture._HELD.clear()
    prepare(replace(job, contents={"data.train": contents_of(job)["data.train"]}), tokenizer_of(), ())
    assert not cache.exists()
    another_process(job_of(path), tokenizer_of())
    assert cache.exists()


# ---- the key ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_rows")
def test_everything_that_decides_the_examples_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherClass(type(tokenizer_of())):  # type: ignore[misc]
        pass

    items, tokenizer = [Item(), Item(id="piqa/1")], tokenizer_of()
    ended, subclass = (
        tokenizer_of(),
        OtherClass(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())),
    )
    ended.eos_token = "<unk>"
    apart = tokenizer_of()
    apart.split_special_tokens = True  # in no definition, but <s> of a text is other ids then
    for name in ("bos_token", "eos_token", "unk_token", "chat_template"):
        setattr(subclass, name, getattr(tokenizer, name))
    path = chats(tmp_path / "a.jsonl")
    jobs = [job_of(None, *sets) for sets in (
        (), ("order=repeat",), ("suite=lookup",), ("suite=lookup", "order=question_first"), ("suite=lookup", "shots=1"),
        ("train.data=profile", "suite=lookup"), ("train.overlap_ngram=12",),
        ("train.max_length=40",), ("train.cut=random",), ("train.cut=random", "seed=3"), ("train.eval_fraction=0.2",),
        ("train.eval_samples=9",), ("train.mask=segment",), ("data.train.limit=50",), ("data.train.template=chat",),
    )]  # fmt: skip
    lookup, scored = (
        job_of(None, "suite=lookup"),
        resolve("stage1", "ci", sets=["suite=lookup", "score.tasks=[lookup_8_2]"]),
    )
    jobs.append(replace(lookup, stage=lookup.stage.model_copy(update={"score": scored.stage.score})))
    jobs += [job_of(path), replace(job_of(path), contents={"data.train": "other rows"})]
    keys = [key_of(job, tokenizer, items) for job in jobs]
    keys += [
        key_of(jobs[0], other, items)
        for other in (tokenizer_of(template="<s> $A"), tokenizer_of(CHAT + "."), ended, subclass, apart)
    ]
    for name, value in {"question": "q", "answers": ("a", "b"), "task": "arc_easy", "id": "piqa/2"}.items():
        keys.append(key_of(jobs[0], tokenizer, [items[0], replace(items[1], **{name: value})]))
    keys += [key_of(jobs[0], tokenizer, items[:1]), key_of(jobs[0], tokenizer, items[::-1])]
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "suite_of", lambda stage: suite_of(stage).model_copy(update={"seed": 1}))
        keys.append(key_of(jobs[0], tokenizer, items))
    with monkeypatch.context() as patch:
        patch.setattr(array_cache, "VERSIONS", "others")
        keys.append(key_of(jobs[0], tokenizer, items))
    for source in ("app.data.mixture", "app.data.tokenize", "app.embedded.cache", "jobs.config.strict_json"):
        with monkeypatch.context() as patch:
            patch.setitem(prepared._SOURCES, source, b"other rules")
            keys.append(key_of(jobs[0], tokenizer, items))
    (tmp_path / embedded.MANIFEST).write_text("other rows")
    monkeypatch.setattr(embedded, "fetch_datasets", lambda: tmp_path)
    keys.append(key_of(jobs[0], tokenizer, items))
    assert None not in keys and len(set(keys)) == len(keys)


@pytest.mark.usefixtures("few_rows")
def test_how_the_model_is_trained_is_not_in_the_key() -> None:
    jobs = [
        job_of(stage="stage3a"),
        job_of(),
        *(job_of(None, pair) for pair in ("seed=3", "train.learning_rate=1.0e-3")),
    ]
    assert len({key_of(job, tokenizer_of(), [Item()]) for job in jobs}) == 1


@pytest.mark.parametrize("suite", ["short", "lookup", "reading"])
@pytest.mark.usefixtures("few_rows")
def test_reading_looks_at_no_setting_that_is_not_in_the_key(suite: str) -> None:
    seen: set[str] = set()

    def watched(section: Any, name: str) -> Any:
        fields = set(type(section).model_fields)

        class Watched(type(section)):  # type: ignore[misc]
            def __getattribute__(self, key: str) -> Any:
                if key in fields:
                    seen.add(f"{name}.{key}")
                return super().__getattribute__(key)

        return Watched.model_construct(**dict(section))

    job = resolve("stage3b", "ci", sets=[f"suite={suite}"])
    scored = resolve("stage1", "ci", sets=[f"suite={suite}"]).stage.score
    parts = {"train": watched(job.stage.train, "train"), "score": watched(scored, "score")}
    stage = watched(job.stage.model_copy(update=parts), "stage")
    seen.clear()
    mixture._read(replace(job, stage=stage), tokenizer_of(), [Item()], len)
    held_out = {"eval_samples", "max_steps", "eval_every", "batch_size"}  # decide `held_out`, which is in the key
    train = {f"train.{key}" for key in {*prepared._DECIDING, *held_out, "mask"}}
    assert seen <= train | {f"stage.{key}" for key in ("seed", "order", "shots", "suite", "score", "train")} | {
        "score.tasks"
    }
    assert {"train.max_length", "train.data", "stage.seed"} <= seen


def test_a_source_whose_content_is_not_known_has_no_key(tmp_path: Path) -> None:
    job = job_of(chats(tmp_path / "a.jsonl"))
    assert key_of(job, tokenizer_of(), []) and key_of(replace(job, contents={"model": "x"}), tokenizer_of(), []) is None
