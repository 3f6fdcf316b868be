"""The report over HTTP, `python -m app report --serve 8000`: rebuilt when a run has begun or ended, else cached.

It serves the page and report.md, no other file, and writes nothing. It has no password; by default it listens on this
machine's own address.
"""

import re
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from app.report.render import Report
from jobs.errors import ConfigError, RunStateError, UserError
from jobs.runs.rundir import RunDir, list_runs

DEFAULT_HOST = "127.0.0.1"
_EVERY_ADDRESS = ("0.0.0.0", "::")

# The page while there is no report, in the style of the reader's browser.
_APOLOGY = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8" /><meta name="color-scheme" content="light dark" /><title>No report yet</title></head>
<body><h1>No report yet</h1><p>{}</p><p>Reload this page afterwards.</p></body>
</html>
"""


def parse_address(text: str, option: str = "--serve") -> tuple[str, int]:
    """(host, port) of `PORT`, `HOST:PORT` or `[IPV6]:PORT`. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    named = bool(host.strip("[]")) if colon else True
    if not (named and re.fullmatch("[0-9]{1,5}", port) and int(port) < 2**16):
        raise ConfigError(option, f'expected PORT or HOST:PORT, found "{text}"', "give such as 8000 or 0.0.0.0:8000")
    return host.removeprefix("[").removesuffix("]") or DEFAULT_HOST, int(port)


# ---- what is shown ---------------------------------------------------------------------------------------------------


class Pages(NamedTuple):
    """The current report, or why there is none."""

    status: HTTPStatus
    html: str
    markdown: str


class ReportPages:
    """Rebuilds the pages when a run has begun, ended or changed, else returns the cached ones."""

    def __init__(self, runs_dir: Path, build: Callable[[], Report]) -> None:
        self._runs_dir, self._build = runs_dir, build
        self._lock = threading.Lock()  # several readers wait for one build
        self._built: tuple[object, Pages] | None = None

    def current(self) -> Pages:
        with self._lock:
            try:
                # Taken before the build: a run that ends meanwhile shows at the next request.
                versions = [_version(run) for run in _readable_runs(self._runs_dir)]
                if self._built is None or self._built[0] != versions:
                    report = self._build()
                    self._built = versions, Pages(HTTPStatus.OK, report.to_html(), report.to_markdown())
                return self._built[1]
            except (UserError, OSError) as error:  # not cached: the user corrects it and reloads
                html = _APOLOGY.format(escape(str(error)))
                return Pages(HTTPStatus.SERVICE_UNAVAILABLE, html, f"no report yet: {error}\n")


def _readable_runs(runs_dir: Path) -> list[RunDir]:
    try:
        next(runs_dir.iterdir(), None)  # `list_runs` finds nothing in a directory without read permission
    except FileNotFoundError:
        return []
    except OSError as error:
        remedy = "let the server run as its owner: PREFILL_USER in .env, for Compose"
        raise RunStateError(runs_dir, f"cannot be read: {error.strerror}", remedy) from None
    return list_runs(runs_dir)


def _version(run: RunDir) -> tuple[str, str, int]:
    """Changes when the report does; unfinished runs count, since the report lists them as missing."""
    summary = run.path / "summary.json"
    return run.id, run.state(), summary.stat().st_mtime_ns if summary.exists() else 0


# ---- how it is served ------------------------------------------------------------------------------------------------


class ReportServer(ThreadingHTTPServer):
    """Listens at `url` from its construction on."""

    def __init__(self, pages: ReportPages, host: str, port: int) -> None:
        """Port 0 takes a free one. Raises ConfigError if it cannot listen at the address."""
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
    timeout = 30  # seconds before a silent client loses its thread

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in ("/", "/report.html", "/report.md"):
            self.send_error(HTTPStatus.NOT_FOUND, explain="Only /, /report.html and /report.md are served here.")
            return
        pages = self.server.pages.current()
        kind, text = ("markdown", pages.markdown) if path == "/report.md" else ("html", pages.html)
        body = text.encode()
        headers = {
            "Content-Type": f"text/{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",  # a reload costs little here
            "X-Content-Type-Options": "nosniff",
        }
        with suppress(ConnectionError):  # the reader has closed the connection
            self.send_response(pages.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


def serve(server: ReportServer) -> None:
    """Serve until SIGINT or SIGTERM, then return."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored, as in a background job
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
