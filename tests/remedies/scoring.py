"""Remedies of scoring and decoding."""

from __future__ import annotations

from collections.abc import Iterator

from app.model.load import Loaded
from app.scoring import generate as decoding
from app.scoring.encode import Request, encode_harness, require_clean, require_fits
from tests.app.conftest import make_model
from tests.app.fakes.word_tokenizer import word_tokenizer
from tests.remedies.cases import Action, World, remedy
from tests.remedies.models import saved

Steps = Iterator[Action | None]
ENCODE = "app/scoring/encode.py"
GENERATE = "app/scoring/generate.py"


# ---- scoring and decoding --------------------------------------------------------------------------------------------


def requests(*pairs: tuple[str, str], bos: str | None = "<s>", length: int = 8) -> Action:
    tokenizer = word_tokenizer()
    if bos is None:
        tokenizer.bos_token = tokenizer.eos_token = None
    loaded = Loaded(make_model("llama"), tokenizer, "x", length)
    return lambda: require_fits(loaded, encode_harness(tokenizer, pairs), [f"p:{n}" for n in range(1, len(pairs) + 1)])


@remedy(ENCODE, "give a non-empty continuation")
def _(w: World) -> Steps:
    yield requests(("a", ""))
    yield requests(("a", " b"))


@remedy(ENCODE, "shorten it, or use a model with a longer context")
def _(w: World) -> Steps:
    yield requests(("a b c d e f g h", " b"))
    yield requests(("a b", " b"))
    yield requests(("a b c d e f g h", " b"), length=64)


@remedy(ENCODE, "give non-empty contexts, or set bos_token in tokenizer_config.json")
def _(w: World) -> Steps:
    yield requests(("", "b"), bos=None)
    yield requests(("a", " b"), bos=None)
    yield requests(("", "b"))


@remedy(ENCODE, "give a non-empty context, or use format harness")
def _(w: World) -> Steps:
    from app.scoring.encode import encode_reference

    tokenizer = word_tokenizer()
    loaded = Loaded(make_model("llama"), tokenizer, "x", 8)
    yield lambda: require_fits(loaded, encode_reference(tokenizer, [("", "b")]), ["p:1"])
    yield lambda: require_fits(loaded, encode_reference(tokenizer, [("a", " b")]), ["p:1"])
    yield requests(("", "b"))


@remedy(ENCODE, "check the special tokens that {} adds")
def _(w: World) -> Steps:
    odd = [Request((3,), (4,), "inside")] * 10
    yield lambda: require_clean(odd, word_tokenizer())
    yield lambda: require_clean(encode_harness(word_tokenizer("<s> $A"), [("a", " b")]), word_tokenizer("<s> $A"))


def decoder(template: str | None = None, length: int = 16) -> Loaded:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return Loaded(make_model("llama"), tokenizer, "x", length)


@remedy(GENERATE, "leave --chat out")
def _(w: World) -> Steps:
    yield lambda: decoding.encode_prompts(decoder(), ["a"], chat=True)
    yield lambda: decoding.encode_prompts(decoder(), ["a"], chat=False)


@remedy(GENERATE, "give some text")
def _(w: World) -> Steps:
    yield lambda: decoding.encode_prompts(decoder(), [""], chat=False)
    yield lambda: decoding.encode_prompts(decoder(), ["a"], chat=False)


@remedy(GENERATE, "shorten the prompt or lower --max-new-tokens")
def _(w: World) -> Steps:
    yield lambda: decoding.require_fits(decoder(), [[3] * 10], 8)
    yield lambda: decoding.require_fits(decoder(), [[3] * 10], 6)
    yield lambda: decoding.require_fits(decoder(), [[3] * 8], 8)


@remedy(GENERATE, "lower --max-new-tokens", "answer them apart")
def _(w: World) -> Steps:
    model = decoder(length=64)
    object.__setattr__(model, "longest_short", 8)  # as of longrope
    if "apart" in w.text:
        yield lambda: decoding.generate(model, [[3] * 4, [3] * 12], "causal", max_new_tokens=2)
        yield lambda: [decoding.generate(model, [[3] * n], "causal", max_new_tokens=2) for n in (4, 12)]
    else:
        yield lambda: decoding.require_fits(model, [[3] * 4], 6)
        yield lambda: decoding.require_fits(model, [[3] * 4], 4)


@remedy(GENERATE, "remove prefill_chunk_size")
def _(w: World) -> Steps:
    model = decoder()
    model.model.generation_config.prefill_chunk_size = 4  # type: ignore[union-attr]
    yield lambda: decoding.generate(model, [[3, 4]], "prefix", max_new_tokens=2)
    model.model.generation_config.prefill_chunk_size = None  # type: ignore[union-attr]
    yield None


@remedy("app/commands/ask.py", "give a text, or a file")
def _(w: World) -> Steps:
    words = ("generate", "--profile", "ci", "--max-new-tokens", "1", "--model", saved(w, vocab_size=20))
    w.write("prompts.txt", "a b\n")
    yield lambda: w.cli(*words)
    yield lambda: w.cli(*words, "--prompt", "a b")
    yield lambda: w.cli(*words, "--prompts", w.path("prompts.txt"))


@remedy("app/commands/ask.py", "write one prompt a line")
def _(w: World) -> Steps:
    w.write("prompts.txt", "\n\n")
    words = ("generate", "--profile", "ci", "--max-new-tokens", "1", "--model", saved(w, vocab_size=20))
    yield lambda: w.cli(*words, "--prompts", w.path("prompts.txt"))
    w.write("prompts.txt", "a\nb\n")
    yield None


@remedy("app/commands/ask.py", "name another file")
def _(w: World) -> Steps:
    pairs = w.write("p.jsonl", [{"context": "a", "continuation": " b"}])
    words = (
        "loglikelihood",
        "--profile",
        "ci",
        "--model",
        saved(w, vocab_size=20),
        "--mask",
        "prefix",
        "--pairs",
        pairs,
    )
    yield lambda: w.cli(*words, "--out", pairs)
    yield lambda: w.cli(*words, "--out", w.path("out.jsonl"))
