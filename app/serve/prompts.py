"""From a request to token ids: prompts and chats are encoded as `python -m app generate` encodes them, and checked for length."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import TemplateError

from app.attention.mask import Document
from app.data.readers import read_message
from app.model.load import Loaded
from app.scoring.conversation import Chat
from app.scoring.generate import encode_prompts, require_fits
from app.serve.requests import MOST_PROMPTS, ApiError, ChatCompletion, Completion
from jobs.config.schema import Mask
from jobs.errors import DataError

_LONGEST_ECHO = 4096  # tokens of a prompt whose log-probabilities are computed: all its logits are held at once
_COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for completions


@dataclass(frozen=True)
class Asked:
    """prompts: token ids, and how the mask lies over them. limit: tokens of an answer. top: as in `Sampling`.

    scored: the prompt's own tokens get log-probabilities. echoes: the prompts' texts, to stand before the answers.
    """

    prompts: list[tuple[list[int], Document]]
    limit: int
    top: int | None
    scored: bool = False
    echoes: tuple[str, ...] = ()


class Reader:
    """Every method raises ApiError 400 for what cannot be answered."""

    def __init__(self, loaded: Loaded, mask: Mask, most_tokens: int) -> None:
        self.loaded, self.mask, self.most_tokens = loaded, mask, most_tokens

    def completion(self, body: Completion) -> Asked:
        limit = _COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        if limit == 0 and not body.echo:
            raise _wrong("max_tokens", "0 asks for nothing without echo")
        scored = body.echo and body.logprobs is not None
        if scored and self.mask != "causal":
            fact = (f"with logprobs: under mask {self.mask} a token of the prompt sees itself and later ones, so its "
                    "log-probability means nothing; serve with mask causal, or score continuations with "
                    "python -m app loglikelihood")  # fmt: skip
            raise _wrong("echo", fact, code="unsupported_mask")
        encoded = self._encoded(body)
        if scored and max(map(len, encoded)) > _LONGEST_ECHO:
            raise _wrong("prompt", f"echo with logprobs takes at most {_LONGEST_ECHO} tokens")
        for ids in encoded:
            self._require_fits(ids, limit, "prompt")
        decode = self.loaded.tokenizer.decode
        echoes = tuple(one if isinstance(one, str) else str(decode(one)) for one in body.prompts) if body.echo else ()
        return Asked([(ids, Document(len(ids), len(ids))) for ids in encoded], limit, body.logprobs, scored, echoes)

    def chat(self, body: ChatCompletion) -> Asked:
        if body.top_logprobs is not None and not body.logprobs:
            raise _wrong("top_logprobs", "needs logprobs: true")
        if not self.loaded.tokenizer.chat_template:
            raise _wrong("messages", "the model's tokenizer has no chat template; use /v1/completions")
        talk = Chat(self.loaded, self.mask, "messages")
        try:
            messages = [read_message(one, f"messages[{at}]")[0] for at, one in enumerate(body.texts)]
            if messages[-1]["role"] not in ("user", "tool"):
                raise _wrong("messages", f"the last one is by role {messages[-1]['role']}, not by a user")
            document = talk.read(messages, max_new_tokens=0)
        except DataError as error:
            raise self._unfit(f"{error.where}: {error.fact}", "messages", len(talk.ids)) from None
        except TemplateError as error:
            raise _wrong("messages", f"the chat template refuses them: {error}") from None
        room = self.loaded.max_length - len(talk.ids)
        limit = min(self.most_tokens, room) if body.limit is None else body.limit
        if limit == 0:
            raise _wrong("max_tokens", "0 asks for nothing")
        self._require_fits(talk.ids, limit, "messages")
        return Asked([(talk.ids, document)], limit, body.top_logprobs or 0 if body.logprobs else None)

    def _encoded(self, body: Completion) -> list[list[int]]:
        given = list(body.prompts)
        if not 1 <= len(given) <= MOST_PROMPTS:
            raise _wrong("prompt", f"expected 1 to {MOST_PROMPTS} prompts, found {len(given)}")
        try:
            texts = iter(encode_prompts(self.loaded, [one for one in given if isinstance(one, str)], chat=False))
        except DataError as error:
            raise _wrong("prompt", error.fact) from None
        encoded = [next(texts) if isinstance(one, str) else one for one in given]
        if not all(encoded):
            raise _wrong("prompt", "is empty")
        return encoded

    def _require_fits(self, ids: list[int], limit: int, param: str) -> None:
        if limit > self.most_tokens:
            raise _wrong("max_tokens", f"at most {self.most_tokens} here, found {limit}")
        try:
            require_fits(self.loaded, [ids], limit, [param])
        except DataError as error:
            raise self._unfit(f"{param}: {error.fact}", param, len(ids) + limit) from None

    def _unfit(self, message: str, param: str, length: int) -> ApiError:
        long = length > self.loaded.max_length
        return ApiError(400, message, param, "context_length_exceeded" if long else "invalid_value")


def _wrong(param: str, fact: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{param}: {fact}", param, code)
