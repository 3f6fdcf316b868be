"""`python -m jobs.submit`: what it writes for each engine, and every mistake in one line before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from jobs.config.campaign import CAMPAIGNS_DIR
from jobs.errors import EXIT_DISK_FULL
from jobs.submit import client, slurm
from jobs.submit.__main__ import main

IMAGE = "registry.example/prefill@sha256:" + "ab" * 32
RENTED = ["--image", IMAGE, "--shared", "volume", "--gpu", "H100_SXM"]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main([*words, "--dry-run"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("error: ") and "; " in err
    return err


def test_slurm_gets_one_launcher_a_machine_and_a_time_limit_from_the_estimate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # fmt: skip
    text = printed(capsys, "stage5b", "--on", "slurm", "--profile", "ministral-3b", "--gpu", "H100_SXM", "--gpus", "8",
                   "--nodes", "2", "--runs-dir", str(tmp_path))  # fmt: skip
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if "#SBATCH" in line
    )
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == ("2", "1", "h100_sxm:8")
    assert options["signal"] == "TERM@300" and "requeue" in options and 30 < int(options["time"]) < 600
    assert "run stage5b --profile ministral-3b --set gpus=8 --continue" in text
    assert f"--runs-dir {tmp_path}" in text


@pytest.mark.parametrize(("stage", "more", "weights"), [
    ("stage1", [], 2), ("stage5b", [], 5.75), ("stage5b", ["--set", "train.lora={r: 8}"], 2), ("stage5b", ["--gpus", "2"], 7.75),
    ("stage5b", ["--gpus", "2", "--set", "sharding=fsdp"], 4),
])  # fmt: skip
def test_the_host_has_room_for_the_copy_that_a_checkpoint_is_written_from(stage: str, more: list[str], weights: float, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # fmt: skip
    """Training would wait for the disk without it. A model of 3.4 billion parameters: 12.8 GB as float32."""
    words = [stage, "--on", "slurm", "--profile", "ministral-3b", "--gpu", "H200", "--runs-dir", str(tmp_path), *more]
    asked = int(printed(capsys, *words).partition("#SBATCH --mem=")[2].partition("G")[0])
    assert (asked - 24) / weights == pytest.approx(12.8, abs=0.6)


@pytest.mark.parametrize(("container", "inside"), [
    ("apptainer", "apptainer exec --nv --bind {runs}:/runs docker://" + IMAGE + " python -m app run stage1"),
    ("pyxis", "--container-image=registry.example#prefill@sha256"),
    ("docker", "container/run.sh run stage1"),
])  # fmt: skip
def test_slurm_runs_the_image_in_what_the_cluster_has(container: str, inside: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # fmt: skip
    text = printed(capsys, "stage1", "--on", "slurm", "--hours", "1", "--image", IMAGE, "--container", container, "--runs-dir", str(tmp_path))  # fmt: skip
    assert inside.format(runs=tmp_path) in text
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_a_campaign_is_dealt_over_an_array_or_over_the_gpus_of_a_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # fmt: skip
    words = ["lookup", "--on", "slurm", "--gpu", "H200", "--runs-dir", str(tmp_path)]
    hours = [int(printed(capsys, *words, *more).partition("--time=")[2].split()[0]) for more in ([], ["--tasks", "4"])]
    assert hours[0] > hours[1] > 30 and (hours[0] - 30) / (hours[1] - 30) == pytest.approx(4, rel=0.15), "minutes"
    each = int(printed(capsys, *words, "--tasks", "21").partition("--time=")[2].split()[0])
    assert 30 < each < hours[1], "no element is over before its one run"
    text = printed(capsys, *words, "--tasks", "4")
    assert "#SBATCH --array=0-3" in text and "values=(0/4 1/4 2/4 3/4)" in text and "--continue" not in text
    assert 'element=(--share "${values[$SLURM_ARRAY_TASK_ID]}")' in text and "-m app campaign lookup --runs-dir" in text
    task = yaml.safe_load(printed(capsys, "lookup", "--on", "skypilot", *RENTED, "--gpus", "4"))
    assert "python -m app campaign lookup --workers 4 --runs-dir /runs" in task["run"]
    assert task["resources"]["accelerators"] == "H100:4" and task["num_nodes"] == 1


def test_of_a_campaign_the_profile_that_does_not_fit_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, lookup = tmp_path / "both.yaml", (CAMPAIGNS_DIR / "lookup.yaml").read_text()
    file.write_text(
        lookup.replace("[embedded]", "[embedded, ministral-3b]").replace("primary: {", "primary: {profile: embedded, ")
    )
    said = refusal(capsys, str(file), "--on", "slurm", "--gpu", "RTX_4090", "--runs-dir", str(tmp_path))
    assert "both with profile ministral-3b: needs about" in said


def test_a_name_with_blanks_and_quotes_stays_one_word(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runs = tmp_path / "my 'runs'; true"
    text = printed(capsys, "stage1", "--on", "slurm", "--hours", "1", "--runs-dir", str(runs))
    line = text[text.index("srun") :].split("launch")[1].split('"${element')[0].replace("\\\n", "")
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True).stdout.splitlines()
    assert words[-1] == str(runs)


def test_kubernetes_stops_for_good_at_a_mistake_and_restarts_after_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    found = yaml.safe_load(printed(capsys, "stage5b", "--on", "kubernetes", "--profile", "ministral-3b", *RENTED, "--nodes", "4"))  # fmt: skip
    (run,) = found["spec"]["replicatedJobs"]
    job = run["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (4, 4, "Indexed")
    (rule,) = job["podFailurePolicy"]["rules"]
    assert 75 not in rule["onExitCodes"]["values"] and 2 in rule["onExitCodes"]["values"]
    assert "labels" not in found["metadata"]


@pytest.mark.parametrize(("words", "fact"), [
    (["stage9", "--on", "slurm"], "stage9"),
    (["lokup", "--on", "slurm"], 'unknown stage "lokup", and no such campaign; did you mean "lookup"?'),
    (["stage1", "--on", "torque"], "torque"),
    (["stage1"], "--on"),
    (["stage1", "--on", "slurm"], "how long stage1 takes is not known"),
    (["stage1", "--on", "slurm", "--hours", "nan"], "expected a positive number"),
    (["stage1", "--on", "slurm", "--hours", "1", "--nodes", "0"], "expected a positive number"),
    (["stage1", "--on", "slurm", "--hours", "1", "--seeds", "1,2,1"], "named twice"),
    (["stage1", "--on", "slurm", "--hours", "1", "--seeds", "1,x"], "expected numbers"),
    (["stage1", "--on", "slurm", "--hours", "1", "--seeds", "1" * 5000], "expected numbers"),
    (["stage1", "--on", "slurm", "--hours", "1", "--container", "docker"], "needs an image"),
    (["stage1", "--on", "slurm", "--hours", "1", "--max-price", "2"], "--max-price: is for skypilot, dstack, not for slurm"),
    (["stage1", "--on", "slurm", "--hours", "1", "--spot"], "--spot: is for skypilot, dstack, not for slurm"),
    (["stage1", "--on", "slurm", "--hours", "1", "--job"], "--job: is for kubernetes, not for slurm"),
    (["stage1", "--on", "slurm", "--hours", "1", "--shared", "volume"], "--shared: is for skypilot, dstack, kubernetes"),
    (["stage1", "--on", "dstack", *RENTED, "--queue", "long"], "--queue: is for slurm, kubernetes, not for dstack"),
    (["stage1", "--on", "slurm", "--hours", "1", "--queue", "a\nb"], '--queue: expected a text of one line, found "a\\nb"'),
    (["stage1", "--on", "slurm", "--hours", "1", "--image", ""], '--image: expected a text of one line, found ""'),
    (["stage1", "--on", "slurm", "--hour", "1"], "unrecognized arguments: --hour 1"),
    (["", "--on", "slurm", "--hours", "1"], 'STAGE: expected a text of one line, found ""'),
    (["stage1", "--on", "slurm", "--hours", "1", "--seeds", "1,2", "--set", "seed=3"], "--set: seed would be the same in each run of --seeds"),
    (["stage1", "--on", "slurm", "--hours", "1", "--image", "registry.example/prefill:new"], "has no digest"),
    (["stage1", "--on", "slurm", "--hours", "1", "--set", "score.limt=3"], "limt"),
    (["stage1", "--on", "dstack", *RENTED[:2]], "need a place outside"),
    (["stage1", "--on", "kubernetes", "--shared", "claim", "--hours", "1"], "needs one"),
    (["stage1", "--on", "dstack", *RENTED[:4], "--hours", "1"], "chooses a machine by its GPU"),
    (["stage1", "--on", "skypilot", *RENTED, "--seeds", "1,2"], "--seeds: is for slurm, not for skypilot"),
    (["stage5b", "--on", "skypilot", "--image", IMAGE, "--shared", "s3://bucket/runs", "--gpu", "H100_SXM", "--nodes", "2"], "is a bucket"),
    (["stage1", "--on", "kubernetes", *RENTED, "--profile", "jobs/profiles/ci.yaml", "--hours", "1"], "ci.yaml is not in it"),
    (["stage5b", "--on", "slurm", "--profile", "ministral-3b", "--gpu", "RTX_4090"], "needs about"),
    (["stage1", "--on", "slurm", "--hours", "1", "--tasks", "2"], "is for a campaign, and stage1 is a stage"),
    (["stage1", "--on", "slurm", "--hours", "1", "--seeds", "0,1,0"], "0 is named twice"),
    (["lookup", "--on", "slurm", "--hours", "1", "--set", "train.max_steps=2"], "names profiles, seeds and settings itself"),
    (["lookup", "--on", "slurm", "--hours", "1", "--nodes", "2"], "--nodes: a campaign"),
    (["recipes", "--on", "slurm", "--hours", "1", "--gpu", "RTX_3080-10GB"], "GB on each GPU, and RTX_3080 has 10"),  # its untrained runs fit
    (["lookup", "--on", "slurm", "--hours", "1", "--tasks", "2", "--gpus", "2"], "each element of the array takes one GPU"),
    (["lookup", "--on", "slurm"], "how long lookup takes is not known"),
    (["lookup", "--on", "dstack", *RENTED, "--tasks", "2"], "--tasks: is for slurm, not for dstack"),
    (["lookup", "--on", "slurm", "--hours", "1", "--tasks", "22"], "--tasks: 22 parts, and the campaign has 21 runs; make it 21 at most"),
    (["lookup", "--on", "skypilot", *RENTED, "--gpus", "22"], "--gpus: 22 parts, and the campaign has 21 runs"),
    (["jobs/campaigns/lookup.yaml", "--on", "kubernetes", *RENTED, "--hours", "1"], "lookup.yaml is not in it"),
    (["stage5b", "--on", "slurm", "--profile", "ministral-3b", "--gpu", "H1000"], "H1000"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_starts(words: list[str], fact: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # fmt: skip
    assert fact in refusal(capsys, *words, "--runs-dir", str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("engine", list(client.CLIENTS))
def test_terms_are_accepted_here_before_a_job_accepts_them_there(engine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    words = [
        "stage1",
        "--on",
        engine,
        "--hours",
        "1",
        "--profile",
        "gemma-270m",
        *(RENTED if engine != "slurm" else []),
    ]
    monkeypatch.delenv("ACCEPT_GEMMA_TERMS", raising=False)
    assert "which are not accepted yet; read them, and to accept them set ACCEPT_GEMMA_TERMS=1" in refusal(
        capsys, *words
    )
    monkeypatch.setenv("ACCEPT_GEMMA_TERMS", "1")
    assert "env ACCEPT_GEMMA_TERMS=1 " in printed(capsys, *words)


@pytest.mark.parametrize("container", slurm.CONTAINERS)
def test_the_terms_reach_the_command_in_every_container(container: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("ACCEPT_GEMMA_TERMS", "1")
    words = ["stage1", "--on", "slurm", "--hours", "1", "--profile", "gemma-270m", "--container", container]
    assert " ACCEPT_GEMMA_TERMS=1 " in printed(capsys, *words, *(["--image", IMAGE] if container != "venv" else []))


@pytest.mark.parametrize("engine", list(client.CLIENTS))
def test_an_engine_without_its_client_is_named_and_nothing_is_written(engine: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["stage1", "--on", engine, "--hours", "1", *(RENTED if engine != "slurm" else [])]
    assert main([*words, "--runs-dir", str(tmp_path / "runs")]) == 2
    assert f"{client.CLIENTS[engine].program} is not here" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_a_client_prints_last_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: first'\necho 'no such partition' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(client.EngineError, match=r"slurm refuses it: no such partition; correct"):
        client.check("slurm", tmp_path / "job.sbatch")


def test_a_client_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(argv: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(argv, seconds)

    (tmp_path / "kubectl").write_text("")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(client.EngineError, match="no answer in 600 s"):
        client.submit("kubernetes", tmp_path / "job.yaml", hang)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_file_that_does_not_fit_where_it_is_printed_is_one_line() -> None:
    """Python itself would report what is left in its buffer once more at the end, and exit with 120."""
    words = [sys.executable, "-m", "jobs.submit", "stage1", "--on", "slurm", "--hours", "1", "--dry-run"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    unread, pipe = os.pipe()
    os.close(unread)
    with Path("/dev/full").open("w") as full, os.fdopen(pipe, "w") as closed:
        for output, code, lines in ((full, EXIT_DISK_FULL, 1), (closed, 1, 0)):
            found = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, text=True, env=buffered, check=False)
            assert (found.returncode, found.stderr.count("\n")) == (code, lines), found.stderr
