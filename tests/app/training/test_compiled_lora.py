"""What the compiler makes of a model with an adapter: each kind of pass has one graph, which serves every layer."""

from __future__ import annotations

from typing import Any

import torch

from app.attention.backends import NAMES
from app.model.compiled import speed_up
from app.training.lora import with_adapter
from jobs.config.schema import Lora
from tests.app.conftest import make_model


def test_layers_with_an_adapter_share_one_graph_in_training_and_one_in_evaluation() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = make_model("llama", num_hidden_layers=4)
    adapted = with_adapter(model, Lora(targets="all-linear", dropout=0.05))
    speed_up(model, backend=count)
    model.config._attn_implementation = NAMES["sdpa"]  # FlexAttention has no backward pass on a CPU
    ids = torch.arange(3, 19)[None]
    adapted(input_ids=ids, use_cache=False).logits.sum().backward()
    assert len(graphs) == 1
    with torch.no_grad():
        adapted(input_ids=ids, use_cache=False)
    assert len(graphs) == 2
    # A number that is an input is computed with on the CPU, by a C++ compiler's code: 40 s of an H200 at the start.
    given = [node.meta["example_value"] for graph in graphs for node in graph.graph.nodes if node.op == "placeholder"]
    assert not [value for value in given if isinstance(value, torch.Tensor) and value.dim() == 0]
    torch._dynamo.reset()
