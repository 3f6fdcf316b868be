"""Training's fast path on a GPU: compiled FlexAttention over packed rows against dense SDPA, forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model

from app.attention.backends import NAMES
from app.data.examples import TokenExample
from app.model.compiled import speed_up, suits
from app.model.load import Loaded
from app.runtime.ending import RunEnded
from app.training.cuda_graph import Graphs
from app.training.loop import TrainingLoop
from app.training.master_weights import MasterAdamW, linear_weights
from app.training.optimizers import parameter_groups
from jobs.config.schema import Objective
from tests.app.training.test_loop import loop_of, passes_of, prepared_loop, rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def long_examples(n: int, seed: int = 0) -> list[TokenExample]:
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(
            torch.randint(3, 97, (int(torch.randint(low, high, (1,), generator=draw)),), generator=draw).tolist()
        )

    return [TokenExample(ids(2, 90), ids(1, 80), f"{seed}-{i}", "") for i in range(n)]


def step_of(model: Any, tmp_path: Path, bf16: bool, data: list[TokenExample]) -> tuple[float, torch.Tensor]:
    return pass_of(a_loop(model, tmp_path, bf16), model, data)


def a_loop(model: Any, tmp_path: Path, bf16: bool) -> TrainingLoop:
    """Its rows have 512 tokens, whole tiles each. It asks the model for its output layer, which compiles a mask."""
    sgd = lambda m: torch.optim.SGD(m.parameters())  # noqa: E731
    return prepared_loop(model, tmp_path, row_tokens=512, multiple=128, device="cuda", bf16=bf16, optimizer=sgd)


def pass_of(loop: TrainingLoop, model: Any, data: list[TokenExample]) -> tuple[float, torch.Tensor]:
    """Loss and gradients of one optimiser step of `data`."""
    model.zero_grad()
    loss = torch.stack([loop.work.forward_backward(batch) for batch in passes_of(loop, data)]).sum()
    return float(loss), torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])


class Errors(NamedTuple):
    """Of passes: the distance of each loss from float32's, and of its gradients as a share of their norm."""

    losses: list[float]
    gradients: list[float]


def errors(found: list[tuple[float, torch.Tensor]], exact: list[tuple[float, torch.Tensor]]) -> Errors:
    pairs = list(zip(found, exact, strict=True))
    return Errors([abs(loss - true) for (loss, _), (true, _) in pairs],
                  [float((some - true).norm() / true.norm()) for (_, some), (_, true) in pairs])  # fmt: skip


# Plain bfloat16, dense attention under autocast, is the yardstick: its gradients are 0.007 to 0.009 of their norm from float32's
# (gemma3 0.026), on a CPU with sdpa and with eager attention alike. Ours round in other places, attention inside a kernel
# and whole layers as one; a wrong mask or a sum in bfloat16 is further away.
ROUNDING = 3.0


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["llama", "nine-heads", "heads-of-128", "gemma3-hybrid", "mistral-window"])
def test_compiled_flex_steps_equal_dense_ones_without_compiling_again(name: str, bf16: bool, model_of: Any, tmp_path: Path) -> None:  # fmt: skip
    data, other = long_examples(12), long_examples(9, 1)  # of other lengths
    torch.compiler.reset()
    more = {
        "nine-heads": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
        "heads-of-128": {"head_dim": 128},  # which have block sizes of their own (app/attention/backends.py)
        # It divides its scores by the root of a number of its own, made for heads of 8 in tests/app/conftest.py.
        "gemma3-hybrid": {"query_pre_attn_scalar": 64},
    }.get(name, {})
    kind = "llama" if name in ("nine-heads", "heads-of-128") else name
    sizes = {"head_dim": 64, "max_position_embeddings": 1024, "initializer_range": 0.1, **more}
    dense, eager, fast = (model_of(kind, attention, **sizes).cuda() for attention in ("sdpa", "eager", "sdpa"))
    speed_up(fast)
    exact = [step_of(dense, tmp_path, False, some) for some in (data, other)]
    loop = a_loop(fast, tmp_path, bf16)
    got = [pass_of(loop, fast, data)]
    with torch.compiler.set_stance("fail_on_recompile"):
        got.append(pass_of(loop, fast, other))
    found = errors(got, exact)
    if not bf16:
        assert max(found.losses) < 1e-4 * exact[0][0] and max(found.gradients) < 1e-2, found
        return
    plain = [
        errors([step_of(model, tmp_path, True, some) for some in (data, other)], exact) for model in (dense, eager)
    ]
    yardstick = max(max(one.gradients) for one in plain)
    assert yardstick < 0.1, plain
    assert max(found.gradients) < ROUNDING * yardstick, (found, plain)
    assert max(found.losses) < ROUNDING * max(max(one.losses) for one in plain) + 0.002, (found, plain)


