"""The report over HTTP, `python -m app report --serve 8000`: made anew whenever a run has begun or ended, then kept.

    GET /, /report.html     the page
    GET /report.md          the same as Markdown

Nothing else is served, no other file of the runs directory either, and nothing is written. There is no password: by
default only this machine is answered.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

from app.report.render import Report
from jobs.errors import ConfigError, RunStateError, UserError
from jobs.runs.rundir import RunDir, list_runs

DEFAULT_HOST = "127.0.0.1"
_EVERY_ADDRESS = ("0.0.0.0", "::")

# In place of the report while there is none, with the style of the reader's browser.
_APOLOGY = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8" /><meta name="color-scheme" content="light dark" /><title>No report yet</title></head>
<body><h1>No report yet</h1><p>{}</p><p>Reload this page afterwards.</p></body>
</html>
"""


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of `PORT`, `HOST:PORT` or `[IPV6]:PORT`. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    named = bool(host.strip("[]")) if colon else True
    if not (named and port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ConfigError("--serve", f'expected PORT or HOST:PORT, found "{text}"', "give such as 8000 or 0.0.0.0:8000")
    return host.removeprefix("[").removesuffix("]") or DEFAULT_HOST, int(port)


# ---- what is shown ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pages:
    """The report as it is now, or why there is none."""

    status: HTTPStatus
    html: str
    markdown: str


class ReportPages:
    """Makes the pages when the runs have changed since, and gives those of last time when they have not."""

    def __init__(self, runs_dir: Path, build: Callable[[], Report]) -> None:
        self._runs_dir, self._build = runs_dir, build
        self._lock = threading.Lock()  # several readers wait for one report, instead of making one each
        self._made: tuple[object, Pages] | None = None

    def current(self) -> Pages:
        with self._lock:
            try:
                # Before the report is made: what ends meanwhile is for next time.
                seen = [_version(run) for run in _readable_runs(self._runs_dir)]
                if self._made is None or self._made[0] != seen:
                    report = self._build()
                    self._made = seen, Pages(HTTPStatus.OK, report.to_html(), report.to_markdown())
                return self._made[1]
            except (UserError, OSError) as error:  # not kept: the user corrects it and reloads
                html = _APOLOGY.format(escape(str(error)))
                return Pages(HTTPStatus.SERVICE_UNAVAILABLE, html, f"no report yet: {error}\n")


def _readable_runs(runs_dir: Path) -> list[RunDir]:
    try:
        next(runs_dir.iterdir(), None)  # a search by pattern passes over a directory that may not be read
    except FileNotFoundError:
        return []
    except OSError as error:
        remedy = "let the server run as its owner: PREFILL_USER in .env, for Compose"
        raise RunStateError(runs_dir, f"cannot be read: {error.strerror}", remedy) from None
    return list_runs(runs_dir)


def _version(run: RunDir) -> tuple[str, str, int]:
    """What changes of a run if the report should; unfinished ones are among what the report says is missing."""
    summary = run.path / "summary.json"
    return run.id, run.state(), summary.stat().st_mtime_ns if summary.exists() else 0


# ---- how it is served ------------------------------------------------------------------------------------------------


class ReportServer(ThreadingHTTPServer):
    """Listens from its construction on; `url` is where."""

    def __init__(self, pages: ReportPages, host: str, port: int) -> None:
        """Port 0 takes a free one. Raises ConfigError if the address cannot be had."""
        self.pages = pages
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            remedy = f"choose another, such as --serve {port + 1 if 0 < port < 2**16 - 1 else 8000}"
            raise ConfigError(f"--serve {host}:{port}", f"cannot listen there: {error.strerror}", remedy) from None

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        shown = DEFAULT_HOST if host in _EVERY_ADDRESS else f"[{host!s}]" if ":" in str(host) else host
        return f"http://{shown!s}:{port}/"


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    timeout = 30  # seconds that a silent client may keep a thread

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in ("/", "/report.html", "/report.md"):
            self.send_error(HTTPStatus.NOT_FOUND, explain="Only /, /report.html and /report.md are served here.")
            return
        pages = self.server.pages.current()
        kind, text = ("markdown", pages.markdown) if path == "/report.md" else ("html", pages.html)
        body = text.encode()
        with suppress(ConnectionError):  # the reader did not wait
            self.send_response(pages.status)
            self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")  # a reload asks here, where it costs little
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    do_HEAD = do_GET

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Answers are no news."""

    def log_error(self, format: str, *args: object) -> None:
        """Nor are readers that ask for something else or are too slow."""


def serve(server: ReportServer) -> None:
    """Answer until SIGINT or SIGTERM, then return."""

    def stop(number: int, frame: FrameType | None) -> None:
        # From another thread, since this one is in the loop that is to end. A signal before the loop ends it at once.
        threading.Thread(target=server.shutdown, daemon=True).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with server:
            server.serve_forever(poll_interval=0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
