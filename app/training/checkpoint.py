"""Checkpoints of a run in progress, and the finished model.

    model.safetensors       the trained weights, by their names in the model; under FSDP pytorch_model_fsdp.bin
    optimizer.pt            the optimiser's state, unless training is over; under FSDP always, as optimizer.bin
    rng_state.pth           torch's random numbers; of one of several processes rng_state_N.pth
    best-STEP.safetensors   with `train.keep: best`, the weights of the best evaluation so far, where they are not these

A checkpoint is complete when it holds `complete.json` with the size and the digest of each of its files; it is written last
and goes first. Anything else under `checkpoints/` was torn by a kill and is skipped; one whose files do not match
their digests is skipped too, before it is loaded. Old ones are pruned only after a newer one is complete; all of them go once
`final/` is there, since nothing is left to resume and each is three times the size of the weights.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from jinja2 import StrictUndefined, Template
from transformers import PreTrainedModel

from app.data.tokenize import end_ids
from app.training import custom_generate
from app.training.saved import Logged, probe_logits, require_same, require_same_adapter
from jobs.runs.atomic import files_below, io_errors_reported, known_sha256, sync_directory, write_text_atomically

MARK = "complete.json"
_DIGESTS = "xxh3_128"  # the key in it, and how they are made
_AT_ONCE = 4  # files; two of a checkpoint are large, the weights and the optimiser's state
_SHARD = "2GB"  # of a file of `final/`: one core makes the sha256 of 1.2 GB/s, and each file has a core
_NAME = re.compile(r"checkpoint-(\d+)")
_OF_MASK = re.compile(r"^([A-Z][a-z]+Mask)+(?=[A-Z])")  # before an architecture's name, see _name_mask


def step_of(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def mark_complete(checkpoint: Path) -> None:
    """Make every file of a checkpoint durable, and the logs of its run, then write complete.json.

    It takes as long as the disk does, 41 GB of a 3B model at 2 GB/s are 20 s, since reading (8 GB/s out of the page cache on
    one core) and flushing go on at once.
    """
    files = {name: path for name, path in files_below(checkpoint).items() if name != MARK}
    run = checkpoint.parent.parent
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # fsync, read and xxhash let other threads run
        flushed = pool.map(_flush, [*run.glob("*_log.jsonl"), *files.values()])
        digests = pool.map(_digest, files.values())
        mark = {"files": {name: path.stat().st_size for name, path in files.items()},
                _DIGESTS: dict(zip(files, digests, strict=True))}  # fmt: skip
        list(flushed)  # raises the error of a flush
    sync_directory(run)
    write_text_atomically(checkpoint / MARK, json.dumps(mark, indent=2) + "\n")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    """The file's xxh3_128. It finds flipped bits and lost blocks, ten times as fast as a cryptographic digest."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def clear(checkpoint: Path) -> None:
    """Remove what an earlier attempt left where a checkpoint is to be written, the mark before anything else."""
    if checkpoint.is_dir():
        _unmark(checkpoint)
        shutil.rmtree(checkpoint, ignore_errors=True)


def _unmark(checkpoint: Path) -> None:
    with io_errors_reported(checkpoint):
        (checkpoint / MARK).unlink(missing_ok=True)
        sync_directory(checkpoint)


