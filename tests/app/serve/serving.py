"""The endpoint on a free port of this process, and OpenAI's client for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import uvicorn

from app.model.load import Loaded
from app.serve.server import Served, application
from app.serve.worker import Worker
from jobs.config.schema import Mask


@contextmanager
def serving(
    loaded: Loaded, mask: Mask = "prefix", *, key: str | None = None, seconds: float = 60.0
) -> Iterator[openai.OpenAI]:
    served = Served(loaded, mask, ("stage3b/1", "stage3b"), {"run": "stage3b/1"}, 0, 64, seconds, key)
    with socket.socket() as listening, Worker(loaded, mask, most=20, batch_tokens=4096) as worker:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # so that the first request waits instead of being refused
        server = uvicorn.Server(uvicorn.Config(application(served, worker), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        try:
            with openai.OpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(20)


def complete(client: openai.OpenAI, prompt: Any, **given: Any) -> Any:
    return client.completions.create(
        **{"model": "stage3b", "prompt": prompt, "temperature": 0, "max_tokens": 8, **given}
    )


def ask(client: openai.OpenAI, *contents: str, **given: Any) -> Any:
    roles = ["user", "assistant"] * len(contents)
    messages: Any = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return client.chat.completions.create(
        **{"model": "stage3b", "messages": messages, "temperature": 0, "max_tokens": 8, **given}
    )
