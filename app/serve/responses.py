"""Answers in OpenAI's form: whole, and as the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from app.serve.decoding import Token


class Completions:
    """One answer of /v1/completions: ids and times, and its choices."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, fingerprint: str, tokenizer: Any, logprobs: bool) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model,
                      "system_fingerprint": fingerprint}  # fmt: skip
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._offsets: dict[int, int] = {}  # of each choice, where its next token begins

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "object": self.kind, "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        return {**self._head, "object": self.chunk_kind, "choices": choices, **({"usage": usage} if usage else {})}

    def choice(self, index: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": self._told(index, tokens) if self._logprobs else None,
                "finish_reason": finish}  # fmt: skip

    part = choice

    def _text(self, token: int) -> str:
        """Of a single token, with the blank that a tokenizer leaves out at the beginning of a text."""
        text = str(self._tokenizer.decode([token]))
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        return f" {text}" if piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text

    def _told(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        texts = [self._text(token.id) for token in tokens]
        at, offsets = self._offsets.get(index, 0), []
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._offsets[index] = at
        tops = [None if token.logprob is None else self._likeliest(token, token.logprob) for token in tokens]
        return {"tokens": texts, "token_logprobs": [token.logprob for token in tokens], "top_logprobs": tops,
                "text_offset": offsets}  # fmt: skip

    def _likeliest(self, token: Token, logprob: float) -> dict[str, float]:
        """By text, the token's own among them. Parts of characters share one text, which counts for the likeliest of them."""
        found: dict[str, float] = {}
        for id, value in (*token.top, (token.id, logprob)):
            found.setdefault(self._text(id), value)
        return found


class ChatCompletions(Completions):
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._content(tokens), "finish_reason": finish}

    def part(self, index: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        delta = {"content": text} if index in self._offsets else {"role": "assistant", "content": text}
        self._offsets[index] = 0
        return {"index": index, "delta": delta, "logprobs": self._content(tokens), "finish_reason": finish}

    def _content(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        rows = [{**self._one(token.id, token.logprob), "top_logprobs": [self._one(*one) for one in token.top]}
                for token in tokens]  # fmt: skip
        return {"content": rows, "refusal": None}

    def _one(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        whole = "\N{REPLACEMENT CHARACTER}" not in text  # else a part of a character, whose bytes are not known here
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}
