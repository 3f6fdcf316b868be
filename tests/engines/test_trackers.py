"""A run with every tracker; what each has kept is read back by its own package."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.app.conftest import _small_cache, few_rows  # noqa: F401

pytestmark = [pytest.mark.engines, pytest.mark.timeout(280), pytest.mark.usefixtures("few_rows")]
ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv/.trackers/bin/python"
READ = """
import glob, json, os, struct, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2
store, found = sys.argv[1], {}
events = EventAccumulator(glob.glob(f"{store}/tensorboard/*/*")[0]); events.Reload()
found["tensorboard"] = [[one.step, one.value] for one in events.Scalars("train/loss")]
# A log of blocks of 32 KiB; each chunk of a record begins with its checksum, length and kind (1: whole, 4: last).
(file,) = glob.glob(f"{store}/wandb/offline-run-*/*.wandb")
content, at, part, found["wandb"] = open(file, "rb").read(), 7, b"", []
while at < len(content):
    left = 32768 - at % 32768
    if left < 7: at += left; continue
    _, length, kind = struct.unpack("<IHB", content[at : at + 7])
    part, at = part + content[at + 7 : at + 7 + length], at + 7 + length
    if kind in (1, 4):
        record = wandb_internal_pb2.Record(); record.ParseFromString(part); part = b""
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        if "train/loss" in row: found["wandb"].append([row["_step"], row["train/loss"]])
from mlflow.tracking import MlflowClient
client = MlflowClient(f"sqlite:///{store}/mlflow.db")
(experiment,) = client.search_experiments(filter_string="name = 'prefill'")
(run,) = client.search_runs([experiment.experiment_id])
found["mlflow"] = [[one.step, one.value] for one in client.get_metric_history(run.info.run_id, "train/loss")]
found["mask"] = run.data.params["stage.train.mask"]
os.environ["TRACKIO_DIR"] = f"{store}/trackio"
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("prefill")
rows = SQLiteStorage.get_logs("prefill", name)
found["trackio"] = [[row["step"], row["train/loss"]] for row in rows if "train/loss" in row]
print(json.dumps(found))
"""


def test_every_tracker_has_every_loss(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    argv = [str(PYTHON), "-m", "app", "run", "stage3b", "--profile", "ci", "--runs-dir", str(runs),
            "--set", "report_to=[tensorboard,trackio,wandb,mlflow]"]  # fmt: skip
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=200, env=environment, cwd=tmp_path)
    assert ended.returncode == 0 and "report_to" not in ended.stderr, ended.stderr[-3000:]
    (log,) = runs.glob("stage3b/*/train_log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    read = subprocess.run([str(PYTHON), "-c", READ, str(runs / "tracking")], capture_output=True, text=True, timeout=120, env=environment)  # fmt: skip
    assert read.returncode == 0, read.stderr[-3000:]
    found = json.loads(read.stdout.splitlines()[-1])
    assert found.pop("mask") == "prefix"
    for name, kept in found.items():
        assert [step for step, _ in kept] == [line["step"] for line in lines], name
        assert [loss for _, loss in kept] == pytest.approx([line["loss"] for line in lines], rel=1e-6), name
