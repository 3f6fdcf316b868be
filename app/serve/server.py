"""An OpenAI-compatible endpoint over one model under one mask, `python -m app serve`. Its routes: docs/serve.md.

Starlette routes, uvicorn speaks HTTP. Requests are not logged: neither prompts nor keys.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.model.load import Loaded
from app.serve.decoding import Delta, Row, Sampling, Token
from app.serve.prompts import Asked, Reader
from app.serve.requests import ApiError, ChatCompletion, Common, Completion, parse
from app.serve.responses import ChatCompletions, Completions
from app.serve.worker import Worker
from jobs.config.schema import Mask

LARGEST_BODY = 4 << 20  # bytes
_REQUESTS = 16  # that may be open for each prompt that may wait
_LOOK = 1.0  # seconds between two looks whether the client is still there
_LATE = 30.0  # seconds after a deadline in which the decoding thread should have noticed it


@dataclass(frozen=True)
class Served:
    """What is served, and its bounds. names: what requests may call the model; the first is its id.

    about: further keys for /v1/models. most_tokens: of an answer. seconds: that a request may take.
    """

    loaded: Loaded
    mask: Mask
    names: tuple[str, ...]
    about: dict[str, Any]
    created: int
    most_tokens: int
    seconds: float
    key: str | None = None

    @property
    def entry(self) -> dict[str, Any]:
        return {"id": self.names[0], "object": "model", "created": self.created, "owned_by": "prefill", "mask": self.mask,
                "max_model_len": self.loaded.max_length, **self.about}  # fmt: skip


def application(served: Served, worker: Worker) -> Starlette:
    endpoint = _Endpoint(served, worker)
    routes = [
        Route("/health", endpoint.health),
        Route("/v1/models", endpoint.models),
        Route("/v1/models/{name:path}", endpoint.model),
        Route("/v1/completions", endpoint.completions, methods=["POST"]),
        Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
    ]
    bound = Middleware(_Bounded, most=_REQUESTS * worker.most)
    handlers = dict.fromkeys((ApiError, HTTPException, ClientDisconnect, Exception), _refused)
    return Starlette(routes=routes, middleware=[bound], exception_handlers=handlers)


class _Bounded:
    """At most `most` requests at once, slow ones among them; uvicorn's own bound answers in plain text."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most, self._open = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the server's own lifespan, which is open from its start to its end
            return await self._app(scope, receive, send)
        if self._open >= self._most:
            error = ApiError(
                503, f"{self._open} requests are open, and {self._most} may; try again later", code="overloaded"
            )
            return await (await _refused(Request(scope), error))(scope, receive, send)
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = ApiError(error.status_code, error.detail)
    if not isinstance(error, ApiError):  # a bug; uvicorn logs it
        error = ApiError(500, "the server failed on this request; its log has the reason")
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse(error.body, error.status, headers)


