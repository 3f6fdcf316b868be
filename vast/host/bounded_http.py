"""One HTTP exchange with one deadline around all of it: name lookup, connection, TLS, every byte of head and body.

A socket's time limit is for each read, so a server that sends a byte now and then, or "100 Continue" without end, holds a caller
for ever. Here the exchange runs in a thread, and at the deadline its socket is shut down and the caller continues.

Proxies are those of urllib (HTTPS_PROXY, NO_PROXY, user and password in the URL). Standard library only, as all of vast/host.
"""

import errno
import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import Message
from typing import Any, NamedTuple
from urllib.parse import urlsplit

LARGEST = 32 * 2**20  # bytes of a body
CHUNK = 65536
REDIRECTS = (301, 302, 303, 307, 308)
PROXY_REFUSED = 407
REFUSED = "the proxy refuses the user or password (407); correct them in HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"


class ProxyError(OSError):
    """The proxy cannot be used. The message names the variable and the remedy, and never the password."""


class Response(NamedTuple):
    status: int
    headers: Message
    body: bytes


def exchange(
    request: urllib.request.Request,
    seconds: float,
    *,
    connect: float | None = None,
    largest: int = LARGEST,
    redirects: bool = False,
    proxies: Mapping[str, str] | None = None,
    received: Callable[[int, int], None] = lambda status, size: None,
) -> Response:
    """Send `request` and read the whole answer, whatever its status.

    seconds: for all of it. connect: for each attempt to connect; default `seconds`. largest: bytes of the body.
    redirects: whether they are followed. proxies: by scheme; default those of the environment. received: called with the
    status and the bytes of the body so far, also of an answer that does not end in time.

    Raises TimeoutError at the deadline, ProxyError, other OSErrors, http.client.HTTPException for a malformed, cut or too
    large answer, ValueError for a malformed request.
    """
    _check_proxy(urlsplit(request.full_url).scheme, proxies)
    sockets = _Sockets()
    outcome: list[Response | Exception] = []

    def work() -> None:
        try:
            outcome.append(_send(request, sockets, connect or seconds, largest, redirects, proxies, received))
        except Exception as error:
            outcome.append(error)

    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
    except RuntimeError:  # a limit of processes, or no memory for its stack
        raise OSError(errno.EAGAIN, "no thread can be started") from None
    worker.join(seconds)
    ended = tuple(outcome)  # before the sockets are shut, which looks like the end of an answer
    sockets.shut()
    # Without a limit of its own for connections, the socket's is the same deadline, and on a busy machine comes first.
    if not ended or (connect is None and isinstance(ended[0], TimeoutError)):
        raise TimeoutError(f"no whole answer within {seconds:g} s")
    if isinstance(ended[0], Exception):
        raise ended[0]
    return ended[0]


class _Sockets:
    """The sockets of one exchange, so that another thread can end it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._opened: list[socket.socket] = []

    def connect(self, *words: Any, **options: Any) -> socket.socket:
        made = socket.create_connection(*words, **options)
        with self._lock:
            if self._over:  # the caller has given up: nothing may be sent any more
                made.close()
                raise TimeoutError
            self._opened.append(made.dup())  # TLS takes the first one over, and also a handshake must be ended
        return made

    def shut(self) -> None:
        with self._lock:
            self._over = True
            for one in self._opened:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


class _AsTheyCome(urllib.request.HTTPErrorProcessor):
    """Answers of any status are returned; only redirects go to the handler for them, if they are followed."""

    def __init__(self, redirects: bool) -> None:
        self._redirects = redirects

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        if self._redirects and response.status in REDIRECTS:
            return super().http_response(request, response)
        return response

    https_response = http_response


def _send(
    request: urllib.request.Request, sockets: _Sockets, connect: float, largest: int, redirects: bool,
    proxies: Mapping[str, str] | None, received: Callable[[int, int], None],
) -> Response:  # fmt: skip
    class Bounded(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
        def do_open(self, http_class: Any, req: urllib.request.Request, **http_conn_args: Any) -> Any:
            def build(host: str, **more: Any) -> Any:
                connection = http_class(host, **more)
                connection._create_connection = sockets.connect
                return connection

            return super().do_open(build, req, **http_conn_args)

    proxy = urllib.request.ProxyHandler(None if proxies is None else dict(proxies))
    opener = urllib.request.build_opener(Bounded, proxy, _AsTheyCome(redirects))
    try:
        with opener.open(request, timeout=connect) as response:
            found = Response(response.status, response.headers, _body(response, largest, received))
    except OSError as error:
        if f" {PROXY_REFUSED} " in f"{getattr(error, 'reason', error)} ":  # of the tunnel that http.client asks for
            raise ProxyError(REFUSED) from None
        raise
    if found.status == PROXY_REFUSED:
        raise ProxyError(REFUSED)
    return found


def _body(response: http.client.HTTPResponse, largest: int, received: Callable[[int, int], None]) -> bytes:
    data = bytearray()
    while chunk := response.read1(CHUNK):
        data += chunk
        received(response.status, len(data))
        if len(data) > largest:
            raise http.client.HTTPException("too large")
    if response.length:  # read1 raises nothing for a body that was cut off
        raise http.client.IncompleteRead(b"", response.length)
    return bytes(data)


def _check_proxy(scheme: str, proxies: Mapping[str, str] | None) -> None:
    """urllib would talk HTTP to a SOCKS proxy. Raises ProxyError."""
    url = (urllib.request.getproxies() if proxies is None else proxies).get(scheme, "")
    kind = url.partition("://")[0].lower() if "://" in url else "http"
    if url and kind not in ("http", "https"):
        fact = f"{kind} proxies are not supported; set an http:// proxy, or unset the variable"
        raise ProxyError(f"{scheme.upper()}_PROXY: {fact}")
