"""`python -m jobs.submit STAGE --on ENGINE`: write the engine's file, show it, have it checked, submit it. No torch."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml

from jobs.config.campaign import Cell, campaign_names, cells, read_campaign, require_parts, require_stage, share
from jobs.config.job import Job
from jobs.config.load import DEFAULT_PROFILE, resolve
from jobs.errors import EXIT_OK, ConfigError, UserError, accept_any_letter, expanded, full_output
from jobs.estimate.estimate import Estimate, estimate
from jobs.runs.atomic import make_directory, write_text_atomically
from jobs.submit import client, dstack, kubernetes, skypilot, slurm
from jobs.submit.submission import Submission, require_room, submission

ROOT = Path(__file__).resolve().parents[2]
_SHARED = {"skypilot": "a bucket's URL or a volume's name", "dstack": "a volume's name", "kubernetes": "a claim's name"}
_IN_IMAGE = "use a profile of jobs/profiles that names models and data of a hub"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(self.prog, message, "see --help")


# Of the command line: option and metavar, help, and what else argparse is to know.
_OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("--on ENGINE", "slurm, skypilot, dstack or kubernetes", {"required": True, "choices": list(client.CLIENTS)}),
    ("--profile NAME", "", {"default": DEFAULT_PROFILE}),
    ("--limit N", "score only the first N items of each task", {"type": int}),
    ("--set KEY=VALUE", "override one key, as for run", {"action": "append", "default": []}),
    ("--nodes N", "machines", {"type": int, "default": 1}),
    ("--gpus N", "GPUs a machine; without it the profile's", {"type": int}),
    ("--gpu NAME", "such as H100_SXM; hours and memory are estimated for it", {"default": ""}),
    ("--hours H", "time limit, in place of the estimate", {"type": float}),
    ("--memory GB", "host memory a machine, in place of the estimate", {"type": int}),
    ("--seeds 0,1,2", "one run for each: an array of Slurm", {"default": ""}),
    ("--tasks N", "of a campaign: an array of Slurm whose N elements share its runs", {"type": int}),
    ("--image NAME@sha256:DIGEST", "the image; Slurm can do without", {"default": ""}),
    ("--container", "what runs the image under Slurm; without --image venv", {"choices": slurm.CONTAINERS}),
    ("--shared NAME", "where runs are kept: " + "; ".join(f"{k}: {v}" for k, v in _SHARED.items()), {"default": ""}),
    ("--runs-dir DIR", "for Slurm: runs, on storage that all machines share",
     {"default": os.environ.get("PREFILL_RUNS") or "runs"}),
    ("--queue NAME", "a partition of Slurm, or a local queue of Kueue", {"default": ""}),
    ("--job", "Kubernetes without JobSet: an indexed Job and a Service", {"action": "store_true"}),
    ("--spot", "machines that may be taken away (SkyPilot, dstack)", {"action": "store_true"}),
    ("--max-price DOLLARS", "an hour and machine (SkyPilot, dstack)", {"type": float}),
    ("--python", "the interpreter of a run in a venv", {"default": sys.executable}),
    ("--dry-run", "print the file, and do nothing else", {"action": "store_true"}),
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        prog="python -m jobs.submit", description="Submit a STAGE, or a campaign, to a cluster or to rented machines.",
        allow_abbrev=False,
    )  # fmt: skip
    made.add_argument("stage", metavar="STAGE")
    for words, text, more in _OPTIONS:
        option, _, metavar = words.partition(" ")
        settings = {"metavar": metavar, **more} if metavar else more
        made.add_argument(option, help=text or None, **settings)
    return made


def file_of(given: argparse.Namespace) -> tuple[str, str]:
    """The name and the text of the engine's file. Raises ConfigError."""
    for name in ("nodes", "gpus", "limit", "hours", "memory", "max_price", "tasks"):
        value = getattr(given, name)
        if value is not None and not 0 < value < 1e6:
            raise ConfigError(f"--{name.replace('_', '-')}", f"expected a positive number, found {value}", "correct it")
    made = _submission(given)
    if given.on == "slurm":
        container = given.container or ("apptainer" if given.image else "venv")
        return f"{made.name}.sbatch", slurm.script(
            made, root=ROOT, python=str(expanded(given.python)), container=container
        )
    if given.on == "kubernetes":
        documents = kubernetes.manifests(made, jobset=not given.job)
        return f"{made.name}.yaml", yaml.safe_dump_all(documents, sort_keys=False, width=1000)
    task = skypilot.task(made) if given.on == "skypilot" else dstack.task(made)
    return f"{made.name}.{given.on}.yaml", yaml.safe_dump(task, sort_keys=False, width=1000)


