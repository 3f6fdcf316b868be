"""What an engine's answers are, told apart. Every fault of the SDK, of requests and of urllib3 becomes one of three:

Missing   the engine itself says that there is no such thing
Refused   the engine answered, and the answer is no
Silent    nothing came in time, or nothing that can be understood: nobody knows
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

NO_CONTAINER = ("no such container", "no container with name")  # docker's words, podman's words
OWN_404 = (*NO_CONTAINER, "no such image", "no such exec", "could not find the file")


class EngineError(Exception):
    """What the engine said, or why it said nothing."""


class Missing(EngineError):
    pass


def of_container(error: Missing) -> bool:
    """Whether it is the container that is missing, and not a file in it."""
    return any(sign in str(error).lower() for sign in NO_CONTAINER)


class Refused(EngineError):
    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status


class Silent(EngineError):
    pass


@contextmanager
def told_apart() -> Iterator[None]:
    """Whatever the SDK, requests or urllib3 raises, as one of the three."""
    import docker.errors
    import requests
    import urllib3

    try:
        yield
    except docker.errors.APIError as error:
        status = error.status_code
        if status is None:
            raise Silent(brief(error)) from None
        raise refusal(str(error.explanation or brief(error)), status) from None
    except (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Silent(brief(error)) from None
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise Silent(f"not understood: {brief(error)}") from None


def refusal(words: str, status: int) -> EngineError:
    """A 404 is the engine's own only with its words: a proxy in between has other ones."""
    if status == 404 and any(sign in words.lower() for sign in OWN_404):
        return Missing(words)
    if status in (404, 407) or status < 400:
        return Silent(f"{status}: {words}")
    return Refused(words, status)


def an_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Silent(f"expected an object, found {type(value).__name__}")
    return value


def words_of(content: bytes) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(content)["message"])
    return content.decode(errors="replace").strip()[:500]


def brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def split(chunks: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Output and errors of a command, from frames of 8 bytes (kind, three zeros, length) and their content."""
    buffer = bytearray()
    parts = {1: bytearray(), 2: bytearray()}
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 8:
            kind, size = struct.unpack(">BxxxL", buffer[:8])
            if len(buffer) < 8 + size:
                break
            parts.setdefault(kind, bytearray()).extend(buffer[8 : 8 + size])
            del buffer[: 8 + size]
    if buffer:
        raise Silent("the output of a command broke off")
    return bytes(parts[1]), bytes(parts[2])
