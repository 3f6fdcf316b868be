"""`generate_until` for lm-evaluation-harness: greedy answers up to a stop sequence, in batches of prompts of like length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria

from app.scoring.encode import start_token
from app.scoring.generate import generate
from app.scoring.rows import padded
from jobs.errors import ConfigError, DataError

_GREEDY: dict[str, Any] = {"num_beams": 1, "do_sample": False}  # settings that leave an answer the greedy one
_IGNORED = {"temperature", "top_p", "top_k", "min_p"}  # only sampling reads them, and sampling is refused


@dataclass(frozen=True)
class _Work:
    """One prompt: where it stands in the caller's list, its ids, its stop sequences and its new tokens at most."""

    index: int
    ids: list[int]
    until: tuple[str, ...]
    new: int


class Answers:
    """How the model `lm` answers, a PrefillLM. Its `batch_tokens`: prompt and answer, padded, of all rows of a batch."""

    def __init__(self, lm: Any) -> None:
        self.lm, self.loaded = lm, lm.loaded

    def to(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[tuple[int, str]]:
        """(index, text) of each (prompt, generation_kwargs), in the order they are done, longest first.

        A prompt that leaves no room for its answer is cut from the left, as the harness does, and counted.

        Raises:
            ConfigError: generation_kwargs ask for more than greedy decoding.
        """
        work = []
        for index, (prompt, settings) in enumerate(asked):
            until, new = self._settings(settings)
            ids = self.lm.tok_encode(prompt)
            if not ids and (start := start_token(self.loaded.tokenizer)) is not None:
                ids = [start]
            if not ids:
                raise DataError("a prompt", "is empty, and the tokenizer has no token that begins a text",
                                "set bos_token in tokenizer_config.json")  # fmt: skip
            room = self.loaded.max_length - new
            self.lm.counts["contexts_truncated"] += len(ids) > room
            work.append(_Work(index, ids[-room:], until, new))
        work.sort(key=lambda one: (*self._kind(one), -len(one.ids)))
        for _, alike in groupby(work, key=self._kind):
            for batch in padded(list(alike), self.lm.batch_tokens, width=lambda one: len(one.ids) + one.new):
                yield from self._answer(batch)

    def _kind(self, one: _Work) -> tuple[Any, ...]:
        return one.new, one.until, self.loaded.is_long(len(one.ids))

    def _answer(self, batch: Sequence[_Work]) -> Iterator[tuple[int, str]]:
        tokenizer, until = self.loaded.tokenizer, list(batch[0].until)
        prompts = [one.ids for one in batch]
        stopping = stop_sequences_criteria(tokenizer, until, max(map(len, prompts)), len(prompts))
        answers = generate(self.loaded, prompts, self.lm.mask, max_new_tokens=batch[0].new, stopping=stopping)
        for one, ids in zip(batch, answers, strict=True):
            yield one.index, postprocess_generated_text(tokenizer.decode(ids, skip_special_tokens=True), until, None)

    def _settings(self, asked: dict[str, Any]) -> tuple[tuple[str, ...], int]:
        """Stop sequences and the number of new tokens at most."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(asked, self.lm.max_gen_toks))
        until, new = options.pop("until"), options.pop("max_gen_toks")
        for name, value in options.items():
            if name not in _IGNORED and (name not in _GREEDY or value != _GREEDY[name]):
                raise ConfigError(f"generation_kwargs: {name}", f"is {value!r}, and decoding here is greedy",
                                  "ask for nothing but until, max_gen_toks, do_sample: false and temperature: 0")  # fmt: skip
        if not 0 < new < self.loaded.max_length:
            raise ConfigError("generation_kwargs: max_gen_toks", f"is {new}, and the model's context holds "
                              f"{self.loaded.max_length} tokens", "lower it")  # fmt: skip
        end = self.loaded.tokenizer.eos_token_id
        return (*until, *([] if end is None else [self.loaded.tokenizer.decode(end)])), new
