"""FSDP2: weights, gradients and optimiser state spread over the GPUs, for what does not fit on each.

accelerate and transformers do the work. This file has their settings, refuses what does not go with them, and puts a whole
model together again at the end. Each GPU still has to hold the float32 weights once, when they are loaded.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, utils
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from jobs.config.schema import Train
from jobs.errors import CheckpointError, ConfigError


def accelerator(device: torch.device, bf16: bool, spread: bool = False) -> Accelerator:
    """accelerate for one training. State dictionaries are written whole, so that a checkpoint fits any number of GPUs."""
    # One process may train more than once, and not always on the same device.
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    plugin = None
    if spread:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, reshard_after_forward=True, state_dict_type="FULL_STATE_DICT",
            auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False,
        )  # fmt: skip
    # What a decoder holds as buffers never changes; gradients stay where they are added up, and are not copied back.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    made = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if bf16 else "no", fsdp_plugin=plugin,
                       kwargs_handlers=[ddp])  # fmt: skip
    if plugin is not None:
        reduce_in_float32(made)
    return made


def require_shardable(train: Train) -> None:
    """Raises ConfigError for what FSDP cannot be used with here."""
    if train.lora is not None:
        fact = "fsdp is for training all weights, and this stage trains adapters"
        raise ConfigError("sharding", fact, "set sharding: ddp")
    if train.objective.kl > 0:
        fact = "fsdp has no frozen copy of the model to learn from (objective.kl)"
        raise ConfigError("sharding", fact, "set sharding: ddp")


def is_spread(checkpoint: Path) -> bool:
    """Whether FSDP wrote it."""
    return (checkpoint / "optimizer.bin").is_file()


def require_resumable(checkpoint: Path, sharding: str) -> None:
    """Raises CheckpointError where the optimiser's state in it is laid out for the other way of training."""
    spread = is_spread(checkpoint)
    if spread and sharding != "fsdp":
        raise CheckpointError(checkpoint, "its optimiser's state was spread over GPUs", "resume it with gpus: 2 or more and "
                              "sharding: fsdp")  # fmt: skip
    if not spread and sharding == "fsdp":
        fact = "its optimiser's state was not spread over GPUs"
        raise CheckpointError(checkpoint, fact, "resume it with sharding: ddp")


def reduce_in_float32(accelerator: Any) -> None:
    """Add up gradients in float32, over GPUs and over the passes of a step, as on one GPU and under DDP.

    accelerate would add them up in the type of the matmuls: in bfloat16 each addition would round to 8 bits. To be
    called before the model is spread.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


def seen_as_plain(model: Any) -> None:
    """Make torch.compile treat the modules of a spread model like those of any other.

    FSDP marks its modules, and the compiler then treats their sizes (heads, sizes of a head) as dynamic, which FlexAttention's
    kernels refuse. FSDP's hooks stay outside the compiled region (app/model/compiled.py), so the mark is not needed.
    """
    for module in model.modules():
        module._is_fsdp_managed_module = False


def save(accelerator: Any, model: Any, optimizer: Any, here: Path) -> None:
    """Every process must call it; the main one writes."""
    plugin = accelerator.state.fsdp_plugin
    utils.save_fsdp_model(plugin, accelerator, model, str(here))
    utils.save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(here))


def restore(accelerator: Any, model: Any, optimizer: Any, here: Path) -> None:
    plugin = accelerator.state.fsdp_plugin
    utils.load_fsdp_model(plugin, accelerator, model, str(here))
    utils.load_fsdp_optimizer(plugin, accelerator, optimizer, model, str(here))


def whole_weights(model: Any) -> dict[str, Tensor]:
    """All weights on the CPU, on the main process; none on others. Every process must call it."""
    # PyTorch's own: accelerate's leaves what is spread as it is once a checkpoint was loaded (1.15).
    found: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {name: found[name] for name, _ in model.named_parameters() if name in found}  # a shared one once


def whole_model(
    accelerator: Any, model: Any, main: bool, weights: dict[str, Tensor] | None = None
) -> PreTrainedModel | None:
    """The model with all its weights on the CPU, on the main process; None on others. Every process must call it.

    weights: those of an earlier step, in place of the model's own.
    """
    state = whole_weights(model) if weights is None else weights
    if not main:
        return None
    inner = accelerator.unwrap_model(model)
    whole: PreTrainedModel = type(inner)(inner.config)
    whole.load_state_dict(state, strict=False)  # a tied output layer may stand in it once
    whole.tie_weights()
    return whole
