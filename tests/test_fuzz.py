"""Inputs that nobody thought of: one line for a mistake, never a traceback, no half-written file, every row kept or counted.

200 inputs a kind in `make test`, the same each time; `make fuzz` tries FUZZ of them (10,000), others each time.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.commands.textfiles import read_pairs, write_scored
from app.data.examples import load_examples
from app.data.readers import PARSERS
from app.data.records import is_empty, render
from app.data.tokenize import encode, turn_end
from app.report.run_list import list_rows
from jobs.config import load, strict_yaml
from jobs.config.job import Job
from jobs.config.load import JOBS_DIR, resolve
from jobs.config.schema import TrainData
from jobs.errors import UserError
from jobs.runs.rundir import RunDir, latest_complete, latest_resumable, list_runs, resolve_init
from tests.app.fakes.word_tokenizer import word_tokenizer
from vast import policy

COUNT = int(os.environ.get("FUZZ") or 200)
fuzzed = settings(
    max_examples=COUNT, derandomize="FUZZ" not in os.environ, deadline=None, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, *([Phase.shrink] if "FUZZ" in os.environ else [])],
)  # fmt: skip

# What has broken readers of YAML and JSON before: depth, size, types, keys given twice, characters.
SNIPPETS = [
    b"[" * 1200, b"{" * 1200, b"- " * 1200, b'{"a":' * 1200, b"1" * 5000, b"1e400", b"-0", b"0x10", b"1_000", b"010", b"1:30", b".nan", b"NaN",
    b"-Infinity", b"null", b"~", b"true", b"yes", b"2026-13-01", b"2026-01-01", b"&a [*a]", b"*a", b"<<: *a", b"!!binary aGk=", b"!!set {a}",
    b"!!python/object:os.system x", b"? [a]\n: b", b"---\n", b"%YAML 1.2\n", b"\t", b"\r\n", b"\r", b"\x00", b"\x85", b"\xff\xfe", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8", b"\xed\xa0\x80", b'"\\ud800"', b"\\u0000", b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"#", b"|", b">", b"- ", b"\n", b"\n\n", b" ",
    b"train: ", b"model: {", b'"messages": ', b'"role": "assistant"', b'"content": null', b'"text": "a b"', b'"weight": 0', b'"tools": "[1]"',
    b'"context": "a"', b'"context": ', b'"logprob": 1', b"99999999999999999999999999", b"1" * 400,
]  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of `seeds` with pieces cut out, doubled, or put in."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.sampled_from([0, 0, 1, 3, 20, 200]))
        piece = draw(st.one_of(st.sampled_from(SNIPPETS), st.binary(max_size=6), st.just(text[at : at + cut] * 2)))
        text = text[:at] + piece + text[at + cut :]
    return text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**40) | st.floats() | st.text(max_size=8) | st.sampled_from(["a b", "assistant", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "name", "a"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def stages_read_once() -> Iterator[None]:
    """The shipped stages and the default policy are not what is fuzzed, and to read them takes most of the time."""
    read, default = strict_yaml.read, strict_yaml.read(policy.DEFAULT, "vast/policy.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_yaml, "read", lambda path, where: default if path == policy.DEFAULT else read(path, where))
        patch.setattr(load, "_stage_layer", functools.cache(load._stage_layer))
        yield


@contextmanager
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="prefill-fuzz-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def one_line(error: UserError) -> None:
    """A user's mistake can be printed, and names a place and a fact."""
    text = str(error)
    text.encode("utf-8", "surrogateescape")
    assert error.where and error.fact and len(text) < 5000, text[:300]


# ---- YAML ------------------------------------------------------------------------------------------------------------

PROFILES = [
    re.sub(rb"(?m)^ *#.*\n| +#.*$", b"", path.read_bytes()) for path in sorted((JOBS_DIR / "profiles").glob("*.yaml"))
]


@fuzzed
@given(
    edited(
        [
            *PROFILES,
            b"model: {source: embedded}\ndata: {eval: {source: embedded}, train: {source: embedded, format: qa}}\n",
        ]
    )
)
def test_a_profile_is_read_or_refused(text: bytes) -> None:
    with directory() as place:
        path = place / "mine.yaml"
        path.write_bytes(text)
        try:
            job = resolve("stage3b", str(path))
        except UserError as error:
            one_line(error)
        else:
            record = strict_yaml.parse(strict_yaml.dump(job.record({"base": "base"})), "record")
            assert Job.from_dict(record) == job and len(record["fingerprint"]) == 64


@fuzzed
@given(
    st.text(max_size=30)
    | edited([b"train.max_steps=20", b"score.masks=[prefix]"]).map(lambda b: b.decode("utf-8", "surrogateescape"))
)
def test_a_setting_is_read_or_refused(text: str) -> None:
    try:
        resolve("stage3b", "ci", sets=[text])
    except UserError as error:
        one_line(error)


