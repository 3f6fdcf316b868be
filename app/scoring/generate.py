"""Greedy decoding after a prefill under a mask: the prompt in one pass, then one causal token at a time, cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import GenerationConfig

from app.attention.backends import attend
from app.attention.mask import Document, layout
from app.model import onednn
from app.model.load import Loaded
from app.scoring.rows import padded
from jobs.config.schema import Mask
from jobs.errors import DataError, ModelError

Cache = Literal["dynamic", "static"]


def encode_prompts(loaded: Loaded, prompts: Sequence[str], *, chat: bool) -> list[list[int]]:
    """Token ids of each prompt; with `chat`, as a user's turn in the tokenizer's chat template.

    Raises:
        DataError: an empty prompt, or chat without a template.
    """
    encoded = []
    for number, prompt in enumerate(prompts, start=1):
        if chat and not loaded.tokenizer.chat_template:
            raise DataError("--chat", f"the tokenizer of {loaded.origin} has no chat template", "leave --chat out")
        if chat:
            turn = [{"role": "user", "content": prompt}]
            text = loaded.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = loaded.tokenizer(prompt)["input_ids"]
        if not ids:
            raise DataError(f"prompt {number}", "is empty", "give some text")
        encoded.append(list(ids))
    return encoded


def require_fits(loaded: Loaded, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises DataError for the first prompt that leaves no room for its answer, by its number among `prompts`.

    Call it with all prompts before any is answered: batches have their own order and numbers.
    """
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) + max_new_tokens > loaded.max_length:
            raise DataError(f"prompt {number}", f"{len(prompt)} tokens and {max_new_tokens} new ones exceed the context of "
                            f"{loaded.max_length}", "shorten the prompt or lower --max-new-tokens")  # fmt: skip


@contextmanager
def _greedy(model: Any, stop: int | list[int] | None, pad: int, cache: Cache) -> Iterator[None]:
    """Greedy decoding only: a published generation config may set beams or a repetition penalty."""
    published = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=stop, pad_token_id=pad, do_sample=False, disable_compile=True, cache_implementation=cache
    )
    try:
        yield
    finally:
        model.generation_config = published


def generate(loaded: Loaded, prompts: Sequence[Sequence[int]], mask: Mask, *, max_new_tokens: int,
             streamer: Any = None, stopping: Any = None, cache: Cache = "dynamic") -> list[list[int]]:  # fmt: skip
    """The new tokens of each prompt, up to its end-of-sequence token (left out).

    Prompts of one call form one left-padded batch. `streamer`: a transformers streamer, for a single prompt.
    `stopping`: transformers stopping criteria, to end before the end-of-sequence token; text after a stop is kept.
    `cache`: dynamic grows with the answer; static has its full size from the start, so memory shows at the first token. A
    bfloat16 model on a GPU attends to more than 1,024 cached tokens in bfloat16 (app/attention/backends.py), so the two
    may differ on a long answer.

    Raises:
        DataError: prompt and answer together exceed the model's context.
        ModelError: the model's generation config sets chunked prefill, which would cut the prompt block.
    """
    require_fits(loaded, prompts, max_new_tokens)
    width = max(len(p) for p in prompts)
    if getattr(loaded.model.generation_config, "prefill_chunk_size", None):
        raise ModelError(loaded.origin, "its generation config sets chunked prefill: the chunks of a prompt could "
                         "not see one another in both directions", "remove prefill_chunk_size")  # fmt: skip
    pad = loaded.tokenizer.pad_token_id
    pad = pad if pad is not None else loaded.tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=loaded.device)
    where = layout([[Document(len(p), len(p))] for p in prompts], mask, side="left", device=loaded.device)
    stop = loaded.model.generation_config.eos_token_id
    with torch.inference_mode(), attend(where), onednn.on_cpu(loaded.device), _greedy(loaded.model, stop, pad, cache):
        out = loaded.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=where.is_real.long(), max_new_tokens=max_new_tokens, streamer=streamer,
            stopping_criteria=stopping,
        )  # fmt: skip
    stops = set(stop if isinstance(stop, list) else [stop]) | {loaded.tokenizer.eos_token_id}
    answers = []
    for row in out[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        answers.append(row[:end])
    return answers


def answers(loaded: Loaded, prompts: Sequence[Sequence[int]], mask: Mask, *, max_new_tokens: int,
            batch_tokens: int = 16384, cache: Cache = "dynamic") -> list[list[int]]:  # fmt: skip
    """`generate` of any number of prompts, in their order: batches of like length, `batch_tokens` each at most.

    Args:
        batch_tokens: prompts and answers of a batch with their padding; a long prompt stands alone.
    """
    require_fits(loaded, prompts, max_new_tokens)
    found: dict[int, list[int]] = {}
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for batch in padded(longest_first, batch_tokens, width=lambda i: len(prompts[i]) + max_new_tokens):
        some = generate(loaded, [prompts[i] for i in batch], mask, max_new_tokens=max_new_tokens, cache=cache)
        found.update(zip(batch, some, strict=True))
    return [found[index] for index in range(len(prompts))]
