"""The one description of the container, vast/local/container.yaml, against all who give one: none of them differs by a word.

container/run.sh is played with a `docker` that only answers what it asks, compose.yaml is read, and the containers of
`vast local` are looked at as the engine's API gets them. Each is brought into one form, which the description has too.
tests/containers/test_compose.py compares once more what a real engine makes of it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from vast.local import container_spec
from vast.local.container_spec import Asked, ContainerSpec
from vast.local.engine import Engine
from vast.local.local_cloud import LocalCloud
from vast.ports import Contract

ROOT = Path(__file__).resolve().parent.parent
SPEC: dict[str, Any] = yaml.safe_load((ROOT / "vast/local/container.yaml").read_text(encoding="utf-8"))
IMAGE = "sha256:" + "1" * 64
CALLER = (1234, 5678)
PROGRAMS = {
    "docker": f'case $1 in info) echo "$ENGINE" ;; image) echo {IMAGE} ;; *) exit 1 ;; esac',
    "id": f"case $1 in -u) echo {CALLER[0]} ;; -g) echo {CALLER[1]} ;; esac",
}
# Options of `docker run` that have the values of a key. Those that do not stand here are none of the container's limits.
LOCKS = {
    "--tmpfs": "tmpfs",
    "--cap-drop": "cap_drop",
    "--security-opt": "security_opt",
    "--pids-limit": "pids_limit",
    "--shm-size": "shm_size",
}
OTHERS = {"--label", "--name", "--workdir"}


def expected(rootless: bool = False, wheels: bool = False, gpu: bool = False) -> dict[str, Any]:
    """A stage's container by the description."""
    environment, mounts = SPEC["environment"], SPEC["mounts"]
    written = [("cache", mounts["cache"], "rw"), ("runs", mounts["runs"], "rw")]
    return {
        **SPEC["locks"],
        "stop": SPEC["stop_grace_period"],
        "user": SPEC["user"]["rootless"] if rootless else f"{CALLER[0]}:{CALLER[1]}",
        "mounts": sorted([*written, *([("wheels", mounts["wheels"], "ro")] if wheels else [])]),
        "cache": SPEC["cache"],
        "environment": {*environment["always"], *(["PREFILL_WHEELS"] if wheels else [])},
        "gpu": {} if gpu else environment["without_gpu"],
        "handed on": {*environment["handed_on"], *environment["secrets"]},
    }


# ---- container/run.sh -----------------------------------------------------------------------------------------------------