# Without its comments, which are most of it and of the time to read it.
POLICY = re.sub(rb"(?m)^ *#.*\n| +#.*$", b"", policy.DEFAULT.read_bytes())


SECTIONS = re.split(rb"\n(?=[a-z])", POLICY)


@fuzzed
@given(edited([*SECTIONS, b"caps: {dollars: 5, hours: 3}\n", b"hooks: {}\n"]))
def test_a_policy_is_read_or_refused(text: bytes) -> None:
    with directory() as place:
        path = place / "policy.yaml"
        path.write_bytes(text)
        try:
            found = policy.load(path)
        except UserError as error:
            one_line(error)
            return
        path.write_text(policy.text(found))
        assert policy.load(path) == found


# ---- data ------------------------------------------------------------------------------------------------------------

WORDS = st.text(st.sampled_from("abcdefgh "), max_size=12)
ROWS = {
    "alpaca": st.fixed_dictionaries({"instruction": WORDS, "output": WORDS}, optional={"input": WORDS | json_values}),
    "text": st.fixed_dictionaries({"text": WORDS}),
    "messages": st.fixed_dictionaries(
        {"messages": st.lists(st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant"]), "content": WORDS},
            optional={"weight": st.sampled_from([0, 1, 0.5, None, True]), "name": json_values, "tool_calls": json_values}), max_size=4)},
        optional={"tools": json_values, "functions": st.none()}),
}  # fmt: skip


def chat_tokenizer() -> Any:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }} : {{ m.content }} {{ m.name }} {% endfor %}"
    return tokenizer


TOKENIZER = chat_tokenizer()


