"""A store outside this machine for what a run makes: a bucket, a hub repository or a directory, over fsspec.

    STORE/STAGE/RUN/checkpoints/checkpoint-100/    its files; run/: the run's job and logs; manifest.json
    STORE/STAGE/RUN/                               a complete run's files; manifest.json; summary.json

The manifest (size and sha256 of each file, as in a run's directory) is written after its files and removed before them, so
a torn upload has none. Credentials come from the environment: NAME, or a file that NAME_FILE names. No error shows a value.
"""

import hashlib
import importlib.util
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

from jobs.config.job import Job
from jobs.config.profile import STORE_REMEDY, store_fault
from jobs.config.terms import setting
from jobs.errors import ConfigError
from jobs.runs.atomic import finite, is_safe
from jobs.runs.runfiles import ID_PATTERN, RunFiles

MANIFEST = "manifest.json"
_BLOCK = 4 << 20  # bytes read at a time
_PART = 64 << 20  # bytes of a part of an upload: S3 allows 10,000 parts, so files of up to 640 GB
_LARGEST_MANIFEST = 16 << 20  # bytes
_S3 = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "token": "AWS_SESSION_TOKEN",
       "endpoint_url": "AWS_ENDPOINT_URL"}  # fmt: skip
_REGION = "AWS_DEFAULT_REGION"
_NEEDS = {"s3": ("s3fs", "pip install s3fs"), "hf": ("huggingface_hub", "pip install huggingface_hub")}


class StoreError(Exception):
    """The store did not do what it was asked; the text holds no credential."""


class Cancelled(StoreError):
    """The upload was given up by its caller."""


def store_of(job: Job, environ: Mapping[str, str] = os.environ) -> "ArtifactStore | None":
    """The store of the profile, or of $PREFILL_ARTIFACTS; None without either. Opens no connection.

    Raises:
        ConfigError: the address is malformed, or its library is not installed.
    """
    url = job.profile.artifacts
    where = f"profile {job.profile.name}: artifacts"
    if url is None:
        where, url = "PREFILL_ARTIFACTS", setting("PREFILL_ARTIFACTS", environ)
        if url is None:
            if job.train is not None and job.train.push_every is not None:
                fact = "there is nowhere to push to"
                raise ConfigError("train.push_every", fact, "set artifacts too, such as hf://me/runs")
            return None
        if fault := store_fault(url):
            raise ConfigError(where, fault, STORE_REMEDY)
    module, remedy = _NEEDS.get(url.partition(":")[0], ("fsspec", ""))
    if importlib.util.find_spec(module) is None:
        raise ConfigError(where, f"{url} needs {module}, which is not installed", remedy)
    return ArtifactStore(url, environ, megabits=job.profile.artifacts_mbit)


