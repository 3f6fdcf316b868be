"""`generate_until` for lm-evaluation-harness: greedy answers up to a stop sequence, in batches of prompts of like length."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria

from app.scoring.encode import start_token
from app.scoring.generate import generate
from app.scoring.rows import padded
from jobs.errors import ConfigError, DataError

_GREEDY: dict[str, Any] = {"num_beams": 1, "do_sample": False}  # settings that leave an answer the greedy one
_IGNORED = {"temperature", "top_p", "top_k", "min_p"}  # only sampling reads them, and sampling is refused


def greedy_answers(lm: Any, asked: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[tuple[int, str]]:
    """(index, text) of each (prompt, generation_kwargs) by the model `lm`, a PrefillLM, in the order they are done.

    A prompt that leaves no room for its answer is cut from the left, as the harness does, and counted. `lm.batch_tokens`: prompt
    and answer, padded, of all rows of a batch.

    Raises:
        ConfigError: generation_kwargs ask for more than greedy decoding.
    """
    loaded, alike = lm.loaded, dict[tuple[Any, ...], list[tuple[int, list[int], int]]]()
    for index, (prompt, settings) in enumerate(asked):
        until, new = _settings(lm, settings)
        ids = lm.tok_encode(prompt)
        if not ids and (start := start_token(loaded.tokenizer)) is not None:
            ids = [start]
        if not ids:
            raise DataError("a prompt", "is empty, and the tokenizer has no token that begins a text",
                            "set bos_token in tokenizer_config.json")  # fmt: skip
        room = loaded.max_length - new
        lm.counts["contexts_truncated"] += len(ids) > room
        ids = ids[-room:]
        alike.setdefault((until, new, loaded.is_long(len(ids))), []).append((index, ids, len(ids) + new))
    for (until, new, _), rows in alike.items():
        rows.sort(key=itemgetter(2), reverse=True)
        for batch in padded(rows, lm.batch_tokens, width=itemgetter(2)):
            prompts = [ids for _, ids, _ in batch]
            stopping = stop_sequences_criteria(loaded.tokenizer, list(until), len(prompts[0]), len(prompts))
            found = generate(loaded, prompts, lm.mask, max_new_tokens=new, stopping=stopping)
            for (index, *_), ids in zip(batch, found, strict=True):
                text = loaded.tokenizer.decode(ids, skip_special_tokens=True)
                yield index, postprocess_generated_text(text, list(until), None)


def _settings(lm: Any, asked: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Stop sequences and the number of new tokens at most."""
    options: dict[str, Any] = dict(normalize_gen_kwargs(asked, lm.max_gen_toks))
    until, new = options.pop("until"), options.pop("max_gen_toks")
    for name, value in options.items():
        if name not in _IGNORED and (name not in _GREEDY or value != _GREEDY[name]):
            raise ConfigError(f"generation_kwargs: {name}", f"is {value!r}, and decoding here is greedy",
                              "ask for nothing but until, max_gen_toks, do_sample: false and temperature: 0")  # fmt: skip
    if not 0 < new < lm.max_length:
        raise ConfigError("generation_kwargs: max_gen_toks", f"is {new}, and the model's context holds {lm.max_length} tokens",
                          "lower it")  # fmt: skip
    end = lm.tokenizer.eos_token_id
    return (*until, *([] if end is None else [lm.tokenizer.decode(end)])), new
