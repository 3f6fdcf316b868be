"""Greedy decoding after a prefill under a pattern: the prompt in one pass, then one causal token at a time, cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from app.attention import attend
from app.mask import Document, layout
from app.model import Loaded
from jobs.errors import DataError, ModelError


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


@contextmanager
def _greedy(model: Any, stop: int | list[int] | None, pad: int) -> Iterator[None]:
    """Nothing but the most likely token: a published generation config may ask for beams or penalise repetition."""
    published = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=stop, pad_token_id=pad, do_sample=False, disable_compile=True
    )
    try:
        yield
    finally:
        model.generation_config = published


def generate(loaded: Loaded, prompts: Sequence[Sequence[int]], mask: str, *, max_new_tokens: int,
             streamer: Any = None, stopping: Any = None) -> list[list[int]]:  # fmt: skip
    """The new tokens of each prompt, up to its end-of-sequence token (left out).

    Prompts of one call form one left-padded batch. `streamer`: a transformers streamer, for a single prompt.
    `stopping`: transformers stopping criteria, to end before the end-of-sequence token; what follows a stop is kept.

    Raises:
        DataError: prompt and answer together exceed the model's context.
        ModelError: the model's generation settings ask for chunked prefill, which would cut the prompt block.
    """
    width = max(len(p) for p in prompts)
    if width + max_new_tokens > loaded.max_length:
        longest = [len(p) for p in prompts].index(width) + 1
        raise DataError(f"prompt {longest}", f"{width} tokens and {max_new_tokens} new ones exceed the context of "
                        f"{loaded.max_length}", "shorten the prompt or lower --max-new-tokens")  # fmt: skip
    if getattr(loaded.model.generation_config, "prefill_chunk_size", None):
        raise ModelError(loaded.origin, "its generation config asks for chunked prefill: the chunks of a prompt could "
                         "not see one another in both directions", "remove prefill_chunk_size")  # fmt: skip
    pad = loaded.tokenizer.pad_token_id
    pad = pad if pad is not None else loaded.tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=loaded.device)
    where = layout([[Document(len(p), len(p))] for p in prompts], mask, side="left", device=loaded.device)
    stop = loaded.model.generation_config.eos_token_id
    with torch.inference_mode(), attend(where), _greedy(loaded.model, stop, pad):
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
