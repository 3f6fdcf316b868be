"""Greedy decoding after a prefill under a mask: the prompt in one pass, then one causal token at a time, cached."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import GenerationConfig, TextStreamer

from app.attention.backends import attend
from app.attention.mask import Document, Layout, layout
from app.data.tokenize import end_ids
from app.model import onednn
from app.model.load import Loaded
from app.scoring.encode import encode_texts
from app.scoring.rows import padded
from jobs.config.schema import Mask
from jobs.errors import DataError, ModelError

Cache = Literal["dynamic", "static"]
PAD_ID = 0  # any token that has a row: padding attends to padding only, and what follows an answer is cut


def encode_prompts(loaded: Loaded, prompts: Sequence[str], *, chat: bool) -> list[list[int]]:
    """Token ids of each prompt; with `chat`, as a user's turn in the tokenizer's chat template.

    Raises:
        DataError: an empty prompt, or chat without a template.
    """
    tokenizer = loaded.tokenizer
    if chat and not tokenizer.chat_template:
        raise DataError("--chat", f"the tokenizer of {loaded.origin} has no chat template", "leave --chat out")
    if chat:
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
        encoded = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    else:
        encoded = encode_texts(tokenizer, prompts)
    for number, ids in enumerate(encoded, start=1):
        if not ids:
            raise DataError(f"prompt {number}", "is empty", "give some text")
    return encoded


class AnswerStreamer(TextStreamer):
    """Writes an answer while it is decoded, and not the token that ends it, which need not be a special one."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stops = stops_of(loaded)

    def put(self, value: torch.Tensor) -> None:
        if self.next_tokens_are_prompt or int(value[-1]) not in self._stops:
            super().put(value)


def stops_of(loaded: Loaded) -> list[int]:
    """Tokens that end an answer: the generation config's and the tokenizer's end of sequence, and the end of a turn in the
    chat template."""
    return end_ids(loaded.tokenizer, loaded.model.generation_config.eos_token_id)


def require_fits(loaded: Loaded, prompts: Sequence[Sequence[int]], max_new_tokens: int,
                 names: Sequence[str] | None = None) -> None:  # fmt: skip
    """Raises DataError for the first prompt that leaves no room for its answer, or holds a token that the model has not.

    By its name, or its number among `prompts`. An answer may not begin among short texts and end among long ones either
    (`Loaded.is_long`): scored as a whole its first tokens would have other probabilities.

    Call it with all prompts before any is answered: batches have their own order and numbers.
    """
    names = names or [f"prompt {number}" for number in range(1, len(prompts) + 1)]
    for name, prompt in zip(names, prompts, strict=True):
        if len(prompt) + max_new_tokens > loaded.max_length:
            raise DataError(name, f"{len(prompt)} tokens and {max_new_tokens} new ones exceed the context of "
                            f"{loaded.max_length}", "shorten the prompt or lower --max-new-tokens")  # fmt: skip
        if loaded.is_long(len(prompt) + max_new_tokens) and not loaded.is_long(len(prompt)):
            raise DataError(name, f"{len(prompt)} tokens and {max_new_tokens} new ones cross the length at which the "
                            " model's position encoding changes", "lower --max-new-tokens")  # fmt: skip
    loaded.require_rows(prompts, names)


@contextmanager
def _greedy(model: Any, stop: list[int], cache: Cache | None) -> Iterator[None]:
    """Greedy decoding only: a published generation config may set beams or a repetition penalty."""
    published = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=stop or None,
        pad_token_id=PAD_ID,
        do_sample=False,
        disable_compile=True,
        cache_implementation=cache,
    )
    try:
        yield
    finally:
        model.generation_config = published


