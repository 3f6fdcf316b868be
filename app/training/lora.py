"""LoRA adapters by peft: which modules get one, and what is refused before a step is made.

The source of the method is Hu et al., 2021 (arXiv 2106.09685). peft skips a target that matches nothing, and an adapter on
a tied output layer is merged into the input embedding too: either would train another model than the one that was asked for.
"""

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.model.mixed_precision import unused_modules
from jobs.config.schema import Lora
from jobs.errors import ConfigError

WHERE = "train.lora.targets"
_ADAPTABLE = (nn.Linear, nn.Embedding, Conv1D)

log = logging.getLogger(__name__)


def with_adapter(model: PreTrainedModel, lora: Lora) -> Any:
    """The model under a new adapter; all other weights are frozen. The log names the number of adapted modules.

    Raises:
        ConfigError: a target that names no module, one that peft cannot adapt, or a tied embedding.
    """
    from peft import LoraConfig, get_peft_model  # 1 s of a core: only for stages with an adapter

    targets: Any = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    # Of a wrapper's tower too, which has layers of the names of the decoder's; None: nothing to leave out.
    unused = unused_modules(model) or None
    if not isinstance(targets, str):
        require_targets(model, targets, unused or ())
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets,  # type: ignore[arg-type]
                        exclude_modules=unused, task_type="CAUSAL_LM")  # fmt: skip
    # Without it the first layer's input alone would need no gradient, or in an evaluation alone need one, and the layer that
    # is compiled for all the others would be compiled once more for it.
    model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, states: states.requires_grad_(torch.is_grad_enabled())
    )
    adapted = get_peft_model(model, config)
    names = sorted({name.rpartition(".")[2] for name in adapted.targeted_module_names})
    log.info(f"LoRA of rank {lora.r} on {len(adapted.targeted_module_names)} modules: {', '.join(names)}")
    return adapted


def require_targets(model: PreTrainedModel, targets: Sequence[str], unused: Sequence[str]) -> None:
    """Each target must match a module by the end of its name, as peft matches, and none may be a tied embedding.

    Raises ConfigError.
    """
    modules = {name: module for name, module in model.named_modules() if name and name not in unused}
    tied = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    is_tied = len(tied) == 2 and tied[0].weight is tied[1].weight
    ends = sorted({name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, _ADAPTABLE)})
    for target in targets:
        found = [module for name, module in modules.items() if name == target or name.endswith(f".{target}")]
        if not found:
            near = get_close_matches(target, ends, 1)
            remedy = f'write "{near[0]}"' if near else f"choose from {', '.join(ends)}, or all-linear"
            raise ConfigError(WHERE, f'no module of the model is named "{target}"', remedy)
        other = next((module for module in found if not isinstance(module, _ADAPTABLE)), None)
        if other is not None:
            fact = f'"{target}" is a {type(other).__name__}, which LoRA cannot adapt'
            raise ConfigError(WHERE, fact, f"choose from {', '.join(ends)}, or all-linear")
        if is_tied and any(module is one for module in found for one in tied):
            fact = f'"{target}" shares its weight with the other embedding, so a merged adapter would change both'
            raise ConfigError(WHERE, fact, "leave it out, or train full weights")
