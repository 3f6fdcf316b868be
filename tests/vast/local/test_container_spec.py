"""What a container of a local run is given, by which rules, and that a resumed supervisor gives the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import ConfigError, RunStateError
from vast.local import container_spec
from vast.local.container_spec import Asked, ContainerSpec

IMAGE = "sha256:" + "1" * 64


def decide(
    asked: Asked | None = None, info: dict[str, Any] | None = None, gpu: bool = False, **environ: str
) -> ContainerSpec:
    return container_spec.decide(asked or Asked(), info or {}, "engine-1", IMAGE, environ, (1234, 5678), lambda: gpu)


def test_a_uid_is_the_same_inside_and_outside_but_in_a_rootless_engine() -> None:
    assert decide().user == "1234:5678" and decide().uid_gid() == (1234, 5678)
    assert decide(info={"SecurityOptions": ["name=seccomp", "name=rootless"]}).user == "0:0"


@pytest.mark.parametrize(
    ("asked", "runtimes", "gpu", "environ", "expected"),
    [
        ("auto", {"nvidia": {}}, True, {}, "all"),
        ("auto", {"nvidia": {}}, False, {}, "none"),
        ("auto", {"nvidia": {}}, False, {"DOCKER_HOST": "tcp://x"}, "all"),
        ("auto", {"runc": {}}, True, {}, "none"),
        ("none", {"nvidia": {}}, True, {}, "none"),
        ("0,1", {}, False, {}, "0,1"),
    ],
)
def test_gpus_are_taken_where_the_engine_can_hand_them_on(
    asked: str, runtimes: dict[str, Any], gpu: bool, environ: dict[str, str], expected: str
) -> None:
    assert decide(Asked(gpu=asked), {"Runtimes": runtimes}, gpu, **environ).gpus == expected


def test_gpus_are_asked_of_the_engine() -> None:
    def request(gpus: str) -> Any:
        return container_spec.host_config(decide(Asked(gpu=gpus)), {}).get("device_requests")

    assert request("none") is None
    assert request("all")[0]["Count"] == -1 and request("all")[0]["Capabilities"] == [["gpu"]]
    assert request("0,2")[0]["DeviceIDs"] == ["0", "2"]
    assert "NVIDIA_VISIBLE_DEVICES" not in container_spec.environment(decide(Asked(gpu="all")))


@pytest.mark.parametrize(
    ("asked", "fact"),
    [
        (Asked(gpu="first"), "expected auto, none, all, or numbers"),
        (Asked(gpu="1,"), "expected auto, none, all, or numbers"),
        (Asked(cache="no name"), "is no name of a volume"),
        (Asked(readable=("/no/such/directory",)), "does not exist"),
        (Asked(labels=("novalue",)), "expected NAME=VALUE"),
    ],
)
def test_a_mistake_is_named(asked: Asked, fact: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(fact)):
        decide(asked)


def test_a_cache_that_cannot_be_made_is_an_error_of_its_own_option() -> None:
    with pytest.raises(RunStateError, match=r"^/proc/no/such: cannot be written: .*; name another .*: --cache$"):
        decide(Asked(cache="/proc/no/such"))


def test_a_path_with_a_colon_cannot_be_mounted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="colon"):
        decide(Asked(cache=str(tmp_path / "c:d")))
    assert list(tmp_path.iterdir()) == [], "nothing is made for a mistake"
    (tmp_path / "a:b").mkdir()
    with pytest.raises(ConfigError, match="colon"):
        decide(Asked(readable=(str(tmp_path / "a:b"),)))
    with pytest.raises(ConfigError, match="no such directory"):
        decide(PREFILL_WHEELS=str(tmp_path / "none"))


def test_directories_are_mounted_and_relabelled_where_the_engine_needs_that(tmp_path: Path) -> None:
    info = {"SecurityOptions": ["name=selinux"]}
    (tmp_path / "data").mkdir()
    made = decide(Asked(cache=f"{tmp_path}/cache", readable=(f"{tmp_path}/data",)), info, PREFILL_WHEELS=str(tmp_path))
    config = container_spec.host_config(made, {"a": "b"})
    assert config["binds"] == [f"{tmp_path}/data:{tmp_path}/data:ro,z", f"{tmp_path}/cache:/cache:rw,z", f"{tmp_path}:/wheels:ro,z"]  # fmt: skip
    assert [mount["Target"] for mount in config["mounts"]] == ["/runs"]
    assert container_spec.environment(made)["PREFILL_WHEELS"] == "/wheels" and (tmp_path / "cache").is_dir()


def test_tokens_do_not_travel_in_the_environment() -> None:
    made = decide(HF_TOKEN="hf_secret", WANDB_API_KEY="secret", VAST_API_KEY="secret", HF_ENDPOINT="https://hub")
    assert made.env == (("HF_ENDPOINT", "https://hub"),)
    assert "secret" not in repr(container_spec.environment(made))


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = decide(Asked(labels=("a=b=c",), readable=("/",)), HF_ENDPOINT="x", PREFILL_WHEELS=str(tmp_path))
    container_spec.write(tmp_path / "local.json", made)
    assert container_spec.read(tmp_path / "local.json") == made


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"engine": 1}', '{"engine": "e", "image_id": "i", "user": "root", "env": [], "labels": [], "readable": []}'])  # fmt: skip
def test_what_cannot_be_read_back_says_how_the_container_ends(tmp_path: Path, text: str) -> None:
    path = tmp_path / "stage1-1" / "local.json"
    path.parent.mkdir()
    path.write_text(text)
    remedy = "end the run's container: docker rm --force --volumes prefill-stage1-1"
    with pytest.raises(RunStateError, match=rf"local\.json: .*; {remedy}$"):
        container_spec.read(path)
