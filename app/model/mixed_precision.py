"""bfloat16 weights with float32 between them: products in bfloat16, everything else as precise as in float32.

A model loaded in bfloat16 rounds its residual stream to 8 bits after every layer, and its logits, which are about 20, to
multiples of 1/8. Then one choice in forty is not that of float32. Here every linear layer takes its input in bfloat16 and
gives its output in float32, the embeddings likewise. Some results stay float32: logits and attention on the CPU, all matmul
outputs and short-row attention on a GPU (app/attention/backends.py). One choice in a hundred differs, on a GPU one in
two hundred, and it is 7 to 11 % slower than with less care (docs/log.md). Weights stay bfloat16; a CPU
keeps those of attention and of the head in float32 besides.

Here too stands what of a vision-language wrapper (Ministral 3) is used. Rows are text, so its vision tower and projector
never run. Nothing about them may decide anything: not in which precision the rest computes, not whether training in several
processes goes on (DDP waits for a gradient of everything that is trained), not where adapters sit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.attention.backends import text_config

HALF = torch.bfloat16


def _unrounded(input: Tensor, weight: Tensor) -> Tensor:
    """Of bfloat16 on a GPU, whose products are summed in float32: so why round them."""
    rows = input.to(weight.dtype).reshape(-1, input.shape[-1])
    return torch.mm(rows, weight.T, out_dtype=torch.float32).view(*input.shape[:-1], len(weight))


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if not input.is_cuda:
            return F.linear(input.to(self.weight.dtype), self.weight, self.bias).float()
        out = _unrounded(input, self.weight)
        return out if self.bias is None else out + self.bias.float()


class _Exact(nn.Linear):
    """The output layer and those of attention, whose results are not to be rounded on a CPU either."""

    _wide: Tensor | None = None  # the weight in float32: no product of a CPU takes bfloat16 and gives float32

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            out = _unrounded(input, self.weight)
        else:
            if self._wide is None:
                self._wide = self.weight.detach().float()
            out = F.linear(input.float(), self._wide)
        return out if self.bias is None else out + self.bias.float()


def is_linear(module: object) -> bool:
    """A linear layer as torch has it, or as it is here, and nothing around it, such as an adapter."""
    return type(module) in (nn.Linear, _Linear, _Exact)


def _widen(_: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.float()


def keep_float32(model: Any) -> bool:
    """Make a bfloat16 model compute as above, in place; whether it could be.

    Not for training: gradients would be bfloat16. Models whose matrices are not all linear layers and embeddings (experts
    held in one tensor) are left as they are: their code multiplies without asking a layer. Of a vision-language wrapper
    only what text goes through counts and is changed.
    """
    modules: list[Any] = list({id(m): m for part in text_path(model) for m in part.modules()}.values())
    matrices = {id(p) for m in modules for p in m.parameters(recurse=False) if p.ndim > 1}
    known = {id(m.weight) for m in modules if isinstance(m, nn.Embedding) or type(m) is nn.Linear}
    head = model.get_output_embeddings()
    if model.dtype != HALF or not matrices <= known or type(head) is not nn.Linear:
        return False
    # transformers calls the modules so in every architecture. On a CPU this is a quarter of a small model's products at half
    # the speed, and 98.9 -> 99.2 % of the choices are float32's (docs/log.md).
    exact = {id(child) for module in modules if "Attention" in type(module).__name__ for child in module.children()}
    for module in modules:
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_widen)
        elif type(module) is nn.Linear:
            module.__class__ = _Exact if module is head or id(module) in exact else _Linear
        module._half_attention = True  # see app/attention/backends.py
    return True


# ---- what of a wrapper is used ---------------------------------------------------------------------------------------


def text_path(model: Any) -> list[nn.Module]:
    """The modules that hold all that text goes through: the model itself, or what a wrapper's text meets, the decoder with
    its embeddings and the output layer. Some may hold others."""
    if text_config(model) is model.config:
        return [model]
    parts = (model.get_input_embeddings(), model.get_decoder(), model.get_output_embeddings())
    return [part for part in parts if part is not None]


def unused_modules(model: Any) -> list[str]:
    """Names of the modules without submodules that text never goes through."""
    used = {id(module) for part in text_path(model) for module in part.modules()}
    return [name for name, module in model.named_modules() if id(module) not in used and not any(module.children())]


def freeze_unused(model: Any) -> None:
    """Train nothing that text never goes through: it would get no gradient, and cost the optimiser its state."""
    used = {id(weight) for part in text_path(model) for weight in part.parameters()}
    for weight in model.parameters():
        if id(weight) not in used:
            weight.requires_grad_(False)
