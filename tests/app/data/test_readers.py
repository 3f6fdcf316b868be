"""Files to records: every mistake is named by file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.data.readers import read_path
from app.data.records import Instruction
from jobs.errors import DataError

GOOD = '{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("name", "content", "format", "place", "fact"),
    [
        ("a.jsonl", f'{GOOD}\n\n{{"instruction": \n', "alpaca", "a.jsonl:3", "malformed JSON"),
        ("a.jsonl", f'{GOOD}\n{{"instruction": "a"}}\n', "alpaca", "a.jsonl:2", "field output is missing, found instr"),
        ("a.jsonl", f"{GOOD}\n[1]\n", "alpaca", "a.jsonl:2", "expected an object, found a list"),
        ("a.jsonl", '{"instruction": 5, "output": "b"}', "alpaca", "a.jsonl:1", "field instruction: expected text"),
        ("a.jsonl", GOOD.replace("b", "\\ud800"), "alpaca", "a.jsonl:1", "field output: half of a surrogate pair"),
        ("a.jsonl", GOOD.encode() + b"\n\xff\n", "alpaca", "a.jsonl:2", "not UTF-8"),
        ("a.json", f"[{GOOD},\n{GOOD}\n{GOOD}]", "alpaca", "a.json:3", "malformed JSON"),
        ("a.json", GOOD, "alpaca", "a.json", "expected a JSON array of objects, found an object"),
        ("a.json", f"[{GOOD}, {{}}]", "alpaca", "a.json: row 1", "field instruction is missing, found no fields"),
        ("t.txt", "words", "alpaca", "t.txt", "not a file of format alpaca"),
        ("t.jsonl", '{"txt": "x"}', "text", "t.jsonl:1", "field text is missing, found txt"),
        ("c.jsonl", '{"messages": "x"}', "messages", "c.jsonl:1", "field messages: expected a list, found text"),
        ("c.jsonl", '{"messages": [{"role": "user"}]}', "messages", "c.jsonl:1: messages[0]", "field content is miss"),
        (
            "c.jsonl",
            '{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]}',
            "messages",
            "c.jsonl:1",
            "field messages: expected a prompt and a last message by the assistant, found roles assistant, user",
        ),
    ],
)  # fmt: skip
def test_malformed_data_is_named_by_file_line_and_field(
    name: str, content: str | bytes, format: str, place: str, fact: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        list(read_path(tmp_path / name, "train", format))
    assert caught.value.where == str(tmp_path / place)
    assert caught.value.fact.startswith(fact)
    assert caught.value.remedy


def test_records_before_the_mistake_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{GOOD}\nnot JSON\n")
    records = read_path(tmp_path / "a.jsonl", "train", "alpaca")
    assert next(records) == Instruction(f"{tmp_path}/a.jsonl:1", "a", "", "b")
    with pytest.raises(DataError):
        next(records)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert len(list(read_path(tmp_path / "a.jsonl", "train", "alpaca"))) == 1
