"""Digests of a job's inputs, since the content of a path or of a hub's name may be another one tomorrow.

Local files count by sha256, a directory by that of its manifest, a hub's branch or tag by the commit that it stands for.
Embedded data and models are checked against the digests in app/embedded/cache.py and need no entry.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from app.data import qa, tasks
from app.data.file_digests import kept_sha256
from app.data.files import data_files
from app.data.sources import is_saved, places
from app.data.suites import scored_tasks, suite_of, trains_on_suite
from jobs.config.job import Job
from jobs.config.profile import TrainData
from jobs.config.schema import TASK_NAMES
from jobs.config.suites import DEFAULT_SUITE, SUITES_DIR
from jobs.errors import DataError, expanded

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 10  # seconds for a request to the hub
# Of a saved split, of a saved dictionary of splits, of a model.
_MARKS = ("state.json", "dataset_dict.json", "config.json")


def contents_of(job: Job) -> dict[str, str]:
    """Key of the profile -> digest or commit, for each source that the stage reads.

    A stage that starts from another stage does not read the profile's model, one that does not train no training data. A
    hub's name that neither the hub nor the cache on this machine resolves has no entry; it will not load either.

    Raises:
        DataError: a file cannot be read.
    """
    stage, data = job.stage, job.profile.data
    found: dict[str, str | None] = {}
    if stage.suite != DEFAULT_SUITE:
        found["suite"] = digest_of([SUITES_DIR / f"{stage.suite}.yaml"])
    model = job.profile.model
    if "base" in stage.init_names and model.name is not None:
        if model.local is not None:
            found["model"] = digest_of([Path(model.local)])
        elif model.source == "hub":
            found["model"] = hub_commit(model.name, model.revision, "model")
    if data.eval.path is not None:
        found["data.eval"] = eval_content(job)
    elif data.eval.source == "hub":
        for name in sorted({tasks.TASKS[task].hub[0] for task in _needed(job)}):
            found[f"data.eval {name}"] = hub_commit(name, None, "dataset")
    trains = stage.train is not None and not trains_on_suite(stage)
    for key, source in data.sources.items() if trains else ():
        found[key] = train_content(source)
    return {key: content for key, content in found.items() if content is not None}


def _needed(job: Job) -> Sequence[str]:
    """The tasks of whose evaluation items the stage reads rows. The check for overlap reads all of them."""
    stage = job.stage
    guards = stage.train is not None or stage.score is None
    return TASK_NAMES if guards else [task for task in suite_of(stage).tasks if task in scored_tasks(stage)]


def eval_content(job: Job) -> str | None:
    """The digest of evaluation data at a path, the rows of a suite that trains on its own included; None for other data."""
    if job.profile.data.eval.path is None:
        return None
    root = expanded(job.profile.data.eval.path)
    rows = [path for task in _needed(job) for path in places(root, tasks.TASKS[task].directory, task, tasks.SPLIT)]
    own = suite_of(job.stage).reading.values()
    return digest_of([*rows, *(path for task in own for path in root.glob(f"{task.directory}/{task.split}"))])


def train_content(source: TrainData) -> str | None:
    """The digest or commit of a source of training data; None for embedded data, and for a hub that does not answer."""
    if source.name is not None:
        return hub_commit(source.name, source.revision, "dataset")
    if source.path is None:
        return None
    path = expanded(source.path)
    if source.format == "qa":
        sets = ((directory, name) for name, (directory, _) in qa.SETS.items())
        return digest_of(place for one in sets for place in places(path, *one, qa.SPLIT))
    saved = is_saved(path) or is_saved(path / source.split)
    return digest_of(data_files(path, source.format) if path.is_dir() and not saved else [path, path / source.split])


def digest_of(paths: Iterable[Path]) -> str:
    """sha256 over name and sha256 of each file: of `paths` that are files, and below those that hold data or a model.

    Hidden files do not count. Raises DataError.
    """
    files = set()
    for path in map(expanded, paths):
        if path.is_file():
            files.add((path.name, path))
        elif any((path / mark).is_file() for mark in _MARKS):
            names = ((file.relative_to(path.parent).as_posix(), file) for file in path.rglob("*") if file.is_file())
            files |= {(name, file) for name, file in names if not re.search(r"/\.", name)}
    digest = hashlib.sha256()
    try:
        for name, file in sorted(files):
            digest.update(f"{name}\0{kept_sha256(file)}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise DataError(error.filename, f"cannot be read ({error.strerror})", "check its permissions") from error
    return f"sha256 {digest.hexdigest()}"


def hub_commit(name: str, revision: str | None, kind: Literal["model", "dataset"]) -> str | None:
    """The commit of a branch, a tag or None (the newest); without the hub, from its cache on this machine."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return f"commit {revision}"
    from huggingface_hub import HfApi, constants

    try:
        return f"commit {HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=_TIMEOUT).sha}"
    except Exception:  # any error of hub or network: loading reports it
        pass
    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / (revision or "main")
    try:
        return f"commit {cached.read_text(encoding='utf-8').strip()}"
    except (OSError, ValueError):
        return None