@st.composite
def training_file(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """(format, name, content): mostly good rows, some of them odd, sometimes edited as bytes."""
    format = draw(st.sampled_from(sorted(ROWS)))
    rows = draw(st.lists(ROWS[format] | ROWS[format] | ROWS[format] | json_values, min_size=1, max_size=6))
    name = draw(st.sampled_from(["a.json", "a.jsonl", "a.txt"]))
    lines = [json.dumps(row) for row in rows]
    text = f"[{','.join(lines)}]" if name == "a.json" else "\n".join(lines)
    content = text.encode("utf-8", "surrogatepass")
    return format, name, draw(edited([content])) if draw(st.booleans()) else content


@fuzzed
@given(training_file(), st.sampled_from(["plain", "alpaca", "chat"]), st.none() | st.integers(1, 3), st.integers(3, 40))
def test_training_rows_are_kept_counted_or_refused(
    file: tuple[str, str, bytes], template: Any, limit: int | None, length: int
) -> None:
    format, name, content = file
    with directory() as place:
        (place / name).write_bytes(content)
        source = TrainData(source="path", path=str(place / name), format=format, template=template, limit=limit)  # type: ignore[arg-type]
        try:
            examples, report = load_examples(source, TOKENIZER, max_length=length)
        except UserError as error:
            one_line(error)
            return
    counts = report.to_dict()
    dropped = sum(counts[key] for key in counts if key.startswith("dropped_"))
    assert report.read == report.kept + dropped and report.kept == len(examples)
    assert all(one.prompt_ids and one.response_ids and len(one) <= length for one in examples)


TEMPLATES = [
    b"{% for m in messages %}{{ m.role[0] }} : {{ m.content }} {{ m.name }} {% endfor %}",
    b"{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    b"{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    b"{{ raise_exception('alternate') }}{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{{ eos_token }}{% endfor %}",
]
PIECES = [b"{%", b"%}", b"{{", b"}}", b"{#", b"|", b" if ", b" else ", b"{% endif %}", b"{% endfor %}", b"{% set a = 1 %}", b"{{ a }}", b"\x02",
          b"m.content", b"messages", b"[0]", b"[-1:]", b"['role']", b" + ", b"~", b" / 0", b"{{ 1 / 0 }}", b"{{ none.x }}", b"{% generation %}",
          b"{{ strftime_now('%Y') }}", b"{% raw %}", b"a", b" ", b"\n", b"</s>", b"<s>"]  # fmt: skip


@st.composite
def templates(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(TEMPLATES))
    for _ in range(draw(st.integers(0, 4))):
        at, cut = draw(st.integers(0, len(text))), draw(st.sampled_from([0, 0, 1, 4, 20]))
        text = text[:at] + draw(st.sampled_from(PIECES)) + text[at + cut :]
    return text.decode()


@fuzzed
@given(templates(), ROWS["messages"])
def test_a_chat_template_writes_every_field_or_is_refused(template: str, row: dict[str, Any]) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    turn_end(tokenizer)
    try:
        record = PARSERS["messages"](row, "row 0")
        if record is None or is_empty(record):
            return
        example = render(record, "chat", tokenizer)  # type: ignore[arg-type]
        pairs, _ = encode([example], tokenizer)
    except UserError as error:
        one_line(error)
        return
    # What it makes of the whole chat ends in what is learnt, but for white space.
    whole = tokenizer.apply_chat_template(
        list(record.messages), tokenize=False, **({"tools": list(record.tools)} if record.tools else {})
    )  # type: ignore[union-attr]
    assert whole.rstrip().endswith(example.response.strip()) and len(pairs) == 1


@fuzzed
@given(st.lists(st.fixed_dictionaries({"context": st.text(max_size=6), "continuation": st.text(max_size=6)},
                                      optional={"id": json_values, "greedy": json_values}) | json_values, max_size=5)
       .map(lambda rows: "\n".join(map(json.dumps, rows)).encode()).flatmap(lambda seed: edited([seed])),
       st.sampled_from([-1.5, float("nan")]))  # fmt: skip
def test_pairs_come_back_line_for_line_or_not_at_all(content: bytes, logprob: float) -> None:
    with directory() as place:
        path, out = place / "pairs.jsonl", place / "out.jsonl"
        path.write_bytes(content)
        try:
            pairs = read_pairs(path)
            result: Any = SimpleNamespace(logprob=logprob, n_tokens=1, greedy=True)
            write_scored(out, pairs, [result] * len(pairs), ["clean"] * len(pairs))
        except UserError as error:
            one_line(error)
            assert sorted(p.name for p in place.iterdir()) == ["pairs.jsonl"]
            return
        written = [json.loads(line) for line in out.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
        given_lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").decode().split("\n") if line.strip()]
        assert len(written) == len(given_lines) == len(pairs)
        for row, line in zip(written, given_lines, strict=True):
            assert {key: row[key] for key in json.loads(line)} == json.loads(line) and row["logprob"] == logprob


# ---- run directories -------------------------------------------------------------------------------------------------


def whole_run() -> dict[str, bytes]:
    """The files of a complete run, as they are written."""
    with directory() as place:
        with RunDir.create(place, "stage1", datetime(2026, 11, 22, tzinfo=UTC)) as run:
            run.write_job(resolve("stage1", "ci").record({"base": "base"}))
            run.write_metrics({"schema": 1, "evaluations": []})
            run.heartbeat(1, 2, 0.5, 10.0, "train")
            run.append_jsonl("train_log.jsonl", {"step": 1, "loss": 2.0})
            run.fail(1, "an error")
            (run.path / "attempts.jsonl").write_bytes((run.path / "failed.json").read_bytes())
            failed = (run.path / "failed.json").read_bytes()
            run.complete(
                {
                    "started": "2026-11-22T00:00:00",
                    "finished": "2026-11-22T00:00:01",
                    "seconds": 1.0,
                    "headline": {"a": 0.5},
                }
            )
        return {path.name: path.read_bytes() for path in run.path.iterdir()} | {"failed.json": failed}


WHOLE = whole_run()
STAGE1, STAGE4 = resolve("stage1", "ci"), resolve("stage4", "ci", sets=["init_from=stage3b"])


@fuzzed
@given(st.dictionaries(st.sampled_from(sorted(WHOLE)), st.none() | edited([b"", b"{}", *WHOLE.values()]), max_size=4),
       st.sampled_from(["20261122-000000", "20261122-000000-2", "99999999-999999", "20261122", ".tmp"]))  # fmt: skip
def test_a_run_s_directory_is_read_or_refused_and_left_as_it_is(changed: dict[str, bytes | None], name: str) -> None:
    with directory() as runs:
        path = runs / "stage1" / name
        path.mkdir(parents=True)
        for file, content in (WHOLE | changed).items():
            if content is not None:
                (path / file).write_bytes(content)
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        fingerprint = STAGE1.fingerprint({"base": "base"})
        for look in (
            lambda: [(run.state(), run.verify()) for run in list_runs(runs)],
            lambda: [run.read_metrics() for run in list_runs(runs)],
            lambda: [run.read_jsonl("train_log.jsonl") for run in list_runs(runs)],
            lambda: [Job.from_dict(run.read_job(), "stage.yaml") for run in list_runs(runs)],
            lambda: latest_complete(runs, "stage1", "ci", fingerprint),
            lambda: latest_complete(runs, "stage1", settings=fingerprint),
            lambda: latest_resumable(runs, "stage1", fingerprint),
            lambda: resolve_init(runs, STAGE4),
            lambda: list_rows(runs),
        ):
            try:
                look()
            except UserError as error:
                one_line(error)
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before
