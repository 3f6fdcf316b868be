"""Base weights in 4 bits under an adapter: QLoRA (Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes.

The linear layers that text goes through hold NF4 with doubly quantised scales, and are multiplied in the precision of their
input; embeddings, norms and the output layer stay float32. What is finished is the adapter on the weights that were never
quantised: it is merged there, on the host. Not covered: compiled layers, FSDP2, CUDA graphs; nothing here was run on a GPU.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from app.model.mixed_precision import unused_modules
from jobs.errors import ConfigError


def require_library() -> None:
    """Raises ConfigError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError("train.lora.quantization", "4bit needs bitsandbytes, which is not installed",
                          "run: pip install '.[quantization]', or take it out")  # fmt: skip


def quantize(model: Any, device: torch.device) -> None:
    """Replace the linear layers of a float32 model on the host by ones in 4 bits on the device, one after the other."""
    library = import_module("bitsandbytes").nn
    kept = {id(model.get_output_embeddings()), *(id(model.get_submodule(name)) for name in unused_modules(model))}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and id(layer) not in kept:
                made = library.Linear4bit(
                    layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
                )
                made.weight = library.Params4bit(layer.weight.data, quant_type="nf4", module=made).to(device)
                made.bias = layer.bias
                # On CPUs with bfloat16 a pass in evaluation mode would pack the weights for a kernel without gradients,
                # which later training passes would use too, with wrong gradients and no error (bitsandbytes 0.50).
                made.support_avx512bf16_for_cpu = False
                setattr(parent, name, made)
    model.is_loaded_in_4bit = True  # which peft asks for


def onto_whole(adapted: Any, whole: Any) -> Any:
    """peft's model of `whole`, weights that were never quantised, with a copy of the adapter that `adapted` was trained to."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    found = get_peft_model(whole, adapted.peft_config["default"])
    weights = {name: tensor.to(whole.device) for name, tensor in get_peft_model_state_dict(adapted).items()}
    set_peft_model_state_dict(found, weights)
    return found.eval()


def parameters(model: Any) -> int:
    """How many numbers the weights stand for; two of 4 bits share a byte."""
    states = ((one, getattr(one, "quant_state", None)) for one in model.parameters())
    return sum(state.shape.numel() if state is not None else one.numel() for one, state in states)