def _submission(given: argparse.Namespace) -> Submission:
    shared = str(expanded(given.runs_dir).resolve()) if given.on == "slurm" else given.shared
    _require_fit(given)
    if given.stage in campaign_names() or given.stage.endswith((".yaml", ".yml")):
        return _campaign(given, shared)
    require_stage(given.stage)
    sets = [*given.set, *([] if given.gpus is None else [f"gpus={given.gpus}"])]
    job = resolve(given.stage, given.profile, limit=given.limit, sets=sets)
    seeds = _seeds(given.seeds)
    if seeds and any(text.partition("=")[0].strip() == "seed" for text in given.set):
        raise ConfigError("--set", "seed would be the same in each run of --seeds", "leave it out")
    if given.tasks is not None:
        fact = f"is for a campaign, and {given.stage} is a stage"
        raise ConfigError("--tasks", fact, "leave it out, or give --seeds")
    profile = str(expanded(given.profile).resolve()) if given.profile.endswith((".yaml", ".yml")) else given.profile
    _require_reachable(given, [job], [profile] if os.sep in profile else [])
    words = ["run", given.stage, "--profile", profile, *(["--limit", str(given.limit)] if given.limit else []),
             *(word for text in sets for word in ("--set", text)), "--continue"]  # fmt: skip
    found = estimate(job, given.gpu, job.profile.gpus * given.nodes) if given.gpu else None
    return submission(given.stage, [job], words, found, given, shared, [str(seed) for seed in seeds], "--seed")


def _campaign(given: argparse.Namespace, shared: str) -> Submission:
    """Its runs one after the other on a machine, or side by side on its GPUs; under Slurm dealt over the elements of an array."""
    asked = {"--profile": given.profile != DEFAULT_PROFILE, "--limit": given.limit, "--set": given.set, "--seeds": given.seeds,
             "--nodes": given.nodes > 1}  # fmt: skip
    if wrong := next((option for option, value in asked.items() if value), None):
        fact = "a campaign names profiles, seeds and settings itself, and each of its runs takes one machine"
        raise ConfigError(wrong, fact, "leave it out; --tasks N deals its runs over an array of Slurm")
    chosen, where = read_campaign(given.stage)
    every = cells(chosen, where)
    jobs = [cell.job for cell in every]
    file = "" if given.stage in campaign_names() else str(expanded(given.stage).resolve())
    own = [one for one in chosen.profiles if one.endswith((".yaml", ".yml"))]
    _require_reachable(given, jobs, [*own, file])
    workers, tasks = given.gpus or 1, given.tasks or 1
    require_parts("--gpus", workers, len(jobs))
    require_parts("--tasks", tasks, len(jobs))
    words = ["campaign", file or given.stage, *(["--workers", str(workers)] if workers > 1 and tasks == 1 else [])]
    if tasks > 1 and workers > 1:
        raise ConfigError("--gpus", "each element of the array takes one GPU", "leave it out, or --tasks")
    each = [f"{part}/{tasks}" for part in range(tasks)] if tasks > 1 else []
    name, found = Path(given.stage).stem, [estimate(job, given.gpu, 1) for job in jobs] if given.gpu else []
    for job, one in zip(jobs, found, strict=False):
        require_room(name, job, one)
    whole = _together(every, found, workers * tasks) if found else None
    return submission(name, jobs, words, whole, given, shared, each, "--share")


