"""Where a prompt ends and its continuation begins, in tokens: two boundary rules, each named by the format that uses it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.attention.mask import Span
from app.data.tokenize import token_ids
from app.model.load import Loaded
from jobs.errors import DataError

# Where a continuation begins. clean: the context's own ids open those of the whole. inside: a token spans the boundary, and
# the whole is split at the number of the context's tokens. apart: nothing would be left, so both sides are encoded alone.
Boundary = Literal["clean", "inside", "apart"]
_MOST_UNCLEAN = 0.9  # of all requests: a few tokens span a boundary in any file, and nearly all of them in none


@dataclass(frozen=True)
class Request:
    """One continuation to score after one context, in token ids.

    turns: spans of the context that are a turn of a user or of the system; None: it is one turn.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    boundary: Boundary = "clean"
    turns: tuple[Span, ...] | None = None

    @property
    def is_prefix(self) -> bool:
        """The context's own ids open those of the whole."""
        return self.boundary == "clean"


def _ids(tokenizer: Any, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """Token ids of each text. Equal texts share one list: the choices of an item have one context."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    encoded = token_ids(tokenizer, distinct, special)
    ids = dict(zip(distinct, encoded, strict=True))
    return [ids[text] for text in texts]


def start_token(tokenizer: Any) -> Any:
    """The token in place of an empty context: beginning of sequence, or end of sequence if the tokenizer has no other."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def _closing(tokenizer: Any) -> int:
    """How many special tokens the tokenizer appends to a text."""
    bare, whole = (_ids(tokenizer, ["a"], special)[0] for special in (False, True))
    starts = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
    return len(whole) - len(bare) - starts[-1] if bare and starts else 0


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as the start of a longer one: scorer and generator use this one function.

    Special tokens stand before a text as the tokenizer puts them, but not twice: a text that begins with a written BOS, as
    chat templates produce, gets none. Those that the tokenizer appends, such as an end of sequence, are cut, as in training.
    """
    closing = _closing(tokenizer)
    ids = [one[: len(one) - closing] for one in _ids(tokenizer, texts)]
    written = "" if start_token(tokenizer) is None else tokenizer.decode([start_token(tokenizer)])
    started = [index for index, text in enumerate(texts) if written and text.startswith(written)]
    for index, plain in zip(started, _ids(tokenizer, [texts[i] for i in started], special=False), strict=True):
        ids[index] = plain
    return ids


def encode_harness(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """lm-evaluation-harness's rule (lm_eval/api/model.py, TemplateLM).

    Trailing white space of the context moves to the continuation; the whole is encoded and split at the length of the
    encoded context. An empty context is the beginning-of-sequence token (or end-of-sequence, where there is none). A text
    that begins with that token in writing does not get a second one.
    """
    moved = []
    for context, continuation in pairs:
        kept = context.rstrip()
        moved.append((kept, context[len(kept) :] + continuation) if context else ("", continuation))
    contexts = encode_texts(tokenizer, [context for context, _ in moved])
    wholes = encode_texts(tokenizer, [context + continuation for context, continuation in moved])
    requests = []
    for (context, continuation), head, whole in zip(moved, contexts, wholes, strict=True):
        if not context:
            start = start_token(tokenizer)
            if start is None:
                raise DataError("the tokenizer", "has neither a beginning- nor an end-of-sequence token to stand for an empty "
                                "context", "give non-empty contexts, or set bos_token in tokenizer_config.json")  # fmt: skip
            ids = _ids(tokenizer, [continuation], special=False)[0]
            ids = ids[1:] if ids[:1] == [start] else ids
            requests.append(Request((start,), tuple(ids)))
        else:
            requests.append(_split(tokenizer, head, whole, continuation))
    return requests


def _split(tokenizer: Any, context: list[int], whole: list[int], continuation: str) -> Request:
    """The whole split at the number of the context's tokens; both sides encoded apart where that leaves nothing."""
    rest = whole[len(context) :]
    if not rest and continuation:
        return Request(tuple(context), tuple(_ids(tokenizer, [continuation], special=False)[0]), "apart")
    return Request(tuple(context), tuple(rest), "clean" if whole[: len(context)] == context else "inside")


def encode_reference(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """The earlier experiment's rule, kept for comparison with its numbers.

    Prompt and whole are encoded separately, without special tokens; the whole is split at the prompt's token COUNT.
    Where a trailing space of the prompt merges with the answer, the answer's first token falls into the prompt.
    """
    prompts = _ids(tokenizer, [context for context, _ in pairs], special=False)
    wholes = _ids(tokenizer, [context + continuation for context, continuation in pairs], special=False)
    requests = []
    for prompt, whole, (_, continuation) in zip(prompts, wholes, pairs, strict=True):
        one = _split(tokenizer, prompt, whole, continuation)
        requests.append(one if one.boundary == "apart" else replace(one, context=tuple(whole[: len(prompt)])))
    return requests


ENCODERS = {"harness": encode_harness, "reference": encode_reference}


def require_fits(loaded: Loaded, requests: Sequence[Request], names: Sequence[str]) -> None:
    """Refuse a request that cannot be scored as it stands, rather than cut it.

    Raises:
        DataError: an empty continuation, a request longer than the model's context, or a token that the model has not.
    """
    max_length = loaded.max_length
    for request, name in zip(requests, names, strict=True):
        total = len(request.context) + len(request.continuation)
        if not request.continuation:
            raise DataError(name, "its continuation has no tokens of its own", "give a non-empty continuation")
        if not request.context:
            raise DataError(name, "its context has no tokens", "give a non-empty context, or use format harness")
        if total > max_length:
            raise DataError(name, f"is {total} tokens long, and the model's context holds {max_length}",
                            "shorten it, or use a model with a longer context")  # fmt: skip
    # The context is mostly one object for all choices of an item.
    different = {id(ids): ids for request in requests for ids in (request.context, request.continuation)}
    if max(map(max, different.values()), default=0) >= loaded.token_rows:
        loaded.require_rows(((*request.context, *request.continuation) for request in requests), names)


def unclean(requests: Sequence[Request], names: Sequence[str]) -> str:
    """One line that counts and names the requests in which a token spans the boundary; empty if there are none."""
    facts = []
    for boundary, rule in (("inside", "split at the number of the context's tokens, as the harness does"),
                           ("apart", "nothing is left of the continuation: both sides are encoded apart")):  # fmt: skip
        found = [name for request, name in zip(requests, names, strict=True) if request.boundary == boundary]
        if found:
            some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            facts.append(f"in {len(found)} of {len(requests)} a token spans context and continuation ({some}): {rule}")
    return "; ".join(facts)


def require_clean(requests: Sequence[Request], tokenizer: Any) -> None:
    """Raises DataError if nearly every request is unclean: that is the tokenizer, and the numbers would mean nothing."""
    count = sum(not request.is_prefix for request in requests)
    if requests and count >= _MOST_UNCLEAN * len(requests):
        raise DataError("the tokenizer", f"changes the tokens of the context in {count} of {len(requests)} requests once a "
                        "continuation follows it", f"check the special tokens that {type(tokenizer).__name__} adds")  # fmt: skip
