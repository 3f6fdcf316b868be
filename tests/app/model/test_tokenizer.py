"""A tokenizer is read once while its files do not change, and nobody sees what another one does to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.model import tokenizer as module
from app.model.tokenizer import tokenizer_of
from tests.app.fakes.word_tokenizer import word_tokenizer


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were read."""
    names: list[str] = []
    read = module.AutoTokenizer.from_pretrained

    def counted(name: str, **options: Any) -> Any:
        names.append(str(name))
        return read(name, **options)

    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", counted)
    module._read.cache_clear()
    return names


def test_what_is_done_to_one_is_not_done_to_the_next(tmp_path: Path, reads: list[str]) -> None:
    made = word_tokenizer("<s> $A")
    made.chat_template = "{{ messages[0]['content'] }}"
    made.save_pretrained(tmp_path)
    first = tokenizer_of(str(tmp_path))
    first.eos_token, first.chat_template, first.padding_side = "a", None, "left"
    first.special_tokens_map.clear()
    again = tokenizer_of(str(tmp_path))
    assert (again.eos_token, again.chat_template, again.padding_side) == ("</s>", made.chat_template, "right")
    assert again(["a b", "c"])["input_ids"] == made(["a b", "c"])["input_ids"] and reads == [str(tmp_path)]
    assert again.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()


def test_a_directory_with_a_file_changed_added_or_moved_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    word_tokenizer().save_pretrained(tmp_path / "one")
    place = str(tmp_path / "one")
    assert tokenizer_of(place).eos_token == tokenizer_of(place).eos_token == "</s>"
    path = tmp_path / "one/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<unk>"}))
    assert tokenizer_of(place).eos_token == "<unk>"
    (tmp_path / "one/chat_template.jinja").write_text("hello")
    assert tokenizer_of(place).chat_template == "hello"
    (tmp_path / "one").rename(tmp_path / "two")
    assert tokenizer_of(str(tmp_path / "two")).name_or_path == str(tmp_path / "two")
    assert reads == [place] * 3 + [str(tmp_path / "two")]


def test_few_are_remembered(tmp_path: Path, reads: list[str]) -> None:
    most = module._read.cache_parameters()["maxsize"]
    for at in range(most + 1):
        word_tokenizer().save_pretrained(tmp_path / str(at))
        tokenizer_of(str(tmp_path / str(at)))
        tokenizer_of(str(tmp_path / "0"))  # used last, so it stays
    assert module._read.cache_info().currsize == most and len(reads) == most + 1
