"""Remedies of jobs/submit, of several machines, and of trackers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from app.runtime.nodes import nodes_of
from app.stage import shared_runs, tracking
from jobs.submit import client
from jobs.submit.__main__ import file_of, parser
from tests.remedies.cases import Action, World, remedy

Steps = Iterator[Action | None]
MAIN, CLIENT, SUBMISSION = "jobs/submit/__main__.py", "jobs/submit/client.py", "jobs/submit/submission.py"
IMAGE = "registry.example/prefill@sha256:" + "ab" * 32
RENTED = ["stage1", "--on", "dstack", "--image", IMAGE, "--shared", "volume", "--gpu", "H100_SXM"]


def file(*words: str) -> Action:
    return lambda: file_of(parser().parse_args(words))


def without(option: str) -> list[str]:
    at = RENTED.index(option)
    return [*RENTED[:at], *RENTED[at + 2 :]]


@remedy(MAIN, "correct it")
def _(w: World) -> Steps:
    yield file(*RENTED, "--nodes", "0")
    yield file(*RENTED, "--nodes", "1")


@remedy(MAIN, "see --help")
def _(w: World) -> Steps:
    yield file(*RENTED, "--nodse", "2")
    assert "--nodes" in parser().format_help()
    yield file(*RENTED, "--nodes", "2")


@remedy(
    MAIN, "give --shared, {}", "give NAME@sha256:DIGEST, which make push prints", "give one, such as --gpu H100_SXM"
)
def _(w: World) -> Steps:
    yield file(
        *without({"give --shared, {}": "--shared", "give one, such as --gpu H100_SXM": "--gpu"}.get(w.text, "--image"))
    )
    yield file(*RENTED)


@remedy(MAIN, "give --image NAME@sha256:DIGEST")
def _(w: World) -> Steps:
    words = ("stage1", "--on", "slurm", "--hours", "1", "--container", "pyxis")
    yield file(*words)
    yield file(*words, "--image", IMAGE)


@remedy(MAIN, "leave it out")
def _(w: World) -> Steps:
    words = ("stage1", "--on", "slurm", "--hours", "1")
    yield file(*words, "--max-price", "2")
    yield file(*words)


@remedy(MAIN, "use a profile of jobs/profiles that names models and data of a hub")
def _(w: World) -> Steps:
    text = "model: {source: embedded}\ndata: {eval: {source: embedded}, train: {source: embedded, format: qa}}\n"
    yield file(*RENTED, "--profile", str(w.write("mine.yaml", text)))
    yield file(*RENTED, "--profile", "ministral-3b")


@remedy(MAIN, "leave it out, or give --seeds")
def _(w: World) -> Steps:
    words = ("stage1", "--on", "slurm", "--hours", "1")
    yield file(*words, "--tasks", "2")
    yield file(*words)
    yield file(*words, "--seeds", "0,1")


@remedy(MAIN, "leave it out, or --tasks", "leave it out; --tasks N deals its runs over an array of Slurm")
def _(w: World) -> Steps:
    words = ("lookup", "--on", "slurm", "--hours", "1")
    yield file(*words, *(["--tasks", "2", "--gpus", "2"] if w.text.endswith("or --tasks") else ["--nodes", "2"]))
    yield file(*words)
    yield file(*words, "--tasks", "2")


@remedy("jobs/submit/skypilot.py", "give the name of a volume, or --nodes 1")
def _(w: World) -> Steps:
    words = [word.replace("dstack", "skypilot").replace("volume", "s3://bucket") for word in RENTED]
    yield file(*words, "--nodes", "2")
    yield file(*words, "--nodes", "1")
    yield file(*[word.replace("s3://bucket", "volume") for word in words], "--nodes", "2")


@remedy(SUBMISSION, "<estimate.remedy>")
def _(w: World) -> Steps:
    words = [*RENTED[1:-1], "A100-40GB", "--profile", "ministral-3b"]
    yield file("stage5b", *words)
    yield file("stage5b", *words, *(word for one in w.sets for word in ("--set", one)))


@remedy(SUBMISSION, "give --hours, or --gpu NAME")
def _(w: World) -> Steps:
    yield file("stage1", "--on", "slurm")
    yield file("stage1", "--on", "slurm", "--hours", "1")
    yield file("stage1", "--on", "slurm", "--gpu", "H100_SXM")


@remedy(SUBMISSION, "give NAME@sha256:DIGEST, which make push prints")
def _(w: World) -> Steps:
    yield file(*[word.partition("@")[0] for word in RENTED])
    yield file(*RENTED)


@remedy(MAIN, "name it once")
def _(w: World) -> Steps:
    words = ("stage1", "--on", "slurm", "--hours", "1", "--seeds")
    yield file(*words, "0,0")
    yield file(*words, "0")


@remedy(CLIENT, "{}, or print the file with --dry-run")
def _(w: World) -> Steps:
    there: list[str] = []  # what installing it would bring
    w.patch.setattr(client.shutil, "which", lambda program: "/bin/sbatch" if program in there else None)
    yield lambda: client.require("slurm")
    there.append("sbatch")
    yield None


def answered(code: int) -> Any:
    return lambda argv, seconds: subprocess.CompletedProcess(argv, code, "no such partition\n", "")


@remedy(CLIENT, "correct the options; --dry-run prints the file", "install it again", "see whether {} is up")
def _(w: World) -> Steps:
    def broken(argv: Any, seconds: float) -> Any:
        if "again" in w.text:
            raise OSError(8, "Exec format error")
        raise subprocess.TimeoutExpired(argv, seconds)

    w.patch.setattr(client.shutil, "which", lambda program: "/bin/sbatch")
    run = answered(1) if "options" in w.text else broken
    yield lambda: client.submit("slurm", w.path("a.sbatch"), run)
    yield lambda: client.submit("slurm", w.path("a.sbatch"), answered(0))


@remedy(CLIENT, "install it with pip, or print the file with --dry-run")
def _(w: World) -> Steps:
    yield lambda: client._interpreter(w.write("sky", "\x7fELF"))
    yield lambda: client._interpreter(w.write("sky", "#!/usr/bin/python3\n"))  # as pip writes it


# ---- several machines, trackers --------------------------------------------------------------------------------------


@remedy("app/runtime/nodes.py", "set {}, {} and {} as docs/scaling.md shows, or unset {}", "<remedy>")
def _(w: World) -> Steps:
    environ = {"PREFILL_NODES": "2", "PREFILL_NODE_RANK": "0"}
    number = w.text == "<remedy>"  # of a number that is none
    yield lambda: nodes_of({**environ, "PREFILL_NODE_RANK": "first"} if number else environ)
    yield lambda: nodes_of({**environ, "PREFILL_MEET": "first:29500"})
    yield lambda: nodes_of({})


@remedy("app/stage/shared_runs.py", "keep runs on storage that all machines share, at the same path (--runs-dir)")
def _(w: World) -> Steps:
    ranks: Any = SimpleNamespace(main=False, rank=1, share=lambda _: "process 1", together=lambda look, _: look())
    here = w.path("runs/stage1/x")

    def begun() -> None:
        shared_runs.require_shared(here, ranks, {"GROUP_WORLD_SIZE": "2"}, pause=lambda _: None)

    yield begun
    w.write("runs/stage1/x/lock", "process 1")
    yield None


@remedy("app/stage/tracking.py", "pip install {}, or take it out of the list")
def _(w: World) -> Steps:
    there: list[str] = []  # what pip would have installed
    w.patch.setattr("importlib.util.find_spec", lambda name: name if name in there else None)
    yield lambda: tracking.require_installed(["wandb"])
    yield lambda: tracking.require_installed([])
    there.append(w.remedy.removeprefix("pip install ").partition(",")[0])
    yield None
