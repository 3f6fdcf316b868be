"""A small container engine on a unix socket, spoken to through the real docker SDK: it can be made to answer oddly."""

from __future__ import annotations

import base64
import io
import json
import re
import socketserver
import struct
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import docker

from vast.local.engine import Engine

Odd = Callable[["Handler"], None]


@dataclass
class Box:
    """A container."""

    id: str
    labels: dict[str, str]
    config: dict[str, Any]
    name: str
    status: str = "created"
    error: str = ""
    code: int = 0
    files: dict[str, bytes] = field(default_factory=dict)  # by absolute path


class FakeEngine:
    """odd: by "METHOD path", a regular expression, what is answered in place of the truth."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.boxes: dict[str, Box] = {}
        self.identity = "engine-1"
        self.images = {"prefill:test": "sha256:" + "1" * 64}
        self.info: dict[str, Any] = {}
        self.odd: dict[str, Odd] = {}
        self.calls: list[str] = []
        self.execs: dict[str, tuple[Box, dict[str, Any]]] = {}
        self.exit_codes: dict[str, int] = {}
        self.on_exec: Callable[[Box, list[str], bytes], tuple[int, bytes, bytes]] = lambda box, argv, stdin: (
            0,
            b"",
            b"",
        )
        self.hung = threading.Event()  # set at the end: what hangs is let go
        handler = type("Bound", (Handler,), {"engine": self})
        self.server = _Server(str(path), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.hung.set()
        self.server.shutdown()
        self.server.server_close()

    def client(self, timeout: float = 5.0, now: Callable[[], float] = time.monotonic) -> Engine:
        return Engine(docker.APIClient(base_url=f"unix://{self.path}", version="1.45", timeout=timeout), now)

    def box(self, **fields: Any) -> Box:
        number = len(self.boxes) + 1
        made = Box(f"{number:012x}" + "f" * 52, **{"labels": {}, "config": {}, "name": f"box{number}", **fields})
        self.boxes[made.id] = made
        return made

    def find(self, name: str) -> Box | None:
        return next((box for ident, box in self.boxes.items() if ident.startswith(name) or box.name == name), None)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up in these tests


class Handler(BaseHTTPRequestHandler):
    engine: FakeEngine
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "here"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    # ---- answers

    def say(self, status: int, body: object = None, content: bytes | None = None, **headers: str) -> None:
        data = content if content is not None else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, words: str) -> None:
        self.say(status, {"message": words})

    def hang(self) -> None:
        self.engine.hung.wait(20)
        self.close_connection = True

    def drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def raw_stream(self) -> None:
        """The head of what an exec answers: no length, until it is closed."""
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.docker.raw-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def frame(self, kind: int, content: bytes) -> None:
        self.wfile.write(struct.pack(">BxxxL", kind, len(content)) + content)

    # ---- requests

    def do_GET(self) -> None:
        self._route()

    do_POST = do_PUT = do_DELETE = do_GET

    def _route(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        path = re.sub(r"^/v1\.\d+", "", parts.path)
        call = f"{self.command} {path}"
        self.engine.calls.append(call)
        self.is_exec = re.fullmatch(r"POST /exec/\w+/start", call) is not None
        self.body = self._body()
        for pattern, odd in self.engine.odd.items():
            if re.fullmatch(pattern, call):
                return odd(self)
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, call):
                return method(self, *match.groups())
        self.refuse(404, "page not found")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _box(self, name: str) -> Box | None:
        box = self.engine.find(name)
        if box is None:
            self.refuse(404, f"No such container: {name}")
        return box

    def info(self) -> None:
        self.say(200, {"ID": self.engine.identity, "Name": "here", "DockerRootDir": "/var", **self.engine.info})

    def image(self, name: str) -> None:
        found = self.engine.images.get(name)
        self.say(200, {"Id": found}) if found else self.refuse(404, f"No such image: {name}")

    def listed(self) -> None:
        label = json.loads(self.query["filters"])["label"][0].partition("=")[0]
        found = [box for box in self.engine.boxes.values() if label in box.labels]
        self.say(200, [{"Id": box.id, "Labels": box.labels} for box in found])

    def created(self) -> None:
        body = json.loads(self.body)
        name = self.query.get("name", "")
        if name and self.engine.find(name):
            return self.refuse(409, f"Conflict. The container name {name} is already in use")
        made = self.engine.box(labels=body.get("Labels") or {}, config=body, name=name)
        self.say(201, {"Id": made.id, "Warnings": []})

    def started(self, name: str) -> None:
        if box := self._box(name):
            box.status = "running"
            self.say(204)

    def inspected(self, name: str) -> None:
        if box := self._box(name):
            state = {"Status": box.status, "Error": box.error, "ExitCode": box.code, "OOMKilled": box.code == 137,
                     "StartedAt": "2026-11-23T06:01:02.280003816Z" if box.status != "created" else "0001-01-01T00:00:00Z"}  # fmt: skip
            self.say(200, {"Id": box.id, "Config": {"Labels": box.labels, "Tty": False}, "State": state})

    def removed(self, name: str) -> None:
        if box := self._box(name):
            assert self.query.get("v") in ("True", "true", "1")
            del self.engine.boxes[box.id]
            self.say(204)

    def volumes(self) -> None:
        self.say(200, {"Volumes": [{"Name": "left"}], "Warnings": []})

    def volume_removed(self, name: str) -> None:
        self.say(204)

    def exec_made(self, name: str) -> None:
        if box := self._box(name):
            if box.status != "running":
                return self.refuse(409, f"container {box.id} is {box.status}")
            ident = f"exec{len(self.engine.execs)}"
            self.engine.execs[ident] = (box, json.loads(self.body))
            self.say(201, {"Id": ident})

    def exec_started(self, ident: str) -> None:
        box, body = self.engine.execs[ident]
        self.raw_stream()
        stdin = self.rfile.read() if body.get("AttachStdin") else b""
        code, out, err = self.engine.on_exec(box, body["Cmd"], stdin)
        self.engine.exit_codes[ident] = code
        for kind, content in ((1, out), (2, err)):
            if content:
                self.frame(kind, content)

    def exec_inspected(self, ident: str) -> None:
        self.say(200, {"Running": False, "ExitCode": self.engine.exit_codes.get(ident)})

    def archive_read(self, name: str) -> None:
        if box := self._box(name):
            content = box.files.get(self.query["path"])
            if content is None:
                return self.refuse(404, f"Could not find the file {self.query['path']} in container {box.id}")
            self.archive(tar_of((Path(self.query["path"]).name, content)))

    def archive(self, content: bytes) -> None:
        stat = base64.b64encode(json.dumps({"name": "x", "size": 1}).encode()).decode()
        self.say(200, content=content, **{"X-Docker-Container-Path-Stat": stat, "Content-Type": "application/x-tar"})

    def archive_written(self, name: str) -> None:
        if box := self._box(name):
            with tarfile.open(fileobj=io.BytesIO(self.body)) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content is not None:
                        box.files[f"{self.query['path']}/{member.name}"] = content.read()
            self.say(200)


def tar_of(*files: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for one in files:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
                continue
            info = tarfile.TarInfo(one[0])
            info.size = len(one[1])
            archive.addfile(info, io.BytesIO(one[1]))
    return buffer.getvalue()


ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /info", Handler.info),
    (r"GET /images/(.+)/json", Handler.image),
    (r"GET /containers/json", Handler.listed),
    (r"POST /containers/create", Handler.created),
    (r"POST /containers/(\w+)/start", Handler.started),
    (r"GET /containers/(\w+)/json", Handler.inspected),
    (r"DELETE /containers/(\w+)", Handler.removed),
    (r"GET /volumes", Handler.volumes),
    (r"DELETE /volumes/(\w+)", Handler.volume_removed),
    (r"POST /containers/(\w+)/exec", Handler.exec_made),
    (r"POST /exec/(\w+)/start", Handler.exec_started),
    (r"GET /exec/(\w+)/json", Handler.exec_inspected),
    (r"GET /containers/(\w+)/archive", Handler.archive_read),
    (r"PUT /containers/(\w+)/archive", Handler.archive_written),
]
