"""Whether an image can be pulled, asked of a registry on this machine before anything is rented."""

from __future__ import annotations

import base64
import json
import threading
import urllib.request
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from vast.host.bounded_http import Response
from vast.rental import image_registry
from vast.secrets import Secret

LOGIN = Secret("-u me -p pass-word-123 registry.example")


class Registry(ThreadingHTTPServer):
    """`mode`: how it asks for a login: open, bearer, bearer-private, basic or broken."""

    daemon_threads = True

    def __init__(self, mode: str = "open") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = mode
        self.seen: list[tuple[str, str, str]] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _end(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        given, mode = self.headers.get("Authorization", ""), self.server.mode
        self.server.seen.append((self.command, self.path, given))
        right = base64.b64encode(b"me:pass-word-123").decode()
        if mode == "broken":
            self._end(500)
        elif mode.startswith("bearer") and given != "Bearer ticket":
            realm = (
                f'Bearer realm="http://{self.server.host}/token",service="tests",scope="repository:you/prefill:pull"'
            )
            self._end(401, WWW_Authenticate=realm)
        elif mode == "basic" and given != f"Basic {right}":
            self._end(401, WWW_Authenticate='Basic realm="tests"')
        else:
            self._end(200 if self.path == "/v2/you/prefill/manifests/1-host" else 404)

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        if self.path.startswith("/v2/"):  # labels and size are of other tests
            return self._end(404)
        self.server.seen.append((self.command, self.path, given))
        assert parse_qs(urlsplit(self.path).query)["scope"] == ["repository:you/prefill:pull"]
        if self.server.mode == "bearer-private" and not given.startswith("Basic "):
            self._end(401)
        else:
            self._end(200, json.dumps({"token": "ticket"}).encode())


@pytest.fixture
def served() -> Iterator[Registry]:
    with Registry() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def look(served: Registry, mode: str, tag: str = "1-host", login: Secret | None = None) -> str:
    served.mode = mode
    return image_registry.inspect(f"{served.host}/you/prefill:{tag}", login, scheme="http").found


@pytest.mark.parametrize("mode", ["open", "bearer"])
def test_an_image_that_anybody_may_pull_is_there_and_another_tag_is_not(served: Registry, mode: str) -> None:
    assert look(served, mode) == "there"
    assert look(served, mode, tag="2") == "absent"


@pytest.mark.parametrize("mode", ["bearer-private", "basic"])
def test_a_private_image_needs_the_login(served: Registry, mode: str) -> None:
    assert look(served, mode) == "denied"
    assert look(served, mode, login=LOGIN) == "there"
    assert look(served, mode, login=Secret("-u me -p wrong registry.example")) == (
        "denied" if mode == "basic" else "there"
    )


def test_the_login_goes_to_who_asks_for_one_and_not_before(served: Registry) -> None:
    look(served, "open", login=LOGIN)
    assert [given for _, _, given in served.seen] == [""]


def test_a_registry_that_fails_or_does_not_answer_proves_nothing(served: Registry) -> None:
    assert look(served, "broken") == "unknown"
    assert image_registry.inspect("127.0.0.1:1/you/prefill:1", scheme="http").found == "unknown"
    assert image_registry.inspect(f"{served.host}/you/prefill:1", scheme="https").found == "unknown"


def test_a_token_service_that_is_not_encrypted_gets_no_login() -> None:
    challenge = 'Bearer realm="http://elsewhere.example/token"'

    def never(*_: object) -> None:
        raise AssertionError("asked")

    assert image_registry._credentials(challenge, "you/prefill", LOGIN, "https", never) is None


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("docker.io/you/prefill:1", ("registry-1.docker.io", "you/prefill", "1")),
        ("docker.io/prefill:1", ("registry-1.docker.io", "library/prefill", "1")),
        ("r.example:5000/a/b/c:t-host", ("r.example:5000", "a/b/c", "t-host")),
        ("r.example/a/b@sha256:00", ("r.example", "a/b", "sha256:00")),
        ("r.example/a/b:t@sha256:00", ("r.example", "a/b", "sha256:00")),
    ],
)
def test_the_name_of_an_image_as_its_registry_spells_it(image: str, expected: tuple[str, str, str]) -> None:
    assert image_registry.parts(image) == expected


# ---- labels and size --------------------------------------------------------------------------------------------------------


CONFIG = {"config": {"Labels": {"prefill.needs.cuda": "13.0"}}}
MANIFEST = {"config": {"digest": "sha256:c0"}, "layers": [{"size": 2_000_000_000}, {"size": 500_000_000}]}
INDEX = {"manifests": [{"digest": "sha256:a0", "platform": {"architecture": "arm64"}},
                       {"digest": "sha256:b0", "platform": {"architecture": "amd64"}}]}  # fmt: skip


def answers(**bodies: object) -> image_registry.Open:
    """A registry as a function: by the last part of the path, what a GET gives; a HEAD finds the tag 1-host."""

    def open(request: urllib.request.Request, seconds: float) -> Response:
        name = request.full_url.rpartition("/")[2].replace("sha256:", "").replace("1-host", "tag")
        if request.get_method() == "HEAD":
            return Response(200, Message(), b"")
        body = bodies.get(name)
        return Response(
            200 if name in bodies else 404, Message(), body if isinstance(body, bytes) else json.dumps(body).encode()
        )

    return open


@pytest.mark.parametrize("bodies", [{"tag": MANIFEST, "c0": CONFIG}, {"tag": INDEX, "b0": MANIFEST, "c0": CONFIG}])
def test_labels_and_size_come_from_the_manifest_of_this_architecture(bodies: dict[str, object]) -> None:
    found = image_registry.inspect("r.example/you/prefill:1-host", open=answers(**bodies))
    assert found == image_registry.Image("there", {"prefill.needs.cuda": "13.0"}, 2.5)


@pytest.mark.parametrize(
    "bodies",
    [{}, {"tag": b"<html>"}, {"tag": []}, {"tag": {}}, {"tag": MANIFEST}, {"tag": MANIFEST, "c0": {"config": None}},
     {"tag": {"manifests": [{}]}}, {"tag": {**MANIFEST, "layers": [{"size": "x"}]}, "c0": CONFIG}],
)  # fmt: skip
def test_an_odd_manifest_leaves_the_image_there_and_its_needs_unknown(bodies: dict[str, object]) -> None:
    found = image_registry.inspect("r.example/you/prefill:1-host", open=answers(**bodies))
    assert found == image_registry.Image("there", None, None)


def test_an_image_without_labels_has_no_needs() -> None:
    bodies = {"tag": MANIFEST, "c0": {"config": {"Labels": None}}}
    assert image_registry.inspect("r.example/you/prefill:1-host", open=answers(**bodies)).labels == {}
