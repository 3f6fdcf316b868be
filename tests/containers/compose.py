"""Compose, for tests: a directory that stands for the repository's, with its own .env, runs and project name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.containers import engine

FILES = ("compose.yaml", "compose.gpu.yaml")
PROJECT = f"prefill-test-{os.getpid()}"
# What the shell of whoever runs the tests may have set, and what would come before .env.
SETTINGS = [
    "PROFILE", "IMAGE", "PREFILL_USER", "RUNS", "CACHE", "REPORT_PORT", "GPU_COUNT", "CUDA_VISIBLE_DEVICES", "COMPOSE_FILE",
    "COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "WANDB_API_KEY", "PIP_CONF",
    "ACCEPT_GEMMA_TERMS", "PREFILL_HEALTH_SILENCE", "OMP_NUM_THREADS", "BASE_IMAGE", "WHEELS_IMAGE", "VARIANT", "COMMIT", "SOURCE_DATE_EPOCH",
]  # fmt: skip
Compose = Callable[..., engine.Done]


@contextmanager
def project_in(directory: Path) -> Iterator[Compose]:
    """`compose("run", "--rm", ...)` in `directory`; what it makes is removed, but for the cache."""
    (directory / "runs").mkdir()
    write_env(directory)
    compose = compose_in(directory)
    try:
        yield compose
    finally:
        compose("--profile", "stages", "down", "--remove-orphans", "--timeout", 5)  # not --volumes: the cache


def write_env(project: Path, **settings: object) -> None:
    known = {
        "PROFILE": "ci",
        "IMAGE": engine.IMAGE,
        "CACHE": engine.CACHE,
        "PREFILL_USER": f"{os.getuid()}:{os.getgid()}",
    }
    lines = [f"{name}={value}\n" for name, value in (known | settings).items()]
    (project / ".env").write_text("".join(lines), encoding="utf-8")


def compose_in(project: Path) -> Compose:
    """`gpu=True`: with compose.gpu.yaml. `code` and variables as for engine.run."""

    def call(*argv: object, gpu: bool = False, code: int | None = 0, **env: object) -> engine.Done:
        clean = [word for name in SETTINGS if name not in env for word in ("-u", name)]
        files = [word for file in FILES[: 1 + gpu] for word in ("--file", engine.ROOT / file)]
        where = ("--project-name", PROJECT, "--project-directory", project)
        return engine.run("env", *clean, "docker", "compose", *where, *files, *argv, code=code, **env)

    return call


def created(compose: Compose, service: str, **options: Any) -> dict[str, Any]:
    """A service's container as the engine has it, made but not started."""
    compose("create", "--force-recreate", "--pull", "never", service, **options)
    return engine.inspect(compose("ps", "--all", "--quiet", service).stdout.strip())
