"""Checks before renting that an image can be pulled: one HEAD of its manifest, as container engines do.

https://github.com/opencontainers/distribution-spec, and Docker's token authentication for registries that want it.
"""

import base64
import json
import re
import shlex
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from itertools import pairwise
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

from vast.host.bounded_http import Response, exchange
from vast.secrets import Secret

# unknown: the registry could not be asked, which is no reason to refuse
Found = Literal["there", "absent", "denied", "unknown"]

TIMEOUT = 10.0  # seconds, for each request and its whole answer
LARGEST_TOKEN = 2**20  # bytes of an answer
HUB, HUB_HOST = "docker.io", "registry-1.docker.io"
MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in ("oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.list.v2",
                 "docker.distribution.manifest.v2")
)  # fmt: skip
_FIELD = re.compile(r'(\w+)="([^"]*)"')

Open = Callable[[urllib.request.Request, float], Response]


_open = partial(exchange, largest=LARGEST_TOKEN, redirects=True)


@dataclass(frozen=True)
class Image:
    """An image as its registry describes it."""

    found: Found
    labels: Mapping[str, str] | None = None  # None: not known
    gb: float | None = None  # of its layers as they are downloaded


def inspect(image: str, login: Secret | None = None, scheme: str = "https", open: Open = _open) -> Image:
    """Whether `image` (registry/name:tag, or @sha256:...) can be pulled with `login` ("-u NAME -p PASSWORD HOST"), and its
    labels and size: the manifest and the image's configuration, two GETs, or three for an index.

    Never raises for a fault of network or registry. The login is sent over https only, and never on a redirect.
    """
    found, credentials = _look(image, login, scheme, open)
    if found != "there":
        return Image(found)
    host, path, reference = parts(image)

    def read(kind: str, name: str) -> dict[str, Any]:
        answer = _ask(f"{scheme}://{host}/v2/{path}/{kind}/{name}", credentials, open, "GET")
        value = json.loads(answer.body) if answer.status == 200 else None
        if not isinstance(value, dict):
            raise ValueError(f"HTTP {answer.status}")
        return value

    try:
        manifest = read("manifests", reference)
        if "manifests" in manifest:
            platforms = {one["platform"]["architecture"]: one["digest"] for one in manifest["manifests"]}
            manifest = read("manifests", platforms["amd64"])
        labels = read("blobs", manifest["config"]["digest"])["config"].get("Labels") or {}
        gb = sum(int(layer["size"]) for layer in manifest["layers"]) / 1e9
        return Image(found, {str(name): str(value) for name, value in labels.items()}, gb)
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return Image(found)


def _look(image: str, login: Secret | None, scheme: str, open: Open) -> tuple[Found, Secret | None]:
    """Whether the image can be pulled, and the credentials that the registry accepted, for further requests."""
    host, path, reference = parts(image)
    url = f"{scheme}://{host}/v2/{path}/manifests/{reference}"
    credentials = None
    try:
        answer = _ask(url, None, open)
        if answer.status == 401:
            credentials = _credentials(answer.headers.get("WWW-Authenticate") or "", path, login, scheme, open)
            if credentials is None:
                return "denied", None
            answer = _ask(url, credentials, open)
    except (OSError, HTTPException, ValueError):
        return "unknown", None
    # Registries also answer 404 for private images: with a login the image is absent, without one it may be private.
    known: dict[int, Found] = {200: "there", 401: "denied", 403: "denied", 404: "absent"}
    return known.get(answer.status, "unknown"), credentials


def parts(image: str) -> tuple[str, str, str]:
    """(host, name, tag or digest) as used in the registry's URLs."""
    name, _, digest = image.partition("@")
    host, _, path = name.partition("/")
    path, colon, tag = path.rpartition(":")
    if not colon:
        path, tag = tag, "latest"
    if host == HUB:
        host, path = HUB_HOST, path if "/" in path else f"library/{path}"
    return host, path, digest or tag


def _credentials(challenge: str, path: str, login: Secret | None, scheme: str, open: Open) -> Secret | None:
    """The value for the header Authorization; None if the registry requires a login and there is none."""
    kind, _, rest = challenge.partition(" ")
    basic = None if login is None else _basic(login)
    if kind.lower() == "basic":
        return basic
    fields = dict(_FIELD.findall(rest))
    realm = fields.get("realm", "")
    if kind.lower() != "bearer" or urlsplit(realm).scheme != scheme:
        return None
    query = {"scope": fields.get("scope") or f"repository:{path}:pull"}
    if "service" in fields:
        query["service"] = fields["service"]
    request = urllib.request.Request(f"{realm}?{urlencode(query)}")
    if basic is not None:
        request.add_unredirected_header("Authorization", basic.reveal())
    answer = open(request, TIMEOUT)
    if answer.status in (401, 403):
        return None
    body = json.loads(answer.body) if answer.status == 200 else {}
    token = body.get("token") or body.get("access_token")
    if not isinstance(token, str):
        raise ValueError("an answer without a token")
    return Secret(f"Bearer {token}")


def _basic(login: Secret) -> Secret:
    words = dict(pairwise(shlex.split(login.reveal())))
    pair = f"{words.get('-u', '')}:{words.get('-p', '')}"
    return Secret("Basic " + base64.b64encode(pair.encode()).decode())


def _ask(url: str, credentials: Secret | None, open: Open, method: str = "HEAD") -> Response:
    """The answer, whatever its status."""
    request = urllib.request.Request(url, method=method, headers={"Accept": MANIFESTS, "User-Agent": "prefill-vast"})
    if credentials is not None:
        request.add_unredirected_header("Authorization", credentials.reveal())
    return open(request, TIMEOUT)
