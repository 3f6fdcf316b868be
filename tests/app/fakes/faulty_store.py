"""A store in memory whose writes fail, wait or tear on request: fsspec's own file system in memory, and faults around it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from app.runtime.artifact_store import ArtifactStore


class FaultyFileSystem(MemoryFileSystem):
    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    lost: ClassVar[int] = 0  # bytes of each file, that do not arrive
    before_write: ClassVar[Callable[[str], None]] = staticmethod(lambda path: None)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb":
            type(self).before_write(path)
        return super()._open(path, mode, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        found = super().info(path, **kwargs)
        return {**found, "size": found["size"] - self.lost}


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


class Faults:
    """What happens before a file is written; `paths` has them all."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.errors: list[Exception | None] = []  # one for each write to come; None: it is well
        self.always: Exception | None = None
        self.open = threading.Event()  # a closed gate holds all writes
        self.open.set()
        FaultyFileSystem.store, FaultyFileSystem.pseudo_dirs, FaultyFileSystem.lost = {}, [""], 0
        FaultyFileSystem.before_write = staticmethod(self._before)

    def _before(self, path: str) -> None:
        self.paths.append(path.partition("bucket/")[2])
        assert self.open.wait(30)
        error = self.errors.pop(0) if self.errors else self.always
        if error is not None:
            raise error

    def overwrite(self, path: str, content: bytes) -> None:
        file = next(file for name, file in FaultyFileSystem.store.items() if name.endswith(path))
        file.seek(0)
        file.write(content)

    @property
    def files(self) -> dict[str, bytes]:
        return {path.partition("bucket/")[2]: file.getvalue() for path, file in FaultyFileSystem.store.items()}


def store(**settings: Any) -> ArtifactStore:
    return ArtifactStore("faulty://bucket", {}, **settings)
