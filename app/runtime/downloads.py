"""Fetches a run from its store, to resume it where its directory is gone or older than what was uploaded."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.runtime.artifact_store import MANIFEST, ArtifactStore, StoreError
from app.runtime.uploads import STALL, bounded
from jobs.config import strict_yaml
from jobs.errors import UserError
from jobs.runs.atomic import sha256_of
from jobs.runs.rundir import RunDir

log = logging.getLogger(__name__)
LONGEST = 1500.0  # seconds; other ranks wait for half an hour
_RUNS = 50  # of a stage, the newest, that are looked at
_Files = Mapping[str, Mapping[str, Any]]


def fetch_run(store: ArtifactStore, runs_dir: Path, stage: str, record: Mapping[str, Any]) -> RunDir | None:
    """The newest run of a job in the store, fetched: a complete one, or what resuming from its newest whole checkpoint needs.

    record: of the job, see `Job.record`. None where there is none, and, with a line in the log, where the store does not answer.
    """
    found: list[Path] = []

    def work() -> None:
        for name in store.runs(stage)[:_RUNS]:
            target = runs_dir / stage / name
            if not target.exists() and _fetched(store, f"{stage}/{name}", record, target):
                return found.append(target)

    _tried(work, store, stage)
    return RunDir.open(found[0]) if found else None


def fetch_newer(store: ArtifactStore, run: RunDir) -> None:
    """Add the newest whole checkpoint of the store to a run that this process holds, unless the run has a whole one as new."""
    here = max(run.checkpoint_steps, default=-1)

    def work() -> None:
        for step, files in store.whole(run.id):
            if step <= here:
                return
            fetched = _fresh(run.checkpoints / ".fetched.tmp")
            store.fetch(_unit(run.id, step), fetched, files)
            for log_file in sorted((fetched / "run").glob("*.jsonl")):
                log_file.replace(run.path / log_file.name)
            shutil.rmtree(fetched / "run", ignore_errors=True)
            shutil.rmtree(target := run.checkpoints / f"checkpoint-{step}", ignore_errors=True)
            fetched.rename(target)
            return log.info(f"checkpoint-{step} is fetched from {store.url}")

    if not run.final.exists():
        _tried(work, store, run.id)


def _tried(work: Callable[[], None], store: ArtifactStore, what: str) -> None:
    try:
        bounded(work, store, STALL, LONGEST)
    except StoreError as error:
        log.warning(f"{what}: nothing is fetched from {store.url}: {error}")


def _unit(run: str, step: int) -> str:
    return f"{run}/checkpoints/checkpoint-{step}"


def _fetched(store: ArtifactStore, run: str, record: Mapping[str, Any], target: Path) -> bool:
    """Whether the run is of this job and is now at `target`, where it appears at once."""
    summary = store.read(f"{run}/summary.json")
    files: _Files | None = store.manifest(run) if summary is not None else None
    there = target.with_name(f".{target.name}.fetched.tmp")
    if files is not None and summary is not None:
        if not _is_of(store, f"{run}/stage.yaml", record["fingerprint"]):
            return False
        store.fetch(run, _fresh(there), files)
        listed = {"files": {**files, "stage.yaml": _with_paths(there / "stage.yaml", record)}}
        (there / MANIFEST).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
        (there / "summary.json").write_bytes(summary)
    else:
        step, files = next(store.whole(run), (0, {}))
        if not files or not _is_of(store, f"{_unit(run, step)}/run/stage.yaml", record["fingerprint"]):
            return False
        checkpoint = _fresh(there) / "checkpoints" / f"checkpoint-{step}"
        store.fetch(_unit(run, step), checkpoint, files)
        for path in sorted((checkpoint / "run").iterdir()):
            path.rename(there / path.name)
        (checkpoint / "run").rmdir()
        _with_paths(there / "stage.yaml", record)
    there.rename(target)
    log.info(f"{run} is fetched from {store.url}")
    return True


def _with_paths(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Put the paths that no store gets (app/runtime/local_paths.py) back into stage.yaml; returns its entry in a manifest.

    The fingerprint, which is the same, covers model and data, so `record` has them as they were.
    """
    stored = strict_yaml.read(path, str(path))
    stored |= {key: record[key] for key in ("profile_given",) if key in record}
    stored["profile"] |= {key: record["profile"][key] for key in ("model", "data", "artifacts")}
    head = path.read_text(encoding="utf-8").partition("\n")[0]
    path.write_text(f"{head}\n{strict_yaml.dump(stored)}", encoding="utf-8")
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _fresh(directory: Path) -> Path:
    """An empty directory; what a killed fetch left in its place is removed."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _is_of(store: ArtifactStore, path: str, fingerprint: str) -> bool:
    content = store.read(path)
    try:
        return content is not None and strict_yaml.parse(content.decode(), path).get("fingerprint") == fingerprint
    except (UserError, UnicodeDecodeError, AttributeError):
        return False
