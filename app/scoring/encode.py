"""Where a prompt ends and its continuation begins, in tokens: two boundary rules, each named by the format that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import DataError


@dataclass(frozen=True)
class Request:
    """One continuation to score after one context, in token ids. `is_prefix`: the context's own ids open the whole's."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    is_prefix: bool = True


def _ids(tokenizer: Any, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """Token ids of each text. Equal texts share one list: the choices of an item have one context."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.truncation or backend.padding:
        encoded = tokenizer(distinct, add_special_tokens=special)["input_ids"]
    else:  # the same ids without character offsets, which take more than half of the time
        encoded = [one.ids for one in backend.encode_batch_fast(distinct, add_special_tokens=special)]
    ids = dict(zip(distinct, encoded, strict=True))
    return [ids[text] for text in texts]


def start_token(tokenizer: Any) -> Any:
    """The token in place of an empty context: beginning of sequence, or end of sequence if the tokenizer has no other."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def _ids_started_once(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids with special tokens, but without them for a text that begins with a written BOS, as chat templates produce."""
    ids = _ids(tokenizer, texts)
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
    contexts = _ids_started_once(tokenizer, [context for context, _ in moved])
    wholes = _ids_started_once(tokenizer, [context + continuation for context, continuation in moved])
    requests = []
    for (context, continuation), head, whole in zip(moved, contexts, wholes, strict=True):
        if not context:
            start = start_token(tokenizer)
            ids = _ids(tokenizer, [continuation], special=False)[0]
            ids = ids[1:] if ids[:1] == [start] else ids
            requests.append(Request((start,), tuple(ids)))
        else:
            requests.append(Request(tuple(head), tuple(whole[len(head) :]), whole[: len(head)] == head))
    return requests


def encode_reference(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """The earlier experiment's rule, kept for comparison with its numbers.

    Prompt and whole are encoded separately, without special tokens; the whole is split at the prompt's token COUNT.
    Where a trailing space of the prompt merges with the answer, the answer's first token falls into the prompt.
    """
    prompts = _ids(tokenizer, [context for context, _ in pairs], special=False)
    wholes = _ids(tokenizer, [context + continuation for context, continuation in pairs], special=False)
    return [
        Request(tuple(whole[: len(prompt)]), tuple(whole[len(prompt) :]), whole[: len(prompt)] == prompt)
        for prompt, whole in zip(prompts, wholes, strict=True)
    ]


ENCODERS = {"harness": encode_harness, "reference": encode_reference}


def require_fits(requests: Sequence[Request], names: Sequence[str], max_length: int) -> None:
    """Refuse a request that cannot be scored as it stands, rather than cut it.

    Raises:
        DataError: an empty continuation, or a request longer than the model's context.
    """
    for request, name in zip(requests, names, strict=True):
        total = len(request.context) + len(request.continuation)
        if not request.continuation:
            raise DataError(name, "its continuation has no tokens of its own", "give a non-empty continuation")
        if not request.context:
            raise DataError(name, "its context has no tokens", "give a non-empty context, or use format harness")
        if total > max_length:
            raise DataError(name, f"is {total} tokens long, and the model's context holds {max_length}",
                            "shorten it, or use a model with a longer context")  # fmt: skip
