"""Remedies of answers: chats, samples, prompts, the judge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.commands.textfiles import read_chats
from app.data.examples import Encoding, load_examples
from app.data.mixture import require_segmented
from app.model.load import Loaded
from app.scoring.conversation import Chat
from app.scoring.judge import KEY, Judge
from app.scoring.samples import read_prompts
from jobs.config.profile import TrainData
from jobs.config.schema import Mask
from tests.app.conftest import make_model
from tests.app.fakes.judge_endpoint import Endpoint, served
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.app.scoring.test_conversation import TEMPLATE
from tests.remedies.cases import Action, World, remedy
from tests.remedies.models import saved

Steps = Iterator[Action | None]
ASK, SAMPLES, TEXTFILES, CONVERSATION, JUDGE, PROMPTS = (
    "app/commands/ask.py", "app/commands/samples.py", "app/commands/textfiles.py", "app/scoring/conversation.py",
    "app/scoring/judge.py", "app/scoring/samples.py",
)  # fmt: skip
# It writes how many messages there are in front of them, so that earlier turns change once others follow.
COUNTS = "{{ 'abcdefgh'[messages | length] }} " + TEMPLATE


def chatting(template: str | None = TEMPLATE) -> Any:
    made = word_tokenizer()
    made.chat_template = template
    return made


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# ---- chats -----------------------------------------------------------------------------------------------------------


def generate(w: World, tokenizer: Any, *words: object) -> Action:
    model = saved(w, tokenizer=tokenizer, vocab_size=20)
    return lambda: w.cli("generate", "--profile", "ci", "--max-new-tokens", 1, "--model", model, *words)


@remedy(ASK, "leave them out")
def _(w: World) -> Steps:
    chats = w.write("chats.jsonl", [talk(("user", "d"))])
    yield generate(w, chatting(), "--chats", chats, "--prompt", "a")
    yield generate(w, chatting(), "--chats", chats)


@remedy(ASK, "use --prompts")
def _(w: World) -> Steps:
    w.write("prompts.txt", "d e\n")
    yield generate(w, chatting(None), "--chats", w.write("chats.jsonl", [talk(("user", "d"))]))
    yield generate(w, chatting(None), "--prompts", w.path("prompts.txt"))


@remedy(TEXTFILES, "end the chat with a user's question")
def _(w: World) -> Steps:
    w.write("chats.jsonl", [talk(("user", "d"), ("assistant", "e"))])
    yield lambda: read_chats(w.path("chats.jsonl"))
    w.write("chats.jsonl", [talk(("user", "d"), ("assistant", "e"), ("user", "f"))])
    yield None


@remedy(TEXTFILES, 'give lines such as {"messages": [{"role": "user", "content": "..."}]}')
def _(w: World) -> Steps:
    w.write("chats.jsonl", [{"prompt": "d"}])
    yield lambda: read_chats(w.path("chats.jsonl"))
    w.write("chats.jsonl", w.remedy.removeprefix("give lines such as "))
    yield None


def asked(template: str, mask: Mask, *rounds: str) -> Action:
    def action() -> None:
        chat = Chat(Loaded(make_model("llama"), chatting(template), "x", 128), mask)
        for text in rounds:
            chat.ask([{"role": "user", "content": text}], max_new_tokens=1)

    return action


@remedy(CONVERSATION, "ask for one answer a chat")
def _(w: World) -> Steps:
    yield asked(COUNTS, "prefix", "d", "e")
    yield asked(COUNTS, "prefix", "d")
    yield asked(COUNTS, "prefix", "e")


@remedy(CONVERSATION, "use mask prefix or causal")
def _(w: World) -> Steps:
    answered = [
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
        {"role": "user", "content": "f"},
    ]

    def ask(mask: Mask) -> Action:
        chat = Chat(Loaded(make_model("llama"), chatting(COUNTS), "x", 128), mask)
        return lambda: chat.ask(answered, max_new_tokens=1)

    yield ask("segment")
    yield ask("prefix")
    yield ask("causal")


@remedy("app/data/mixture.py", "use mask prefix or causal, or chats with one answer each")
def _(w: World) -> Steps:
    def trained(mask: Mask, *turns: tuple[str, str]) -> Action:
        def action() -> None:
            path = w.write("chats.jsonl", [talk(*turns)])
            source = TrainData(source="path", path=str(path), format="messages", template="chat")
            require_segmented(load_examples(source, Encoding(chatting(COUNTS), max_length=60))[1], mask)

        return action

    two = [("user", "d"), ("assistant", "e"), ("user", "f"), ("assistant", "g")]
    yield trained("segment", *two)
    yield trained("prefix", *two)
    yield trained("causal", *two)
    yield trained("segment", *two[:2])


# ---- samples ---------------------------------------------------------------------------------------------------------


def samples(w: World, *words: object) -> Action:
    model = Loaded(make_model("llama"), word_tokenizer(), "tiny", 128)
    w.patch.setattr("app.model.load.load", lambda *_, **__: model)
    w.patch.delenv(KEY, raising=False)
    w.write("p.yaml", "prompts:\n- {id: a, text: d e}\n")
    given = ["--prompts", w.path("p.yaml"), "--max-new-tokens", 1, "--model", "base", "--runs-dir", w.path("runs")]
    return lambda: w.cli("samples", *given, *words)


@remedy(SAMPLES, "make it, or correct --runs-dir (make: RUNS)")
def _(w: World) -> Steps:
    yield samples(w, "--mask", "causal")
    w.path("runs").mkdir()
    yield None


@remedy(SAMPLES, "name it once")
def _(w: World) -> Steps:
    w.path("runs").mkdir()
    yield samples(w, "--mask", "causal", "--mask", "causal")
    yield samples(w, "--mask", "causal")


@remedy(SAMPLES, "give the other one too")
def _(w: World) -> Steps:
    w.path("runs").mkdir()
    with served() as endpoint:
        yield samples(w, "--judge", endpoint.url)
        yield samples(w, "--judge", endpoint.url, "--judge-model", "m")


@remedy(PROMPTS, "give a file such as jobs/prompts/samples.yaml", "see jobs/prompts/samples.yaml")
def _(w: World) -> Steps:
    if w.text.startswith("see"):
        w.write("p.yaml", "prompts:\n- {id: a, text: ' '}\n")
    yield lambda: read_prompts(w.path("p.yaml"))
    w.write("p.yaml", "prompts:\n- {id: a, text: b}\n")
    yield None
    yield lambda: read_prompts()


@remedy(PROMPTS, "give another one")
def _(w: World) -> Steps:
    w.write("p.yaml", "prompts:\n- {id: a, text: b}\n- {id: a, text: c}\n")
    yield lambda: read_prompts(w.path("p.yaml"))
    w.write("p.yaml", "prompts:\n- {id: a, text: b}\n- {id: d, text: c}\n")
    yield None


# ---- the judge -------------------------------------------------------------------------------------------------------


@contextmanager
def endpoint(status: int, reply: str | bytes) -> Iterator[Endpoint]:
    with served() as found:
        found.reply = lambda content: (status, reply)
        yield found


def judged(url: str, **environ: str) -> Action:
    return lambda: Judge(url, "m", environ, pause=lambda seconds: None).choose("q", "a", "b")


def made(url: str, **environ: str) -> Action:
    return lambda: Judge(url, "m", environ)


@remedy(JUDGE, "give it as https://host/v1")
def _(w: World) -> Steps:
    yield made("https://host:port/v1")
    yield made(w.remedy.removeprefix("give it as "))


@remedy(JUDGE, "give it as https://host/v1; a key comes from {}")
def _(w: World) -> Steps:
    yield made("host/v1")
    address, _, key = w.remedy.removeprefix("give it as ").partition("; a key comes from ")
    yield made(address, **{key: "sk"})


@remedy(JUDGE, "set it anew")
def _(w: World) -> Steps:
    yield made("https://host/v1", **{KEY: "s\u00e9cret"})
    yield made("https://host/v1", **{KEY: "secret"})


@remedy(JUDGE, "use https, or unset it")
def _(w: World) -> Steps:
    yield made("http://host/v1", **{KEY: "secret"})
    yield made("https://host/v1", **{KEY: "secret"})
    yield made("http://host/v1")


@remedy(JUDGE, "set {} to a key that it takes")
def _(w: World) -> Steps:
    with endpoint(401, b"no") as found:
        yield judged(found.url, **{KEY: "old"})
        assert KEY in w.remedy
        found.reply = lambda content: (
            (200, "TIE") if found.requests[-1][1]["Authorization"] == "Bearer new" else (401, b"no")
        )
        yield judged(found.url, **{KEY: "new"})


@remedy(JUDGE, "check the address and its model", "give the address that ends in /v1", "use another model")
def _(w: World) -> Steps:
    wrong: dict[str, tuple[int, str | bytes]] = {
        "check": (404, b"no such model"), "give": (200, b"<html>"), "use": (200, "neither"),
    }  # fmt: skip
    with endpoint(*wrong[w.text.partition(" ")[0]]) as found:
        yield judged(found.url)
        found.reply = lambda content: (200, "TIE") if found.requests[-1][0] == "/v1/chat/completions" else (404, b"")
        yield judged(found.url)
