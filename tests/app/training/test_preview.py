"""Examples for people: the marks are those of the tensors that training uses."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from app.data.examples import TokenExample
from app.training.batch import Collator
from app.training.preview import legend, preview
from jobs.config.schema import Mask
from tests.app.fakes.command_line import Command

# Two rounds: turn a b, learnt c, turn d e, read-only f, turn g, learnt h and the end of sequence.
CHAT = TokenExample(
    (3, 4), (5, 6, 7, 8, 9, 10, 1), "0" * 64, "", turns=((0, 2), (3, 5), (6, 7)), learnt=((2, 3), (7, 9))
)


@pytest.mark.parametrize(
    ("mask", "text", "blocks"),
    [
        ("causal", "a b[[c]]d e f g[[h</s>]]", "none"),
        ("prefix", "<<a b>>[[c]]d e f g[[h</s>]]", "0-1"),
        ("segment", "<<a b>>[[c]]<<d e>>f<<g>>[[h</s>]]", "0-1, 3-4, 6-6"),
    ],
)
def test_what_is_learnt_and_what_is_a_block_is_marked(mask: Mask, text: str, blocks: str, words: object) -> None:
    head, shown = preview(CHAT, Collator(mask, packing=False, causal_fraction=1.0), words, coloured=False).split("\n")
    assert shown == text
    assert head == f"9 tokens: prompt 2, response 7, learnt 3; blocks under {mask}: {blocks}"


def test_on_a_terminal_the_marks_are_colours(words: object) -> None:
    shown = preview(CHAT, Collator("prefix", packing=False), words, coloured=True)
    assert click.unstyle(shown).endswith("a bcd e f gh</s>") and click.style("c", fg="green", bold=True) in shown
    assert click.style("a b", fg="blue") in shown and "[[" not in shown
    assert "[[learnt]]" in legend(False) and click.style("learnt", fg="green", bold=True) in legend(True)


class Words:
    """Decodes ids as the words of tests/app/fakes/word_tokenizer.py, without a space before the end of sequence."""

    def decode(self, ids: list[int]) -> str:
        return " ".join("abcdefgh"[one - 3] if one > 2 else "</s>" for one in ids).replace(" </s>", "</s>")


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.mark.usefixtures("few_rows")
def test_the_command_shows_each_source_what_was_dropped_and_nothing_in_colour(command: Command, tmp_path: Path) -> None:
    rows = [{"instruction": "Add 1 and 2.", "output": "3"}] * 2 + [{"instruction": "Count.", "output": "1 2 3 " * 200}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = f"{{source: path, path: {tmp_path}/a.jsonl, format: alpaca, template: alpaca, streaming: true, weight: 1}}"
    both = f"data.train=[{{source: embedded, format: qa, weight: 2}}, {path}]"
    done = command("preview", "stage3a", "--profile", "ci", "--examples", 1, "--set", both).fine()
    assert done.count(" tokens: prompt ") == 2 and "\x1b" not in done
    assert "data.train[0]: embedded, format qa, template plain; of the first" in done
    assert "of the first 3 dropped: 1 that repeat another, 1 longer than train.max_length; longest kept:" in done
    assert (
        "### Instruction:\nAdd 1 and 2.\n\n### Response:\n[[3<|im_end|>]]" in done
        and "blocks under causal: none" in done
    )


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stage1",), ("stage1: does not train, so it has no examples", "name a stage with a section train")),
        (("--set", "data.train={source: path, path: no.jsonl, format: alpaca}"), ("no.jsonl does not exist", "correct the path")),
        (("--set", "train.max_length=2"), ("no example is left of 512", "raise train.max_length")),
        (("--examples", "0"), ("--examples", "is not in the range")),
    ],
)  # fmt: skip
def test_a_preview_that_cannot_be_is_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...], command: Command
) -> None:
    command("preview", *arguments, "--profile", "ci").refused(*words, alone="train.max_length=2" not in arguments)
