"""An image registry in small, for `docker push` to 127.0.0.1: it checks every digest and keeps no layer, only what it weighs.

The part of the OCI distribution specification that a push uses: https://github.com/opencontainers/distribution-spec
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")
UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([0-9a-f-]*)")
MANIFEST = re.compile(r"/v2/(.+)/manifests/(.+)")
PIECE = 1 << 20  # bytes read at once


class Registry(ThreadingHTTPServer):
    """What it was sent: `blobs` (digest: bytes), `manifests` ((name, tag): document) and every request, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, int] = {}
        self.manifests: dict[tuple[str, str], bytes] = {}
        self.types: dict[bytes, str] = {}
        self.requests: list[str] = []
        self.uploads: dict[str, tuple[Any, int]] = {}  # sha256 so far, bytes so far

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def tags(self, name: str) -> dict[str, str]:
        """Digest of the manifest under each tag."""
        return {tag: digest(document) for (owner, tag), document in self.manifests.items() if owner == name}


def digest(document: bytes) -> str:
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    server: Registry
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # whoever tries TLS first sees by the status line that this is HTTP

    def log_message(self, format: str, *args: object) -> None:
        self.server.requests.append(format % args)

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: int, what: str) -> None:
        self.answer(code, json.dumps({"errors": [{"code": what, "message": self.path}]}).encode())

    def pieces(self) -> Iterator[bytes]:
        """The body of the request, which may be chunked."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield from self.exactly(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self.exactly(int(self.headers.get("Content-Length", 0)))

    def exactly(self, size: int) -> Iterator[bytes]:
        while size and (piece := self.rfile.read(min(size, PIECE))):
            size -= len(piece)
            yield piece

    # ---- layers and configurations ----------------------------------------------------------------------------------------

    def do_HEAD(self) -> None:
        if found := BLOB.fullmatch(self.path):
            size = self.server.blobs.get(found[2])
            if size is None:
                self.answer(404)
            else:
                self.answer(200, Content_Length=str(size), Docker_Content_Digest=found[2])
        else:
            self.do_GET()

    def do_POST(self) -> None:
        found = UPLOAD.fullmatch(urlsplit(self.path).path)
        if not found:
            return self.refuse(404, "UNSUPPORTED")
        identity = str(uuid4())
        self.server.uploads[identity] = (hashlib.sha256(), 0)
        self.accepted(found[1], identity)

    def do_PATCH(self) -> None:
        found = UPLOAD.fullmatch(urlsplit(self.path).path)
        if not found or found[2] not in self.server.uploads:
            return self.refuse(404, "BLOB_UPLOAD_UNKNOWN")
        self.receive(found[2])
        self.accepted(found[1], found[2])

    def accepted(self, name: str, identity: str) -> None:
        size = self.server.uploads[identity][1]
        place = f"/v2/{name}/blobs/uploads/{identity}"
        self.answer(202, Location=place, Range=f"0-{max(size - 1, 0)}", Docker_Upload_UUID=identity)

    def receive(self, identity: str) -> None:
        sha256, size = self.server.uploads[identity]
        for piece in self.pieces():
            sha256.update(piece)
            size += len(piece)
        self.server.uploads[identity] = (sha256, size)

    def do_PUT(self) -> None:
        address = urlsplit(self.path)
        if found := MANIFEST.fullmatch(address.path):
            return self.put_manifest(found[1], found[2])
        found = UPLOAD.fullmatch(address.path)
        if not found or found[2] not in self.server.uploads:
            return self.refuse(404, "BLOB_UPLOAD_UNKNOWN")
        self.receive(found[2])
        sha256, size = self.server.uploads.pop(found[2])
        (claimed,) = parse_qs(address.query)["digest"]
        if claimed != f"sha256:{sha256.hexdigest()}":
            return self.refuse(400, "DIGEST_INVALID")
        self.server.blobs[claimed] = size
        self.answer(201, Location=f"/v2/{found[1]}/blobs/{claimed}", Docker_Content_Digest=claimed)

    # ---- manifests --------------------------------------------------------------------------------------------------------

    def put_manifest(self, name: str, reference: str) -> None:
        document = b"".join(self.pieces())
        parts = json.loads(document)
        wanted = {part["digest"]: part["size"] for part in (parts["config"], *parts["layers"])}
        if not wanted.items() <= self.server.blobs.items():
            return self.refuse(400, "MANIFEST_BLOB_UNKNOWN")
        if reference.startswith("sha256:") and reference != digest(document):
            return self.refuse(400, "DIGEST_INVALID")
        self.server.manifests[name, reference] = document
        self.server.types[document] = self.headers["Content-Type"]
        self.answer(201, Location=f"/v2/{name}/manifests/{digest(document)}", Docker_Content_Digest=digest(document))

    def do_GET(self) -> None:
        if self.path == "/v2/":
            return self.answer(200, b"{}")
        found = MANIFEST.fullmatch(self.path)
        document = next((one for (name, tag), one in self.server.manifests.items()
                         if found and name == found[1] and found[2] in (tag, digest(one))), None)  # fmt: skip
        if document is None:
            return self.refuse(404, "MANIFEST_UNKNOWN")
        self.answer(200, document, Content_Type=self.server.types[document], Docker_Content_Digest=digest(document))


@contextmanager
def registry() -> Iterator[Registry]:
    server = Registry()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
