"""The container engine of this machine through the docker SDK: every call has a time limit, and
vast/local/engine_errors.py classifies its errors.

Streams (output of a command, files) do not use the SDK's own methods, which wait for ever and lose bytes that came in one
packet with the head of an answer. They use the same session of `requests`, which the SDK's client is.
"""

import math
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

from jobs.errors import UserError
from vast.local.engine_errors import EngineError, Refused, Silent, brief, classified, split
from vast.ports import Seconds
from vast.shell.transport import Reply

CALL: Seconds = 30.0  # of a plain request
CONNECT: Seconds = 10.0
CHUNK = 1 << 16
MOST_OUTPUT = 64 << 20  # bytes of one command: a fault writes for ever


def connect(environ: Mapping[str, str], timeout: Seconds = CALL) -> tuple["Engine", str]:
    """The engine of DOCKER_HOST, else of docker's current context, and its identity. Raises UserError if none answers."""
    try:
        import docker
    except ImportError:
        fact = "the docker SDK for Python is not installed"
        raise UserError("docker", fact, "run: make setup, or: pip install '.[local]'") from None
    host = environ.get("DOCKER_HOST", "")
    if host.startswith("ssh://"):
        fact = "is reached by ssh, which is not supported here"
        raise UserError(f"DOCKER_HOST={host}", fact, "set DOCKER_HOST to a socket of this machine")
    try:
        engine = Engine(docker.from_env(timeout=timeout, environment=dict(environ)).api)
        return engine, engine.identity()
    except (EngineError, docker.errors.DockerException, OSError, ValueError) as error:
        where = f"DOCKER_HOST={host}" if host else "docker"
        fact = f"no container engine answers ({brief(error)})"
        remedy = "start it, or set DOCKER_HOST to the socket of yours, rootless and podman's too"
        raise UserError(where, fact, remedy) from None


class Engine:
    """api: docker.APIClient. now: a monotonic clock. Methods raise Missing, Refused and Silent, and nothing else."""

    def __init__(self, api: Any, now: Callable[[], float] = time.monotonic) -> None:
        self.api, self.now = api, now

    # ---- plain requests

    def _object(self, call: Callable[..., Any], *words: Any, **options: Any) -> dict[str, Any]:
        with classified():
            found = call(*words, **options)
        if not isinstance(found, dict):
            raise Silent(f"expected an object, found {type(found).__name__}")
        return found

    def _id(self, found: dict[str, Any]) -> str:
        if not isinstance(found.get("Id"), str):
            raise Silent("an answer without an id")
        return str(found["Id"])

    def info(self) -> dict[str, Any]:
        return self._object(self.api.info)

    def identity(self) -> str:
        """Constant for as long as the engine keeps its containers. Podman's ID changes with every answer."""
        one, other = self.info(), self.info()
        if one.get("ID") and one.get("ID") == other.get("ID"):
            return str(one["ID"])
        return f"{one.get('Name', '')}:{one.get('DockerRootDir', '')}"

    def image(self, name: str) -> str:
        return self._id(self._object(self.api.inspect_image, name))

    def pull(self, name: str) -> None:
        """Pull an image, without a time limit: it may be large, and a person waits for it and can interrupt it."""
        with classified():
            for line in self.api.pull(name, stream=True, decode=True):
                if "error" in line:
                    raise Refused(str(line["error"]), 404)

    def create(self, **what: Any) -> str:
        """Create a container from the arguments of APIClient.create_container. Returns its id."""
        return self._id(self._object(self.api.create_container, **what))

    def start(self, container: str) -> None:
        with classified():
            self.api.start(container)

    def inspect(self, container: str) -> dict[str, Any]:
        return self._object(self.api.inspect_container, container)

    def containers(self, label: str) -> list[str]:
        with classified():
            found = self.api.containers(all=True, filters={"label": label})
            if not isinstance(found, list):
                raise Silent(f"expected a list of containers, found {type(found).__name__}")
            return [str(one["Id"]) for one in found]

    def remove(self, container: str) -> None:
        """Remove a container at once, running or not, with its own volumes."""
        with classified():
            self.api.remove_container(container, force=True, v=True)

    def remove_left_volumes(self, label: str) -> int:
        """Remove volumes with the label that no container uses; returns their number."""
        found = self._object(self.api.volumes, filters={"label": label, "dangling": True}).get("Volumes") or []
        with classified():
            for one in found:
                self.api.remove_volume(one["Name"])
        return len(found)

    # ---- streams

    def run(self, container: str, argv: tuple[str, ...], stdin: bytes, timeout: Seconds) -> Reply:
        """Run a command in the container, as its user.

        The command has the same limit inside the container, so that it does not outlive this call.
        """
        until = self.now() + timeout
        words = ["timeout", "--kill-after=5", f"{math.ceil(timeout) + 1}", *argv]
        try:
            with classified():
                execution = self._id(self._object(self.api.exec_create, container, words, stdin=bool(stdin)))
                start = {"json": {"Tty": False, "Detach": False}, "timeout": (CONNECT, timeout)}
                with self._stream(self.api._post, "/exec/{0}/start", execution, **start) as answer:
                    # The SDK finds it for each kind of transport.
                    found = self.api._get_raw_response_socket(answer)
                    line: socket.socket = getattr(found, "_sock", found)
                    if stdin:
                        line.settimeout(max(0.001, until - self.now()))
                        line.sendall(stdin)
                        line.shutdown(socket.SHUT_WR)
                    out, err = split(self._chunks(answer, line, until))
                return self._ended(execution, out, err, until)
        except Silent:
            if self.now() >= until:
                return Reply("timeout", err=f"no end within {timeout:g} s")
            raise

    def _chunks(self, answer: Any, line: socket.socket, until: float) -> Iterator[bytes]:
        total = 0
        while True:
            left = until - self.now()
            if left <= 0:
                raise TimeoutError
            line.settimeout(left)
            chunk = answer.raw.read1(CHUNK)
            if not chunk:
                return
            total += len(chunk)
            if total > MOST_OUTPUT:
                raise Silent(f"a command wrote more than {MOST_OUTPUT} bytes")
            yield chunk

    def _ended(self, execution: str, out: bytes, err: bytes, until: float) -> Reply:
        """Its output ends a moment before the engine knows the exit code."""
        while True:
            state = self._object(self.api.exec_inspect, execution)
            if not state.get("Running") and isinstance(state.get("ExitCode"), int):
                return Reply("ok", state["ExitCode"], out.decode(errors="replace"), err.decode(errors="replace"))
            if self.now() >= until:
                raise Silent("it has not ended in time")
            time.sleep(0.02)

    def archive(self, container: str, path: str) -> Generator[bytes, None, None]:
        """A file or directory as the chunks of a tar archive, also of a container that is paused or dead. To be closed."""
        options = {"params": {"path": path}, "timeout": (CONNECT, CALL)}
        with classified(), self._stream(self.api._get, "/containers/{0}/archive", container, **options) as answer:
            yield from answer.iter_content(CHUNK)

    def put(self, container: str, directory: str, archive: Iterable[bytes]) -> None:
        """Extract a tar archive into a directory that is there. `archive` may end the transfer by raising."""
        with classified():
            self.api.put_archive(container, directory, archive)

    def _stream(self, method: Callable[..., Any], path: str, name: str, **options: Any) -> Any:
        answer = method(self.api._url(path, name), stream=True, **options)
        self.api._raise_for_status(answer)
        return answer