def test_long_and_short_rows_share_one_backward_pass(model_of: Any, tmp_path: Path) -> None:
    """The compiler may reduce a norm's gradients in another way from 5 Mi numbers a row on: 5,120 tokens of this width."""
    torch.compiler.reset()
    model = model_of("llama", hidden_size=1024, head_dim=64, num_hidden_layers=1, max_position_embeddings=8192).cuda()
    speed_up(model)
    sgd = lambda m: torch.optim.SGD(m.parameters())  # noqa: E731
    loop = prepared_loop(model, tmp_path, row_tokens=8192, multiple=128, device="cuda", bf16=True, optimizer=sgd)
    rows_of = [passes_of(loop, long_examples(n)) for n in (75, 54)]
    widths = [[batch["input_ids"].shape[1] for batch in one] for one in rows_of]
    assert len(widths[0]) == len(widths[1]) == 1 and widths[0][0] > 5120 > widths[1][0] > 4096, widths
    pass_of(loop, model, long_examples(75))
    with torch.compiler.set_stance("fail_on_recompile"):
        pass_of(loop, model, long_examples(54))


def test_gradient_checkpointing_works_with_compiled_layers(model_of: Any, tmp_path: Path) -> None:
    data = long_examples(8)
    torch.compiler.reset()
    plain, fast = (model_of("llama", head_dim=16, max_position_embeddings=1024).cuda() for _ in range(2))
    fast.gradient_checkpointing_enable({"use_reentrant": False})
    speed_up(fast)
    (loss, gradients), (fast_loss, fast_gradients) = (step_of(m, tmp_path, False, data) for m in (plain, fast))
    assert fast_loss == pytest.approx(loss, rel=1e-4)
    assert float((fast_gradients - gradients).norm()) < 1e-2 * float(gradients.norm())


def test_auto_takes_the_fast_path_on_a_gpu_where_the_model_allows_it(model_of: Any) -> None:
    good, narrow = model_of("llama", head_dim=16).cuda(), model_of("llama").cuda()
    drops = model_of("llama", head_dim=16, attention_dropout=0.1).cuda()
    assert good.config._attn_implementation == NAMES["sdpa"]
    assert [suits(Loaded(m, None, "", 128, any_attention=True)) for m in (good, narrow, drops)] == [True, False, False]
    assert not suits(Loaded(good, None, "", 128))  # sdpa was asked for


# ---- steps launched as CUDA graphs -----------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "one row": {},
    "several rows": {"row_tokens": 384},
    "kl and a causal fraction": {"goal": Objective(ce=1.0, kl=0.5, causal_fraction=0.5)},
    "lora": {"lora": 4, "goal": Objective(ce=1.0, kl=0.5)},
}


def trained(
    model_of: Any, tmp_path: Path, *, graphs: bool, lora: int = 0, restore: Path | None = None, **settings: Any
) -> TrainingLoop:
    torch.compiler.reset()
    model = model_of("llama", head_dim=64, max_position_embeddings=1024, initializer_range=0.1).cuda()
    if lora:
        torch.manual_seed(1)
        config = LoraConfig(r=lora, lora_dropout=0.2, target_modules="all-linear", init_lora_weights=False)
        model.enable_input_require_grads()
        model = get_peft_model(model, config)
        settings["lora"] = {"r": lora, "dropout": 0.2}
    loop = loop_of(model, tmp_path, data=long_examples(64), batch_size=8, max_steps=16, multiple=128, device="cuda", bf16=True,
                   graphs=Graphs() if graphs else None, **{"row_tokens": 4096, **settings})  # fmt: skip
    for one in (model, loop.work.loss_of.teacher):
        if one is not None:
            speed_up(one)
    loop.prepare()
    if restore is not None:
        loop.restore(restore, [])
    loop.run()
    loop.writer.wait()
    return loop