def generate(loaded: Loaded, prompts: Sequence[Sequence[int]], mask: Mask, *, max_new_tokens: int,
             streamer: Any = None, stopping: Any = None, cache: Cache = "dynamic") -> list[list[int]]:  # fmt: skip
    """The new tokens of each prompt, up to the token that ends its answer (left out).

    Prompts of one call form one left-padded batch, and all are short or all long (`Loaded.is_long`).
    `streamer`: a transformers streamer, for a single prompt.
    `stopping`: transformers stopping criteria, to end before the end-of-sequence token; text after a stop is kept.
    `cache`: dynamic grows with the answer; static has its full size from the start, so memory shows at the first token. A
    bfloat16 model on a GPU attends to more than 1,024 cached tokens in bfloat16 (app/attention/backends.py), so the two
    may differ on a long answer.

    Raises:
        DataError: prompt and answer together exceed the model's context.
        ModelError: the model's generation config sets chunked prefill, which would cut the prompt block.
    """
    require_fits(loaded, prompts, max_new_tokens)
    if len({loaded.is_long(len(prompt)) for prompt in prompts}) > 1:
        raise DataError("prompts", "short and long ones of a model with longrope share a batch", "answer them apart")
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[PAD_ID] * (width - len(p)) + list(p) for p in prompts], device=loaded.device)
    where = layout([[Document(len(p), len(p))] for p in prompts], mask, side="left", device=loaded.device)
    return decode(loaded, ids, where, max_new_tokens=max_new_tokens, streamer=streamer, stopping=stopping, cache=cache)[
        0
    ]


def decode(loaded: Loaded, ids: torch.Tensor, where: Layout, *, max_new_tokens: int, streamer: Any = None, stopping: Any = None,
           processors: Any = None, cache: Cache = "dynamic", past: Any = None) -> tuple[list[list[int]], Any]:  # fmt: skip
    """The new tokens of each row of `ids`, laid out as `where`, and the cache of keys and values.

    processors: transformers logits processors, to choose otherwise than greedily.
    past: a cache of the first tokens of `ids`, from an earlier call; only the others are computed.

    Raises:
        ModelError: the model's generation config sets chunked prefill, which would cut the prompt block.
    """
    if getattr(loaded.model.generation_config, "prefill_chunk_size", None):
        raise ModelError(loaded.origin, "its generation config sets chunked prefill: the chunks of a prompt could "
                         "not see one another in both directions", "remove prefill_chunk_size")  # fmt: skip
    stop = stops_of(loaded)
    with (torch.inference_mode(), attend(where), onednn.on_cpu(loaded.device),
          _greedy(loaded.model, stop, None if past is not None else cache)):  # fmt: skip
        out = loaded.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=where.is_real.long(), max_new_tokens=max_new_tokens, streamer=streamer,
            stopping_criteria=stopping, logits_processor=processors, past_key_values=past, return_dict_in_generate=True,
        )  # fmt: skip
    answers = []
    for row in out.sequences[:, ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in stop), len(row))
        answers.append(row[:end])
    return answers, out.past_key_values


def answers(loaded: Loaded, prompts: Sequence[Sequence[int]], mask: Mask, *, max_new_tokens: int,
            batch_tokens: int = 16384, cache: Cache = "dynamic") -> list[list[int]]:  # fmt: skip
    """`generate` of any number of prompts, in their order: batches of like length, `batch_tokens` each at most.

    Args:
        batch_tokens: prompts and answers of a batch with their padding; a long prompt stands alone.
    """
    require_fits(loaded, prompts, max_new_tokens)
    found: dict[int, list[int]] = {}
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    parts = [[i for i in longest_first if loaded.is_long(len(prompts[i])) is long] for long in (True, False)]
    for batch in (
        b for part in parts for b in padded(part, batch_tokens, width=lambda i: len(prompts[i]) + max_new_tokens)
    ):
        some = generate(loaded, [prompts[i] for i in batch], mask, max_new_tokens=max_new_tokens, cache=cache)
        found.update(zip(batch, some, strict=True))
    return [found[index] for index in range(len(prompts))]
