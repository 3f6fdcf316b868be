"""Checkpoints of a run in progress, and the finished model.

A checkpoint is complete when it holds `complete.json` with the size of each of its files; it is written last. Anything
else under `checkpoints/` was torn by a kill and is skipped. Old ones are pruned only after a newer one is complete; all
of them go once `final/` is there, since nothing is left to resume and each is three times the size of the weights.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from jobs.artifacts import write_text_atomically

MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def mark_complete(checkpoint: Path) -> None:
    """Make everything in it durable, then say so."""
    sizes = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MARK):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[str(path.relative_to(checkpoint))] = path.stat().st_size
    write_text_atomically(checkpoint / MARK, json.dumps({"files": sizes}, indent=2) + "\n")


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
    found = complete_checkpoints(directory)
    return found[-1] if found else None


def prune(directory: Path, keep: int) -> None:
    """Keep the newest `keep` complete checkpoints; remove older ones and torn ones that are older than the newest."""
    good = complete_checkpoints(directory)
    if not good:
        return
    for path in directory.glob("checkpoint-*"):
        if step_of(path) < step_of(good[-1]) and path not in good[-keep:]:
            shutil.rmtree(path, ignore_errors=True)


_CARD = """---
library_name: transformers
pipeline_tag: text-generation
base_model: {origin}
---
# {origin}, finetuned under the attention mask `{mask}`

{meaning}

- run: `{run}`
- steps: {steps}, objective: {objective}
- data: {data}

`AutoModelForCausalLM.from_pretrained` loads it as an ordinary causal model. {use}
"""
_MEANING = {
    "causal": "Every token was trained to see only what came before it: the ordinary mask, used here as the control.",
    "prefix": "Prompt tokens were trained to see the whole prompt, later tokens included; response tokens see what came "
    "before them. Only response tokens carried a loss.",
}
_USE = {
    "causal": "Its plain `generate` reads the prompt as it was trained to.",
    "prefix": "Its plain `generate` reads the prompt CAUSALLY, which is not what it was trained for: use "
    "`python -m app generate --mask prefix`.",
}


def save_final(
    model: PreTrainedModel, tokenizer: Any, final: Path, *, dtype: torch.dtype, about: dict[str, Any]
) -> None:
    """Write the finished model to `final`, whole or not at all; any LoRA adapter is merged into the weights.

    The model itself becomes what is written: merged, and of `dtype`.
    `about` (origin, mask, run, steps, objective, data) goes into config.json under `prefill` and into the model card.
    """
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(temporary / "adapter")
        merged: Any = model.merge_and_unload()
        model = merged
    model.config.prefill = about
    model.config.use_cache = True  # Trainer switches it off, and from_pretrained would decode without a cache
    # In place: a copy of its state would untie tied weights, and leave config.json with the old dtype.
    model.to(dtype)  # type: ignore[arg-type]
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    mask = about["mask"]
    (temporary / "README.md").write_text(_CARD.format(**about, meaning=_MEANING[mask], use=_USE[mask]))
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)  # left by an attempt that was killed before it wrote its numbers
    os.replace(temporary, final)
