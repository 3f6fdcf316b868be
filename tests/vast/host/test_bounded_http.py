"""A deadline around the whole of an HTTP exchange, for each of its users; and proxies, as urllib has them."""

from __future__ import annotations

import base64
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

import pytest

from tests.vast.fakes.fake_market import KEY, ManualClock
from vast.host.bounded_http import ProxyError, exchange
from vast.host.watched_job import OwnInstance, delete
from vast.marketplace.vast_ai import VastAI
from vast.rental import image_registry
from vast.secrets import Secret
from vast.session.notify import post_json

LIMIT = 0.1  # seconds, of which nothing but the deadline comes; a busy machine needs some of them to connect
ENDLESS = {  # what a server sends first, and then for ever
    "silence": (b"", b""),
    "a slow head": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "endless 1xx": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a slow body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
}


class Server:
    """One real socket; each connection is served by `serve` in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.closed = threading.Event()  # by the client
        self.requests: list[str] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        for _ in count():
            try:
                line = self._socket.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._one, args=(line,), daemon=True).start()

    def _one(self, line: socket.socket) -> None:
        with line, suppress(OSError):
            self.requests.append(line.recv(65536).decode())
            self._serve(line)
        self.closed.set()

    def stop(self) -> None:
        """The thread ends first: one that still accepts would take connections of the next server with this descriptor."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._socket.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], Server]]:
    made: list[Server] = []

    def start(how: Callable[[socket.socket], None]) -> Server:
        made.append(Server(how))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def endless(first: bytes, again: bytes) -> Callable[[socket.socket], None]:
    def send(line: socket.socket) -> None:
        line.sendall(first)
        line.settimeout(0.01)
        while True:  # until the client closes the connection
            line.sendall(again)
            with suppress(TimeoutError):
                if line.recv(1) == b"":
                    return

    return send


@pytest.mark.parametrize("how", ENDLESS)
def test_an_answer_without_end_ends_at_the_deadline_and_its_connection_is_closed(serve: Callable[..., Server], how: str) -> None:  # fmt: skip
    server, before = serve(endless(*ENDLESS[how])), threading.active_count()
    with pytest.raises(TimeoutError, match=rf"no whole answer within {LIMIT} s"):
        exchange(urllib.request.Request(f"http://{server.address}/"), LIMIT)
    assert server.closed.wait(5)
    for thread in threading.enumerate():  # no thread stays behind
        if thread.name.endswith("(work)"):
            thread.join(5)
    assert threading.active_count() <= before + 1  # the server's own


@pytest.mark.parametrize("how", ENDLESS)
def test_no_caller_hangs(serve: Callable[..., Server], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(endless(*ENDLESS[how]))
    url = f"http://{server.address}"
    assert delete(OwnInstance(7, "instance-key", url), LIMIT) == f"TimeoutError: no whole answer within {LIMIT} s"
    with pytest.raises(TimeoutError):
        post_json(f"{url}/hook", b"{}", LIMIT)
    monkeypatch.setattr(image_registry, "TIMEOUT", 1.0 if how == "a slow body" else LIMIT)  # it is answered
    found = image_registry.inspect(f"{server.address}/you/prefill:1", scheme="http").found
    assert found == ("there" if how == "a slow body" else "unknown")  # a HEAD has no body
    cloud = VastAI(Secret(KEY), ManualClock(), url, LIMIT)
    assert cloud.account() is None and "TimeoutError" in cloud.trouble
    assert cloud.destroy(7) == "unclear"


def answering(data: bytes) -> Callable[[socket.socket], None]:
    return lambda line: line.sendall(data)


BAD = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
USER = "Proxy-authorization: basic " + base64.b64encode(b"me:p@ss").decode()


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def through(url: str) -> None:
        monkeypatch.setenv("HTTPS_PROXY", url)
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.delenv("REQUEST_METHOD", raising=False)

    return through


def test_a_proxy_gets_its_user_and_password_and_the_service_does_not(serve: Callable[..., Server], proxied: Callable[[str], None]) -> None:  # fmt: skip
    server = serve(answering(GOOD))
    proxied(f"http://me:p%40ss@{server.address}")
    assert exchange(urllib.request.Request("http://service.example/x"), 5).status == 200
    assert server.requests[0].startswith("GET http://service.example/x ") and USER.lower() in server.requests[0].lower()
    cloud = VastAI(Secret(KEY), ManualClock(), "https://service.example")
    assert cloud.account() is None  # the fake proxy tunnels nothing
    tunnel = server.requests[1]
    assert tunnel.startswith("CONNECT service.example:443 ") and USER.lower() in tunnel.lower() and KEY not in tunnel


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_is_named(
    serve: Callable[..., Server], proxied: Callable[[str], None], scheme: str
) -> None:
    proxied(f"http://me:p%40ss@{serve(answering(BAD)).address}")
    with pytest.raises(ProxyError, match="407.*HTTPS_PROXY"):
        exchange(urllib.request.Request(f"{scheme}://service.example/x"), 5)
    cloud = VastAI(Secret(KEY), ManualClock(), "https://service.example")
    assert cloud.account() is None
    assert "407" in cloud.trouble and "p%40ss" not in cloud.trouble and "p@ss" not in cloud.trouble


def test_a_socks_proxy_is_refused_by_name(proxied: Callable[[str], None]) -> None:
    proxied("socks5://me:secret@127.0.0.1:1080")
    with pytest.raises(ProxyError, match="HTTPS_PROXY: socks5 proxies are not supported; set an http://"):
        exchange(urllib.request.Request("https://service.example/x"), 5)
    said = delete(OwnInstance(7, "k", "https://service.example"), 5)
    assert "socks5" in said and "secret" not in said


def test_the_market_on_this_network_is_asked_without_a_proxy(serve: Callable[..., Server], proxied: Callable[[str], None]) -> None:  # fmt: skip
    proxied("socks5://127.0.0.1:1")
    server = serve(answering(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"credit": 3}'))
    found = VastAI(Secret(KEY), ManualClock(), f"http://{server.address}").account()
    assert found is not None and found.credit == 3


def test_a_thread_that_cannot_be_started_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a limit of processes: the supervisor asks again, and its machine is destroyed."""

    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="no thread can be started"):
        exchange(urllib.request.Request("http://127.0.0.1:1"), 1.0)
    market = VastAI(Secret(KEY), ManualClock(), "http://127.0.0.1:1")
    assert market.account() is None and "no thread can be started" in market.trouble
