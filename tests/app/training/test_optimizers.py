"""Every optimiser that a stage may name exists, learns, and says so where its library is missing."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch

from app.training import optimizers
from app.training.master_weights import MasterAdamW, _compiled, linear_weights
from app.training.snapshot import load_optimizer
from jobs.config.schema import Train
from jobs.errors import CheckpointError, ConfigError

NAMES = get_args(Train.model_fields["optimizer"].annotation)


def train(name: str) -> Train:
    return Train(mask="prefix", max_steps=1, optimizer=name, learning_rate=0.05, weight_decay=0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_an_optimizer_lowers_a_loss_and_keeps_its_rate_and_decay(name: str) -> None:
    torch.manual_seed(0)
    weight, wanted = torch.nn.Parameter(torch.randn(8, 8)), torch.randn(8, 8)
    made = optimizers.of_library(train(name), [{"params": [weight]}])
    assert (made.param_groups[0]["lr"], made.param_groups[0]["weight_decay"]) == (0.05, 0.01)
    before = None
    for _ in range(50):
        loss = (weight - wanted).square().mean()
        before = loss.detach() if before is None else before
        made.zero_grad()
        loss.backward()
        made.step()
    assert before is not None and loss < before / 2


def test_adafactor_holds_next_to_no_state_and_adamw_twice_the_weights() -> None:
    def floats(name: str) -> int:
        weight = torch.nn.Parameter(torch.ones(64, 64))
        made = optimizers.of_library(train(name), [{"params": [weight]}])
        weight.sum().backward()
        made.step()
        return sum(v.numel() for v in made.state[weight].values() if isinstance(v, torch.Tensor))

    assert floats("adamw") >= 2 * 64 * 64 and floats("adafactor") < 3 * 64


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3))
    model[2].bias.requires_grad_(False)
    decayed, not_decayed = optimizers.parameter_groups(model, 0.1)
    assert decayed == {"params": [model[0].weight, model[2].weight], "weight_decay": 0.1}
    assert not_decayed == {"params": [model[1].weight, model[1].bias], "weight_decay": 0.0}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_is_that_of_transformers_schedule(schedule: str) -> None:
    from transformers import get_scheduler

    stage = Train(mask="prefix", max_steps=40, warmup_steps=7, learning_rate=3e-4, schedule=schedule)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=3e-4)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=7, num_training_steps=40)
    for step in range(40):
        assert optimizers.learning_rate(stage, step) == theirs.get_last_lr()[0]
        optimizer.step()
        theirs.step()


# ---- AdamW of app/training/master_weights.py -------------------------------------------------------------------------


def two_of(shapes: list[tuple[int, ...]]) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(*shape)) for shape in shapes]
    return ours, [torch.nn.Parameter(p.detach().clone()) for p in ours]


def groups(weights: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "weight_decay": 0.0}]


def test_master_adamw_is_adamw_and_their_states_are_exchanged(tmp_path: Path) -> None:
    ours, theirs = two_of([(16, 8), (7,)])
    mine, torchs = MasterAdamW(groups(ours), lr=1e-2), torch.optim.AdamW(groups(theirs), lr=1e-2, fused=True)

    def steps(count: int) -> None:
        for _ in range(count):
            for one, other in zip(ours, theirs, strict=True):
                one.grad = torch.randn_like(one)
                other.grad = one.grad.clone()
            mine.step()
            torchs.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)

    steps(10)
    torch.save(mine.state_dict(), tmp_path / "mine")
    torch.save(torchs.state_dict(), tmp_path / "torch's")
    mine, torchs = MasterAdamW(groups(ours), lr=1e-2), torch.optim.AdamW(groups(theirs), lr=1e-2, fused=True)
    load_optimizer(mine, tmp_path / "torch's")
    load_optimizer(torchs, tmp_path / "mine")
    steps(10)
    with pytest.raises(CheckpointError, match="the state of 2 parameters for 1"):
        load_optimizer(MasterAdamW([{"params": ours[:1]}], lr=1e-2), tmp_path / "mine")


def test_halved_weights_are_the_rounding_of_masters_that_small_steps_still_move() -> None:
    (ours,), (theirs,) = two_of([(16, 8)])
    mine = MasterAdamW([{"params": [ours]}], lr=1e-5, halved=[ours])
    torchs = torch.optim.AdamW([theirs], lr=1e-5, weight_decay=0.0)
    before = mine.masters[ours].clone()
    for _ in range(30):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.float()
        mine.step()
        torchs.step()
        assert torch.equal(ours, mine.masters[ours].bfloat16())
    torch.testing.assert_close(mine.masters[ours], theirs.detach(), rtol=1e-6, atol=1e-7)
    moved = (mine.masters[ours] - before).abs()
    assert 0 < float(moved.median()) < float(before.abs().median()) / 512  # less than bfloat16 can tell
    mine.release()
    assert ours.dtype == torch.float32 and not mine.masters


def test_gradients_of_several_passes_are_added_up_in_float32() -> None:
    (ours,), _ = two_of([(8, 8)])
    mine = MasterAdamW([{"params": [ours]}], lr=1e-2, halved=[ours])
    parts = [torch.full((8, 8), value).bfloat16() for value in (1.0, 1 / 512, 1 / 512)]  # bfloat16 would keep 1
    for i, part in enumerate(parts):
        ours.grad = part
        if i < 2:
            mine.add_up()
    (total,) = mine.gradients().values()
    assert total.dtype == torch.float32 and torch.equal(total, torch.full((8, 8), 1 + 2 / 512))
    assert float(mine.norm()) == pytest.approx(8 * (1 + 2 / 512))
    mine.step()
    mine.zero_grad()
    assert not mine.gradients()


def test_a_step_that_is_to_be_skipped_changes_nothing() -> None:
    ours, _ = two_of([(8, 8), (5,)])
    mine = MasterAdamW(groups(ours), lr=1e-2, halved=ours[:1])
    for p in ours:
        p.grad = torch.full_like(p, float("nan"))
    before = copy.deepcopy((mine.state_dict()["state"], list(mine.masters.values()), ours[1].detach()))
    mine.skip = torch.tensor(True)
    mine.step()
    after = (mine.state_dict()["state"], list(mine.masters.values()), ours[1].detach())
    flat = [torch.utils._pytree.tree_leaves(some) for some in (before, after)]
    assert all(torch.equal(one, other) for one, other in zip(*flat, strict=True))


def test_the_update_is_compiled_once_for_weights_of_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is 64 numbers long for the compiler, and the number of lines is open."""
    torch._dynamo.reset()
    graphs: list[list[Any]] = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
        graphs.append([tuple(t.shape) for t in seen if isinstance(t, torch.Tensor) and t.ndim == 2])
        return graph.forward

    update = _compiled(count)
    monkeypatch.setattr("app.training.master_weights._adamw", update)
    ours, theirs = two_of([(16, 8), (32, 8), (64, 4), (128, 64), (576,)])
    mine = MasterAdamW([{"params": ours, "weight_decay": 0.1}], lr=1e-2, halved=ours[:4])
    torchs = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1)
    # As app.model.compiled.speed_up leaves it. Not by monkeypatch: its undo deletes the key of torch's configuration,
    # which has no such attribute from then on.
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        for _ in range(3):
            for one, other in zip(ours, theirs, strict=True):
                one.grad = torch.randn_like(one)
                other.grad = one.grad.float()
            mine.step()
            torchs.step()
    assert len(graphs) == 2, graphs  # with a bfloat16 copy, and without
    assert all(isinstance(lines, torch.SymInt) and type(length) is int for shapes in graphs for lines, length in shapes)
    mine.release()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def one_step(device: str) -> None:
    weight = torch.nn.Parameter(torch.ones(128, 64, device=device))
    mine = MasterAdamW([{"params": [weight]}], lr=1e-2)
    weight.grad = torch.ones_like(weight)
    mine.step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.99), rtol=1e-6, atol=1e-6)


