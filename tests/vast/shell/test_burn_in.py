"""How a burn-in is judged: the host's own problems, the data sheet of its GPUs, the contract, and its clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vast.fakes.directory_host import DirectoryHost, DirectoryTransport
from tests.vast.fakes.our_side import BOTH, Ours
from vast.ports import BurnIn
from vast.shell.burn_in import judged
from vast.shell.transport import Reply

NOW = 1_800_000_000.0
GPU: dict[str, Any] = {"name": "NVIDIA H200", "tflops": 700.0, "to_gb_s": 50.0, "total_gb": 139.8, "filled_gb": 138}
GOOD: dict[str, Any] = {
    "problems": [],
    "gpus": [GPU],
    "disk_write_mb_s": 900.0,
    "unix_time": NOW + 2,
    "down_mbit": None,
}


def test_a_good_machine_shows_its_numbers() -> None:
    found = judged(GOOD, 1, NOW)
    assert found is not None and found.good and found.problems == ()
    numbers = dict(found.numbers)
    assert numbers["gpu0_tflops"] == 700.0 and numbers["clock_skew_s"] == 2.0 and "down_mbit" not in numbers
    json.dumps(found.numbers)


@pytest.mark.parametrize(("change", "said"), [
    ({"problems": ["GPU 0: a bfloat16 product has a wrong result"]}, "GPU 0: a bfloat16 product has a wrong result"),
    ({"gpus": [GPU | {"tflops": 90.0}]}, "GPU 0: 90 TFLOP/s in bfloat16, expected at least 346 of a H200"),
    ({"gpus": [GPU | {"total_gb": 70.0}]}, "GPU 0: 70 GB of memory, and a H200 has 141"),
    ({"gpus": [GPU | {"peer_gb_s": 48.0}]}, "GPU 0: 48 GB/s from the GPU before it, expected at least 99 over a H200's NVLink"),
    ({"gpus": []}, "0 GPUs answer, and the contract has 1"),
    ({"gpus": [GPU, GPU]}, "2 GPUs answer, and the contract has 1"),
    ({"unix_time": NOW - 86_400}, "its clock differs from ours by -86400 s"),
])  # fmt: skip
def test_each_problem_is_named_with_its_number(change: dict[str, Any], said: str) -> None:
    found = judged(GOOD | change, 1, NOW)
    assert found is not None and not found.good and found.problems == (said,)


@pytest.mark.parametrize(
    ("name", "rate"), [("NVIDIA H200", 370.0), ("NVIDIA GeForce RTX 4090", 9.0), ("NVIDIA H200 NVL", 48.0)]
)
def test_the_rate_between_gpus_is_judged_by_the_link_that_their_model_has(name: str, rate: float) -> None:
    card = {"name": name, "peer_gb_s": rate}
    found = judged(GOOD | {"gpus": [card, card]}, 2, NOW)
    assert found is not None and found.good and dict(found.numbers)["gpu1_peer_gb_s"] == rate


@pytest.mark.parametrize("name", ["An unknown GPU", "", None, 7])
def test_a_gpu_that_is_not_in_the_table_is_not_judged_by_its_rate(name: object) -> None:
    found = judged(GOOD | {"gpus": [GPU | {"name": name, "tflops": 1.0}]}, 1, NOW)
    assert found is not None and found.good


def test_the_slowest_gpu_corrects_the_estimate() -> None:
    slow = judged(GOOD | {"gpus": [GPU, GPU | {"tflops": 400.0}, GPU | {"name": "unknown", "tflops": 1.0}]}, 3, NOW)
    assert slow is not None and slow.good and slow.slowdown == pytest.approx(0.8 * 989 / 400, abs=0.01)
    quick = judged(GOOD | {"gpus": [GPU | {"tflops": 900.0}]}, 1, NOW)
    assert quick is not None and quick.slowdown == 1.0


@pytest.mark.parametrize("answer", [None, {}, {"problems": "none"}, {"gpus": []}])
def test_what_cannot_be_understood_is_no_verdict(answer: dict[str, Any] | None) -> None:
    assert judged(answer, 1, NOW) is None


def test_words_and_numbers_of_a_hostile_host_are_bounded() -> None:
    evil = {"problems": ["\x1b[2J" + "x" * 9999, 7, *map(str, range(100))], "gpus": [{"tflops": float("inf")}, 3],
            "unix_time": "now", "seconds": 10**400}  # fmt: skip
    found = judged(evil, None, NOW)
    assert (
        found is not None
        and len(found.problems) <= 9
        and all(one.isprintable() and len(one) <= 500 for one in found.problems)
    )
    assert found.numbers == ()


def test_the_shell_asks_our_machine_alone_and_an_older_image_has_none(tmp_path: Path) -> None:
    way = DirectoryTransport(DirectoryHost(tmp_path / "host"))
    shell = Ours(tmp_path / "runs", way).shell()
    way.replies["burnin"] = Reply("ok", out=json.dumps(GOOD | {"unix_time": shell.clock.now()}))
    assert isinstance(shell.burn_in(BOTH, 75.0), BurnIn)
    way.replies["burnin"] = Reply("ok", 2, err="error: argument ACTION: invalid choice: 'burnin'")
    old = shell.burn_in(BOTH, 75.0)
    assert old is not None and (old.good, old.ran, old.problems) == (
        True,
        False,
        ("vast.host of the image has no burn-in",),
    )
    for failure in (Reply("ok", 1, err="a traceback"), Reply("ok", 137), Reply("timeout"), Reply("ok", out="{}")):
        way.replies["burnin"] = failure
        assert shell.burn_in(BOTH, 75.0) is None
    shell.clock.sleep(3600)
    way.kinds = dict.fromkeys(BOTH, "timeout")
    assert shell.burn_in(BOTH, 75.0) is None
