"""Run by tests/engines/test_quantized.py with an interpreter that has bitsandbytes; prints what it found as JSON."""

from __future__ import annotations

import json
import sys
import warnings

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from app.attention.selfcheck import require
from app.model.quantized import onto_whole, parameters, quantize
from app.training.lora import with_adapter
from jobs.config.schema import Lora

warnings.simplefilter("ignore", FutureWarning)
warnings.simplefilter("error", UserWarning)  # that a kernel has no gradient is one


def made() -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, attn_implementation="prefill_sdpa",
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).float().eval()


def gradients(model: nn.Module) -> list[Tensor]:
    model.train()
    ids = torch.arange(24).reshape(2, 12) * 4
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


def furthest(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(some, others, strict=True))


def main() -> None:
    whole, quantized = made(), made()
    quantize(quantized, torch.device("cpu"))
    kinds = sorted({type(one).__name__ for one in quantized.modules() if isinstance(one, nn.Linear)})
    import bitsandbytes

    rounded = made()  # the same weights, whole again
    for name, layer in quantized.named_modules():
        if type(layer).__name__ == "Linear4bit":
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            rounded.get_submodule(name).weight.data = weight.reshape(layer.out_features, layer.in_features)
    laws = len(require(quantized, ["prefix"], "quantized"))  # in evaluation mode, before any gradient
    ids = torch.arange(10)[None]
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (quantized, rounded, whole)]
    count = parameters(quantized)
    adapted = []
    for model in (quantized, rounded):
        torch.manual_seed(1)
        one = with_adapter(model, Lora(r=4, targets="all-linear"))
        for weight in (p for p in one.parameters() if p.requires_grad):
            nn.init.normal_(weight, std=0.1)
        adapted.append(one)
    grads = [gradients(one) for one in adapted]
    merged = onto_whole(adapted[0], whole)
    theirs = {name: p for name, p in adapted[0].named_parameters() if "lora" in name}
    same = all(torch.equal(p, theirs[name]) for name, p in merged.named_parameters() if "lora" in name)
    print(json.dumps({
        "kinds": kinds, "laws": laws, "parameters": [count, sum(p.numel() for p in made().parameters())],
        "rounding": float((logits[0] - logits[1]).abs().max()), "loss_of_bits": float((logits[0] - logits[2]).abs().max()),
        "gradients": furthest(*grads), "adapter_is_the_same": same, "adapters": len(theirs),
        "bytes": sum(p.numel() * p.element_size() for p in quantized.parameters() if not p.requires_grad),
    }))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
