"""What the output layer does with the states, and a way to have it compute something else than logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from app.attention.backends import attend
from app.model.mixed_precision import is_linear


def plain_head(model: Any) -> nn.Linear | None:
    """The output layer, if the model's logits are its weight times the states and nothing else; None if they are not.

    Some models scale or cap their logits behind it, an adapter may sit on it, it may have a bias. Their source is not
    read: the layer is made to say random numbers, and only a model that passes these on unchanged is plain.
    """
    head = model.get_output_embeddings()
    if not is_linear(head) or head.bias is not None or head._forward_hooks or head._forward_pre_hooks:
        return None
    device = head.weight.device
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    # In float32 whatever the weights are: a model that rounds its logits is not plain.
    said = torch.randn(1, 2, head.out_features, generator=torch.Generator().manual_seed(0)).to(device)
    training = model.training
    model.eval()
    with torch.no_grad(), attend(None), instead_of_logits(head, lambda hidden: said):
        heard = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    return head if heard.shape == said.shape and torch.equal(heard.float(), said.float()) else None


@contextmanager
def instead_of_logits(head: nn.Linear, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the model's `logits` are what `compute` makes of the states, (batch, length, hidden), before `head`.

    It runs within the model's forward pass, where wrappers of the model (DDP, FSDP) have its weights at hand.
    """
    head.forward = compute  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


@contextmanager
def only_at(model: Any, flat: Tensor) -> Iterator[None]:
    """Logits only at the flat (batch * length) indices `flat`: the output layer sees (1, len(flat), hidden).

    Works on any model whose forward calls its output embedding, and keeps whatever it does to the logits afterwards
    (soft caps, scales).
    """

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, flat).unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
