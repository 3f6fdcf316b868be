"""The content of all that a job reads from outside, since a path or a hub's name may hold something else tomorrow.

Local files count by sha256, a directory by that of its manifest, a hub's branch or tag by the commit that it stands for.
Embedded data and models are checked against the digests in app/embedded/cache.py and need no entry.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from app.data import qa, tasks
from jobs.config.load import Job
from jobs.config.schema import TASK_NAMES, TaskName
from jobs.errors import DataError
from jobs.runs.atomic import sha256_of

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 10  # seconds that a question to the hub may take
_MARKS = (
    "state.json",
    "dataset_dict.json",
    "config.json",
)  # of a saved split, of a saved dictionary of splits, of a model


def contents_of(job: Job) -> dict[str, str]:
    """Key of the profile -> digest or commit, for each source that the stage reads.

    A stage that starts from another stage does not read the profile's model, one that does not train no training data. A
    hub's name that neither the hub nor the cache on this machine resolves has no entry; it will not load either.

    Raises:
        DataError: a file cannot be read.
    """
    stage, data = job.stage, job.profile.data
    needed: Sequence[TaskName] = TASK_NAMES if stage.train is not None or stage.score is None else stage.score.tasks
    found: dict[str, str | None] = {}
    model = job.profile.model
    if "base" in stage.init_names and model.name is not None:
        if model.source == "path":
            found["model"] = digest_of([Path(model.name)])
        elif model.source == "hub":
            found["model"] = hub_commit(model.name, model.revision, "model")
    if data.eval.path is not None:
        places = [(data.eval.path, tasks.TASKS[task].directory, task) for task in needed]
        found["data.eval"] = digest_of(_candidates(places, tasks.SPLIT))
    elif data.eval.source == "hub":
        for name in sorted({tasks.TASKS[task].hub[0] for task in needed}):
            found[f"data.eval {name}"] = hub_commit(name, None, "dataset")
    if stage.train is not None and data.train.path is not None:
        path = data.train.path
        sets = [(path, directory, name) for name, (directory, _) in qa.SETS.items()]
        of_qa = data.train.format == "qa"
        found["data.train"] = digest_of(
            _candidates(sets, qa.SPLIT) if of_qa else [Path(path), Path(path) / data.train.split]
        )
    elif stage.train is not None and data.train.name is not None:
        found["data.train"] = hub_commit(data.train.name, data.train.revision, "dataset")
    return {key: content for key, content in found.items() if content is not None}


def _candidates(places: Iterable[tuple[str, str, str]], split: str) -> list[Path]:
    """Where the rows of each (root, directory of the data wheel, name) may lie; see `app.data.sources.saved_rows`."""
    return [
        Path(root) / part
        for root, directory, name in places
        for part in (f"{directory}/{split}", f"{name}/{split}", name)
    ]


def digest_of(paths: Iterable[Path]) -> str:
    """sha256 over name and sha256 of each file: of `paths` that are files, and below those that hold data or a model.

    Hidden files do not count. Raises DataError.
    """
    files = set()
    for path in (path.expanduser() for path in paths):
        if path.is_file():
            files.add((path.name, path))
        elif any((path / mark).is_file() for mark in _MARKS):
            names = ((file.relative_to(path.parent).as_posix(), file) for file in path.rglob("*") if file.is_file())
            files |= {(name, file) for name, file in names if not re.search(r"/\.", name)}
    digest = hashlib.sha256()
    try:
        for name, file in sorted(files):
            digest.update(f"{name}\0{sha256_of(file)}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise DataError(error.filename, f"cannot be read ({error.strerror})", "check its permissions") from error
    return f"sha256 {digest.hexdigest()}"


def hub_commit(name: str, revision: str | None, kind: Literal["model", "dataset"]) -> str | None:
    """The commit that a branch, a tag or None (the newest) stands for; without the hub, by its cache on this machine."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return f"commit {revision}"
    from huggingface_hub import HfApi, constants

    try:
        return f"commit {HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=_TIMEOUT).sha}"
    except Exception:  # whatever hub and network raise: loading reports it
        pass
    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / (revision or "main")
    try:
        return f"commit {cached.read_text(encoding='utf-8').strip()}"
    except (OSError, ValueError):
        return None
