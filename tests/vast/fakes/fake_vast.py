"""The Vast.ai API over HTTP on a port of its own, with faults to switch on: `with FakeVast() as fake: ... fake.url`.

tests/vast/marketplace/test_fake_against_official.py holds it to the official client. Endpoints by name: search, create, list, list-v0,
show, label, destroy, ssh, account.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.vast.fakes.fake_faults import BODIES, SPECIAL, Fault
from tests.vast.fakes.fake_market import KEY, Market, Rental, Row

PAGE = 25
INTERVALS = {
    "create": 4.5,
    "destroy": 3.0,
    "search": 6.0,
    "list": 2.0,
    "show": 2.0,
    "account": 2.0,
    "label": 1.0,
    "ssh": 1.0,
}
ROUTES = [
    (name, method, re.compile(pattern))
    for name, method, pattern in (
        ("search", "POST", r"/api/v0/bundles/"),
        ("create", "PUT", r"/api/v0/asks/(\d+)/"),
        ("list", "GET", r"/api/v1/instances/"),
        ("list-v0", "GET", r"/api/v0/instances/"),
        ("show", "GET", r"/api/v[01]/instances/(\d+)/"),
        ("label", "PUT", r"/api/v[01]/instances/(\d+)/"),
        ("destroy", "DELETE", r"/api/v[01]/instances/(\d+)/"),
        ("ssh", "POST", r"/api/v[01]/instances/(\d+)/ssh/"),
        ("account", "GET", r"/api/v0/users/current/?"),
    )
]
OWN_KEY_MAY = {"label", "destroy"}  # with an instance's own key: start and stop are the endpoint "label" too


@dataclass(frozen=True)
class Request:
    """One that arrived, as a test looks at it."""

    endpoint: str
    method: str
    target: str
    headers: dict[str, str]
    body: Any
    time: float


class FakeVast:
    def __init__(self, now: Callable[[], float] = time.time, host: str = "127.0.0.1", key: str = KEY) -> None:
        self.market = Market(now, key)
        self.ahead = 0.0  # seconds by which the service's clock is ahead of ours
        self.requests: list[Request] = []
        self.account_id = 1
        self.limits = False  # whether calls that come too early are answered with 429
        self._faults: list[Fault] = []
        self._last: dict[str, float] = {}
        self._released = threading.Event()
        self._server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"fake": self}))
        self._server.daemon_threads = True
        self._server.block_on_close = False  # a slow answer may still hold its thread
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://{host}:{self._server.server_port}"

    def __enter__(self) -> FakeVast:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, what: str, on: str = "*", times: int = 1_000_000, **headers: str) -> Fault:
        """The next `times` calls of the endpoint `on` go wrong. Names of headers: Retry_After is Retry-After."""
        if what not in BODIES and what not in SPECIAL:
            raise ValueError(what)
        fault = Fault(what, on, times, {name.replace("_", "-"): value for name, value in headers.items()})
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        self._faults.clear()

    def count(self, endpoint: str) -> int:
        return sum(request.endpoint == endpoint for request in self.requests)

    # ---- what the handler calls

    def take_fault(self, endpoint: str) -> Fault | None:
        with self.market.lock:
            for fault in self._faults:
                if fault.times > 0 and fault.on in ("*", endpoint):
                    fault.times -= 1
                    return fault
        return None

    def too_early(self, endpoint: str) -> float | None:
        """Seconds still to wait, if the call came before its interval was over."""
        now, interval = self.market.now(), INTERVALS.get(endpoint)
        if not self.limits or interval is None:
            return None
        ahead = self._last.get(endpoint, now - interval) + interval - now
        if ahead > 1e-6:
            return ahead
        self._last[endpoint] = now
        return None

    def stall(self) -> None:
        self._released.wait(60)

    def answer(self, endpoint: str, number: int, query: Row, body: Any, *, callbacks: bool = True) -> tuple[int, Row]:
        market = self.market
        if endpoint == "search":
            return 200, {"success": True, "offers": market.search(body)}
        if endpoint == "account":
            return 200, {"id": self.account_id, "username": "fake", "balance": 0, "credit": round(market.balance(), 6)}
        if endpoint == "list-v0":
            return 410, {"success": False, "error": "deprecated_endpoint", "instances": [], "total_instances": 0}
        if endpoint == "list":
            return self._list(query)
        if endpoint == "create":
            return self._create(number, body, callbacks)
        if endpoint == "destroy" and number in market.rentals and market.rentals[number].destroyed is None:
            return (200, {"success": True}) if market.destroy(number) else (404, _NO_SUCH)
        rental = next((one for one in market.shown(listing=False) if one.id == number), None)
        if endpoint == "show":
            return 200, {"instances": None if rental is None else market.row(rental)}
        if rental is None:
            return 404, _NO_SUCH
        if endpoint == "destroy":  # again, while it lingers
            return 200, {"success": True}
        if endpoint == "label":
            return self._change(rental, body)
        assert endpoint == "ssh", endpoint
        if body["ssh_key"] not in rental.ssh_keys:
            rental.ssh_keys.append(body["ssh_key"])
        market.on_key(rental)
        return 200, {"success": True, "msg": "SSH key added to instance."}

    def _list(self, query: Row) -> tuple[int, Row]:
        rows = [self.market.row(rental) for rental in self.market.shown(listing=True)]
        for name, wanted in (query.get("select_filters") or {}).items():
            rows = [row for row in rows if row.get(name) == wanted.get("eq")]
        start = int(query.get("after_token") or 0)
        end = start + min(int(query.get("limit") or PAGE), PAGE)
        token = str(end) if end < len(rows) else None
        return 200, {"success": True, "instances": rows[start:end], "total_instances": len(rows), "next_token": token}

    def _create(self, offer_id: int, body: Row, callbacks: bool) -> tuple[int, Row]:
        if body.get("disk", 0) < 8 or len(body.get("label") or "") > 256 or len(body.get("onstart") or "") > 4096:
            return 400, {"success": False, "error": "invalid_args", "msg": "disk, label or onstart out of bounds"}
        made = self.market.create(offer_id, body, callbacks=callbacks)
        if isinstance(made, str):
            return 404 if made == "no_such_ask" else 400, {
                "success": False,
                "error": made,
                "msg": made.replace("_", " "),
            }
        return 200, {"success": True, "new_contract": made.id, "instance_api_key": made.api_key}

    def _change(self, rental: Rental, body: Row) -> tuple[int, Row]:
        if "label" in body:
            rental.label = body["label"]
        if "state" in body:
            rental.intended = body["state"]
            rental.status = None if body["state"] == "running" else "stopped"
        return 200, {"success": True}


_NO_SUCH = {"success": False, "error": "no_such_instance", "msg": "No such instance."}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeVast
    protocol_version = "HTTP/1.1"

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The header Date, by the clock of the fake."""
        return super().date_time_string(
            int(self.fake.market.now() + self.fake.ahead) if timestamp is None else timestamp
        )  # type: ignore[arg-type]

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else {}
        found = [(name, re.fullmatch(path, parts.path)) for name, method, path in ROUTES if method == self.command]
        endpoint, match = next(((name, match) for name, match in found if match), ("", None))
        seen = Request(endpoint, self.command, self.path, dict(self.headers), body, self.fake.market.now())
        self.fake.requests.append(seen)
        if match is None:
            return self._send(404, b"<html>404</html>")
        number = int(match.group(1)) if match.groups() else 0
        fault = self.fake.take_fault(endpoint)
        if fault is not None and fault.what == "drop-before":
            return self._drop()
        if fault is not None and fault.what == "slow":
            self.fake.stall()
            return self._drop()
        if fault is not None and fault.what in BODIES:
            return self._send(*BODIES[fault.what], fault.headers)
        if (refusal := self._refusal(endpoint, number)) is not None:
            return self._send(*refusal)
        query = {name: _value(value) for name, value in parse_qsl(parts.query)}
        status, answer = self.fake.answer(endpoint, number, query, body)
        if fault is not None and fault.what == "drop-after":
            return self._drop()
        if fault is not None and fault.what == "500-after":
            return self._send(*BODIES["500"])
        if fault is not None and fault.what == "refused-with-contract" and "new_contract" in answer:
            self.fake.market.rentals[answer["new_contract"]].status = "stopped"
            status, answer = 400, answer | {"success": False, "error": "start_failed", "msg": "error starting instance"}
        data = json.dumps(answer).encode()
        self._send(status, data, fault.headers if fault else {}, cut=fault is not None and fault.what == "truncated")

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def _refusal(self, endpoint: str, number: int) -> tuple[int, bytes, dict[str, str]] | None:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        rental = self.fake.market.rentals.get(number)
        own = rental is not None and given == rental.api_key and endpoint in OWN_KEY_MAY
        if given != self.fake.market.key and not own:
            return *BODIES["auth_error"], {}
        if (ahead := self.fake.too_early(endpoint)) is not None:
            return *BODIES["429"], {"Retry-After": f"{ahead:.3f}"}
        return None

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._drop()

    def _drop(self) -> None:
        self.wfile.flush()
        self.close_connection = True


def _value(text: str) -> Any:
    """The official client sends JSON in the query, and bare words."""
    try:
        return json.loads(text)
    except ValueError:
        return text
