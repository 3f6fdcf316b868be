"""When a step is launched as CUDA graphs, and to which lengths its rows are then padded. What graphs do: test_gpu_train.py."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.examples import TokenExample
from app.training.batch import Collator, Schedule, Shape, Steps, prepared, shapes_of
from app.training.cuda_graph import Graphs
from jobs.config.schema import Train
from jobs.errors import ConfigError
from jobs.estimate.gpus import gpu_named
from jobs.estimate.graphs import MOST_SHAPES, SMALL, WORTH, row_shapes, suitable
from jobs.estimate.model_shape import Shape as ModelShape
from jobs.estimate.sizes import Place
from tests.app.training.test_loop import loop_of

GPU: dict[str, Any] = dict(cuda=True, compiled=True, world=1, parameters=135_000_000, tokens=9000.0)


def stage(**settings: Any) -> Train:
    return Train(mask="prefix", max_steps=1, **settings)


def test_small_steps_on_one_gpu_are_graphs() -> None:
    assert suitable(stage(), **GPU) == (True, "7.3e+12 operations a pass, less than 6e+13")
    assert suitable(stage(), **{**GPU, "parameters": 3_430_000_000, "tokens": 2240.0})[0]
    assert not suitable(stage(), **{**GPU, "tokens": SMALL / 6 / 135_000_000})[0]
    assert suitable(stage(graph=True), **{**GPU, "tokens": 1e9}) == (True, "train.graph: true")
    assert suitable(stage(lora={"r": 4}), **GPU)[0]
    in_4bit = {"r": 4, "quantization": "4bit"}
    assert not suitable(stage(lora=in_4bit), **GPU)[0] and suitable(stage(lora=in_4bit, graph=True), **GPU)[0]
    assert suitable(stage(graph=False), **GPU) == (False, "train.graph: false")


@pytest.mark.parametrize(
    ("changed", "settings", "hindrance"),
    [
        ({"cuda": False}, {}, "a CPU"),
        ({"compiled": False}, {}, "layers that are not compiled"),
        ({"world": 2}, {}, "2 processes"),
        ({}, {"optimizer": "adafactor"}, "optimizer adafactor"),
        ({}, {"gradient_checkpointing": True}, "gradient checkpointing"),
        ({}, {"packing": False}, "rows that are not packed"),
    ],
)
def test_what_does_not_go_with_graphs_is_left_as_it_is_or_refused(changed: dict[str, Any], settings: dict[str, Any], hindrance: str) -> None:  # fmt: skip
    assert suitable(stage(**settings), **{**GPU, **changed}) == (False, hindrance)
    with pytest.raises(ConfigError, match=f"train.graph: true does not go with {hindrance}; set train.graph: auto"):
        suitable(stage(graph=True, **settings), **{**GPU, **changed})


# ---- lengths of rows -------------------------------------------------------------------------------------------------

ROWS = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), min_size=1, max_size=7)


def cost(rows: Sequence[tuple[int, int]], shapes: Sequence[Shape], worth: float) -> float:
    """Operations of all rows in the least of `shapes` that holds each, at 3 a column and 2 a response, and of the shapes."""
    held = [next(s for s in sorted(shapes) if tokens <= s.columns and wanted <= s.responses) for tokens, wanted in rows]
    return sum(3 * s.columns + 2 * s.responses for s in held) + worth * len(shapes)


def partitions(rows: Sequence[tuple[int, int]]) -> Iterator[list[list[tuple[int, int]]]]:
    if not rows:
        yield []
    for others in partitions(rows[1:]) if rows else ():
        yield [[rows[0]], *others]
        for i, group in enumerate(others):
            yield [*others[:i], [rows[0], *group], *others[i + 1 :]]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 300), st.integers(1, 4))
def test_shapes_hold_all_rows_and_cost_little_more_than_the_cheapest(
    rows: list[tuple[int, int]], worth: int, most: int
) -> None:
    shapes = shapes_of(rows, 8, (3, 2), worth, most)
    assert 1 <= len(shapes) <= most and all(shape.columns % 8 == 0 for shape in shapes)
    cheapest = min(cost(rows, [Shape(-(-max(t for t, _ in group) // 8) * 8, max(r for _, r in group)) for group in groups], worth)
                   for groups in partitions(rows) if len(groups) <= most)  # fmt: skip
    assert cost(rows, shapes, worth) <= 1.25 * cheapest


def test_a_long_training_has_more_shapes_than_a_short_one() -> None:
    rows = [(tokens, tokens // 2) for tokens in (10, 30, 33, 80)]
    assert shapes_of(rows, 8, (3, 2), 10**6, 24) == (Shape(80, 40),)
    assert shapes_of(rows * 20, 8, (3, 2), 1000, 24) == (Shape(16, 5), Shape(40, 16), Shape(80, 40))
    assert shapes_of(rows * 20, 8, (3, 2), 1000, 2) == (Shape(40, 16), Shape(80, 40))
    # Of equally wide rows those with few response tokens may have a shape of their own.
    assert shapes_of([(80, 8), (80, 79)] * 50, 8, (3, 2), 1000, 24) == (Shape(80, 8), Shape(80, 79))


def test_the_shapes_of_a_long_training_of_long_rows_are_found_in_few_comparisons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Comparing all pairs again after each union would be the cube of the sizes, and minutes before the first step."""
    rng = random.Random(0)
    rows = [(rng.randrange(1, 16384), rng.randrange(1, 16384)) for _ in range(500)]
    compared = 0

    class Numpy:
        """numpy, whose `maximum` of two tables, the unions, is counted."""

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def maximum(self, *tables: Any) -> np.ndarray:
            nonlocal compared
            found: np.ndarray = np.maximum(*tables)
            compared += found.size
            return found

    monkeypatch.setattr("app.training.batch.np", Numpy())
    shapes = shapes_of(rows, 128, (642_000_000, 168_000_000), 1.5e14, 24)
    assert len(rows) ** 2 < compared < 20 * len(rows) ** 2
    assert 1 < len(shapes) <= 24
    assert all(any(tokens <= s.columns and wanted <= s.responses for s in shapes) for tokens, wanted in rows)


