"""One batch of prompts decoded together, each row by its own settings: the `decode` of `python -m app generate`, with hooks.

Each row ends by itself: at the token that ends an answer, a stop string, its length, its deadline, or when nobody waits for it.
A row's random numbers are its own, so other rows of its batch change its answer by no more than rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, TopPLogitsWarper

from app.attention.backends import attend
from app.attention.mask import Document, layout
from app.model import onednn
from app.model.load import Loaded
from app.scoring.generate import PAD_ID, decode, stops_of
from app.serve.requests import ApiError
from jobs.config.schema import Mask

Finish = Literal["stop", "length", "timeout", "cancelled"]
_COLDEST = 1e-6  # a temperature: below it logits would grow beyond float32, and the likeliest token is sure already
_ROWS = 256  # of logits turned into log-probabilities at once
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for half of a character


@dataclass(frozen=True)
class Sampling:
    """How one answer is chosen. temperature 0: greedy. top: most likely tokens to be told with each one; None: no
    log-probabilities. echo: also those of the prompt's tokens, which are right under `causal` alone."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top: int | None = None
    echo: bool = False


@dataclass(frozen=True)
class Token:
    """logprob: nats, of the model's own distribution (temperature 1). top: the likeliest ids with theirs."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What is new in an answer: text that is certain, the tokens since the last one, and at the end why it ended."""

    text: str
    tokens: tuple[Token, ...]
    finish: Finish | None = None


class Row:
    """One answer in the making. `emit` is called from the decoding thread."""

    def __init__(self, ids: Sequence[int], document: Document, sampling: Sampling, emit: Callable[[Delta | ApiError], None],
                 deadline: float = float("inf")) -> None:  # fmt: skip
        self.ids, self.document, self.sampling, self.emit, self.deadline = list(ids), document, sampling, emit, deadline
        self.cancelled = False
        self.finish: Finish | None = None
        self._answer: list[int] = []
        self._new: list[Token] = []
        self._sent = ""

    @property
    def length(self) -> int:
        """Tokens of the answer so far."""
        return len(self._answer)

    def end(self, finish: Finish, tokenizer: Any) -> None:
        self._send(self._text(tokenizer), finish)

    def fail(self, error: ApiError) -> None:
        self.finish = "cancelled"
        self.emit(error)

    def add(self, token: Token, tokenizer: Any) -> None:
        """One more token of the answer."""
        self._answer.append(token.id)
        self._new.append(token)
        text, stops = self._text(tokenizer), self.sampling.stop
        found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        if found:
            self._send(text[: min(found)], "stop")
        elif self.length >= self.sampling.max_tokens:
            self._send(text, "length")
        else:
            held = max((k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)
            certain = text[: len(text) - held].rstrip(_BROKEN)
            if certain.startswith(self._sent) and certain != self._sent:
                self._send(certain, None)

    def _text(self, tokenizer: Any) -> str:
        """Of the answer as it follows the prompt: at the beginning of a text some tokenizers leave a blank out."""
        decode = partial(tokenizer.decode, skip_special_tokens=True)
        lead, whole = str(decode(self.ids[-1:])), str(decode(self.ids[-1:] + self._answer))
        begins_in_prompt = not whole.startswith(lead)  # a character whose bytes are several tokens
        return str(decode(self._answer)) if begins_in_prompt else whole[len(lead) :]

    def _send(self, text: str, finish: Finish | None) -> None:
        self.finish = finish
        self.emit(Delta(text[len(self._sent) :], tuple(self._new), finish))
        self._sent, self._new = text, []


class _Choice(LogitsProcessor):
    """Samples where a row asks for it, by leaving greedy decoding one token to choose."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.rows, self.scores = rows, torch.empty(0)
        self._random = [torch.Generator(device).manual_seed(row.sampling.seed) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool(scores.isnan().any()):
            raise FloatingPointError("the logits are not numbers")
        self.scores = scores
        sampled = [i for i, row in enumerate(self.rows) if row.sampling.temperature > 0 and row.finish is None]
        chosen = scores.clone() if sampled else scores
        for i in sampled:
            how = self.rows[i].sampling
            likely = TopPLogitsWarper(how.top_p)(None, scores[i : i + 1] / max(how.temperature, _COLDEST))
            token = torch.multinomial(likely.softmax(-1)[0], 1, generator=self._random[i])
            chosen[i] = -torch.inf
            chosen[i, token] = 0.0
        return chosen


class _Ends(StoppingCriteria):
    def __init__(self, rows: Sequence[Row], choice: _Choice, loaded: Loaded, now: Callable[[], float]) -> None:
        self.rows, self.choice, self.tokenizer, self.now = rows, choice, loaded.tokenizer, now
        self.stops = set(stops_of(loaded))

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        chosen, now = input_ids[:, -1].tolist(), self.now()
        for at, (row, token) in enumerate(zip(self.rows, chosen, strict=True)):
            if row.finish is not None:
                continue
            if row.cancelled or now > row.deadline:
                row.end("cancelled" if row.cancelled else "timeout", self.tokenizer)
            elif token in self.stops:
                row.end("stop", self.tokenizer)
            else:
                top = row.sampling.top
                one = Token(token, None) if top is None else _told(self.choice.scores[at], token, top)
                row.add(one, self.tokenizer)
        return torch.tensor([row.finish is not None for row in self.rows], device=input_ids.device)


def _told(scores: Tensor, token: int, top: int) -> Token:
    logprobs = scores.float().log_softmax(-1)
    values, ids = logprobs.topk(top)
    return Token(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def own_tokenizer(loaded: Loaded) -> Loaded:
    """`loaded` with a tokenizer of its own, for another thread: a fast tokenizer allows no two calls at once."""
    return replace(loaded, tokenizer=copy.deepcopy(loaded.tokenizer))


def answer(loaded: Loaded, rows: Sequence[Row], mask: Mask, now: Callable[[], float]) -> None:
    """Decode the rows as one batch; each is told what is new, and its end.

    Raises:
        FloatingPointError: logits that are not numbers. RuntimeError: of torch, such as out of memory.
    """
    for row in rows:
        if row.sampling.echo:
            row.emit(Delta("", prompt_tokens(loaded, row.ids, row.sampling.top or 0)))
        if row.sampling.max_tokens == 0:
            row.end("length", loaded.tokenizer)
    rows = [row for row in rows if row.finish is None]
    if not rows:
        return
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[PAD_ID] * (width - len(row.ids)) + row.ids for row in rows], device=loaded.device)
    where = layout([[row.document] for row in rows], mask, side="left", device=loaded.device)
    choice = _Choice(rows, loaded.device)
    decode(loaded, ids, where, max_new_tokens=max(row.sampling.max_tokens for row in rows),
           stopping=StoppingCriteriaList([_Ends(rows, choice, loaded, now)]),
           processors=LogitsProcessorList([choice]))  # fmt: skip


def prompt_tokens(loaded: Loaded, ids: Sequence[int], top: int) -> tuple[Token, ...]:
    """Each token of a text with its log-probability given those before it; the first has none. Under the causal mask."""
    where = layout([[Document(0, len(ids))]], "causal", device=loaded.device)
    row = torch.tensor([list(ids)], device=loaded.device)
    with torch.inference_mode(), attend(where), onednn.on_cpu(loaded.device):
        logits = loaded.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
        found = [Token(ids[0], None)]
        for begin in range(0, len(ids) - 1, _ROWS):
            following = ids[begin + 1 : begin + 1 + _ROWS]
            part = logits[begin : begin + len(following)]
            found += [_told(scores, token, top) for scores, token in zip(part, following, strict=True)]
    return tuple(found)
