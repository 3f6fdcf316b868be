"""The specification of a local run's container, from vast/local/container.yaml, which container/run.sh uses too.

It is decided once and kept beside the run as `local.json`, so that a resumed supervisor makes the next container like the
first. It holds no secret.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from jobs.config import strict_yaml
from jobs.config.schema import Strict
from jobs.errors import ConfigError, DataError, RunStateError, expanded
from jobs.runs.atomic import io_errors_reported, read_json, write_text_atomically

CONTAINER: Mapping[str, Any] = strict_yaml.read(Path(__file__).with_name("container.yaml"), "vast/local/container.yaml")
MOUNTS, CACHE, ENVIRONMENT = CONTAINER["mounts"], CONTAINER["cache"], CONTAINER["environment"]
GPUS = re.compile(r"auto|none|all|\d+(,\d+)*")


class ContainerSpec(Strict):
    """engine: see Engine.identity. image_id: the id of the image when the run began."""

    engine: str
    image_id: str
    user: str = Field(pattern=r"^\d+:\d+$")  # uid:gid
    gpus: str = "none"  # none, all, or their numbers: 0,1
    cache: str = CACHE["name"]  # of a volume, or an absolute directory
    readable: tuple[str, ...] = ()  # absolute; in the container under the same path
    wheels: str | None = None
    relabel: bool = False  # SELinux
    env: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def uid_gid(self) -> tuple[int, int]:
        uid, gid = map(int, self.user.split(":"))
        return uid, gid


@dataclass(frozen=True)
class Asked:
    gpu: str = "auto"
    cache: str = CACHE["name"]
    readable: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # NAME=VALUE


def decide(
    asked: Asked,
    info: Mapping[str, Any],
    identity: str,
    image_id: str,
    environ: Mapping[str, str],
    caller: tuple[int, int],
    has_gpu: Callable[[], bool],
) -> ContainerSpec:
    """The specification of a new run. info: the result of Engine.info. has_gpu: whether nvidia-smi lists a GPU here. Raises
    ConfigError."""
    security = " ".join(map(str, info.get("SecurityOptions") or []))
    wheels = environ.get("PREFILL_WHEELS") or None
    if wheels is not None and not expanded(wheels).is_dir():
        raise ConfigError(f"PREFILL_WHEELS={wheels}", "no such directory", "correct or unset it")
    return ContainerSpec(
        engine=identity,
        image_id=image_id,
        user=CONTAINER["user"]["rootless"] if "name=rootless" in security else f"{caller[0]}:{caller[1]}",
        gpus=_gpus(asked.gpu, info, environ, has_gpu),
        cache=_cache(asked.cache),
        readable=tuple(_readable(path) for path in asked.readable),
        wheels=None if wheels is None else _mountable(wheels),
        relabel="name=selinux" in security,
        env=tuple((name, environ[name]) for name in ENVIRONMENT["handed_on"] if environ.get(name)),
        labels=tuple(_label(text) for text in asked.labels),
    )


def _gpus(asked: str, info: Mapping[str, Any], environ: Mapping[str, str], has_gpu: Callable[[], bool]) -> str:
    if not GPUS.fullmatch(asked):
        raise ConfigError(f"--gpu {asked}", "expected auto, none, all, or numbers such as 0,1", "correct it")
    if asked != "auto":
        return asked
    can_hand_on = "nvidia" in (info.get("Runtimes") or {})
    return "all" if can_hand_on and (environ.get("DOCKER_HOST") or has_gpu()) else "none"


def _cache(text: str) -> str:
    if "/" not in text:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]+", text):
            remedy = "name a volume, or a directory with a / in it"
            raise ConfigError(f"--cache {text}", "is no name of a volume", remedy)
        return text
    directory = _mountable(text)
    with io_errors_reported(Path(directory), "name another directory, or a volume: --cache"):
        Path(directory).mkdir(parents=True, exist_ok=True)
    return directory


def _readable(text: str) -> str:
    if not expanded(text).exists():
        raise ConfigError(f"--mount {text}", "does not exist", "correct it")
    return _mountable(text)


def _mountable(path: str) -> str:
    text = str(expanded(path).resolve())
    if ":" in text:
        raise ConfigError(text, "has a colon in it, which the engine takes for a separator", "name another path")
    return text


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--label {text}", "expected NAME=VALUE", "correct it")
    return name, value


def write(path: Path, spec: ContainerSpec) -> None:
    write_text_atomically(path, spec.model_dump_json(indent=2) + "\n")


def read(path: Path) -> ContainerSpec:
    """Raises RunStateError if it is not what `write` wrote, or cannot be read: without it the run's container is not found."""
    try:
        return ContainerSpec.model_validate(read_json(path), strict=False)  # JSON has no tuples
    except DataError as error:
        fact = error.fact
    except ValidationError:
        fact = "is not what this version writes"
    remedy = f"end the run's container: docker rm --force --volumes prefill-{path.parent.name}"
    raise RunStateError(path, fact, remedy)


def host_config(spec: ContainerSpec, run_label: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of APIClient.create_host_config."""
    from docker.types import DeviceRequest, Mount

    mode = ",z" if spec.relabel else ""
    # The disk of this "machine": a volume without a name, which goes with its container.
    mounts = [Mount(MOUNTS["runs"], None, type="volume", labels=dict(run_label))]
    binds = [f"{path}:{path}:ro{mode}" for path in spec.readable]
    if "/" in spec.cache:
        binds.append(f"{spec.cache}:{MOUNTS['cache']}:rw{mode}")
    else:
        mounts.append(Mount(MOUNTS["cache"], spec.cache, type="volume", labels=CACHE["labels"]))
    if spec.wheels is not None:
        binds.append(f"{spec.wheels}:{MOUNTS['wheels']}:ro{mode}")
    config = {**CONTAINER["locks"], "mounts": mounts, "binds": binds}
    if spec.gpus != "none":
        which = {"count": -1} if spec.gpus == "all" else {"device_ids": spec.gpus.split(",")}
        config["device_requests"] = [DeviceRequest(capabilities=[["gpu"]], **which)]
    return config


def environment(spec: ContainerSpec) -> dict[str, str]:
    env = {**dict(spec.env), "PREFILL_RUNS": MOUNTS["runs"], "PREFILL_IMAGE": spec.image_id}
    if spec.wheels is not None:
        env["PREFILL_WHEELS"] = MOUNTS["wheels"]
    return env | (ENVIRONMENT["without_gpu"] if spec.gpus == "none" else {})
