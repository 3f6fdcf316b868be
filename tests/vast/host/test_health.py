"""The image's health check: the stage's verdict, the number of GPUs, and one product of each after a start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs import lock
from tests.vast.host.test_burnin import CARDS, DETAILS
from vast.host import health
from vast.host.subprocess_run import Ended

RIGHT = {"gpus": [{"index": 0, "right": True}, {"index": 1, "right": True}]}


class Machine:
    """Two GPUs as devices and in nvidia-smi, and what torch finds of them."""

    def __init__(self, path: Path) -> None:
        self.devices, self.mark, self.runs = path / "dev", path / "mark", path / "runs"
        self.cards, self.found = CARDS, dict[str, Any](RIGHT)
        self.products = 0
        self.devices.mkdir()
        for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
            (self.devices / name).touch()

    def run(self, argv: Sequence[str], seconds: float) -> Ended:
        if argv[0] == "nvidia-smi":
            return (
                Ended(0, DETAILS)
                if argv[1] == "-q"
                else Ended(0 if self.cards else 9, self.cards or "no devices were found")
            )
        assert argv[2:] == (argv[2], "512", "0.0", "multiply")
        self.products += 1
        return Ended(0, json.dumps(self.found))

    def check(self, given: str = "all") -> int:
        environ = {"NVIDIA_VISIBLE_DEVICES": given, "PREFILL_RUNS": str(self.runs)}
        return health.main(environ, self.run, self.devices, "python", self.mark)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_gpus_that_answer_are_healthy_and_multiply_once_after_a_start(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [machine.check(), machine.check()] == [0, 0] and machine.products == 1
    monkeypatch.setattr(health, "boot", lambda: "another start")
    assert machine.check() == 0 and machine.products == 2


@pytest.mark.parametrize(("given", "cards", "found", "said"), [
    ("all", CARDS.splitlines()[0], RIGHT, "nvidia-smi lists 1 GPUs, and the container was given 2"),
    ("0,1,2", CARDS, RIGHT, "nvidia-smi lists 2 GPUs, and the container was given 3"),
    ("all", "", RIGHT, "driver: exit code 9: no devices were found"),
    ("all", CARDS, {"gpus": RIGHT["gpus"][:1]}, "torch sees 1 GPUs, and nvidia-smi lists 2"),
    ("all", CARDS, {"gpus": [{"index": 0, "right": False}, RIGHT["gpus"][1]]}, "GPU 0: a bfloat16 product has a wrong result"),
    ("all", CARDS, {"gpus": [], "error": "RuntimeError: driver too old"}, "gpu: RuntimeError: driver too old"),
])  # fmt: skip
def test_a_gpu_that_is_missing_or_wrong_is_unhealthy_until_it_answers(
    given: str, cards: str, found: dict[str, Any], said: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.cards, machine.found = cards, found
    assert machine.check(given) == 1 and f"unhealthy: {said}\n" in capsys.readouterr().out
    machine.cards, machine.found = CARDS, RIGHT
    assert machine.check() == 0


@pytest.mark.parametrize("given", ["", "void", "none", "all"])
def test_a_container_without_gpus_is_healthy_and_asks_nothing(given: str, machine: Machine) -> None:
    for name in ("nvidia0", "nvidia1"):
        (machine.devices / name).unlink()
    machine.cards = ""
    assert machine.check(given) == 0


def test_gpus_that_are_named_and_absent_are_not(machine: Machine) -> None:
    for path in machine.devices.iterdir():
        path.unlink()
    machine.cards = ""
    assert machine.check("0,1") == 1


def test_a_run_keeps_its_memory_and_its_verdict_counts(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    run = machine.runs / "stage1" / "20261122-234501"
    run.mkdir(parents=True)
    held = lock.hold(run / "lock")
    assert machine.check() == 0 and machine.products == 0
    beat = {"phase": "train", "unix_time": 0.0, "monotonic": -1e6, "step": 1, "total": 9}
    (run / "heartbeat.json").write_text(json.dumps(beat))
    assert machine.check() == 1 and "unhealthy: stage1/20261122-234501: train 1/9" in capfd.readouterr().out
    held.close()
    assert machine.check() == 0 and machine.products == 1
