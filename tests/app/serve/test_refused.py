"""Wrong input gets an error in OpenAI's form and the right status; bounds hold; no key is logged."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import openai
import pytest
import torch
import uvicorn
import yaml

from app.attention.mask import Document
from app.model.load import Loaded
from app.serve import prompts, server
from app.serve.decoding import Delta, Row, Sampling
from app.serve.requests import ApiError
from app.serve.worker import Worker
from jobs.config.load import JOBS_DIR
from tests.app.fakes.command_line import Command
from tests.app.fakes.warm_process import WarmProcess
from tests.app.serve.serving import ask, complete, serving

WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    (dict(model="gpt-4"), 404, "model", "stage3b/1 is"),
    (dict(max_tokens=-1), 400, "max_tokens", "greater than or equal to 0"),
    (dict(max_tokens=0), 400, "max_tokens", "echo"),
    (dict(max_tokens=65), 400, "max_tokens", "at most 64"),
    (dict(temperature=2.5), 400, "temperature", "less than or equal to 2"),
    (dict(temperature="hot"), 400, "temperature", "number"),
    (dict(n=2), 400, "n", "equal answers"),
    (dict(n=21, temperature=1), 400, "n", "16"),
    (dict(prompt=""), 400, "prompt", "empty"),
    (dict(prompt=[]), 400, "prompt", "1 to 64"),
    (dict(prompt=[10**30]), 400, "prompt", "token ids"),
    (dict(prompt=[49999]), 400, "prompt", "49152 rows"),
    (dict(prompt="word " * 2100), 400, "prompt", "exceed the context of 2048"),
    (dict(stop=["a"] * 5), 400, "stop", "at most 4"),
    (dict(logprobs=21), 400, "logprobs", "20"),
    (dict(presence_penalty=0.5), 400, "presence_penalty", "not supported"),
    (dict(extra_body={"prefix_len": 3}), 400, "prefix_len", "no such parameter"),
    (dict(n=15, temperature=1, prompt=["a", "b"]), 429, "", "20 may"),
]


@pytest.mark.parametrize(("given", "status", "param", "words"), WRONG)
def test_wrong_parameters_are_refused(
    given: dict[str, Any], status: int, param: str, words: str, client: openai.OpenAI, loaded: Loaded
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        complete(client, **{"prompt": "Hello", **given})
    error = refused.value
    assert (error.status_code, error.param or "") == (status, param) and words in str(error.body)
    assert loaded.origin.startswith("/") and loaded.origin not in str(error.body)  # a path of this machine
    assert complete(client, "Hello", max_tokens=1).choices  # and the next request is answered


@pytest.mark.parametrize(
    ("contents", "given", "words"),
    [
        (["Hello", "Hi"], {}, "role assistant"),
        (["word " * 2100], {}, "exceed the context"),
        (["Hello"], dict(top_logprobs=2), "needs logprobs"),
        (["Hello"], dict(tools=[]), "no such parameter"),
        (
            ["Hello"],
            dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]),
            "type text",
        ),
        (["Hello"], dict(messages=[{"content": "a"}]), "role"),
    ],
)
def test_wrong_chats_are_refused(contents: list[str], given: dict[str, Any], words: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, *contents, **given)


def test_parts_of_text_are_one_text(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hi"}]
    found = ask(client, messages=[{"role": "user", "content": parts}]).choices[0].message.content
    assert found == ask(client, "Say hi").choices[0].message.content


def raw(client: openai.OpenAI, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{str(client.base_url).removesuffix('/v1/')}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answered:
            return answered.status, json.load(answered)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_what_no_client_sends_is_refused_in_the_same_form(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LARGEST_BODY", 1000)
    for path, body, status, words in (("/v1/completions", b"{", 400, "not JSON"), ("/v1/completions", b"[]", 400, "JSON object"), ("/v1/completions", b'["\\ud800"]', 400, "surrogates"),
                                      ("/v1/completions", b"x" * 2000, 413, "larger"), ("/v1/completions", None, 405, "Not Allowed"),
                                      ("/v2/completions", b"{}", 404, "Not Found")):  # fmt: skip
        code, found = raw(client, path, body)
        assert (
            code == status
            and words in found["error"]["message"]
            and set(found["error"]) == {"message", "type", "param", "code"}
        )


def test_a_request_that_takes_too_long_is_ended(loaded: Loaded) -> None:
    with serving(loaded, seconds=1e-9) as hasty:
        with pytest.raises(openai.APIStatusError) as refused:
            complete(hasty, "Hello")
        assert refused.value.status_code == 504
        with pytest.raises(openai.APIError, match="took longer"):
            list(complete(hasty, "Hello", stream=True))


def test_a_failing_model_fails_its_batch_alone_and_no_number_is_invented(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(loaded) as client:
        with monkeypatch.context() as broken:
            broken.setattr(
                loaded.model.lm_head, "forward", lambda states: torch.full((*states.shape[:2], 49152), torch.nan)
            )
            with pytest.raises(openai.InternalServerError, match="log has the reason"):
                complete(client, "Hello")
        assert complete(client, "Hello").choices[0].text


def test_an_answer_that_nobody_waits_for_is_ended(loaded: Loaded) -> None:
    events: list[Any] = []
    row = Row([5, 6], Document(2, 2), Sampling(40), events.append)
    row.cancelled = True
    with Worker(loaded, "prefix", most=1, batch_tokens=100) as worker:
        worker.submit([row])
        until(lambda: row.finish is not None)
        with pytest.raises(ApiError, match="1 may"):
            worker.submit([Row([5], Document(1, 1), Sampling(1), events.append)] * 2)
    assert [event.finish for event in events] == ["cancelled"] and row.length == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(stream: bool, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Row] = []
    gate, entered = threading.Event(), threading.Event()
    monkeypatch.setattr(server, "_LOOK", 0.02)
    monkeypatch.setattr(server, "Row", lambda *given: made.append(Row(*given)) or made[0])
    hook = loaded.model.register_forward_pre_hook(lambda *_: entered.set() or (gate.wait(20), None)[1])
    try:
        with serving(loaded) as client:
            if stream:
                gate.set()
                parts = complete(client, "Hello", stream=True, max_tokens=64)
                next(parts)
                gate.clear()
                parts.close()
            else:
                with pytest.raises(openai.APITimeoutError):
                    complete(client.with_options(timeout=0.3), "Hello", max_tokens=64)
            assert entered.wait(20)
            until(lambda: made[0].cancelled)
            gate.set()
            until(lambda: made[0].finish is not None)
    finally:
        gate.set()
        hook.remove()
    assert made[0].finish == "cancelled" and made[0].length < 64


def test_a_client_that_goes_away_is_noticed_while_tokens_come(loaded: Loaded) -> None:
    """A token comes more often than a look is due."""
    clock = iter(range(1000))
    worker: Any = SimpleNamespace(now=lambda: next(clock) / 4)
    endpoint = server._Endpoint(server.Served(loaded, "prefix", ("a",), {}, 0, 64, 60.0), worker)
    row, gone = Row([5], Document(1, 1), Sampling(64), print, 60.0), SimpleNamespace(is_disconnected=AsyncMock())

    async def answered() -> int:
        events: asyncio.Queue[Any] = asyncio.Queue()
        for _ in range(64):
            events.put_nowait((0, Delta("a", ())))
        return len([part async for part in endpoint._parts(gone, [row], events, ())])  # type: ignore[arg-type]

    assert asyncio.run(answered()) < 10 and row.cancelled


def until(true: Callable[[], bool]) -> None:
    for _ in range(4000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError("not within 20 s")


def test_a_worker_that_ends_leaves_nobody_waiting(loaded: Loaded) -> None:
    events: list[Any] = []
    rows = [Row([5, 6], Document(2, 2), Sampling(400), events.append) for _ in range(2)]
    with Worker(loaded, "prefix", most=9, batch_tokens=1) as worker:  # one row a batch
        worker.submit(rows)
        until(lambda: bool(events))
    assert [row.finish for row in rows] == ["cancelled", "cancelled"] and rows[0].length and not rows[1].length
    with pytest.raises(ApiError, match="the server ends"):
        worker.submit(rows)


def test_a_bug_is_an_error_in_the_same_form(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "encode_prompts", lambda *_, **__: 1 / 0)
    with serving(loaded) as client, pytest.raises(openai.InternalServerError, match="its log has the reason"):
        complete(client, "Hello")


@pytest.mark.parametrize(("batch_tokens", "batches"), [(9000, [[0, 1], [2, 3], [4]]), (3000, [[0, 2, 4], [1], [3]])])
def test_a_batch_takes_what_fits_and_ends_within_the_context(
    loaded: Loaded, batch_tokens: int, batches: list[list[int]]
) -> None:
    def row(length: int, tokens: int) -> Row:
        return Row([5] * length, Document(length, length), Sampling(tokens), lambda event: None)

    worker = Worker(loaded, "prefix", most=9, batch_tokens=batch_tokens)
    rows = [row(10, 5), row(2000, 40), row(10, 60), row(10, 2000), row(900, 100)]
    worker.submit(rows)
    found = []
    while worker.waiting:
        found.append([rows.index(one) for one in worker._next()])
    assert found == batches


# ---- the key, and the command ------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_never_logged(loaded: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(loaded, key="sk-geheim77") as client:
        assert complete(client, "Hello secret prompt").choices
        for method in (lambda c: c.models.list(), lambda c: complete(c, "Hello")):
            with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
                method(client.with_options(api_key="sk-geheim78"))
        assert raw(client, "/health")[0] == 200
    logged = [
        record.getMessage() for record in caplog.records if not record.name.startswith(("openai", "httpx", "httpcore"))
    ]
    assert "geheim" not in "\n".join(logged) and "secret prompt" not in "\n".join(logged)


def test_the_bound_counts_requests_and_neither_the_servers_lifespan_nor_those_that_ended() -> None:
    """Also where the client left, and where the product failed."""
    reached: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        if scope["path"] == "fails":
            raise ZeroDivisionError
        await asyncio.Event().wait()

    async def scene() -> None:
        bounded = server._Bounded(inner, most=1)

        async def ask(path: str, kind: str = "http") -> asyncio.Task[None]:
            task = asyncio.ensure_future(bounded({"type": kind, "path": path}, None, send))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            return task

        async def send(message: Any) -> None:
            reached.append(message.get("status", "body"))

        tasks = [await ask("start", "lifespan"), await ask("fails"), gone := await ask("leaves")]
        gone.cancel()
        await asyncio.wait([gone])
        tasks += [await ask("waits"), await ask("one more")]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scene())
    assert reached == ["start", "fails", "leaves", "waits", 503, "body"]


def flood(url: str, key: str, number: int) -> None:
    """So many requests whose bodies do not come: one more is refused as any other is, and answered once they are gone."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Length: 9\r\n\r\n".encode()
    )
    server = SimpleNamespace(base_url=f"{url}/")
    with ExitStack() as held:
        for _ in range(number):
            held.enter_context(socket.create_connection((host, int(port)))).sendall(head)
        until(lambda: raw(server, "/health")[0] == 503)  # type: ignore[arg-type]
        status, found = raw(server, "/v1/chat/completions", b"{}")  # type: ignore[arg-type]
    assert (status, found["error"]["type"], found["error"]["code"]) == (503, "server_error", "overloaded")
    assert f"{number} may" in found["error"]["message"]
    until(lambda: raw(server, "/health")[0] == 200)  # type: ignore[arg-type]


