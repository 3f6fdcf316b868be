"""A small HTTP client for one JSON service: the key in a header, pauses between calls, bounded repeats.

Three rules. A call never raises for a fault of the network or the service: no answer is None. Only a call that is safe to
repeat is repeated. The key goes to the base URL alone: redirects are not followed, and other URLs are fetched without it.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import logging
import math
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import SplitResult, quote, urlsplit

from jobs.errors import UserError
from vast.ports import Clock, Seconds
from vast.secrets import Redactor, Secret, printable

log = logging.getLogger(__name__)

DEFAULT_URL = "https://console.vast.ai"
Kind = Literal["create", "destroy", "show", "manage"]
INTERVALS: Mapping[Kind, Seconds] = {"create": 4.5, "destroy": 3.0, "show": 2.0, "manage": 1.0}
LONGEST_WAIT: Seconds = 60.0  # of a Retry-After: a service must not be able to put off a destroy for a day
PAUSES: tuple[Seconds, ...] = (1.0, 3.0)  # before the second and the third try
BUSY = frozenset({429, 500, 502, 503, 504})
LARGEST = 32 * 2**20  # bytes of an answer


class UrlError(UserError):
    """The base URL is malformed, or would send the key unencrypted."""


@dataclass(frozen=True)
class Timeouts:
    connect: Seconds = 5.0
    read: Seconds = 30.0  # for each read
    whole: Seconds = 45.0  # for the body; three tries must not outlast the lease of a run


@dataclass(frozen=True)
class Answer:
    """An answer in JSON to a request whose key was accepted. The body may hold secrets, so it has no repr."""

    status: int
    body: dict[str, object] = field(repr=False)

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def words(self) -> str:
        """What the service says is wrong; not redacted."""
        found = " ".join(str(self.body[name]) for name in ("error", "msg") if isinstance(self.body.get(name), str))
        return printable(found)


@dataclass(frozen=True)
class _Raw:
    status: int
    retry_after: str | None
    data: bytes = field(repr=False)


class Client:
    """For one thread. `trouble` says why the last call that failed did, without any secret."""

    def __init__(self, key: Secret, clock: Clock, url: str = DEFAULT_URL, timeouts: Timeouts | None = None) -> None:
        self._base = _checked_url(url)
        self._key = key
        self._clock = clock
        self._timeouts = timeouts or Timeouts()
        self._not_before: dict[Kind, Seconds] = {}
        self.redact = Redactor(key)
        self.trouble = ""

    def call(
        self, kind: Kind, method: str, path: str, body: object = None, query: Mapping[str, object] | None = None,
        *, repeat: bool = True,
    ) -> Answer | None:  # fmt: skip
        """One call, repeated after a drop or a busy answer if `repeat`. None: no answer, or none that can be believed."""
        target = self._base.path.rstrip("/") + path
        if query:  # values are JSON, as the official client sends them
            target += "?" + "&".join(f"{name}={quote(json.dumps(value), safe='')}" for name, value in query.items())
        what = f"{method} {path}"
        for pause in (*PAUSES, None) if repeat else (None,):
            self._wait(kind)
            raw = self._send(what, self._base, method, target, body, with_key=True)
            if raw is not None and self._note_retry_after(kind, raw):
                pause = None if pause is None else 0.0  # the service has named the pause
            answer = None if raw is None else self._read(what, raw)
            busy = raw is None or raw.status in BUSY
            if not busy or pause is None or (answer is not None and "search_quota_exceeded" in answer.words):
                return answer
            self._clock.sleep(pause)
        raise AssertionError("the last pause is None")

    def fetch(self, url: str) -> bytes | None:
        """One GET without the key, of a URL that an answer named. None unless it is there and whole."""
        try:
            parts = _checked_url(url)
        except UrlError:
            parts = None
        if parts is None or (parts.scheme != "https" and parts.hostname != self._base.hostname):
            self.note("a result is not fetched: its address is not https")
            return None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        raw = self._send("GET a result", parts, "GET", target, None, with_key=False)
        return raw.data if raw is not None and raw.status == 200 else None

    def note(self, text: str) -> None:
        """Log an error: the one way by which text leaves this package for the log."""
        self.trouble = self.redact(text)
        log.warning("%s", self.trouble)

    def _wait(self, kind: Kind) -> None:
        ahead = self._not_before.get(kind, -math.inf) - self._clock.monotonic()
        if ahead > 0:
            self._clock.sleep(ahead)
        self._not_before[kind] = self._clock.monotonic() + INTERVALS[kind]

    def _note_retry_after(self, kind: Kind, raw: _Raw) -> bool:
        """Whether the answer names a pause; the next call of this kind then waits for it."""
        if raw.status not in BUSY or raw.retry_after is None:
            return False
        try:
            seconds = float(raw.retry_after)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(raw.retry_after).timestamp() - self._clock.now()
            except (ValueError, OverflowError):
                return False
        if not seconds >= 0:  # NaN too
            return False
        until = self._clock.monotonic() + min(seconds, LONGEST_WAIT)
        self._not_before[kind] = max(self._not_before[kind], until)
        return True

    def _send(
        self, what: str, parts: SplitResult, method: str, target: str, body: object, *, with_key: bool
    ) -> _Raw | None:
        connection: http.client.HTTPConnection | None = None
        try:
            connection = self._connection(parts)
            connection.connect()
            connection.sock.settimeout(self._timeouts.read)
            connection.putrequest(method, target, skip_accept_encoding=True)
            connection.putheader("User-Agent", "prefill-vast")
            if with_key:
                connection.putheader("Authorization", "Bearer " + self._key.reveal())
            data = None if body is None else json.dumps(body).encode()
            if data is not None:
                connection.putheader("Content-Type", "application/json")
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            response = connection.getresponse()
            return _Raw(response.status, response.getheader("Retry-After"), self._body(response))
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The words of an exception may quote what was sent; its type does not.
            reason = error.strerror if isinstance(error, OSError) and error.strerror else ""
            self.note(f"{what}: no answer: {type(error).__name__} {reason}".rstrip())
            return None
        finally:
            if connection is not None:
                connection.close()

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        host, port, limit = parts.hostname or "", parts.port, self._timeouts.connect
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=limit)
        context = ssl.create_default_context()
        proxy = urllib.request.getproxies().get("https")
        if not proxy or urllib.request.proxy_bypass(host):
            return http.client.HTTPSConnection(host, port, timeout=limit, context=context)
        via = urlsplit(proxy if "://" in proxy else f"//{proxy}")
        connection = http.client.HTTPSConnection(via.hostname or "", via.port, timeout=limit, context=context)
        connection.set_tunnel(host, port or 443)
        return connection

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        """All of it: fewer bytes than announced raise, as do too many and too slow ones."""
        deadline = self._clock.monotonic() + self._timeouts.whole
        data = bytearray()
        while chunk := response.read1(65536):
            data += chunk
            if len(data) > LARGEST:
                raise http.client.HTTPException("too large")
            if self._clock.monotonic() > deadline:
                raise TimeoutError("too slow")
        if response.length:  # read1 does not raise for a body that was cut off
            raise http.client.IncompleteRead(b"", response.length)
        return bytes(data)

    def _read(self, what: str, raw: _Raw) -> Answer | None:
        """What the bytes say, if it is a JSON object and the key was accepted."""
        try:
            body = {} if raw.status == 204 else json.loads(raw.data)
        except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of 5,000 digits, 10,000 brackets
            self.note(f"{what}: HTTP {raw.status}, and the answer is not JSON")
            return None
        if not isinstance(body, dict):
            self.note(f"{what}: HTTP {raw.status}, and the answer is a {type(body).__name__}, not an object")
            return None
        answer = Answer(raw.status, body)
        if raw.status in (401, 403) or "auth_error" in answer.words:
            self.note(f"{what}: HTTP {raw.status}: the key is refused")
            return None
        if not answer.ok:
            self.note(f"{what}: HTTP {raw.status}: {answer.words[:300]}")
        return answer


def _checked_url(url: str) -> SplitResult:
    """https; plain http only to this machine or a private address."""
    remedy = f"such as {DEFAULT_URL}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UrlError("VAST_URL", "is not a URL", remedy) from None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise UrlError("VAST_URL", "expected https://HOST", remedy)
    if any(character <= " " or character == "\x7f" for character in url):
        raise UrlError("VAST_URL", "holds blanks", remedy)
    if parts.scheme == "http" and host != "localhost":
        try:
            near = ipaddress.ip_address(host).is_private
        except ValueError:
            near = False
        if not near:
            raise UrlError("VAST_URL", f"http://{host} would carry the account's key unencrypted", "use https")
    return parts