class ArtifactStore:
    """Args:
    url: of fsspec, such as s3://bucket/prefix.
    megabits: the most a second that uploads may take; None: no limit.
    pause: waits for a number of seconds, or less.
    """

    def __init__(self, url: str, environ: Mapping[str, str], *, megabits: float | None = None,
                 monotonic: Callable[[], float] = time.monotonic,
                 pause: Callable[[float], object] = time.sleep) -> None:  # fmt: skip
        self.url, self._environ, self._rate = url.rstrip("/"), environ, None if megabits is None else megabits * 125_000
        self._monotonic, self._pause = monotonic, pause
        self.moved = 0  # bytes, in both directions: whether a transfer makes progress

    def __repr__(self) -> str:
        return f"ArtifactStore({self.url})"

    # ---- the file system

    @cached_property
    def _fs(self) -> tuple[Any, str]:
        """fsspec's file system, and the path in it. Imported and made at the first use: it takes half a second."""
        import fsspec

        options: dict[str, Any] = {}
        if self.url.startswith("s3:"):
            given = {name: setting(variable, self._environ) for name, variable in _S3.items()}
            options = {name: value for name, value in given.items() if value}
            region = setting(_REGION, self._environ)
            options["client_kwargs"] = {"region_name": region} if region else {}
            options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}}
        elif self.url.startswith("file:"):
            options = {"auto_mkdir": True}
        fs, root = fsspec.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True, **options)
        return fs, str(root).rstrip("/")

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Turns whatever a file system raises into a StoreError of one line without credentials."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # botocore, aiohttp, httpx and the operating system have no common one
            text = " ".join(f"{type(error).__name__}: {error}".split())
            for name in (*_S3.values(), "HF_TOKEN"):
                if (secret := setting(name, self._environ)) and name != _S3["endpoint_url"]:
                    text = text.replace(secret, "***")
            raise StoreError(text[:200]) from None

    # ---- writing

    def put(self, unit: str, files: Mapping[str, Path | bytes], *, cancelled: Callable[[], bool] = lambda: False,
            manifest: bool = True) -> int:  # fmt: skip
        """Upload `files` (relative name -> path or content) below `unit`, then their manifest; returns the bytes.

        Raises:
            StoreError: it failed, or a file is gone here. What was uploaded has no manifest then.
        """
        with self._asked():
            fs, root = self._fs
            if manifest:
                self._unmark(unit)
            listed = {}
            for name, source in files.items():
                listed[name] = self._put_one(fs, f"{root}/{unit}/{name}", source, cancelled)
            if manifest:
                text = json.dumps({"files": listed}, indent=2).encode() + b"\n"
                self._put_one(fs, f"{root}/{unit}/{MANIFEST}", text, cancelled)
        return sum(one["size"] for one in listed.values())

    def _put_one(self, fs: Any, path: str, source: Path | bytes, cancelled: Callable[[], bool]) -> dict[str, Any]:
        digest, size, begun = hashlib.sha256(), 0, self._monotonic()
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            out = fs.open(path, "wb", block_size=_PART)
            try:
                while block := file.read(_BLOCK):
                    if cancelled():
                        raise Cancelled("given up")
                    out.write(block)
                    digest.update(block)
                    size += len(block)
                    self.moved += len(block)
                    if self._rate is not None:
                        self._pause(max(0.0, begun + size / self._rate - self._monotonic()))
            except BaseException:
                _abandon(out)
                raise
            out.close()
        if (there := fs.info(path)["size"]) != size:
            raise StoreError(f"{PurePosixPath(path).name} has {there} bytes there, and {size} were sent")
        return {"size": size, "sha256": digest.hexdigest()}

    def _unmark(self, unit: str) -> None:
        fs, root = self._fs
        with suppress(FileNotFoundError):
            fs.info(f"{root}/{unit}/{MANIFEST}")  # a hub refuses to remove what is not there
            fs.rm_file(f"{root}/{unit}/{MANIFEST}")

    def remove(self, unit: str) -> None:
        """Remove a unit, its manifest first. Raises StoreError."""
        with self._asked():
            fs, root = self._fs
            self._unmark(unit)
            with suppress(FileNotFoundError):
                fs.rm(f"{root}/{unit}", recursive=True)

    # ---- reading

    def names(self, unit: str) -> list[str]:
        """What is directly below `unit`; nothing if there is none. Raises StoreError."""
        with self._asked():
            fs, root = self._fs
            try:
                return sorted(PurePosixPath(path).name for path in fs.ls(f"{root}/{unit}", detail=False))
            except FileNotFoundError:
                return []

    def runs(self, stage: str) -> list[str]:
        """Names of a stage's runs, newest first. Raises StoreError."""
        found = [name for name in self.names(stage) if ID_PATTERN.fullmatch(name)]
        return sorted(found, key=lambda name: RunFiles(Path(stage, name)).age_key, reverse=True)

    def steps(self, run: str) -> list[int]:
        """Steps of a run's checkpoints, torn ones included, newest first. Raises StoreError."""
        found = [name.partition("checkpoint-")[2] for name in self.names(f"{run}/checkpoints")]
        return sorted((int(step) for step in found if step.isdecimal()), reverse=True)

    def whole(self, run: str) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
        """Steps and files of a run's whole checkpoints, newest first. Raises StoreError."""
        for step in self.steps(run):
            if (files := self.manifest(f"{run}/checkpoints/checkpoint-{step}")) is not None:
                yield step, files

    def read(self, path: str, most: int = _LARGEST_MANIFEST) -> bytes | None:
        """A small file; None if there is none. Raises StoreError."""
        with self._asked():
            fs, root = self._fs
            try:
                with fs.open(f"{root}/{path}", "rb") as file:
                    content: bytes = file.read(most + 1)
            except FileNotFoundError:
                return None
        if len(content) > most:
            raise StoreError(f"{path} is larger than {most} bytes")
        return content

    def manifest(self, unit: str) -> dict[str, dict[str, Any]] | None:
        """The files of a whole unit; None if it is torn or absent. Raises StoreError."""
        content = self.read(f"{unit}/{MANIFEST}")
        try:
            files = json.loads(content or b"")["files"]
            whole = all(is_safe(name) and finite(one["size"]) is not None and isinstance(one["sha256"], str)
                        for name, one in files.items())  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return files if whole and files else None

    def fetch(self, unit: str, into: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Download `files`, as `manifest` returns them, into a directory. Raises StoreError for one that differs."""
        with self._asked():
            fs, root = self._fs
            for name, expected in files.items():
                path, digest, size = into / name, hashlib.sha256(), 0
                path.parent.mkdir(parents=True, exist_ok=True)
                with closing(fs.open(f"{root}/{unit}/{name}", "rb", block_size=_PART)) as file, path.open("wb") as out:
                    while size <= expected["size"] and (block := file.read(_BLOCK)):
                        out.write(block)
                        digest.update(block)
                        size += len(block)
                        self.moved += len(block)
                    out.flush()
                    os.fsync(out.fileno())
                if size != expected["size"] or digest.hexdigest() != expected["sha256"]:
                    raise StoreError(f"{unit}/{name} differs from its manifest (sha256)")


def _abandon(out: IO[bytes]) -> None:
    """Drop a file that is half written. To close it would complete it on the store."""
    from fsspec.spec import AbstractBufferedFile

    with suppress(Exception):
        if not isinstance(out, AbstractBufferedFile):
            return out.close()
        out.closed = True  # so that it is not closed when it is collected either
        out.discard()
        if temporary := getattr(out, "temp_file", None):  # of huggingface_hub
            temporary.close()
            Path(temporary.name).unlink(missing_ok=True)
