"""What a request may hold, as OpenAI's API has it, and errors in its form. An unknown parameter is refused, not ignored.

Source: https://platform.openai.com/docs/api-reference, completions, chat and errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MOST_CHOICES, MOST_STOPS, MOST_TOP = 16, 4, 20
MOST_PROMPTS = 64
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}

NotNegative = Annotated[int, Field(ge=0)]
Zero = Annotated[float, Field(ge=0, le=0)]
Stop = Annotated[str, Field(min_length=1)]
Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]

# Where pydantic's own words would name one of several types, or a bound that only one value fits.
_EXPECTED = {
    "prompt": "expected a text, token ids, or a list of these",
    "stop": f"expected a text, or at most {MOST_STOPS} of them, none empty",
    **dict.fromkeys(
        ("frequency_penalty", "presence_penalty", "logit_bias"), "is not supported: leave it out, or 0 or empty"
    ),
}


class ApiError(Exception):
    """An answer with `status`, `message` for people, and `param` and `code` for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        self.status, self.message, self.param, self.code = status, message, param, code
        super().__init__(status, message, param, code)

    @property
    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Common(BaseModel):
    """What both endpoints take. Parameters that change nothing here are taken at that value alone."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: NotNegative | None = None
    user: str | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:  # as in OpenAI's API null stands where nothing is given
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Completion(Common):
    prompt: str | Ids | list[str] | list[Ids]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> Sequence[str | Ids]:
        """Texts or token ids, at least one."""
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class ChatCompletion(Common):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    max_completion_tokens: NotNegative | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def texts(self) -> list[dict[str, Any]]:
        """The messages, each content one text: OpenAI also has it as a list of parts."""
        return [{**message, "content": _text(message.get("content"), at)} for at, message in enumerate(self.messages)]


def _text(content: Any, at: int) -> Any:
    if not isinstance(content, list):
        return content
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise ApiError(400, f"messages[{at}].content: only parts of type text can be read", "messages")
    return "".join(parts)  # type: ignore[arg-type]


Body = TypeVar("Body", Completion, ChatCompletion)


def parse(kind: type[Body], content: bytes) -> Body:
    """Raises ApiError 400 for the first thing that is wrong."""
    try:
        given = json.loads(content)
        json.dumps(given, ensure_ascii=False).encode()  # half of a surrogate pair has no encoding
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if not first["loc"]:
            raise ApiError(400, "the body: expected a JSON object", code="invalid_value") from None
        name, unknown = str(first["loc"][0]), first["type"] == "extra_forbidden"
        message = first["msg"][:1].lower() + first["msg"][1:]
        fact = "this server has no such parameter" if unknown else _EXPECTED.get(name, message)
        raise ApiError(400, f"{name}: {fact}", name, "unknown_parameter" if unknown else "invalid_value") from None