def _together(every: Sequence[Cell], found: Sequence[Estimate], dealt: int) -> Estimate:
    """That of the process that takes longest of `dealt` that share the runs; of one whose hours are not known, its own."""
    odd = next((one for one in found if one.hours is None), None)
    largest = max(found, key=lambda one: one.parameters or 0)
    hours = {cell.name: one.hours or 0.0 for cell, one in zip(every, found, strict=True)}
    shares = (share(every, part, dealt) for part in range(dealt))
    return odd or replace(largest, hours=max(sum(hours[cell.name] for cell in mine) for mine in shares))


def _require_fit(given: argparse.Namespace) -> None:
    """Raises ConfigError for options that do not go together, or not with the engine."""
    if given.on != "slurm":
        if not given.shared:
            remedy = f"give --shared, {_SHARED[given.on]}"
            raise ConfigError("--shared", f"under {given.on} the runs need a place outside of the machines", remedy)
        if not given.image:
            raise ConfigError("--image", f"{given.on} needs one", "give NAME@sha256:DIGEST, which make push prints")
    elif (given.container or "venv") != "venv" and not given.image:
        raise ConfigError("--container", f"{given.container} needs an image", "give --image NAME@sha256:DIGEST")
    # Option, and the engines that know it: elsewhere it would be passed over without a word.
    known = {"--container": ("slurm",), "--seeds": ("slurm",), "--tasks": ("slurm",), "--queue": ("slurm", "kubernetes"),
             "--job": ("kubernetes",), "--shared": tuple(_SHARED), "--spot": ("skypilot", "dstack"),
             "--max-price": ("skypilot", "dstack")}  # fmt: skip
    for option, engines in known.items():
        value = getattr(given, option[2:].replace("-", "_"))
        if given.on not in engines and value not in ("", False, None):
            raise ConfigError(option, f"is for {', '.join(engines)}, not for {given.on}", "leave it out")


def _require_reachable(given: argparse.Namespace, jobs: Sequence[Job], files: Sequence[str]) -> None:
    """Raises ConfigError where the engine lacks a GPU to choose a machine by, or its image one of `files` or what a job reads."""
    if given.on in ("skypilot", "dstack") and not given.gpu and jobs[0].profile.model.device != "cpu":
        raise ConfigError("--gpu", f"{given.on} chooses a machine by its GPU", "give one, such as --gpu H100_SXM")
    read = [path for job in jobs for data in [job.profile.data]
            for path in (data.eval.path, *(one.path for one in data.sources.values()), job.profile.model.local)]  # fmt: skip
    if given.image and (there := next(filter(None, [*files, *read]), None)):
        raise ConfigError("--image", f"{there} is not in it, and the machines see no other file of this one", _IN_IMAGE)


def _seeds(text: str) -> list[int]:
    seeds = [int(part) for part in text.split(",")] if re.fullmatch(r"[0-9]{1,10}(,[0-9]{1,10})*", text) else []
    if text and max(seeds, default=2**32) >= 2**32:
        raise ConfigError("--seeds", f'expected numbers such as 0,1,2, found "{text}"', "correct it")
    if (twice := next((seed for seed in seeds if seeds.count(seed) > 1), None)) is not None:  # 0 is one
        raise ConfigError("--seeds", f"{twice} is named twice", "name it once")
    return seeds


def main(arguments: Sequence[str]) -> int:
    """Print the file; unless it is a dry run, have it checked and submit it. Returns the exit code."""
    accept_any_letter()
    try:
        for before, word in pairwise(["STAGE", *arguments]):
            if not word.isprintable() or not word:
                raise ConfigError(before, f"expected a text of one line, found {json.dumps(word)}", "correct it")
        given = parser().parse_args(arguments)
        name, text = file_of(given)
        print(text, end="", flush=True)
        if given.dry_run:
            return EXIT_OK
        client.require(given.on)
        path = expanded(given.runs_dir) / "submitted" / name
        make_directory(path.parent)
        write_text_atomically(path, text)
        client.check(given.on, path)
        print(client.submit(given.on, path))
    except BrokenPipeError:  # as a command of click ends; Python would try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:
        known = error if isinstance(error, UserError) else full_output(error)
        print(f"error: {known}", file=sys.stderr)
        return known.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
