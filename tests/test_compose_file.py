"""compose.yaml and compose.gpu.yaml as text: every stage a service; tests/test_container.py has its limits. No engine is needed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.config.load import stage_names

ROOT = Path(__file__).resolve().parent.parent
# Not stages, and why they are there.
OTHERS = {"report", "serve", "track"}
OPENING = {"cap_add", "privileged", "devices", "network_mode", "pid", "ipc", "userns_mode", "group_add", "runtime"}
SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
STAGE_LINES = {
    "compose.yaml": '{{<<: *stage, entrypoint: [tini, --, prefill, run, {0}, --profile, "${{PROFILE:-embedded}}"]}}',
    "compose.gpu.yaml": "*gpu",
}


def services(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))["services"]
    return found


def missing_lines(file: str, present: set[str], stages: list[str]) -> list[str]:
    """What to do so that the stages of `file` are those of jobs/."""
    add = [f"{file}: add under services:   {s}: {STAGE_LINES[file].format(s)}" for s in stages if s not in present]
    return add + [f"{file}: remove {s}: there is no jobs/{s}.yaml" for s in sorted(present - {*stages})]


@pytest.mark.parametrize("file", STAGE_LINES)
def test_every_stage_is_a_service_and_no_other_is(file: str) -> None:
    found = missing_lines(file, set(services(file)) - OTHERS, stage_names())
    assert found == [], "\n" + "\n".join(found)


def test_the_message_gives_the_very_line_to_add() -> None:
    lines = {file: (ROOT / file).read_text(encoding="utf-8").splitlines() for file in STAGE_LINES}
    for file in STAGE_LINES:
        for stage in stage_names():
            (said,) = missing_lines(file, {*stage_names()} - {stage}, stage_names())
            assert said.partition("services: ")[2] in lines[file]
    assert missing_lines("compose.gpu.yaml", {"stage1", "stage9"}, ["stage1"]) == [
        "compose.gpu.yaml: remove stage9: there is no jobs/stage9.yaml"
    ]


@pytest.mark.parametrize("name", [*stage_names(), *sorted(OTHERS)])
def test_no_service_is_opened_and_no_directory_made_for_root(name: str) -> None:
    service = services("compose.yaml")[name]
    assert OPENING & {*service, *services("compose.gpu.yaml").get(name, {})} == set()
    mounts = {mount["target"]: mount for mount in service["volumes"]}
    assert mounts["${RUNS:-/runs}"]["bind"] == {"create_host_path": False}  # or the engine makes it, for root


@pytest.mark.parametrize("name", stage_names())
def test_a_stage_is_its_own_command(name: str) -> None:
    service = services("compose.yaml")[name]
    assert service["entrypoint"] == ["tini", "--", "prefill", "run", name, "--profile", "${PROFILE:-embedded}"]
    assert service["command"] == []
    assert service["profiles"] == ["stages"]  # a bare `up` must not start days of training
    assert "ports" not in service and "healthcheck" not in service  # the image's own is made for stages


def test_the_report_is_for_this_machine_only_and_only_reads() -> None:
    report = services("compose.yaml")["report"]
    assert "profiles" not in report
    assert [port.rpartition(":${")[0].partition(":")[0] for port in report["ports"]] == ["127.0.0.1"]
    assert [mount.get("read_only") for mount in report["volumes"]] == [True]
    assert not any(word.startswith(SECRETS) for word in report["environment"])


def test_the_endpoint_is_for_this_machine_only_and_reads_the_runs() -> None:
    serve = services("compose.yaml")["serve"]
    assert serve["profiles"] == ["serve"] and serve["entrypoint"][:4] == ["tini", "--", "prefill", "serve"]
    assert [port.partition(":")[0] for port in serve["ports"]] == ["127.0.0.1"]
    assert [mount.get("read_only") for mount in serve["volumes"]] == [True, None]


def test_what_was_tracked_is_opened_for_this_machine_only_or_missed_in_one_line(tmp_path: Path) -> None:
    track = services("compose.yaml")["track"]
    assert track["profiles"] == ["track"] and track["build"]["target"] == "track"
    assert [port.partition(":")[0] for port in track["ports"]] == ["127.0.0.1"]
    assert [mount.get("read_only") for mount in track["volumes"]] == [True]
    (tmp_path / "tensorboard").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "tensorboard").chmod(0o755)
    script = track["entrypoint"][5].replace("$$", "$").replace("${TRACK_PORT:-6006}", "6006")

    def opened(place: Path) -> subprocess.CompletedProcess[str]:
        argv = ["sh", "-c", script, str(place), "--samples_per_plugin", "scalars=0"]
        return subprocess.run(argv, capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})

    assert opened(tmp_path).stdout == f"--logdir {tmp_path} --host 0.0.0.0 --port 6006 --samples_per_plugin scalars=0\n"
    missing = opened(tmp_path / "none")
    assert missing.returncode == 2 and "no such directory, so nothing was tracked there; run a stage" in missing.stderr
    assert missing.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [*stage_names(), "serve"])
def test_gpus_and_locked_memory_belong_to_the_override(name: str) -> None:
    plain, override = services("compose.yaml")[name], services("compose.gpu.yaml")[name]
    assert {"deploy", "ulimits"} & set(plain) == set()
    (device,) = override["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "${GPU_COUNT:-all}", "capabilities": ["gpu"]}
    assert override["ulimits"] == {"memlock": -1}
    assert "NVIDIA_VISIBLE_DEVICES=all" in override["environment"]


def test_every_setting_is_in_the_example_and_none_is_set_there() -> None:
    used = set()
    for file in STAGE_LINES:
        used |= set(re.findall(r"\$\{([A-Z_]+)", (ROOT / file).read_text(encoding="utf-8")))
        for service in services(file).values():
            named = [*service.get("environment", []), *service.get("build", {}).get("args", [])]
            used |= {word for word in named if "=" not in word}
    used -= {"COMMIT", "SOURCE_DATE_EPOCH"}  # of one build, not of a workstation
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert used - set(re.findall(r"^# ([A-Z_]+)=", example, re.MULTILINE)) == set()
    assert [line for line in example.splitlines() if line and not line.startswith("#")] == []


def test_what_is_in_dot_env_stays_out_of_git() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
