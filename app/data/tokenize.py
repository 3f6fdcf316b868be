"""Prompts and responses as token ids, all that stands before an answer a token prefix of the whole.

By lm-evaluation-harness's rule: trailing spaces of the prompt move to the response, the whole is encoded and split
at the prompt's length. (The harness moves line ends too; here they stay: chat and alpaca prompts end in one.) Where a
token would straddle that point the two sides are encoded apart; a generator sees the same tokens. In a chat of several
rounds this holds for where each answer begins and ends.
"""

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from app.data.records import Example, Piece

Ids = list[int]


def encode(examples: Sequence[Example], tokenizer: Any) -> tuple[list[list[Ids]], int]:
    """The ids of each example's pieces, without an end-of-sequence token, and how many were encoded apart.

    Args:
        examples: one or more, all of one template.
        tokenizer: a fast transformers tokenizer; what stands before each border of all examples is encoded in one call.
    """
    special = examples[0].special_tokens
    texts = [_moved(example.pieces) for example in examples]
    encoded = iter(token_ids(tokenizer, [start for text in texts for start in accumulate(text)], special))
    found, apart = [], 0
    for example, text in zip(examples, texts, strict=True):
        fronts = [next(encoded) for _ in text]
        if special and fronts[0] and fronts[0][-1] == tokenizer.eos_token_id:  # a tokenizer that closes every text
            fronts = [front[:-1] for front in fronts]
        split = _split(example.pieces, fronts)
        if split is None:
            split = [fronts[0], *token_ids(tokenizer, text[1:], special=False)]
            apart += 1
        found.append(split)
    return found, apart


def token_ids(tokenizer: Any, texts: list[str], special: bool) -> list[Ids]:
    """As `tokenizer(texts, add_special_tokens=special)["input_ids"]`, in half the time where its backend alone makes them."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    # Some encode in a way of their own, as CodeLlama's does.
    by = next((cls.__module__ for cls in type(tokenizer).__mro__ if "_encode_plus" in vars(cls)), "")
    # The tokenizer's own call sets these as it needs them.
    settled = backend is not None and not (backend.truncation or backend.padding) and (
        backend.encode_special_tokens == tokenizer.split_special_tokens)  # fmt: skip
    if not settled or not by.startswith("transformers.tokenization_utils"):
        ids: list[Ids] = tokenizer(texts, add_special_tokens=special)["input_ids"]
        return ids
    found = backend.encode_batch_fast(texts, add_special_tokens=special)  # without the characters' offsets
    return [one.ids for one in found]


def _moved(pieces: Sequence[Piece]) -> list[str]:
    """The pieces' texts, the spaces at the end of a turn moved to the answer behind it."""
    texts = [piece.text for piece in pieces]
    for at in range(1, len(texts)):
        if pieces[at].kind != "turn" and pieces[at - 1].kind == "turn":
            kept = texts[at - 1].rstrip(" ")
            texts[at - 1], texts[at] = kept, texts[at - 1][len(kept) :] + texts[at]
    return texts


def _split(pieces: Sequence[Piece], fronts: Sequence[Ids]) -> list[Ids] | None:
    """The whole, `fronts[-1]`, cut where each piece ends; None where a token straddles a border of an answer.

    fronts: the ids of the first n pieces, for each n. A token that straddles two turns belongs to the later one.
    """
    whole, at, found = fronts[-1], 0, list[Ids]()
    for n, (piece, front) in enumerate(zip(pieces, fronts, strict=True)):
        between_turns = n + 1 < len(pieces) and piece.kind == pieces[n + 1].kind == "turn"
        same = len(front)
        if whole[:same] != front:  # seldom
            same = next((i for i, (a, b) in enumerate(zip(front, whole, strict=False)) if a != b), same)
        stop = max(at, same) if between_turns else len(front)
        if not between_turns and (same < stop or (piece.kind != "turn" and stop <= at)):
            return None
        found.append(whole[at:stop])
        at = stop
    return found


def cut(texts: Sequence[str], keys: Sequence[str], tokenizer: Any, seed: int, special: bool = True) -> list[list[Ids]]:
    """Plain texts cut at a token boundary drawn from seed and key alone; both sides hold at least one of its tokens.

    special: whether the tokenizer adds its own tokens.

    A text of a single token cannot be cut: its response comes back empty.
    """
    pairs: list[list[Ids]] = []
    encoded = tokenizer(list(texts), return_special_tokens_mask=True, add_special_tokens=special)
    masks = encoded["special_tokens_mask"]
    for key, ids, mask in zip(keys, encoded["input_ids"], masks, strict=True):
        lead = mask.index(0) if 0 in mask else len(mask)  # BOS, which stays with the prompt
        tail = mask[::-1].index(0) if 0 in mask else 0  # EOS of a tokenizer that closes every text
        ids = ids[: len(ids) - tail]
        places = len(ids) - lead - 1
        if places < 1:
            pairs.append([ids, []])
            continue
        draw = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8])
        at = lead + 1 + draw % places
        pairs.append([ids[:at], ids[at:]])
    return pairs


def turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template puts behind an answer; None if it puts none, or there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\x02"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template of its own: any error of jinja or of the template's rules
        return None
    _, found, behind = text.rpartition("\x02")
    ids = tokenizer(behind.strip(), add_special_tokens=False)["input_ids"] if found else []
    return ids[0] if ids and tokenizer.convert_ids_to_tokens(ids[0]) in tokenizer.get_added_vocab() else None


def end_ids(tokenizer: Any, published: int | list[int] | None) -> list[int]:
    """All tokens that end an answer: those published with the model, the end of sequence, and the end of a turn."""
    known = published if isinstance(published, list) else [published]
    return sorted({one for one in (*known, tokenizer.eos_token_id, turn_end(tokenizer)) if one is not None})