def is_complete(checkpoint: Path) -> bool:
    """Whether it was finished and every file still has its size."""
    try:
        files: dict[str, int] = json.loads((checkpoint / MARK).read_text())["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def complete_checkpoints(directory: Path) -> list[Path]:
    """Oldest first."""
    found = [p for p in directory.glob("checkpoint-*") if step_of(p) >= 0 and is_complete(p)]
    return sorted(found, key=step_of)


def newest(directory: Path) -> Path | None:
    return next(reversed(complete_checkpoints(directory)), None)


def newest_verified(directory: Path, say: Callable[[str], None], logged: int | None = None) -> Path | None:
    """The newest complete checkpoint whose files match their digests. `say` gets each one that is skipped, with the reason.

    logged: the last step up to which the run's logs are whole. What is lost of them would be wrong in the run's numbers for good.

    A damaged checkpoint loses its complete.json, or pruning would keep it in place of a good one. Checkpoints of older code
    have no digests: their sizes count. Reading 41 GB takes as long as the disk needs; the page cache then serves the loading.
    """
    for checkpoint in reversed(complete_checkpoints(directory)):
        beyond = logged is not None and step_of(checkpoint) > logged
        damaged = f"the run's logs are whole up to step {logged} only" if beyond else _damaged(checkpoint)
        if damaged is None:
            return checkpoint
        say(f"{checkpoint}: {damaged}; it is passed over for an older one")
        _unmark(checkpoint)
    return None


def _damaged(checkpoint: Path) -> str | None:
    """The first file that does not match complete.json, and how; None if all match."""
    try:
        mark = json.loads((checkpoint / MARK).read_text())
        digests: dict[str, str] | None = mark.get(_DIGESTS)
        if digests is None:
            return None
        names = sorted(mark["files"])
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = dict(zip(names, pool.map(lambda name: _digest(checkpoint / name), names), strict=True))
        return next((f"{name} is damaged ({_DIGESTS})" for name in names if found[name] != digests.get(name)), None)
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read: {error.strerror}"
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"{MARK} is damaged"


def prune(directory: Path, keep: int, spared: Collection[Path] = ()) -> None:
    """Keep the newest `keep` complete checkpoints; remove older ones and torn ones that are older than the newest.

    spared: checkpoints that stay too, since they are being uploaded.
    """
    good = complete_checkpoints(directory)
    for path in directory.glob("checkpoint-*") if good else ():
        if step_of(path) < step_of(good[-1]) and path not in good[-keep:] and path not in spared:
            shutil.rmtree(path, ignore_errors=True)


def drop(directory: Path, spared: Collection[Path] = ()) -> None:
    """Remove all checkpoints except `spared`, and then the directory if it is empty."""
    for path in directory.glob("*"):
        if path not in spared:
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # absent, or not empty
        directory.rmdir()


def card(about: Mapping[str, Any]) -> str:
    file = Path(__file__).with_name("card.md.j2")
    text = file.read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    name, _, layers = about["mask"].partition("@")
    return template.render(about, name=name, layers=layers).rstrip() + "\n"


def _name_mask(config: Path, mask: str) -> None:
    """Make config.json name an architecture that no server or converter has: each of them would read the prompt causally. Under
    the causal mask the usual name.

    transformers chooses its class by `model_type`. Read in conversion/base.py of llama.cpp (get_model_architecture, of the text
    part first), in model_executor/models/registry.py of vLLM, and in the threads that docs/serve.md links.
    """
    written = json.loads(config.read_text(encoding="utf-8"))
    kind = mask.partition("@")[0]
    lead = "" if kind == "causal" else f"{kind.capitalize()}Mask"
    for part in (written, written.get("text_config") or {}):
        if part.get("architectures"):
            # save_pretrained leaves the text part's name as it is, which the start of this training may have got here.
            part["architectures"] = [lead + _OF_MASK.sub("", name) for name in part["architectures"]]
    config.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def save_final(
    model: PreTrainedModel,
    tokenizer: Any,
    final: Path,
    *,
    dtype: torch.dtype,
    about: dict[str, Any],
    logged: Logged | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Write the finished model to `final`, whole or not at all; any LoRA adapter is merged into the weights.

    The model itself becomes what is written: merged, and of `dtype`. Returns how far the written model, read back, is from
    the trained one and from what it `logged` (app/training/saved.py). Raises CheckpointError, with nothing at `final`, if that
    is beyond rounding.
    device: where it is read back, if not on the model's: FSDP leaves the whole model on the CPU.
    `about` (origin, mask, run, steps, objective, data) goes into config.json under `prefill` and into the model card.
    """
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    trained = probe_logits(model)
    # peft's models only; without LoRA it is not loaded.
    if (merge := getattr(model, "merge_and_unload", None)) is not None:
        model.save_pretrained(temporary / "adapter")
        require_same_adapter(model, temporary / "adapter", trained)
        model = merge()
    model.config.prefill = about
    model.config.use_cache = True  # gradient checkpointing may have switched it off
    ends = end_ids(tokenizer, model.generation_config.eos_token_id)
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None  # or stock `generate` runs on
    # In place: a copy of its state would untie tied weights, and leave config.json with the old dtype.
    model.to(dtype)  # type: ignore[arg-type]
    model.save_pretrained(temporary, max_shard_size=_SHARD)
    tokenizer.save_pretrained(temporary)
    (temporary / "README.md").write_text(card(about))
    _name_mask(temporary / "config.json", about["mask"])
    if about["mask"] == "prefix":
        (temporary / "custom_generate").mkdir()
        shutil.copyfile(custom_generate.__file__, temporary / "custom_generate" / "generate.py")
    files = files_below(temporary).values()
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # while it is read back; the run's manifest asks for the digests
        flushed = pool.map(_flush, files)
        pool.map(known_sha256, files)
        same = require_same(temporary, trained, dtype, device or model.device, logged)
        list(flushed)  # raises the error of a flush
    shutil.rmtree(final, ignore_errors=True)  # left by an attempt that was killed before it wrote its numbers
    os.replace(temporary, final)
    return same
