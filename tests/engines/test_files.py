"""The files for SkyPilot, dstack, Kubernetes, Compose and GitHub, read by the packages or schemas of these themselves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.submit import client
from jobs.submit.__main__ import main

pytestmark = [pytest.mark.engines, pytest.mark.timeout(180)]
PYTHON = Path(__file__).parents[2] / ".venv/.engines/bin/python"
IMAGE = "registry.example/prefill@sha256:" + "ab" * 32
WORDS = ["stage5b", "--profile", "ministral-3b", "--image", IMAGE, "--gpu", "H100_SXM", "--gpus", "8", "--dry-run"]
SKYPILOT = """import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(wanted,) = task.resources
print(json.dumps([task.num_nodes, wanted.accelerators, wanted.use_spot, wanted.image_id, wanted.max_hourly_cost]))"""
DSTACK = """import sys, yaml
from dstack._internal.core.models.configurations import parse_run_configuration
with open(sys.argv[1]) as file: print(parse_run_configuration(yaml.safe_load(file)).model_dump_json())"""
KUBERNETES = """import json, sys, yaml, kubernetes_validate
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
with open(sys.argv[1]) as file: documents = list(yaml.safe_load_all(file))
for one in documents:
    if one["kind"] == "JobSet":
        assert JobsetV1alpha2JobSet.from_dict(one).to_dict() == one, "a key that a JobSet does not have"
        for job in one["spec"]["replicatedJobs"]:
            whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "run"}, "spec": job["template"]["spec"]}
            kubernetes_validate.validate(whole, "1.30", strict=True)
    else:
        kubernetes_validate.validate(one, "1.30", strict=True)"""


def written(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> Path:
    assert main([*WORDS, *words]) == 0
    path.write_text(capsys.readouterr().out)
    return path


def read(code: str, file: Path, *, right: bool = True) -> str:
    ended = subprocess.run([str(PYTHON), "-c", code, str(file)], capture_output=True, text=True, timeout=150)
    assert (ended.returncode == 0) is right, ended.stderr[-2000:]
    return ended.stdout.strip().splitlines()[-1] if ended.stdout.strip() else ended.stderr


def test_skypilot_reads_its_task(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = written(capsys, tmp_path / "task.yaml", "--on", "skypilot", "--shared", "volume", "--nodes", "2", "--spot", "--max-price", "30")  # fmt: skip
    assert json.loads(read(SKYPILOT, file)) == [2, {"H100": 8}, True, {"null": f"docker:{IMAGE}"}, 30.0]
    file.write_text(file.read_text().replace("use_spot", "use_spots"))
    assert "use_spots" in read(SKYPILOT, file, right=False)


def test_what_we_have_skypilot_check_is_its_own_parser(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", f"{PYTHON.parent}:/usr/bin:/bin")
    file = written(capsys, tmp_path / "task.yaml", "--on", "skypilot", "--shared", "s3://bucket/runs")
    client.check("skypilot", file)
    file.write_text(file.read_text().replace("num_nodes", "nodes"))
    with pytest.raises(client.EngineError, match="nodes"):
        client.check("skypilot", file)


def test_dstack_reads_its_task(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", f"{PYTHON.parent}:/usr/bin:/bin")
    file = written(capsys, tmp_path / "task.yaml", "--on", "dstack", "--shared", "volume", "--nodes", "2", "--max-price", "30")  # fmt: skip
    found: dict[str, Any] = json.loads(read(DSTACK, file))
    assert (found["nodes"], found["image"], found["max_price"], found["resources"]["gpu"]["count"]["min"]) == (
        2,
        IMAGE,
        30.0,
        8,
    )
    client.check("dstack", file)
    file.write_text(file.read_text().replace("max_price", "price"))
    with pytest.raises(client.EngineError):
        client.check("dstack", file)


@pytest.mark.parametrize("words", [["--queue", "research"], ["--job"], ["--nodes", "4"]])
def test_kubernetes_reads_its_manifests(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = written(capsys, tmp_path / "job.yaml", "--on", "kubernetes", "--shared", "claim", *words)
    read(KUBERNETES, file)
    first, *_ = yaml.safe_load_all(file.read_text())
    assert first["kind"] == ("Service" if "--job" in words else "JobSet")
    file.write_text(file.read_text().replace("completionMode", "completionsMode"))
    assert "completionsMode" in read(KUBERNETES, file, right=False) or "does not have" in read(KUBERNETES, file, right=False)  # fmt: skip


@pytest.mark.parametrize(("schema", "pattern", "count"), [
    ("github-workflows", ".github/workflows/*.yaml", 1),
    ("github-issue-forms", ".github/ISSUE_TEMPLATE/*.yaml", 2),
    ("compose-spec", "compose*.yaml", 2),
])  # fmt: skip
def test_the_files_of_github_and_compose_have_the_form_that_they_publish(schema: str, pattern: str, count: int) -> None:
    files = sorted(PYTHON.parents[3].glob(pattern))
    assert len(files) == count
    argv = [PYTHON.with_name("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
