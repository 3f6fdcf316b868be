"""A repository of a hub over its HTTP API, as far as we use it: information, listings, commits, content, tags, large files.

Beside it there are models and datasets of others, of which only the card's licence is known.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.app.fakes.http_server import serving

REPO = "owner/repo"
COMMIT = "0" * 40


class Hub:
    """`files` by path, `commits` made, `tags`; token: the one that may.

    lfs: whether weights are sent apart, by their sha256, to `blobs`. broken: commits that are still to be refused. licences: of the
    models and datasets of others.
    """

    def __init__(self, token: str) -> None:
        self.token, self.url = token, ""
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.licences: dict[str, str] = {}
        self.tags: list[str] = []
        self.commits = self.puts = self.broken = 0
        self.lfs, self.exists, self.private = False, True, False

    def entry(self, path: str) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(self.files[path]), "oid": "1" * 40}

    def tree(self, below: str, recursive: bool = False) -> list[dict[str, Any]] | None:
        prefix = f"{below}/" if below else ""
        inside = [path for path in sorted(self.files) if path.startswith(prefix)]
        if recursive:
            return [self.entry(path) for path in inside] or None
        directories = dict.fromkeys(
            prefix + path[len(prefix) :].split("/")[0] for path in inside if "/" in path[len(prefix) :]
        )
        found = [{"type": "directory", "path": path, "oid": "2" * 40} for path in directories]
        found += [self.entry(path) for path in inside if "/" not in path[len(prefix) :]]
        return found or None

    def commit(self, lines: list[dict[str, Any]]) -> bool:
        """False, and nothing done: a file that is to be deleted is not there."""
        if any(line["key"] == "deletedFile" and line["value"]["path"] not in self.files for line in lines):
            return False
        self.commits += 1
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
            elif line["key"] == "deletedFolder":
                self.files = {
                    path: content for path, content in self.files.items() if not path.startswith(value["path"])
                }
        return True


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, value: Any, status: int = 200, **headers: str) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self, code: str) -> None:
            self.answer({"error": code}, 404, **{"X-Error-Code": code, "X-Error-Message": code})

        def handle_one(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = unquote(urlsplit(self.path).path)
            if path.startswith("/blobs/"):  # an address that needs no token
                hub.blobs[path.removeprefix("/blobs/")] = sent
                hub.puts += 1
                return self.answer({})
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer({"error": "Invalid credentials"}, 401)
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                hub.exists, hub.private = True, json.loads(sent).get("visibility") == "private" or hub.private
                return self.answer({"url": f"{hub.url}/{REPO}", "name": REPO})
            if (name := path.removeprefix("/api/models/").removeprefix("/api/datasets/")) in hub.licences:
                return self.answer({"id": name, "cardData": {"license": hub.licences[name]}})
            if path == f"/{REPO}.git/info/lfs/objects/batch":
                objects = [{**one, **({} if one["oid"] in hub.blobs else
                            {"actions": {"upload": {"href": f"{hub.url}/blobs/{one['oid']}"}}})}
                           for one in json.loads(sent)["objects"]]  # fmt: skip
                return self.answer({"transfer": "basic", "objects": objects})
            if not hub.exists:
                return self.missing("RepoNotFound")
            start, _, rest = path.removeprefix(f"/api/models/{REPO}").partition("main")
            if path.startswith(f"/{REPO}/resolve/"):
                name = path.split("/", 5)[5]
                if name not in hub.files:
                    return self.missing("EntryNotFound")
                first, _, last = self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")
                return self.answer(hub.files[name][int(first) : int(last) + 1 if last else None], 206, ETag='"1"')
            if not path.startswith(f"/api/models/{REPO}"):
                return self.missing("RepoNotFound")
            if start.startswith("/tree"):
                found = hub.tree(rest.strip("/"), "recursive=true" in self.path.lower())
                return self.missing("EntryNotFound") if found is None else self.answer(found)
            if start.startswith("/paths-info"):
                asked = (
                    json.loads(sent)["paths"]
                    if sent.startswith(b"{")
                    else [unquote(p[6:]) for p in sent.decode().split("&") if p.startswith("paths=")]
                )
                found = [hub.entry(one) if one in hub.files else {"type": "directory", "path": one, "oid": "2" * 40}
                         for one in asked if one in hub.files or hub.tree(one)]  # fmt: skip
                return self.answer(found)
            if start.startswith("/preupload"):
                return self.answer({"files": [{"path": one["path"], "shouldIgnore": False,
                                               "uploadMode": "lfs" if hub.lfs and one["path"].endswith(".safetensors") else "regular"}
                                              for one in json.loads(sent)["files"]]})  # fmt: skip
            if start.startswith("/tag"):
                hub.tags.append(json.loads(sent)["tag"])
                return self.answer({})
            if start.startswith("/commit") and hub.broken:
                hub.broken -= 1
                return self.answer({"error": "down for repair"}, 500)
            if start.startswith("/commit"):
                if not hub.commit([json.loads(line) for line in sent.splitlines() if line.strip()]):
                    return self.missing("EntryNotFound")
                return self.answer(
                    {"commitUrl": f"{hub.url}/{REPO}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""}
                )
            self.answer(
                {
                    "id": REPO,
                    "sha": COMMIT,
                    "private": hub.private,
                    "siblings": [{"rfilename": name} for name in sorted(hub.files)],
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
            )

        do_GET = do_HEAD = do_POST = do_PUT = handle_one

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def hub_server(token: str) -> Iterator[Hub]:
    hub = Hub(token)
    with serving(_handler(hub)) as hub.url:
        yield hub
