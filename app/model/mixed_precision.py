"""bfloat16 matmuls, float32 activations: nearly float32 accuracy at bfloat16 speed.

A model loaded in bfloat16 rounds its residual stream to 8 bits after every layer, and its logits, which are about 20, to
multiples of 1/8. Then one choice in forty is not that of float32. Here the output of every linear layer and of the
embeddings is float32. Some results stay float32: logits and attention on the CPU, all matmul outputs and short-row
attention on a GPU (app/attention/backends.py). One choice in a hundred differs, on a GPU one in two hundred, and it is 7 to
11 % slower than without (docs/log.md). Weights stay bfloat16; a CPU also keeps float32 copies of those of attention and of
the output layer.

Also helpers for vision-language wrappers (Ministral 3): rows are text, so the vision tower and its projector never run.
They must not affect the dtype, DDP (which waits for the gradient of every trained weight) or adapters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.attention.model_config import text_config
from app.model.products import CLASSES

HALF = torch.bfloat16


def _unrounded(input: Tensor, weight: Tensor) -> Tensor:
    """bfloat16 matmul on a GPU without rounding the sum, which is float32 already."""
    rows = input.to(weight.dtype).reshape(-1, input.shape[-1])
    return torch.mm(rows, weight.T, out_dtype=torch.float32).view(*input.shape[:-1], len(weight))


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if not input.is_cuda:
            return F.linear(input.to(self.weight.dtype), self.weight, self.bias).float()
        out = _unrounded(input, self.weight)
        return out if self.bias is None else out + self.bias.float()


class _Exact(nn.Linear):
    """For the output layer and attention: their results stay float32 on a CPU too."""

    _wide: Tensor | None = None  # the weight in float32: CPUs have no matmul of bfloat16 to float32

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            out = _unrounded(input, self.weight)
        else:
            if self._wide is None:
                self._wide = self.weight.detach().float()
            out = F.linear(input.float(), self._wide)
        return out if self.bias is None else out + self.bias.float()


def is_linear(module: object) -> bool:
    """A linear layer of torch, of this file or of app/model/products.py, without anything around it, such as an adapter."""
    return type(module) in (nn.Linear, _Linear, _Exact, *CLASSES.values())


def keep_float32(model: Any) -> bool:
    """Make a bfloat16 model compute as above, in place; False if it cannot.

    Not for training: gradients would be bfloat16. Models whose matrices are not all linear layers and embeddings (experts
    in one tensor) are left alone: their code multiplies without calling a layer. In a vision-language wrapper only the
    text path is checked and changed.
    """
    modules: list[Any] = list({id(m): m for part in text_path(model) for m in part.modules()}.values())
    matrices = {id(p) for m in modules for p in m.parameters(recurse=False) if p.ndim > 1}
    known = {id(m.weight) for m in modules if isinstance(m, nn.Embedding) or type(m) is nn.Linear}
    head = model.get_output_embeddings()
    if model.dtype != HALF or not matrices <= known or type(head) is not nn.Linear:
        return False
    # transformers names attention modules so in every architecture. On a CPU a quarter of a small model's matmuls then run at
    # half the speed, and the share of choices equal to float32's rises from 98.9 to 99.2 % (docs/log.md).
    exact = {id(child) for module in modules if "Attention" in type(module).__name__ for child in module.children()}
    for module in modules:
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda _module, _inputs, output: output.float())
        elif type(module) is nn.Linear:
            module.__class__ = _Exact if module is head or id(module) in exact else _Linear
        module._half_attention = True  # see app/attention/backends.py
    return True


# ---- the text path of a wrapper -----------------------------------------------------------------------------------------


def text_path(model: Any) -> list[nn.Module]:
    """The modules that text runs through: the model itself, or a wrapper's decoder, embeddings and output layer. They may be
    nested."""
    if text_config(model) is model.config:
        return [model]
    parts = (model.get_input_embeddings(), model.get_decoder(), model.get_output_embeddings())
    return [part for part in parts if part is not None]


def unused_modules(model: Any) -> list[str]:
    """Names of the modules without submodules outside the text path."""
    used = {id(module) for part in text_path(model) for module in part.modules()}
    return [name for name, module in model.named_modules() if id(module) not in used and not any(module.children())]


def freeze_unused(model: Any) -> None:
    """Freeze the weights outside the text path: they would get no gradient, and still need optimiser state."""
    used = {id(weight) for part in text_path(model) for weight in part.parameters()}
    for weight in model.parameters():
        if id(weight) not in used:
            weight.requires_grad_(False)
