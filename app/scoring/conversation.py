"""A chat with a model, round by round: the keys and values of earlier rounds stay in the cache.

    ids       system's turn, user's turn | answer | what closes it, user's turn | answer | ...
    computed  in one pass                  one by one        in one pass          one by one

No mask of ours but `bidirectional` lets a token see a later turn, so the cached states are those of a pass over the whole chat.
Under `prefix` the prompt before the first answer is bidirectional and later turns are causal; under `segment` each turn is
bidirectional in itself. Where a turn begins and how an answer is closed, training and this module read from one function
(app/data/records.py): a chat is generated as it is trained.
"""

from collections.abc import Sequence
from typing import Any

import torch

from app.attention.mask import Document, Span, layout
from app.data.records import Conversation, Example, Piece, render
from app.data.tokenize import encode
from app.model.load import Loaded
from app.scoring.generate import decode, require_fits
from jobs.config.schema import Mask
from jobs.errors import DataError

MARK = "\x02"  # stands for an answer in the rendered chat, where the tokens that were generated go


class Chat:
    """One conversation under one mask.

    ids: all tokens so far. turns: spans of them that are a turn of a user or of the system. prompt_len: how many stand before the
    first generated answer.
    """

    def __init__(self, loaded: Loaded, mask: Mask, where: str = "chat") -> None:
        self.loaded, self.mask, self.where = loaded, mask, where
        self.ids: list[int] = []
        self.turns: list[Span] = []
        self.prompt_len = 0
        self._messages: list[dict[str, Any]] = []
        self._given: list[int] = []  # answers among them that were not generated
        self._pieces: tuple[Piece, ...] = ()
        self._cache: Any = None

    def ask(self, messages: Sequence[dict[str, Any]], *, max_new_tokens: int, streamer: Any = None) -> list[int]:
        """The answer's tokens to the chat so far and `messages` behind it, without the token that ends it.

        Raises: as `read`.
        """
        known = len(self.ids)
        document = self.read(messages, max_new_tokens=max_new_tokens)
        if self.loaded.is_long(len(self.ids)) and not self.loaded.is_long(known):
            self._cache = None  # cached under the position encoding of short texts
        where = layout([[document]], self.mask, device=self.loaded.device)
        row = torch.tensor([self.ids], device=self.loaded.device)
        (answer,), self._cache = decode(self.loaded, row, where, max_new_tokens=max_new_tokens, streamer=streamer,
                                        past=self._cache)  # fmt: skip
        self.ids += answer
        return answer

    def read(self, messages: Sequence[dict[str, Any]], *, max_new_tokens: int) -> Document:
        """Append `messages` to `ids`; what is then to be answered.

        Args:
            messages: as a chat template takes them, the last by a user or a tool; answers among them count as read.

        Raises:
            DataError: the chat exceeds the model's context, or its template is none for chats of several rounds.
        """
        new = self._pieces_of(messages)
        (parts,), _ = encode([Example("", "", False, tuple(new))], self.loaded.tokenizer)
        begin = len(self.ids)
        for piece, ids in zip(new, parts, strict=True):
            if piece.kind == "turn":
                self.turns.append((begin, begin + len(ids)))
            begin += len(ids)
        self.ids += [token for ids in parts for token in ids]
        self.prompt_len = self.prompt_len or len(self.ids)
        require_fits(self.loaded, [self.ids], max_new_tokens, [self.where])
        return Document(self.prompt_len, len(self.ids), turns=tuple(self.turns))

    def _pieces_of(self, messages: Sequence[dict[str, Any]]) -> list[Piece]:
        """What is new in the chat: what closes the last answer, and `messages`."""
        start = len(self._messages)
        self._messages += [*messages, {"role": "assistant", "content": MARK}]
        self._given += [start + at for at, message in enumerate(messages) if message["role"] == "assistant"]
        record = Conversation(self.where, tuple(self._messages), read_only=tuple(self._given))
        example = render(record, "chat", self.loaded.tokenizer)
        before, self._pieces = self._pieces, example.chat
        if self.mask == "segment" and not example.segmented:
            fact = "the chat template does not show where each turn begins"
            raise DataError(self.where, fact, "use mask prefix or causal")
        # A generated answer stays as it was generated, whatever the template does with answers in earlier turns.
        same = zip(before, self._pieces, strict=False)
        if len(before) >= len(self._pieces) or any(a != b and not (MARK in a.text and MARK in b.text) for a, b in same):
            raise DataError(self.where, "the chat template writes earlier turns otherwise once a further one follows",
                            "ask for one answer a chat")  # fmt: skip
        last = len(before) - 1
        new = [Piece(self._pieces[last].text.partition(MARK)[2], "read")] if before else []
        new += self._pieces[last + 1 : -1]
        # A space before an answer is the answer's, as in training.
        new[-1] = new[-1]._replace(text=new[-1].text.rstrip(" "))
        return [piece for piece in new if piece.text]


def rounds(messages: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The messages up to each one of a user that no answer follows: what `Chat.ask` takes, one after another."""
    found: list[list[dict[str, Any]]] = [[]]
    for message, following in zip(messages, [*messages[1:], {"role": "user"}], strict=True):
        found[-1].append(message)
        if message["role"] == "user" and following["role"] != "assistant":
            found.append([])
    return found[:-1]
