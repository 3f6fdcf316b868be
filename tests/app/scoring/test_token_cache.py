"""Token ids kept by content: the same as without the cache, found again, made again where damaged, bounded."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing import start_processes

from app.attention import selfcheck
from app.data import array_cache
from app.scoring import token_cache
from app.scoring.encode import ENCODERS, Request
from app.scoring.token_cache import key_of, requests_ahead, requests_of
from jobs.errors import DataError
from tests.app.fakes.command_line import Command
from tests.app.fakes.warm_process import WARM
from tests.app.fakes.word_tokenizer import word_tokenizer

PAIRS = [("a b", " c"), ("a b", " d a"), ("a", " b"), ("", "a b"), ("c\n\u00e9", " b")]


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rules by which texts were tokenised, not read from the cache."""
    made: list[str] = []

    def counted(rule: str) -> Any:
        def encoder(tokenizer: Any, pairs: Any) -> list[Request]:
            made.append(rule)
            return ENCODERS[rule](tokenizer, pairs)

        return encoder

    monkeypatch.setattr(token_cache, "_HELD", {})  # as in a new process
    monkeypatch.setattr(token_cache, "ENCODERS", {rule: counted(rule) for rule in ENCODERS})
    return made


def only(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


@pytest.mark.parametrize("rule", sorted(ENCODERS))
def test_what_is_read_is_what_was_made(rule: Any, tmp_path: Path, encodings: list[str]) -> None:
    tokenizer = word_tokenizer("<s> $A")
    want = ENCODERS[rule](tokenizer, PAIRS)
    assert requests_of(tokenizer, PAIRS, rule, tmp_path) == want
    assert requests_of(word_tokenizer("<s> $A"), PAIRS, rule, tmp_path) == want
    assert encodings == [rule] and {r.boundary for r in want} <= {"clean", "inside", "apart"}
    assert requests_of(tokenizer, [], rule, tmp_path) == [] == requests_of(tokenizer, [], rule, tmp_path)


def test_everything_that_decides_the_ids_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, other, begun = word_tokenizer("<s> $A"), word_tokenizer("$A </s>"), word_tokenizer("<s> $A")
    begun.eos_token = "a"
    apart = word_tokenizer("<s> $A")
    apart.split_special_tokens = True
    keys = [key_of(tokenizer, PAIRS, "harness"), key_of(tokenizer, PAIRS, "reference"), key_of(other, PAIRS, "harness"),
            key_of(begun, PAIRS, "harness"), key_of(apart, PAIRS, "harness")]  # fmt: skip
    keys += [key_of(tokenizer, pairs, "harness") for pairs in ([("a", "b")], [("ab", "")], [("a", "b"), ("a", "b")])]
    monkeypatch.setattr(array_cache, "VERSIONS", "others")
    keys.append(key_of(tokenizer, PAIRS, "harness"))
    for source in ("app.scoring.encode", "app.scoring.token_cache", "app.data.array_cache"):
        monkeypatch.setitem(token_cache._SOURCES, source, b"another rule")
        keys.append(key_of(tokenizer, PAIRS, "harness"))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "of other texts"])
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path, encodings: list[str], caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    tokenizer = word_tokenizer("$A")
    want = requests_of(tokenizer, PAIRS, "harness", tmp_path)
    path = only(tmp_path)
    whole = path.read_bytes()
    if damage == "of other texts":
        requests_of(tokenizer, PAIRS[:1], "harness", tmp_path / "other")
        path.write_bytes(only(tmp_path / "other").read_bytes())
        only(tmp_path / "other").unlink()
        (tmp_path / "other").rmdir()
        encodings.pop()
    else:
        path.write_bytes({"cut": whole[:-3], "empty": b"", "flipped": whole[:-1] + bytes([whole[-1] ^ 4])}[damage])
    assert requests_of(tokenizer, PAIRS, "harness", tmp_path) == want
    assert requests_of(tokenizer, PAIRS, "harness", tmp_path) == want
    assert encodings == ["harness"] * 2 and path.read_bytes() == whole
    assert f"{path}: damaged" in caplog.text


