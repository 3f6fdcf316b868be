"""Training examples: readers, templates, tokens, limits and counts; and every mistake with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer

from app.data.examples import DataReport, Encoding, TokenExample, load_examples, split
from app.data.mixture import prepare
from app.data.qa import read_qa
from app.data.records import render
from jobs.config.load import resolve
from jobs.config.profile import TrainData
from jobs.errors import DataError
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.embedded_default import EmbeddedPaths

ROWS = [{"instruction": f"Add {i}", "input": "" if i % 2 else f"to {i}", "output": f"{2 * i}"} for i in range(20)]


@pytest.fixture(scope="session")
def tokenizer(embedded: EmbeddedPaths) -> Any:
    return AutoTokenizer.from_pretrained(embedded.model)


@pytest.fixture
def load(tmp_path: Path, tokenizer: Any) -> Callable[..., tuple[list[TokenExample], DataReport]]:
    """Write `content` to a file of this name and load it."""

    def run(
        name: str, content: str | bytes | list[Any], format: Any, template: Any = "plain", **options: Any
    ) -> tuple[list[TokenExample], DataReport]:
        path = tmp_path / name
        if isinstance(content, list):
            lines = [json.dumps(row) for row in content]
            content = "\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        limit = options.pop("limit", None)
        source = TrainData(source="path", path=str(path), format=format, template=template, limit=limit)
        return load_examples(source, Encoding(options.pop("tokenizer", tokenizer), **{"max_length": 512, **options}))

    return run


def words(tokenizer: Any, example: TokenExample) -> tuple[str, str]:
    return tokenizer.decode(example.prompt_ids), tokenizer.decode(example.response_ids)


# ---- templates -------------------------------------------------------------------------------------------------------


def test_alpaca_rows_in_each_template(load: Callable[..., Any], tokenizer: Any) -> None:
    rows = [{"instruction": "Add.", "input": "1 and 2", "output": "3"}, {"instruction": "Sing.", "output": "La"}]
    assert [words(tokenizer, example) for example in load("a.json", rows, "alpaca")[0]] == [
        ("Add.\n1 and 2\nAnswer:", " 3<|im_end|>"),
        ("Sing.\nAnswer:", " La<|im_end|>"),
    ]
    with_input, without = [words(tokenizer, example) for example in load("a.jsonl", rows, "alpaca", "alpaca")[0]]
    assert with_input[0].endswith("\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n")
    assert without[0].endswith("\n\n### Instruction:\nSing.\n\n### Response:\n") and "### Input" not in without[0]
    assert (with_input[1], without[1]) == ("3<|im_end|>", "La<|im_end|>")
    chat = words(tokenizer, load("a.json", rows, "alpaca", "chat")[0][0])
    assert chat[0].endswith("<|im_start|>user\nAdd.\n\n1 and 2<|im_end|>\n<|im_start|>assistant\n")
    assert chat[1] == "3<|im_end|>"


@pytest.mark.parametrize("template", ["plain", "alpaca", "chat"])
def test_the_embedded_set_reads_as_question_and_answer_text(
    template: Any, tokenizer: Any, embedded: EmbeddedPaths
) -> None:
    source = TrainData(source="embedded", format="qa", template=template, limit=400)
    examples, report = load_examples(source, Encoding(tokenizer, max_length=256))
    assert set(report.kept_by_set) == {
        "trivia_qa", "nq_open", "boolq", "sciq", "social_i_qa", "commonsense_qa", "openbookqa",
    }  # fmt: skip
    assert report.read == 19548 and report.kept == len(examples) == 400 - report.dropped_length
    assert report.read == 400 + report.dropped_limit + report.dropped_duplicate + report.dropped_empty
    for example in examples:
        prompt, response = words(tokenizer, example)
        assert prompt.endswith({"plain": "\nAnswer:", "alpaca": "\n\n### Response:\n", "chat": "assistant\n"}[template])
        assert response.startswith(" ") == (template == "plain")
        assert response.endswith("<|im_end|>") and response.strip() != "<|im_end|>"
        assert len(example) <= 256


def test_each_embedded_set_gives_the_right_answer(embedded: EmbeddedPaths) -> None:
    examples = [render(question, "plain", tokenizer=None) for question in read_qa(embedded.datasets)]
    found = {example.prompt: example.response for example in examples}
    for prompt, answer in {
        "Question: Which Lloyd Webber musical premiered in the US on 10th December 1993?": "Sunset Boulevard",
        "Question: when was the last time anyone was on the moon?": "14 December 1972 UTC",
        "Question: Who proposed the theory of evolution by natural selection?": "darwin",
        "Tracy didn't go home that evening and resisted Riley's attacks.\nQuestion: What does Tracy need to do before"
        " this?": "Find somewhere to go",
        "Question: A revolving door is convenient for two direction travel, but it also serves as a security measure at"
        " a what?": "bank",
        "Question: Frilled sharks and angler fish live far beneath the surface of the ocean, which is why they are"
        " known as": "Deep sea animals",
    }.items():
        assert found[f"{prompt}\nAnswer:"] == f" {answer}"
    boolq = [
        prompt for prompt in found if prompt.endswith("does ethanol take more energy make that produces?\nAnswer:")
    ]
    assert len(boolq) == 1 and boolq[0].startswith("All biomass goes") and found[boolq[0]] == " no"


def test_without_a_chat_template_a_chat_is_refused(load: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="no chat template; use template plain or alpaca"):
        load("a.json", ROWS, "alpaca", "chat", tokenizer=word_tokenizer())


def test_turns_that_the_chat_template_refuses_are_named(load: Callable[..., Any]) -> None:
    strict = word_tokenizer()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    rows = [{"messages": [{"role": role, "content": "x"} for role in ("user", "user", "assistant")]}]
    with pytest.raises(
        DataError, match=r"c.jsonl:1: .*refuses the turns user, user, assistant \(roles must alternate\)"
    ):
        load("c.jsonl", rows, "messages", tokenizer=strict)


def test_text_files_are_documents_between_blank_lines(load: Callable[..., Any], tokenizer: Any) -> None:
    examples, report = load("t.txt", "\n\nOne line\nand another.\n\n\n  \nTwo words\n", "text")
    assert ["".join(words(tokenizer, example)) for example in examples] == [
        "One line\nand another.<|im_end|>",
        "Two words<|im_end|>",
    ]
    assert report.read == 2
    examples, report = load("t.jsonl", [{"text": "One two"}, {"text": "x"}, {"text": " "}], "text")
    assert (report.read, report.kept, report.dropped_empty) == (3, 1, 2)  # one token cannot be cut


# ---- limits, counts, split -------------------------------------------------------------------------------------------


def test_a_random_cut_makes_each_example_one_text_that_the_seed_cuts(load: Callable[..., Any], tokenizer: Any) -> None:
    whole = load("a.json", ROWS, "alpaca")[0]
    cut, other = (load("a.json", ROWS, "alpaca", seed=seed, random_cut=True)[0] for seed in (0, 1))
    texts = [tokenizer.decode([*e.prompt_ids, *e.response_ids]) for e in whole]
    assert [tokenizer.decode([*e.prompt_ids, *e.response_ids]) for e in cut] == texts
    assert all(len(e.prompt_ids) >= 1 and len(e.response_ids) >= 2 and e.learnt is None for e in cut)
    places = [len(e.prompt_ids) for e in cut]
    assert len(set(places)) > 3 and places != [len(e.prompt_ids) for e in other]
    assert [(e.key, e.text) for e in cut] == [
        (e.key, e.text) for e in whole
    ]  # the same split, the same check for overlap
    assert [e.prompt_ids for e in load("b.jsonl", ROWS, "alpaca", random_cut=True)[0]] == [e.prompt_ids for e in cut]
    (chat,), (other,) = (load("c.json", ROWS[:1], "alpaca", "chat", random_cut=cut)[0] for cut in (False, True))
    assert (*chat.prompt_ids, *chat.response_ids) == (*other.prompt_ids, *other.response_ids)


def test_too_long_examples_are_dropped_and_counted_never_truncated(load: Callable[..., Any]) -> None:
    everything, _ = load("a.json", ROWS, "alpaca")
    lengths = sorted(map(len, everything))
    assert lengths[0] < lengths[-1]
    examples, report = load("a.json", ROWS, "alpaca", max_length=lengths[-1] - 1)
    assert report.dropped_length == lengths.count(lengths[-1])
    assert examples == [example for example in everything if len(example) < lengths[-1]]
    assert report.response_tokens == sum(len(example.response_ids) for example in examples)
    assert len(load("a.json", ROWS, "alpaca", max_length=lengths[-1])[0]) == 20


def test_duplicates_and_empty_responses_are_dropped_and_counted(load: Callable[..., Any]) -> None:
    rows = [*ROWS, ROWS[3], {**ROWS[4], "output": " "}, {"instruction": "", "output": "x"}]
    examples, report = load("a.json", rows, "alpaca")
    assert (report.read, report.dropped_duplicate, report.dropped_empty, report.kept) == (23, 1, 2, 20)
    assert len({example.key for example in examples}) == 20


def test_rows_that_differ_in_where_instruction_input_and_output_meet_are_no_duplicates(
    load: Callable[..., Any],
) -> None:
    texts = [("a\nb", "", "c"), ("a", "b", "c"), ("a", "", "b\nc"), ("", "a\nb", "c"), ("a", "b", "c")]
    rows = [{"instruction": one, "input": two, "output": three} for one, two, three in texts]
    examples, report = load("a.json", rows, "alpaca", template="alpaca")
    assert (report.dropped_duplicate, report.kept) == (1, 4)
    assert len({example.key for example in examples}) == 1  # so near to each other that one side of the split has them
    assert load("a.json", rows, "alpaca", template="alpaca", limit=2)[1].kept == 2


def test_a_limit_is_a_sample_that_does_not_depend_on_order(load: Callable[..., Any]) -> None:
    few, report = load("a.json", ROWS, "alpaca", limit=5)
    assert (len(few), report.dropped_limit) == (5, 15)
    assert [example.key for example in few] != [example.key for example in load("a.json", ROWS, "alpaca")[0]][:5]
    assert set(few) == set(load("b.json", ROWS[::-1], "alpaca", limit=5)[0])
    assert set(few) < set(load("a.json", ROWS, "alpaca", limit=9)[0])


def test_the_split_is_stable_under_order_and_additions_and_near_its_fraction(load: Callable[..., Any]) -> None:
    rows = [{"instruction": f"Count to {i}", "output": f"{i}"} for i in range(2000)]
    examples, _ = load("a.json", rows, "alpaca")
    train, evaluation = split(examples, 0.1)
    assert len(train) + len(evaluation) == 2000 and 150 < len(evaluation) < 250
    assert split(examples[::-1], 0.1) == (train[::-1], evaluation[::-1])
    _, fewer = split(examples[:1000], 0.1)
    assert set(fewer) <= set(evaluation)
    sampled, _ = load("a.json", rows, "alpaca", limit=500)
    assert 25 < len(split(sampled, 0.1)[1]) < 75  # the limit's hash is independent of the split's


def test_the_key_is_the_words_alone(load: Callable[..., Any]) -> None:
    plain, _ = load("a.json", ROWS, "alpaca")
    alpaca, _ = load("a.json", ROWS, "alpaca", "alpaca", tokenizer=word_tokenizer())
    assert [example.key for example in plain] == [example.key for example in alpaca]
    assert plain[0].text == "Add 0\nto 0\n0"


def test_a_split_with_an_empty_side_is_refused(load: Callable[..., Any]) -> None:
    examples, _ = load("a.json", ROWS, "alpaca")
    with pytest.raises(DataError, match="train.eval_fraction: 1e-06 of 20 examples leaves the evaluation side empty"):
        split(examples, 1e-6)
    with pytest.raises(DataError, match="leaves the training side empty"):
        split(examples, 1 - 1e-9)


def test_rows_that_were_dropped_are_told_where_too_few_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"instruction": "a b", "output": "c"}] * 40
    job = resolve("stage3b", "ci", sets=["data.train.source=path", f"data.train.path={tmp_path / 'a.json'}", "data.train.format=alpaca"])  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(
        DataError, match=r"of 1 examples leaves the evaluation side empty \(dropped: 39 that repeat another\)"
    ):
        prepare(job, word_tokenizer(), [])
    rows += [{"instruction": f"a {i}", "output": "b"} for i in range(90)]
    (tmp_path / "a.json").write_text(json.dumps([*rows, {"instruction": "a", "output": ""}]))
    with caplog.at_level("INFO"):
        data = prepare(job, word_tokenizer(), [])
    assert (
        f"{len(data.examples)} training examples, {len(data.held_out)} held out; dropped: 1 empty, 39 that repeat another"
        in caplog.text
    )


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "format"), [("a.json", "[]", "alpaca"), ("a.jsonl", "\n", "alpaca"), ("t.txt", " \n", "text")]
)
def test_empty_data_is_refused(name: str, content: str, format: str, load: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path / name}: holds no examples; give at least one"):
        load(name, content, format)


def test_the_error_when_no_example_is_left_names_the_reasons(load: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="no example is left of 20: 20 longer than train.max_length; raise"):
        load("a.json", ROWS, "alpaca", max_length=2)


def test_missing_paths_and_unfit_formats_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    def load_from(**source: Any) -> None:
        load_examples(TrainData(**source), Encoding(tokenizer, max_length=64))

    with pytest.raises(DataError, match="nowhere.json: no such file or directory"):
        load_from(source="path", path=str(tmp_path / "nowhere.json"), format="alpaca")
    with pytest.raises(DataError, match="qa is a collection of several sets, not one hub dataset"):
        load_from(source="hub", name="some/qa", format="qa")
    with pytest.raises(DataError, match=f"{tmp_path}.*no saved dataset here"):
        load_from(source="path", path=str(tmp_path), format="qa")
    holds = re.escape(f"{tmp_path}: holds neither files that end in .jsonl, .json, .csv, .parquet nor a saved dataset")
    with pytest.raises(DataError, match=holds):
        load_from(source="path", path=str(tmp_path), format="alpaca")


def test_a_tokenizer_without_an_end_is_refused(load: Callable[..., Any]) -> None:
    endless = word_tokenizer()
    endless.eos_token = None
    with pytest.raises(DataError, match="tokenizer: has no end-of-sequence token"):
        load("a.json", ROWS, "alpaca", tokenizer=endless)


def test_a_saved_dataset_is_read_by_its_split(tmp_path: Path, tokenizer: Any) -> None:
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:3]))
    both.save_to_disk(str(tmp_path / "saved"))
    source = TrainData(source="path", path=str(tmp_path / "saved"), format="alpaca")
    test = source.model_copy(update={"split": "test"})
    assert len(load_examples(source, Encoding(tokenizer, max_length=64))[0]) == 20
    assert len(load_examples(test, Encoding(tokenizer, max_length=64))[0]) == 3
    with pytest.raises(DataError, match="no split 'validation'; choose one of: test, train"):
        load_examples(source.model_copy(update={"split": "validation"}), Encoding(tokenizer, max_length=64))


def test_a_hub_dataset_is_asked_for_by_name_and_split(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, configuration: str | None, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, configuration, split, revision))
        return datasets.Dataset.from_list([*ROWS, {**ROWS[0], "output": None}][: 21 if split == "bad" else 20])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = TrainData(source="hub", name="some/alpaca", revision="v1", format="alpaca", split="train[:20]")
    assert len(load_examples(source, Encoding(tokenizer, max_length=64))[0]) == 20
    assert asked == [("some/alpaca", None, "train[:20]", "v1")]
    with pytest.raises(
        DataError, match="hub dataset some/alpaca: bad: row 20: field output: expected text, found null"
    ):
        load_examples(source.model_copy(update={"split": "bad"}), Encoding(tokenizer, max_length=64))


def test_a_malformed_row_of_a_question_set_is_named(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"question": "q", "answer": {"value": "a"}}, {"question": "q", "answer": None}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "trivia_qa" / "rc.wikipedia.nocontext" / "validation"))
    source = TrainData(source="path", path=str(tmp_path), format="qa")
    with pytest.raises(DataError, match="trivia_qa/rc.wikipedia.nocontext: row 1: not a row of trivia_qa"):
        load_examples(source, Encoding(tokenizer, max_length=64))


def test_nothing_left_by_the_check_for_overlap_is_not_a_matter_of_the_fraction() -> None:
    with pytest.raises(
        DataError, match="no example is left: every one shares text with an evaluation item; use other data"
    ):
        split([], 0.2)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"n": ' + "1" * 5000 + "}", "malformed JSON: Exceeds the limit"),
        ('{"text": "a", "text": "b"}', "the key 'text' is given twice"),
        ('{"text": NaN}', "NaN is not JSON"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_that_python_would_answer_with_a_traceback_or_a_guess(
    load: Callable[..., Any], name: str, content: str, fact: str
) -> None:
    with pytest.raises(DataError, match=rf"{name}(:1)?: .*{fact}"):
        load(name, content, "text")