def test_no_block_size_of_the_update_is_chosen_by_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    patches: list[dict[str, Any]] = []

    def compile_fx(graph: torch.fx.GraphModule, inputs: Any, config_patches: dict[str, Any], **_: Any) -> Any:
        patches.append(config_patches)
        return graph.forward

    torch._dynamo.reset()
    _compiled.cache_clear()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    monkeypatch.setattr("app.training.master_weights._adamw", _compiled())
    one_step("cpu")
    assert patches == [{"triton.autotune_pointwise": False}]
    _compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_first_step_times_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Any] = []

    def benchmark(_: Any, call: Any, *args: Any, **kwargs: Any) -> float:
        timed.append(call)
        return 1.0

    torch._dynamo.reset()
    _compiled.cache_clear()
    monkeypatch.setattr("torch._inductor.runtime.benchmarking.InductorBenchmarker.benchmark_gpu", benchmark)
    with torch._inductor.config.patch(force_disable_caches=True):
        one_step("cuda")
    assert not timed


def test_only_products_read_what_is_halved() -> None:
    from tests.app.conftest import make_model

    tied, untied = (make_model("llama", tie_word_embeddings=tie) for tie in (True, False))
    for model in (tied, untied):
        found = {id(p) for p in linear_weights(model)}
        names = {name for name, p in model.named_parameters() if id(p) in found}
        assert names and all(name.endswith("_proj.weight") for name in names)
        assert len(names) == 7 * model.config.num_hidden_layers


def test_eight_bits_without_a_library_is_a_mistake_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs torchao or bitsandbytes, and neither is installed") as caught:
        optimizers.of_library(train("adamw_8bit"), [])
    assert "adafactor" in caught.value.remedy


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_eight_bits_come_from_the_library_that_is_there(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class AdamW8bit(torch.optim.AdamW):
        pass

    fake: Any = ModuleType(f"{library}.optim")
    fake.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, library, ModuleType(library))
    monkeypatch.setitem(sys.modules, f"{library}.optim", fake)
    monkeypatch.setattr(optimizers, "find_spec", lambda name: name == library or None)
    made = optimizers.of_library(train("adamw_8bit"), [{"params": [torch.nn.Parameter(torch.ones(2))]}])
    assert isinstance(made, AdamW8bit)