def test_the_command_serves_until_it_is_told_to_end(trained: Path, few_rows: None, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-geheim77\n")
    words = ["serve", "--profile", "ci", "--runs-dir", str(trained), "--model", "stage3b", "--listen", "0",
             "--key-file", str(tmp_path / "key"), "--waiting", "1"]  # fmt: skip
    process = WarmProcess.start(words, tmp_path / "out")
    try:
        out, until = tmp_path / "out" / "out", time.monotonic() + 240
        while "Ctrl-C" not in (text := out.read_text() if out.exists() else ""):
            assert process.runs() and time.monotonic() < until, (tmp_path / "out" / "err").read_text()
            time.sleep(0.02)
        url = text.split(" is served at ")[1].split(";")[0]
        with openai.OpenAI(base_url=url, api_key="sk-geheim77") as client:
            (model,) = client.models.list().data
            assert (model.mask, model.trained_mask, model.layers) == ("prefix", "prefix", "all")  # type: ignore[attr-defined]
            assert model.id == model.run and model.id.startswith("stage3b/")  # type: ignore[attr-defined]
            assert client.models.retrieve(model.id).id == model.id
            found = client.completions.create(model=model.id, prompt="Hello", temperature=0, max_tokens=4)
            assert found.choices[0].text and found.system_fingerprint == f"{model.id} under prefix"
        flood(url, "sk-geheim77", 16)
        process.send_signal(signal.SIGTERM)
        ended = process.ended(30)
    finally:
        process.kill()
    assert ended.returncode == 0 and "Traceback" not in ended.stderr and "geheim" not in ended.stdout + ended.stderr
    assert url.startswith("http://127.0.0.1:")


def test_a_model_in_a_directory_is_named_without_its_path(
    trained: Path, few_rows: None, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (final,) = trained.glob("stage3b/*/final")
    shutil.copytree(final, tmp_path / "alice/weights")
    config = json.loads((final / "config.json").read_text())
    del config["prefill"]  # as of a model that no run of ours made
    (tmp_path / "alice/weights/config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    profile = yaml.safe_load((JOBS_DIR / "profiles/ci.yaml").read_text())
    profile["model"] = {"source": "path", "name": str(tmp_path / "alice/weights"), "device": "cpu", "dtype": "float32"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**profile, "name": "mine"}))
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    said = command("serve", "--profile", tmp_path / "mine.yaml", "--listen", "0").fine()
    assert "weights under causal is served at" in said and "alice" not in said


def test_wrong_options_are_one_line(trained: Path, few_rows: None, command: Command, tmp_path: Path) -> None:
    common = ("serve", "--profile", "ci", "--runs-dir", trained)
    (tmp_path / "empty").write_text("\n")
    command(*common, "--listen", "host").refused("--listen", "8000")
    command(*common, "--key-file", tmp_path / "none").refused("--key-file", "No such file")
    command(*common, "--key-file", tmp_path / "empty").refused("--key-file", "is empty")
    command(*common, "--layers", "last:2").refused("--layers", "first:N")
    command(*common, "--mask", "bidirectional").refused("--mask")
    command(*common, "--model", "stage9").refused("stage9")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command(*common, "--listen", taken.getsockname()[1]).refused("cannot listen there")