def test_the_files_unused_for_longest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = word_tokenizer("$A")
    for at, text in enumerate("abc"):
        requests_of(tokenizer, [(text, " d")], "harness", tmp_path)
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (at, at))
    (tmp_path / ".left-by-a-killed-process.tmp").write_bytes(b"x" * 5000)
    os.utime(tmp_path / ".left-by-a-killed-process.tmp", (0.5, 0.5))
    requests_of(tokenizer, [("a", " d")], "harness", tmp_path)  # the oldest is used
    size = next(path for path in tmp_path.iterdir() if path.suffix == ".safetensors").stat().st_size
    monkeypatch.setattr(array_cache, "MOST", 3 * size + 100)
    requests_of(tokenizer, [("d", " d")], "harness", tmp_path)
    kept = {path.stem for path in tmp_path.iterdir()}
    assert kept == {key_of(tokenizer, [(text, " d")], "harness") for text in "acd"}


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path: Path, encodings: list[str]) -> None:
    (tmp_path / "file").write_text("")
    tokenizer = word_tokenizer("$A")
    assert requests_of(tokenizer, PAIRS, "harness", tmp_path / "file") == ENCODERS["harness"](tokenizer, PAIRS)
    assert encodings == ["harness"]


def test_a_tokenizer_in_python_is_not_cached(tmp_path: Path, encodings: list[str]) -> None:
    class Slow:
        bos_token_id, eos_token_id = 0, 1

        def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

        def decode(self, ids: list[int]) -> str:
            return "<s>"

    for _ in range(2):
        requests_of(Slow(), [("a bb", " ccc")], "harness", tmp_path)
    assert encodings == ["harness"] * 2 and not list(tmp_path.iterdir())


def _fill(rank: int, together: Any, directory: Path, out: Path) -> None:
    tokenizer = word_tokenizer("$A")
    together.wait(60)
    found = sum(len(requests_of(tokenizer, [*PAIRS, (str(i), " b")], "harness", directory)) for i in range(60))
    (out / str(rank)).write_text(str(found))


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    together = multiprocessing.get_context(WARM).Barrier(2)
    start_processes(_fill, (together, tmp_path / "cache", tmp_path), 2, start_method=WARM)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["360", "360"]
    made = list((tmp_path / "cache").iterdir())
    assert {path.suffix for path in made} == {".safetensors"} and len(made) == 60


def test_tokenising_ahead_gives_the_requests_or_the_error_of_the_thread() -> None:
    with requests_ahead(word_tokenizer("$A"), PAIRS, "harness") as ahead:
        pass
    assert ahead.result() == ENCODERS["harness"](word_tokenizer("$A"), PAIRS)
    bare = word_tokenizer("$A")
    bare.bos_token = bare.eos_token = None
    with requests_ahead(bare, [("", "a")], "harness") as ahead:
        pass
    with pytest.raises(DataError, match="to stand for an empty"):
        ahead.result()


def test_models_that_score_the_same_items_share_one_list_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encodings: list[str]
) -> None:
    monkeypatch.setattr(array_cache, "cache_dir", lambda: tmp_path)

    def asked(pairs: Any, start: str = "$A") -> list[Request]:
        with requests_ahead(word_tokenizer(start), pairs, "harness") as ahead:
            return ahead.result()

    first = asked(PAIRS)
    assert asked(PAIRS) is first and len(encodings) == 1
    assert asked(PAIRS, "<s> $A") == ENCODERS["harness"](word_tokenizer("<s> $A"), PAIRS) != first
    assert asked(PAIRS[:2]) == first[:2]  # one list at a time: the next one is read from the file
    assert asked(PAIRS) == first and asked(PAIRS) is not first and len(encodings) == 3


def test_a_stage_tokenises_during_the_self_check_and_a_second_run_finds_the_ids(
    command: Command, few_rows: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encodings: list[str]
) -> None:
    monkeypatch.setattr(array_cache, "cache_dir", lambda: tmp_path / "cache")
    order: list[str] = []
    check = selfcheck.require

    def checked(*words: Any) -> Any:
        while not encodings and "checked" not in order:  # else the tokenising would begin after this
            time.sleep(0.001)
        order.append("checked")
        return check(*words)

    monkeypatch.setattr(selfcheck, "require", checked)
    run = ("run", "stage2", "--profile", "ci", "--runs-dir", str(tmp_path / "runs"), "--force")
    for _ in range(2):
        command(*run).fine()
        token_cache._HELD.clear()  # a new process
    assert encodings == ["harness"] and order == ["checked"] * 2  # two masks each
    first, second = sorted((tmp_path / "runs" / "stage2").glob("*/samples.jsonl"))
    assert first.read_text() == second.read_text()
