"""Compose with a real engine: every service valid, settings from .env, the same locks as container/run.sh, GPUs."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.config.load import stage_names
from tests.containers import engine
from tests.containers.compose import FILES, PROJECT, Compose, created, project_in, write_env
from vast.local.container_spec import ENVIRONMENT


@pytest.fixture
def compose(tmp_path: Path, image: str) -> Iterator[Compose]:
    """Compose in `tmp_path`, which stands for the repository."""
    with project_in(tmp_path) as call:
        yield call


# ---- what is declared --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [False, True])
def test_every_service_is_valid_and_up_starts_the_report_alone(gpu: bool, compose: Compose) -> None:
    compose("--profile", "*", "config", "--quiet", gpu=gpu)
    assert set(compose("--profile", "*", "config", "--services", gpu=gpu).stdout.split()) == {
        *stage_names(),
        "report",
        "serve",
        "track",
    }
    assert compose("config", "--services", gpu=gpu).stdout.split() == ["report"]


def test_the_defaults_are_those_of_the_repository(tmp_path: Path, compose: Compose) -> None:
    (tmp_path / ".env").write_text("", encoding="utf-8")
    told = json.loads(compose("--profile", "*", "config", "--format", "json").stdout)
    stage = told["services"]["stage5b"]
    assert stage["entrypoint"][-1] == "embedded" and stage["image"] == "prefill:local" and stage["user"] == "1000:1000"
    assert [mount["source"] for mount in stage["volumes"]] == [str(tmp_path / "runs"), "prefill-cache"]
    assert told["volumes"]["prefill-cache"]["name"] == "prefill-cache"
    (port,) = told["services"]["report"]["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "8000", 8000)


def test_tokens_are_handed_on_by_name_and_only_if_set(tmp_path: Path, compose: Compose) -> None:
    write_env(tmp_path, HF_TOKEN="from-env-file")
    shown = compose(
        "run", "--rm", "-T", "--entrypoint", "env", "stage1", WANDB_API_KEY="from-shell"
    ).stdout.splitlines()
    assert {"HF_TOKEN=from-env-file", "WANDB_API_KEY=from-shell"} <= set(shown)
    assert [line for line in shown if line.startswith(("HF_ENDPOINT", "HF_HUB_OFFLINE", "PREFILL_HEALTH", "OMP"))] == []
    environment = created(compose, "report")["Config"]["Env"]
    assert [word for word in environment if word.startswith(("HF_TOKEN", "WANDB"))] == []


def test_the_builds_arguments_come_from_dot_env(tmp_path: Path, compose: Compose) -> None:
    given = {"VARIANT": "cpu", "BASE_IMAGE": "a-base", "WHEELS_IMAGE": "some-wheels"}
    write_env(tmp_path, **given)
    build = json.loads(compose("config", "--format", "json").stdout)["services"]["report"]["build"]
    assert (build["args"], build["target"]) == (given, "image")
    write_env(tmp_path)
    build = json.loads(compose("config", "--format", "json").stdout)["services"]["report"]["build"]
    assert not build.get("args")  # the Dockerfile's own defaults


# ---- what a container may do -------------------------------------------------------------------------------------------


def locks(container: dict[str, Any]) -> dict[str, Any]:
    """What run.sh and Compose must agree on, as the engine understood it."""
    host, config = container["HostConfig"], container["Config"]
    same = ("CapAdd", "CapDrop", "SecurityOpt", "ReadonlyRootfs", "PidsLimit", "ShmSize", "Tmpfs", "Privileged", "Ulimits",
            "DeviceRequests", "Devices", "GroupAdd", "PidMode", "IpcMode", "UsernsMode")  # fmt: skip
    mounts = [(mount["Type"], mount.get("Name"), mount["Destination"], mount["RW"]) for mount in container["Mounts"]]
    environment = dict(word.partition("=")[::2] for word in config["Env"] if "=" in word)
    ours = ("NVIDIA_VISIBLE_DEVICES", "PREFILL_RUNS", "PREFILL_CACHE", "HOME")
    return {
        **{key: host[key] or None for key in same},
        **{key: config[key] for key in ("User", "WorkingDir", "StopTimeout", "Healthcheck")},
        "mounts": sorted(mounts, key=lambda mount: mount[2]),
        "environment": {name: environment.get(name) for name in ours},
    }


@pytest.fixture
def by_script(tmp_path: Path, compose: Compose) -> Iterator[Callable[..., tuple[list[str], dict[str, Any]]]]:
    """`by_script(CACHE=...)`: what container/run.sh would call for stage1, and the container that comes of it."""
    made = []

    def create(**env: object) -> tuple[list[str], dict[str, Any]]:
        # A copy in the project: the usual place of `runs` is beside it.
        script = shutil.copytree(engine.ROOT / "container", tmp_path / "container", dirs_exist_ok=True) / "run.sh"
        settings = {
            "IMAGE": engine.IMAGE,
            "CACHE": engine.CACHE,
            "RUNS": tmp_path / "runs",
            "GPU": "none",
            "DRY_RUN": 1,
        }
        unset = dict.fromkeys(["PREFILL_WHEELS", "MOUNTS", "DOCKER_ARGS"], "")
        words = shlex.split(engine.run("bash", script, "run", "stage1", **settings | unset | env).stdout)
        assert words[:2] == ["docker", "run"]
        made.append(engine.docker("create", "--label", engine.LABEL, *words[2:]))
        return words, engine.inspect(made[-1])

    yield create
    for identity in made:
        engine.docker("rm", "--force", identity)
    engine.docker("volume", "rm", "--force", f"{PROJECT}-cache")


def test_run_sh_and_compose_lock_a_stage_in_alike(by_script: Callable[..., Any], compose: Compose) -> None:
    handed_on = [*ENVIRONMENT["handed_on"], *ENVIRONMENT["secrets"]]
    words, script = by_script(**dict.fromkeys(handed_on, "x"))
    assert {words[at + 1] for at, word in enumerate(words) if word == "--env" and "=" not in words[at + 1]} == {
        *handed_on
    }
    ours = created(compose, "stage1", **dict.fromkeys(handed_on, "x"))
    assert locks(ours) == locks(script)
    given = {word.partition("=")[0] for word in script["Config"]["Env"]}
    assert {word.partition("=")[0] for word in ours["Config"]["Env"] if "=" in word} == given | {"PREFILL_USER"}


def test_a_cache_that_run_sh_has_made_is_composes_own(by_script: Callable[..., Any], tmp_path: Path) -> None:
    by_script(CACHE=f"{PROJECT}-cache")
    (made,) = json.loads(engine.docker("volume", "inspect", f"{PROJECT}-cache"))
    words = ("env", "-u", "COMPOSE_PROJECT_NAME", "docker", "compose", "--project-directory", tmp_path)
    told = json.loads(engine.run(*words, "--file", engine.ROOT / FILES[0], "config", "--format", "json").stdout)
    labels = {"com.docker.compose.project": told["name"], "com.docker.compose.volume": "prefill-cache"}
    assert made["Labels"] == labels  # without them Compose warns at every command


def test_gpus_are_asked_for_by_the_override_alone(tmp_path: Path, compose: Compose) -> None:
    assert created(compose, "stage3b")["HostConfig"]["DeviceRequests"] is None
    for settings, count in (({}, -1), ({"GPU_COUNT": 2, "CUDA_VISIBLE_DEVICES": "0,1"}, 2)):
        write_env(tmp_path, **settings)
        container = created(compose, "stage3b", gpu=True)
        (request,) = container["HostConfig"]["DeviceRequests"]
        assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", count, [["gpu"]])
        assert request["DeviceIDs"] is None
        assert container["HostConfig"]["Ulimits"] == [{"Name": "memlock", "Hard": -1, "Soft": -1}]
        environment = container["Config"]["Env"]
        assert [word for word in environment if word.startswith("NVIDIA_VISIBLE")] == ["NVIDIA_VISIBLE_DEVICES=all"]
        assert ("CUDA_VISIBLE_DEVICES=0,1" in environment) == bool(settings)
        assert container["HostConfig"]["ReadonlyRootfs"] and container["HostConfig"]["CapDrop"] == ["ALL"]
