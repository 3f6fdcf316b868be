"""A small HTTP client for one JSON service: the key in a header, pauses between calls, bounded repeats.

Three rules. A call never raises for a fault of the network or the service: no answer is None. Only a call that is safe to
repeat is repeated. The key goes to the base URL alone: redirects are not followed, and other URLs are fetched without it.
"""

import http.client
import ipaddress
import json
import logging
import math
import re
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import SplitResult, quote, urlsplit

from jobs.errors import UserError
from vast.host.bounded_http import LARGEST, ProxyError, Response, exchange
from vast.ports import Clock, Seconds
from vast.secrets import Redactor, Secret, printable

log = logging.getLogger(__name__)

DEFAULT_URL = "https://console.vast.ai"
Kind = Literal["search", "create", "destroy", "show", "manage"]
# The documented least time between two calls; a search is allowed 10 times a minute.
INTERVALS: Mapping[Kind, Seconds] = {"search": 6.0, "create": 4.5, "destroy": 3.0, "show": 2.0, "manage": 1.0}
WORDS = ("error", "msg", "message", "detail")  # the fields of an answer that may name an error
SCOPES = "user_read, instance_read, instance_write, misc"  # that the key needs
QUOTA = "search_quota_exceeded"
LONGEST_WAIT: Seconds = 60.0  # of a Retry-After: a service must not be able to put off a destroy for a day
PAUSES: tuple[Seconds, ...] = (1.0, 3.0)  # before the second and the third try
BUSY = frozenset({429, 500, 502, 503, 504})
PLAIN = frozenset({410, 429})  # statuses that mean the same without JSON
PLAIN_BYTES = 65_536  # of such an answer that are looked at
CONNECT: Seconds = 5.0
# Of a call, from the name's lookup to the last byte; three tries must not outlast the lease of a run.
WHOLE: Seconds = 45.0
TOO_OFTEN = "asked too often; documented: 10 searches a minute, a create every 4.5 s, and a penalty of 12 s"


class UrlError(UserError):
    """The base URL is malformed, or would send the key unencrypted."""


@dataclass(frozen=True)
class Answer:
    """An answer in JSON to a request whose key was accepted. The body may hold secrets, so it has no repr."""

    status: int
    body: dict[str, object] = field(repr=False)
    skew: Seconds | None = None  # the service's clock minus this machine's, by the header Date of this answer

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def words(self) -> str:
        """The error that the answer names; not redacted."""
        found = [self.body[name] for name in WORDS if isinstance(self.body.get(name), str)]
        return printable(" ".join(dict.fromkeys(map(str, found))))

    @property
    def lasting(self) -> str:
        """Why no repeat, and no other offer, changes this refusal, with the remedy; empty if that is not known."""
        words = self.words.lower()
        if self.status == 410 and "no_such" not in words:
            return "this endpoint is withdrawn, so update this project; machines may still run and bill"
        if self.status == 403 and "not your own" not in words:
            return f"the key may lack a scope; it needs {SCOPES}"
        if self.status == 404 and "session expired" in words:
            return "the session of two-factor authentication has expired; log in again and renew the key"
        if QUOTA in words:
            return "the search quota of the day is used up; it is renewed at midnight UTC"
        if re.search(r"spend(ing)?[ _]limit", words):
            return "the spending limit of the account is reached; raise it"
        return ""


@dataclass(frozen=True)
class Exchange:
    """One try of a call, for `Client.observe`."""

    method: str
    path: str
    status: int | None  # None: no answer
    skew: Seconds | None  # by the header Date; None: there was none
    words: str  # the error that the answer names, redacted
    body: Mapping[str, object] = field(repr=False)  # may hold secrets