def script(tmp_path: Path, engine: str = "overlay2 [] runtime=runc ", **env: str) -> list[str]:
    """The options that container/run.sh gives `docker run` for stage1, without a real engine."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    named = dict.fromkeys([*SPEC["environment"]["handed_on"], *SPEC["environment"]["secrets"]], "value")
    # A copy of the script: only beside its own runs is the mount /runs.
    (tmp_path / "container").mkdir()
    for name in ("run.sh", "dotenv.sh"):
        (tmp_path / "container" / name).write_bytes((ROOT / "container" / name).read_bytes())
    settings = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "ENGINE": engine, "DRY_RUN": "1", "GPU": "none",
                "RUNS": f"{tmp_path}/runs", "ENV_FILE": "/dev/null", **named, "OTHER": "value", **env}  # fmt: skip
    argv = ["bash", str(tmp_path / "container/run.sh"), "run", "stage1"]
    done = subprocess.run(argv, env=settings, capture_output=True, text=True, check=True, timeout=60)
    words = shlex.split(done.stdout)
    assert words[:2] == ["docker", "run"] and words[-3:] == ["prefill:local", "run", "stage1"]
    return words[2:-3]


def of_script(words: list[str], tmp_path: Path, wheels: Path | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"mounts": [], "environment": set(), "gpu": {}, "handed on": set()}
    rest = iter(words)
    sources = {str(tmp_path / "runs"): "runs", str(wheels): "wheels"}
    for option in rest:
        if option == "--read-only":
            found["read_only"] = True
            continue
        value = next(rest)
        if option in LOCKS:
            key = LOCKS[option]
            kind = type(SPEC["locks"][key])
            found[key] = [*found.get(key, []), value] if kind is list else kind(value)
        elif option == "--stop-timeout":
            found["stop"] = f"{value}s"
        elif option == "--user":
            found["user"] = value
        elif option == "--volume":
            source, target, mode = value.split(":")
            found["mounts"].append((sources[source], target, mode))
        elif option == "--mount":
            parts = [part.partition("=")[::2] for part in value.split(",")]
            fields, labels = dict(parts), dict(one.split("=") for name, one in parts if name == "volume-label")
            assert fields["type"] == "volume"
            found["mounts"].append(("cache", fields["target"], "rw"))
            found["cache"] = {"name": fields["source"], "labels": labels}
        elif option == "--env" and value.startswith("NVIDIA_"):
            found["gpu"] = dict([value.split("=")])
        elif option == "--env":
            found["environment" if "=" in value else "handed on"].add(value.partition("=")[0])
        else:
            assert option in OTHERS, f"{option}: not in vast/local/container.yaml"
    return found | {"mounts": sorted(found["mounts"])}


@pytest.mark.parametrize("rootless", [False, True])
@pytest.mark.parametrize("wheels", [False, True])
def test_run_sh_gives_what_is_described(tmp_path: Path, rootless: bool, wheels: bool) -> None:
    directory = tmp_path / "handed in"
    directory.mkdir()
    engine = f"overlay2 [{'name=rootless' if rootless else ''}] runtime=runc "
    words = script(tmp_path, engine, **({"PREFILL_WHEELS": str(directory)} if wheels else {}))
    assert of_script(words, tmp_path, directory) == expected(rootless, wheels)


def test_run_sh_hands_on_what_is_set_and_nothing_empty(tmp_path: Path) -> None:
    (name, *_) = SPEC["environment"]["handed_on"]
    assert name not in of_script(script(tmp_path, **{name: ""}), tmp_path)["handed on"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("A=it's # so", "it's"), ('A="b # c" # d', "b # c"), ("A='b'", "b"), ("A=", ""), ("export A = b\r", "b"), ('A="b\nc"', None), ("A='b", None)],
)  # fmt: skip
def test_a_value_of_the_env_file_is_read_or_refused(tmp_path: Path, text: str, value: str | None) -> None:
    (tmp_path / "env").write_text(f"{text}\n")
    script = f'. {ROOT}/container/dotenv.sh; dotenv {tmp_path}/env; printf %s "$A"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    if value is None:
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"error: {tmp_path}/env: A: has a quote that its line does not close")
        assert done.stderr.endswith("; write it on one line\n")
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, value, "")


@pytest.mark.parametrize("name", ["RUNS", "CACHE", "MOUNTS"])
def test_run_sh_refuses_a_path_that_the_engine_would_split(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a:b"
    if name == "MOUNTS":
        path.mkdir()
    with pytest.raises(subprocess.CalledProcessError) as raised:
        script(tmp_path, **{name: str(path)})
    error = f"error: {path}: has a colon in it, which the engine takes for a separator; name another path with {name}\n"
    assert (raised.value.returncode, raised.value.stderr) == (2, error)
    assert name == "MOUNTS" or not path.exists()


# ---- compose.yaml ---------------------------------------------------------------------------------------------------------


def of_compose() -> dict[str, dict[str, Any]]:
    """Every service, by its name."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return {name: of_service(service, compose["volumes"]) for name, service in compose["services"].items()}


def of_service(service: dict[str, Any], volumes: dict[str, Any]) -> dict[str, Any]:
    found = {key: service[key] for key in SPEC["locks"] if key in service}
    words = [word.partition("=")[::2] for word in service["environment"]]
    environment = {name for name, value in words if value and not name.startswith("NVIDIA_")}
    mounts = [
        (mount["source"], default(mount["target"]), "ro" if mount.get("read_only") else "rw")
        for mount in service["volumes"]
    ]
    assert {mount["type"] for mount in service["volumes"]} <= {"bind", "volume"}
    # Its volume has the name of the description; Compose labels it with its project and this key.
    labels = {"com.docker.compose.project": "prefill", "com.docker.compose.volume": next(iter(volumes))}
    return found | {
        "stop": service.get("stop_grace_period"),
        "user": service["user"].replace("${PREFILL_USER:-1000:1000}", expected()["user"]),
        "mounts": sorted(("cache" if source in volumes else re.sub(r"^\$\{RUNS:-\./(\w+)\}$", r"\1", source), *rest)
                         for source, *rest in mounts),
        "cache": {"name": default(volumes[next(iter(volumes))]["name"]), "labels": labels},
        "environment": environment,
        "gpu": {name: value for name, value in words if name.startswith("NVIDIA_")},
        "handed on": {name for name, value in words if not value},
    }  # fmt: skip


