"""Classifies the errors of a container engine. Every exception of the SDK, of requests and of urllib3 becomes one of three:

Missing   the engine itself answered that there is no such thing
Refused   the engine answered, and the answer is no
Silent    no answer in time, or none that can be understood: the state is unknown
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

NO_CONTAINER = ("no such container", "no container with name")  # docker's words, podman's words
OWN_404 = (*NO_CONTAINER, "no such image", "no such exec", "could not find the file")


class EngineError(Exception):
    """The error of an engine, or why there is no answer."""


class Missing(EngineError):
    @property
    def of_container(self) -> bool:
        """Whether the container is missing, and not a file in it."""
        return any(sign in str(self).lower() for sign in NO_CONTAINER)


class Refused(EngineError):
    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status


class Silent(EngineError):
    pass


@contextmanager
def classified() -> Iterator[None]:
    """Turn what the SDK, requests or urllib3 raise into one of the three."""
    import docker.errors
    import requests
    import urllib3

    try:
        yield
    except docker.errors.APIError as error:
        words, status = str(error.explanation or brief(error)), error.status_code
        # A 404 is the engine's own only with its words: a proxy in between has other ones.
        if status == 404 and any(sign in words.lower() for sign in OWN_404):
            raise Missing(words) from None
        if status is None or status in (404, 407) or status < 400:
            raise Silent(f"{status}: {words}") from None
        raise Refused(words, status) from None
    except (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Silent(brief(error)) from None
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise Silent(f"not understood: {brief(error)}") from None


def brief(error: BaseException) -> str:
    """The system's own words, if a call of it is the cause: the SDK quotes three exceptions around them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
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
