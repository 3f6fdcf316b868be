"""Inputs that nobody thought of: one line for a mistake, never a traceback, no half-written file, every row kept or counted.

200 inputs a kind in `make test`, the same each time; `make fuzz` tries FUZZ of them (10,000), others each time.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.commands.textfiles import read_pairs, write_scored
from app.data.examples import Encoding, load_examples
from app.data.readers import PARSERS
from app.data.records import is_empty, render
from app.data.tokenize import encode, turn_end
from jobs.config.profile import TrainData
from jobs.errors import UserError
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.fuzzing import directory, edited, fuzzed, json_values, one_line

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
            examples, report = load_examples(source, Encoding(TOKENIZER, max_length=length))
        except UserError as error:
            one_line(error)
            return
    counts = vars(report)
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