def test_a_row_is_padded_to_its_shape_and_padding_counts_for_nothing() -> None:
    data = [TokenExample((11, 12, 13), (21, 22), "aa", ""), TokenExample((14,), (23,), "bb", "")]
    (plain,) = Steps(Collator("prefix"))(data)
    steps = Steps(Collator("prefix"), shapes=(Shape(4, 9), Shape(16, 5), Shape(64, 50)))
    (batch,) = steps(data)
    assert batch["input_ids"].shape == (1, 16)
    want, got = prepared(plain), prepared(batch, steps.shapes)
    assert got["at"].shape == got["targets"].shape == (5,) and got["counted"].tolist() == [1, 1, 1, 0, 0]
    assert torch.equal(got["at"][:3], want["at"]) and torch.equal(got["targets"][:3], want["targets"])
    assert float(got["step_tokens"]) == 3 and "counted" not in want
    (long,) = steps([TokenExample(tuple(range(3, 93)), (1,), "cc", "")])  # longer than all of them: as it is
    assert long["input_ids"].shape == (1, 91) and "counted" not in prepared(long, steps.shapes)


@pytest.mark.parametrize(("batch", "mean", "spread", "steps"), [(64, 51.0, 1.2, 100), (64, 51.0, 1.2, 600), (64, 51.0, 1.2, 3000),
                         (64, 101.0, 0.75, 169), (64, 101.0, 0.75, 600), (64, 125.0, 0.04, 1000), (16, 51.0, 1.2, 600)])  # fmt: skip
def test_the_estimate_expects_as_many_shapes_as_are_made_and_rarely_twice_as_many(
    batch: int, mean: float, spread: float, steps: int
) -> None:
    shape = ModelShape(576, 30, 9, 3, 64, 1536, 49152, True)
    train = Train(mask="prefix", max_steps=steps, batch_size=batch, pack_tokens=16384)
    expected = row_shapes(train, Place(shape, gpu_named("H200"), 1, mean, spread, learnt=0.05))
    work = 6 * (shape.parameters - 49152 * 576), 6 * 49152 * 576
    for seed in range(3):
        draws = random.Random(seed)
        lengths = [
            [1 + int(draws.gammavariate(spread**-2, mean * spread**2)) for _ in range(batch)] for _ in range(steps)
        ]
        made = shapes_of([(sum(some), 3 * batch) for some in lengths], 128, work, WORTH, MOST_SHAPES)
        assert len(made) <= expected <= 2 * len(made), (seed, len(made), expected)


def test_the_shapes_of_a_training_are_those_of_its_whole_schedule() -> None:
    data = [TokenExample((1,) * n, (2,) * (n % 3 + 1), str(n), "") for n in range(1, 30)]
    schedule = Schedule([data], [1.0], 20, 4, 0)
    steps = Steps(Collator("prefix", multiple=8), 64)
    sizes = steps.sizes(schedule)
    passes = [batch for i in range(20) for batch in steps(schedule.step(i))]
    assert sizes == [(int((b["doc"] >= 0).sum()), int((b["labels"] >= 0).sum())) for b in passes]
    two = [Steps(Collator("prefix", multiple=8), 64, rank=rank, world=2).sizes(schedule) for rank in range(2)]
    assert sum(tokens for some in two for tokens, _ in some) == sum(tokens for tokens, _ in sizes)


def test_no_thread_pins_memory_while_a_graph_is_captured(model_of: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    held: list[bool] = []

    @contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        held.append(loop.memory.pinning.locked())
        yield

    for name, stand_in in (("graph", graph), ("CUDAGraph", object), ("current_stream", lambda: None)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr("app.training.cuda_graph.send_to_device", lambda inputs, *_, **__: inputs)
    graphs = Graphs()
    loop = loop_of(model_of("llama"), tmp_path, graphs=graphs)
    graphs._capture(lambda inputs: torch.zeros(2), [])
    assert held == [True] and not loop.memory.pinning.locked()
