"""The output layer (lm_head): is it a plain matmul, and how to compute something else in its place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from app.attention.backends import attend, evaluating
from app.model.mixed_precision import is_linear


def plain_lm_head(model: Any) -> nn.Linear | None:
    """The output layer, if the model's logits are its weight times the states and nothing else; None if they are not.

    Some models scale or cap their logits after it, or it has an adapter or a bias. We replace its output by random logits:
    it is plain if the model returns them unchanged.
    """
    lm_head = model.get_output_embeddings()
    if not is_linear(lm_head) or lm_head.bias is not None or lm_head._forward_hooks or lm_head._forward_pre_hooks:
        return None
    device = lm_head.weight.device
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    # float32 whatever the dtype of the weights: a model that rounds its logits is not plain.
    fake_logits = torch.randn(1, 2, lm_head.out_features, generator=torch.Generator().manual_seed(0)).to(device)
    with evaluating(model), torch.no_grad(), attend(None), instead_of_logits(lm_head, lambda hidden: fake_logits):
        output = model(input_ids=ids, use_cache=False).logits
    same = output.shape == fake_logits.shape and torch.equal(output.float(), fake_logits.float())
    return lm_head if same else None


@contextmanager
def instead_of_logits(lm_head: nn.Linear, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the model's `logits` are `compute(states)`, states (batch, length, hidden) being the input of `lm_head`.

    It runs within the model's forward pass, where wrappers of the model (DDP, FSDP) hold its weights.
    """
    lm_head.forward = compute  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del lm_head.forward


@contextmanager
def only_at(model: Any, flat: Tensor) -> Iterator[None]:
    """Logits only at the flat (batch * length) indices `flat`: the output layer sees (1, len(flat), hidden).

    Works on any model whose forward calls its output embedding, and keeps its later steps on the logits (soft
    caps, scales).
    """

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, flat).unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
