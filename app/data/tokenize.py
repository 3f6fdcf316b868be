"""Prompt and response as token ids, the prompt's ids a token prefix of the whole's.

By lm-evaluation-harness's rule: trailing spaces of the prompt move to the response, the whole is encoded and split
at the prompt's length. (The harness moves line ends too; here they stay: chat and alpaca prompts end in one.) Where a
token would straddle that point the two sides are encoded apart; a generator sees the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from app.data.records import Example

Ids = list[int]


def encode(examples: Sequence[Example], tokenizer: Any) -> tuple[list[tuple[Ids, Ids]], int]:
    """(prompt ids, response ids) of each example, without an end-of-sequence token, and how many were encoded apart.

    Args:
        examples: all of one template.
        tokenizer: a fast transformers tokenizer; both texts of all examples are encoded in one call each.
    """
    if not examples:
        return [], 0
    special = examples[0].special_tokens
    prompts = [example.prompt.rstrip(" ") for example in examples]
    responses = [
        example.prompt[len(prompt) :] + example.response for example, prompt in zip(examples, prompts, strict=True)
    ]
    prompt_ids = tokenizer(prompts, add_special_tokens=special)["input_ids"]
    whole = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    whole_ids = tokenizer(whole, add_special_tokens=special)["input_ids"]
    pairs, apart = [], 0
    for response, before, ids in zip(responses, prompt_ids, whole_ids, strict=True):
        if special and before and before[-1] == tokenizer.eos_token_id:  # a tokenizer that closes every text
            before, ids = before[:-1], ids[:-1]
        after = ids[len(before) :]
        if ids[: len(before)] != before or not after:
            after = tokenizer(response, add_special_tokens=False)["input_ids"]
            apart += 1
        pairs.append((before, after))
    return pairs, apart


def cut(texts: Sequence[str], keys: Sequence[str], tokenizer: Any, seed: int) -> list[tuple[Ids, Ids]]:
    """Plain texts cut at a token boundary drawn from seed and key alone; both sides hold at least one of its tokens.

    A text of a single token cannot be cut: its response comes back empty.
    """
    pairs: list[tuple[Ids, Ids]] = []
    if not texts:
        return pairs
    encoded = tokenizer(list(texts), return_special_tokens_mask=True)
    masks = encoded["special_tokens_mask"]
    for key, ids, mask in zip(keys, encoded["input_ids"], masks, strict=True):
        lead = mask.index(0) if 0 in mask else len(mask)  # BOS, which stays with the prompt
        tail = mask[::-1].index(0) if 0 in mask else 0  # EOS of a tokenizer that closes every text
        ids = ids[: len(ids) - tail]
        places = len(ids) - lead - 1
        if places < 1:
            pairs.append((ids, []))
            continue
        draw = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8])
        at = lead + 1 + draw % places
        pairs.append((ids[:at], ids[at:]))
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