class _Endpoint:
    def __init__(self, served: Served, worker: Worker) -> None:
        self.served, self.worker = served, worker
        named = replace(served.loaded, origin=served.names[0])  # errors go to clients: no path of this machine
        self.reader = Reader(named, served.mask, served.most_tokens)

    # ---- what there is

    async def health(self, _: Request) -> Response:
        state = {"status": "ok" if self.worker.alive else "the decoding thread has ended", "model": self.served.names[0],
                 "mask": self.served.mask, "waiting": self.worker.waiting}  # fmt: skip
        return JSONResponse(state, 200 if self.worker.alive else 503)

    async def models(self, request: Request) -> Response:
        self._require_key(request)
        return JSONResponse({"object": "list", "data": [self.served.entry]})

    async def model(self, request: Request) -> Response:
        self._require_key(request)
        self._require_model(request.path_params["name"])
        return JSONResponse(self.served.entry)

    def _require_key(self, request: Request) -> None:
        sent, key = request.headers.get("authorization", "").removeprefix("Bearer ").strip(), self.served.key
        if key is not None and not hmac.compare_digest(sent.encode(), key.encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    def _require_model(self, name: str) -> None:
        if name not in self.served.names:
            raise ApiError(404, f"no model {json.dumps(name[:200])} is served here; {self.served.names[0]} is", "model",
                           "model_not_found")  # fmt: skip

    async def _content(self, request: Request) -> bytes:
        self._require_key(request)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > LARGEST_BODY:
                raise ApiError(413, f"the body is larger than {LARGEST_BODY} bytes", code="request_too_large")
            parts.append(part)
        return b"".join(parts)

    # ---- answers

    async def completions(self, request: Request) -> Response:
        body = parse(Completion, await self._content(request))
        self._require_model(body.model)
        return await self._answer(request, body, self.reader.completion(body), Completions, body.logprobs is not None)

    async def chat(self, request: Request) -> Response:
        body = parse(ChatCompletion, await self._content(request))
        self._require_model(body.model)
        return await self._answer(request, body, self.reader.chat(body), ChatCompletions, body.logprobs)

    async def _answer(self, request: Request, body: Common, asked: Asked, kind: type[Completions],
                      logprobs: bool) -> Response:  # fmt: skip
        if body.n > 1 and body.temperature == 0:
            raise ApiError(400, "n: temperature 0 would give equal answers", "n", "invalid_value")
        seed = secrets.randbits(62) if body.seed is None else body.seed % 2**62
        events: asyncio.Queue[tuple[int, Delta | ApiError]] = asyncio.Queue()
        loop, deadline = asyncio.get_running_loop(), self.worker.now() + self.served.seconds
        rows: list[Row] = []
        for ids, document in asked.prompts:
            for number in range(body.n):
                chosen = body.temperature, body.top_p, seed + number, body.stops
                how = Sampling(asked.limit, *chosen, asked.top, asked.scored)
                rows.append(Row(ids, document, how, _into(events, loop, len(rows)), deadline))
        self.worker.submit(rows)
        echoes = [text for text in asked.echoes for _ in range(body.n)]
        parts = self._parts(request, rows, events, echoes)
        name = self.served.names[0]
        form = kind(name, f"{name} under {self.served.mask}", self.served.loaded.tokenizer, logprobs)

        def usage() -> dict[str, int]:
            prompts, answers = sum(len(ids) for ids, _ in asked.prompts), sum(row.length for row in rows)
            return {"prompt_tokens": prompts, "completion_tokens": answers, "total_tokens": prompts + answers}

        if body.stream:
            told = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(_sse(form, parts, usage if told else None), media_type="text/event-stream",
                                     headers={"Cache-Control": "no-store"})  # fmt: skip
        texts: list[list[str]] = [[] for _ in rows]
        tokens: list[list[Token]] = [[] for _ in rows]
        finish: list[str | None] = [None] * len(rows)
        async for at, delta in parts:
            texts[at].append(delta.text)
            tokens[at] += delta.tokens
            finish[at] = delta.finish
        choices = [form.choice(at, "".join(texts[at]), tokens[at], finish[at]) for at in range(len(rows))]
        return JSONResponse(form.whole(choices, usage()))

    async def _parts(self, request: Request, rows: Sequence[Row], events: asyncio.Queue[tuple[int, Delta | ApiError]],
                     echoes: Sequence[str]) -> AsyncIterator[tuple[int, Delta]]:  # fmt: skip
        """(row, what is new in it) until all rows have ended. Rows that nobody waits for any more are ended."""
        try:
            for at, text in enumerate(echoes):
                yield at, Delta(text, ())
            left, looked = len(rows), self.worker.now()
            while left:
                event: Delta | ApiError | None = None
                with suppress(TimeoutError):
                    at, event = await asyncio.wait_for(events.get(), _LOOK)
                if event is None or self.worker.now() >= looked + _LOOK:
                    looked = self.worker.now()
                    if await request.is_disconnected():
                        return
                if event is None:
                    if self.worker.now() <= rows[0].deadline + _LATE:
                        continue
                    event = Delta("", (), "timeout")
                if isinstance(event, ApiError):
                    raise event
                if event.finish in ("timeout", "cancelled"):
                    late = event.finish == "timeout"
                    why = f"it took longer than {self.served.seconds:g} s" if late else "the server ends"
                    raise ApiError(504 if late else 503, f"no whole answer: {why}", code=event.finish)
                left -= event.finish is not None
                yield at, event
        finally:
            for row in rows:
                row.cancelled = True


def _into(events: asyncio.Queue[tuple[int, Delta | ApiError]], loop: asyncio.AbstractEventLoop, at: int) -> Any:
    def emit(event: Delta | ApiError) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            loop.call_soon_threadsafe(events.put_nowait, (at, event))

    return emit


async def _sse(form: Completions, parts: AsyncIterator[tuple[int, Delta]],
               usage: Callable[[], dict[str, int]] | None) -> AsyncIterator[str]:  # fmt: skip
    def event(value: dict[str, Any]) -> str:
        return f"data: {json.dumps(value)}\n\n"

    try:
        async for at, delta in parts:
            yield event(form.chunk([form.part(at, delta.text, delta.tokens, delta.finish)]))
    except ApiError as error:
        yield event(error.body)
        return
    if usage is not None:
        yield event(form.chunk([], usage()))
    yield "data: [DONE]\n\n"
