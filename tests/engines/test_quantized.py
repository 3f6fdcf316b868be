"""An adapter on base weights of 4 bits, with bitsandbytes on a CPU: gradients, the merge into whole weights, a run from start to end."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.app.conftest import _small_cache, few_rows  # noqa: F401

pytestmark = [pytest.mark.engines, pytest.mark.timeout(280), pytest.mark.usefixtures("few_rows")]
ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv/.trackers/bin/python"


def ended(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(PYTHON), *words], capture_output=True, text=True, timeout=250, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_gradients_are_those_of_the_rounded_weights_and_the_adapter_is_merged_into_whole_ones(tmp_path: Path) -> None:
    found = json.loads(ended(tmp_path, str(ROOT / "tests/engines/quantized_scene.py")).stdout.splitlines()[-1])
    assert found["kinds"] == ["Linear", "Linear4bit"], "the output layer stays whole"
    assert found["laws"] >= 4
    assert found["rounding"] < 1e-4 < found["loss_of_bits"]
    assert found["gradients"] < 1e-4
    assert found["adapter_is_the_same"] and found["adapters"] == 2 * 14
    assert found["parameters"][0] == found["parameters"][1]


def test_a_run_on_4_bits_is_finished_as_whole_weights_that_stock_transformers_loads(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    ended(tmp_path, "-m", "app", "run", "stage3b", "--profile", "ci", "--runs-dir", str(runs),
          "--set", "train.lora={r: 4, quantization: 4bit}", "--set", "train.learning_rate=0.01")  # fmt: skip
    (run,) = runs.glob("stage3b/*")
    section = json.loads((run / "metrics.json").read_text())["train"]
    assert section["precision"] == "fp32, base in 4 bits (NF4)" and section["params_total"] == 3227968
    saved = section["saved"]
    assert saved["difference"] < saved["allowed"] and saved["loss"] == pytest.approx(saved["loss_whole"], abs=1e-4)
    assert saved["loss_in_4bit"] != saved["loss_whole"]
    assert section["eval_loss_best"] < section["eval_loss_first"]
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    assert {str(weight.dtype) for weight in model.parameters()} == {"torch.float32"}
    assert (run / "final/adapter/adapter_model.safetensors").is_file()