def default(text: str) -> str:
    """${NAME:-default}: what it is if nobody sets it."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_compose_gives_every_stage_what_is_described() -> None:
    services = of_compose()
    serve = services.pop("serve")
    services.pop("report"), services.pop("track")
    # So that an error can name the user; and a stage on GPUs has compose.gpu.yaml. Wheels are handed in by options.
    described = expected() | {"environment": {*expected()["environment"], "PREFILL_USER"}}
    assert services and services == dict.fromkeys(services, described)
    mounts = [(name, at, "ro" if name == "runs" else mode) for name, at, mode in described["mounts"]]
    assert serve == described | {"mounts": mounts, "stop": "30s"}


@pytest.mark.parametrize("name", ["report", "track"])
def test_what_only_reads_may_do_no_more_than_a_stage(name: str) -> None:
    report = of_compose()[name]
    same = ("user", "gpu", *SPEC["locks"])
    assert {key: report.get(key) for key in same} == {key: expected()[key] for key in same}
    assert report["mounts"] == [("runs", SPEC["mounts"]["runs"], "ro")]
    assert report["environment"] <= {*SPEC["environment"]["always"]} and not report["handed on"]


def test_a_service_has_nothing_that_opens_the_machine_to_it() -> None:
    own = {"image", "build", "working_dir", "command", "entrypoint", "profiles", "user", "environment", "volumes",
           "stop_grace_period", *SPEC["locks"]}  # fmt: skip
    for name, service in yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"].items():
        assert set(service) - own <= (
            {"ports", "healthcheck"} if name in ("report", "serve") else {"ports"} if name == "track" else set()
        ), name


# ---- vast local -----------------------------------------------------------------------------------------------------------


class Api(docker.APIClient):
    """The SDK's client, which keeps what it was to send."""

    def create_container_from_config(self, config: Any, name: Any = None, platform: Any = None) -> Any:
        self.config = config
        return {"Id": "0" * 64}

    def start(self, *words: Any, **options: Any) -> None:
        pass


def created(made: ContainerSpec) -> dict[str, Any]:
    api = Api(base_url="unix:///nowhere", version="1.45")
    contract = Contract("prefill/stage1-20261123-101500/1795000000", "prefill:test", 40.0, "true")
    assert LocalCloud(Engine(api), made).create(1, contract).outcome == "created"
    return dict(api.config)


def of_engine(config: dict[str, Any], wheels: Path | None) -> dict[str, Any]:
    host = config["HostConfig"]
    known = {
        "NetworkMode",
        "ReadonlyRootfs",
        "Tmpfs",
        "CapDrop",
        "SecurityOpt",
        "PidsLimit",
        "ShmSize",
        "Mounts",
        "Binds",
    }
    assert {key for key, value in host.items() if value} <= known  # nothing that is not described
    words = [word.partition("=")[::2] for word in config["Env"]]
    runs, cache = host["Mounts"]
    binds = [bind.split(":") for bind in host["Binds"] or []]
    return {
        "read_only": host["ReadonlyRootfs"],
        "tmpfs": [f"{path}:{options}" for path, options in host["Tmpfs"].items()],
        "cap_drop": host["CapDrop"],
        "security_opt": host["SecurityOpt"],
        "pids_limit": host["PidsLimit"],
        "shm_size": f"{host['ShmSize'] >> 30}g",
        "user": config["User"],
        "mounts": sorted([("runs", runs["Target"], "rw"), ("cache", cache["Target"], "rw"),
                          *(("wheels", target, mode) for source, target, mode in binds if source == str(wheels))]),
        "cache": {"name": cache["Source"], "labels": cache["VolumeOptions"]["Labels"]},
        "environment": {name for name, value in words if not name.startswith("NVIDIA_") and value != "value"},
        "gpu": {name: value for name, value in words if name.startswith("NVIDIA_")},
        "handed on": {name for name, value in words if value == "value"},
    }  # fmt: skip


@pytest.mark.parametrize("rootless", [False, True])
@pytest.mark.parametrize("wheels", [False, True])
def test_vast_local_gives_what_is_described(tmp_path: Path, rootless: bool, wheels: bool) -> None:
    named = [*SPEC["environment"]["handed_on"], *SPEC["environment"]["secrets"], "OTHER"]
    environ = {**dict.fromkeys(named, "value"), **({"PREFILL_WHEELS": str(tmp_path)} if wheels else {})}
    info = {"SecurityOptions": ["name=rootless"]} if rootless else {}
    made = container_spec.decide(Asked(), info, "engine", IMAGE, environ, CALLER, lambda: False)
    described = expected(rootless, wheels)
    described["handed on"] -= {*SPEC["environment"]["secrets"]}  # they go there in files
    del described["stop"]  # its supervisor asks for the checkpoint
    assert of_engine(created(made), tmp_path) == described


def test_a_gpu_is_hidden_only_where_none_is_asked_for(tmp_path: Path) -> None:
    made = container_spec.decide(Asked(gpu="all"), {}, "engine", IMAGE, {}, (1, 2), lambda: True)
    assert container_spec.environment(made).keys() & SPEC["environment"]["without_gpu"].keys() == set()
    assert (
        of_script([word for word in script(tmp_path, GPU="all") if word not in ("--gpus", "all")], tmp_path)["gpu"]
        == {}
    )
