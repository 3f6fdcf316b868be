"""Several processes agree: on what rank 0 says, on sums, and on when to stop. And how work is dealt out among them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.runtime.ending import RunEnded
from app.runtime.ranks import ALONE, require_gpus
from app.scoring.data_parallel import shard
from jobs.errors import ConfigError
from tests.app.fakes import rank_work
from tests.app.fakes.command_line import Command
from tests.app.fakes.warm_process import WARM


def start_ranks(work: Callable[[int, int, Path], None], port: int, out: Path) -> None:
    """`work(rank, port, out)` in each of two processes, which have imported torch already."""
    torch.multiprocessing.start_processes(work, (port, out), rank_work.WORLD, start_method=WARM)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_ranks(rank_work.look, port, out)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(rank_work.WORLD)]


@pytest.mark.slow
def test_every_rank_receives_the_same(seen: list[dict[str, Any]]) -> None:
    assert [one["rank"] for one in seen] == [[0, 2, True], [1, 2, False]]
    for one in seen:
        assert one["share"] == {"from": 0}
        assert one["gather"] == ["rank 0", "rank 1"]
        assert one["sum"] == [3.0, 2.0]
        assert one["together"] == [0, 10]


@pytest.mark.slow
def test_what_ends_one_rank_ends_all_with_its_exit_code(seen: list[dict[str, Any]]) -> None:
    assert [one["one raises"] for one in seen] == ["75 rank 1 was told to stop; go on with --resume"] * 2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_ends_all_at_the_same_step(seen: list[dict[str, Any]]) -> None:
    assert [one["not finite"] for one in seen] == ["the loss is not finite at step 1"] * 2


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_the_same_step(seen: list[dict[str, Any]]) -> None:
    assert [one["signal"] for one in seen] == [1, 1]


@pytest.mark.slow
def test_an_evaluation_in_shares_is_that_of_one_process(
    seen: list[dict[str, Any]], model_of: Any, tmp_path: Path
) -> None:
    from tests.app.training.test_loop import prepared_loop

    alone = prepared_loop(model_of("llama"), tmp_path).evaluate()
    assert [one["evaluation"] for one in seen] == pytest.approx([alone] * 2, rel=1e-6)


@pytest.mark.slow
def test_a_layer_is_compiled_as_a_whole_under_ddp(seen: list[dict[str, Any]]) -> None:
    assert [one["graphs"] for one in seen] == [1, 1]


@pytest.mark.slow
def test_all_of_the_model_is_in_training_mode_under_ddp(seen: list[dict[str, Any]]) -> None:
    assert [one["in training mode"] for one in seen] == [True, True]


@pytest.mark.slow
def test_what_rank_0_alone_ends_with_ends_the_others_with_its_exit_code_and_without_a_traceback(tmp_path: Path) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    start_ranks(rank_work.end_alone, store.port, tmp_path)
    assert json.loads((tmp_path / "0.json").read_text()) == ["DiskFull", 28]
    assert json.loads((tmp_path / "1.json").read_text()) == ["FollowerEnded", 28]


# ---- alone -----------------------------------------------------------------------------------------------------------


def test_alone_everything_is_what_it_was() -> None:
    assert ALONE.main and ALONE.share("x") == "x" and ALONE.gather(3) == [3] and ALONE.sum(2, 0.5) == [2, 0.5]
    assert ALONE.together(lambda: 7, RunEnded) == [7]
    with pytest.raises(RunEnded):
        ALONE.together(rank_work_that_ends, RunEnded)


def rank_work_that_ends() -> None:
    raise RunEnded("stopped", 75, "go on")


# ---- dealing out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_item_is_dealt_once_and_the_hands_weigh_about_the_same(world: int) -> None:
    sizes = [(i * 7919) % 200 + 1 for i in range(500)]
    parts = shard(sizes, world)
    assert sorted(i for part in parts for i in part) == list(range(500))
    weights = [sum(sizes[i] for i in part) for part in parts]
    assert max(weights) - min(weights) <= 200


def test_fewer_items_than_processes_leave_some_without() -> None:
    assert sorted(map(len, shard([5, 9], 4))) == [0, 0, 1, 1]


def test_more_processes_than_gpus_are_refused() -> None:
    require_gpus(2, 2)
    with pytest.raises(ConfigError, match="gpus: 2 are asked for, and torch sees only 1; set gpus: 1"):
        require_gpus(2, 1)


def test_weights_are_not_spread_over_processes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import DistributedType

    from app.stage.work import _require_gpus_for_fsdp

    for kind, refused in ((DistributedType.MULTI_CPU, True), (DistributedType.MULTI_GPU, False)):
        monkeypatch.setattr("accelerate.PartialState", lambda kind=kind: SimpleNamespace(distributed_type=kind))
        with pytest.raises(ConfigError, match="sharding: fsdp needs GPUs") if refused else nullcontext():
            _require_gpus_for_fsdp()


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: is not set, and WORLD_SIZE is 2"),
        ({"RANK": ""}, "RANK: is not set, and WORLD_SIZE is 2"),
        ({"RANK": "x"}, 'RANK: expected a whole number of 0 or more, found "x"'),
        ({"RANK": "2"}, "RANK: is 2, and WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "two"}, 'WORLD_SIZE: expected a whole number of 1 or more, found "two"'),
    ],
)
def test_an_environment_that_no_launcher_makes_is_refused(change: dict[str, str], fact: str, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:  # fmt: skip
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here", **change}.items():
        monkeypatch.setenv(name, value)
    command("run", "stage1", "--profile", "ci").refused(fact, "accelerate launch")