class Client:
    """For one thread. `trouble`: why the last failed call failed, without any secret. `observe`: gets every try of a call."""

    def __init__(self, key: Secret, clock: Clock, url: str = DEFAULT_URL, whole: Seconds = WHOLE) -> None:
        self._base = checked_url(url)
        self._origin = f"{self._base.scheme}://{self._base.netloc}"
        # http is for this network alone
        self._proxies: Mapping[str, str] | None = {} if self._base.scheme == "http" else None
        self._key = key
        self._clock = clock
        self._whole = whole
        self._not_before: dict[Kind, Seconds] = {}
        self.redact = Redactor(key)
        self.trouble = ""
        self.skew: Seconds | None = None  # the service's clock minus this machine's, by the last header Date
        self.observe: Callable[[Exchange], None] = lambda exchange: None

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
            raw = self._send(what, method, target, body)
            if raw is not None and self._note_retry_after(kind, raw):
                pause = None if pause is None else 0.0  # the service has named the pause
            answer = None if raw is None else self._read(what, raw)
            words, seen = ("", {}) if answer is None else (self.redact(answer.words), answer.body)
            skew = None if raw is None else self._until(raw.headers.get("Date"))
            self.skew = self.skew if skew is None else skew
            answer = answer and replace(answer, skew=skew)
            self.observe(Exchange(method, path, raw and raw.status, skew, words, seen))
            busy = raw is None or raw.status in BUSY
            if not busy or pause is None or (answer is not None and answer.lasting):
                return answer
            self._clock.sleep(pause)
        raise AssertionError("the last pause is None")

    def note(self, text: str) -> None:
        """Log an error: the one way by which text leaves this package for the log."""
        self.trouble = self.redact(text)
        log.warning("%s", self.trouble)

    def _wait(self, kind: Kind) -> None:
        ahead = self._not_before.get(kind, -math.inf) - self._clock.monotonic()
        if ahead > 0:
            self._clock.sleep(ahead)
        self._not_before[kind] = self._clock.monotonic() + INTERVALS[kind]

    def _note_retry_after(self, kind: Kind, raw: Response) -> bool:
        """Whether the answer names a pause; the next call of this kind then waits for it."""
        named = raw.headers.get("Retry-After") or ""
        seconds = self._until(named)
        with suppress(ValueError):
            seconds = float(named)
        if raw.status not in BUSY or seconds is None or not seconds >= 0:  # NaN too
            return False
        until = self._clock.monotonic() + min(seconds, LONGEST_WAIT)
        self._not_before[kind] = max(self._not_before[kind], until)
        return True

    def _until(self, date: str | None) -> Seconds | None:
        """Seconds from now, by this machine's clock, to the date of a header; None: it is none."""
        with suppress(ValueError, TypeError, OverflowError):
            return parsedate_to_datetime(date or "").timestamp() - self._clock.now()
        return None

    def _send(self, what: str, method: str, target: str, body: object) -> Response | None:
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self._origin + target, data, {"User-Agent": "prefill-vast"}, method=method)
            request.add_unredirected_header("Authorization", "Bearer " + self._key.reveal())
            if data is not None:
                request.add_header("Content-Type", "application/json")
            return exchange(request, self._whole, connect=CONNECT, largest=LARGEST, proxies=self._proxies)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The text of an exception may quote what was sent; its type does not.
            cause = getattr(error, "reason", error)
            reason = str(cause) if isinstance(cause, ProxyError) else getattr(cause, "strerror", None) or ""
            self.note(f"{what}: no answer: {type(cause).__name__} {reason}".rstrip())
            return None

    def _read(self, what: str, raw: Response) -> Answer | None:
        """The answer, if it is a JSON object and the key was accepted."""
        try:
            body = {} if raw.status == 204 else json.loads(raw.body)
        except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of 5,000 digits, 10,000 brackets
            body = None
        if body is None and raw.status in PLAIN:  # by a gateway, often in plain text
            body = {"detail": self.redact(raw.body[:PLAIN_BYTES].decode(errors="replace"))[:300]}
        if body is None:
            self.note(f"{what}: HTTP {raw.status}, and the answer is not JSON")
            return None
        if not isinstance(body, dict):
            self.note(f"{what}: HTTP {raw.status}, and the answer is a {type(body).__name__}, not an object")
            return None
        answer = Answer(raw.status, body)
        if raw.status == 401 or "auth_error" in answer.words:
            self.note(f"{what}: HTTP {raw.status}: the key is refused")
            return None
        if not answer.ok:
            known = answer.lasting or (TOO_OFTEN if raw.status == 429 else "")
            self.note(
                ": ".join(part for part in (what, f"HTTP {raw.status}", self.redact(answer.words)[:300], known) if part)
            )
        return answer


def checked_url(url: str) -> SplitResult:
    """https; plain http only to this machine or a private address. Raises UrlError."""
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