@pytest.mark.parametrize("case", CASES)
def test_steps_as_graphs_are_the_steps_launched_kernel_by_kernel(case: str, model_of: Any, tmp_path: Path) -> None:
    plain, fast = (trained(model_of, tmp_path / str(graphs), graphs=graphs, **CASES[case]) for graphs in (False, True))
    assert fast.graphs is not None and fast.graphs.replayed >= 5
    assert fast.tokens_seen == plain.tokens_seen and fast.padded_tokens_seen >= plain.padded_tokens_seen
    want, got = ([row["loss"] for row in rows(loop)] for loop in (plain, fast))
    if case == "lora":  # other lengths, other dropout: the first step has none of it behind it
        assert len(got) == len(want) and all(torch.isfinite(torch.tensor(got)))
    else:
        assert got == pytest.approx(want, rel=2e-3)
        assert got != [got[0]] * len(got)


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_graphs_goes_on_from_a_checkpoint_to_the_same_losses(case: str, model_of: Any, tmp_path: Path) -> None:
    whole = trained(model_of, tmp_path, graphs=True, save_every=7, keep_checkpoints=9, **CASES[case])
    again = trained(
        model_of, tmp_path / "again", graphs=True, restore=tmp_path / "checkpoints" / "checkpoint-7", **CASES[case]
    )
    assert [row["loss"] for row in rows(again)] == pytest.approx([row["loss"] for row in rows(whole)][7:], rel=1e-4)


def test_the_guard_holds_within_a_graph(model_of: Any, tmp_path: Path) -> None:
    """A weight that is not finite ends training at its step, although the host reads it one step late."""
    loops: list[TrainingLoop] = []

    def spoil(step: int, loss: float) -> bool:
        with torch.no_grad():
            loops[0].work.inner.model.norm.weight[0] = float("nan")
        return False

    torch.compiler.reset()
    model = model_of("llama", head_dim=64, max_position_embeddings=1024, initializer_range=0.1).cuda()
    loops.append(loop_of(model, tmp_path, data=long_examples(64), batch_size=8, max_steps=16, multiple=128, device="cuda",
                         bf16=True, row_tokens=4096, graphs=Graphs(), eval_every=10, on_evaluation=lambda step, loss: step > 0 and spoil(step, loss)))  # fmt: skip
    speed_up(model)
    loops[0].prepare()
    with pytest.raises(RunEnded, match="the loss is not finite at step 11"):
        loops[0].run()
    assert [row["step"] for row in rows(loops[0])] == list(range(1, 11))


def test_bfloat16_weights_with_masters_train_as_autocast_does(model_of: Any, tmp_path: Path) -> None:
    """With an epsilon as large as the gradients: sums in another order turn those of about 0 around, and AdamW's usual first step
    is as long for them as for all others."""
    settings: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0, "eps": 1e-3}

    def with_masters(model: Any) -> MasterAdamW:
        made = MasterAdamW(parameter_groups(model, 0.0), lr=settings["lr"], halved=linear_weights(model))
        made.param_groups[0]["eps"] = made.param_groups[1]["eps"] = settings["eps"]
        return made

    def losses(optimizer: Any) -> list[float]:
        return [row["loss"] for row in rows(trained(model_of, tmp_path, graphs=False, optimizer=optimizer))]

    masters = losses(with_masters)
    torchs = losses(lambda model: torch.optim.AdamW(model.parameters(), fused=True, **settings))
    assert masters[:2] == pytest.approx(torchs[:2], rel=1e-5) and masters == pytest.approx(torchs, rel=2e-3)
