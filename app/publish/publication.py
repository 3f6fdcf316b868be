"""What of a run goes to the hub: checked first, then sent in one commit, which is there whole or not at all.

A repository holds the newest published run on its main branch, and a tag for each. Files that the hub has already are not
sent again, so an upload that was cut off is resumed by the same command.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from app.publish.card import write_card
from app.publish.licences import Ask, base_model, training_data
from app.runtime.local_paths import without_paths
from jobs.config.terms import OF_EMBEDDED
from jobs.errors import CheckpointError, ConfigError, RunStateError, UserError, expanded
from jobs.runs.atomic import files_below, read_json
from jobs.runs.rundir import RunDir, latest_complete, list_runs

RECORD = "run/summary.json"  # by which a repository is known as one of ours
_OF_RUN = (
    "stage.yaml",
    "environment.json",
    "estimate.json",
    "metrics.json",
    "summary.json",
    "train_log.jsonl",
    "eval_log.jsonl",
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Publication:
    """files: by their names in the repository, a path or the content."""

    repo: str
    tag: str
    files: Mapping[str, Path | bytes]

    @property
    def card(self) -> str:
        content = self.files["README.md"]
        assert isinstance(content, bytes)
        return content.decode()

    def sizes(self) -> dict[str, int]:
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()
        }


def require_name(repo: str) -> None:
    if not _NAME.fullmatch(repo) or ".." in repo:
        raise ConfigError("--to", f'expected OWNER/NAME, found "{repo}"', "such as me/smollm2-prefix")


def find_run(text: str, runs_dir: Path, profile: str) -> RunDir:
    """A run by its id or directory, or the newest complete one of a stage. Raises RunStateError, CheckpointError."""
    place = next((path for path in (runs_dir / text, expanded(text)) if (path / "stage.yaml").is_file()), None)
    run = RunDir.open(place.resolve()) if place is not None else latest_complete(runs_dir, text, profile)
    if run is None:
        raise RunStateError(text, f"no such run under {runs_dir}, and no stage with a complete run of profile {profile}",
                            "see python -m app runs")  # fmt: skip
    if run.state() != "complete":
        raise RunStateError(run.id, f"is {run.state()}", "publish a complete run")
    if not (run.final / "config.json").is_file():
        raise CheckpointError(run.id, "holds no model", "name a run of a stage that trains and keeps its weights")
    if wrong := run.verify():
        fact = f"is not what its manifest lists: {wrong[0]}"
        raise CheckpointError(run.id, fact, "restore it, or run the stage again")
    return run


def prepare(run: RunDir, runs_dir: Path, repo: str, ask: Ask, *, adapter: bool = False, force: bool = False,
            licence: str | None = None) -> Publication:  # fmt: skip
    """Everything that would be sent.

    adapter: the LoRA adapter alone, in place of the merged weights. force: a run of code that was not committed too.

    Raises:
        UserError: what must not be published: leaking results alone, code that nobody can look up, a base model whose licence
            forbids it, an adapter for weights that are on no hub.
    """
    job, metrics, commit = run.read_job(), run.read_metrics(), read_json(run.path / "environment.json").get("commit")
    if (commit is None or commit.endswith("+dirty")) and not force:
        fact = "is of code in no commit" if commit is None else f"is of code that differs from its commit {commit[:12]}"
        raise RunStateError(run.id, fact, "run the stage again on committed code, or --force (make: FORCE=1)")
    evaluations = [entry for other in list_runs(runs_dir) if other.state() == "complete"
                   for entry in other.read_metrics().get("evaluations") or [] if entry.get("model_run") == run.id]  # fmt: skip
    if evaluations and all(entry["leaks"] for entry in evaluations):
        raise RunStateError(run.id, "has only been scored under masks that leak the answer", "score it: make stage4")
    base, terms = base_model(job["profile"]["model"], licence, ask)
    data = training_data(job["profile"]["data"]["train"], metrics["train"], ask)
    found = files_below(run.final)
    files: dict[str, Path | bytes] = {name: found[name] for name in found if not name.startswith("adapter/")}
    if adapter:
        files = _adapter_alone(run, files, job)
    about = (run.final / "README.md").read_text(encoding="utf-8").split("---\n", 2)[-1].partition("\n`AutoModel")[0]
    tag = run.id.replace("/", "-")
    card = write_card(repo=repo, tag=tag, job=job, metrics=metrics, commit=str(commit), about=about, evaluations=evaluations,
                      base=base, licence=terms, data=data, adapter=adapter,
                      own_generate="custom_generate/generate.py" in files)  # fmt: skip
    files["README.md"] = card.encode()
    files |= {f"run/{name}": run.path / name for name in _OF_RUN if (run.path / name).is_file()}
    model = job["profile"]["model"]
    if model["source"] == "embedded" and (under := OF_EMBEDDED.get(model["name"])):
        notice = f"{repo} is made from {model['name']}, which is provided under and subject to {under.text}\n"
        files["NOTICE"] = notice.encode()
    return Publication(repo, tag, without_paths(job, files))


def _adapter_alone(run: RunDir, files: Mapping[str, Path | bytes], job: Mapping[str, Any]) -> dict[str, Path | bytes]:
    model, init = job["profile"]["model"], job["stage"]["init_from"]
    if not (run.final / "adapter").is_dir():
        raise CheckpointError(run.id, "has no adapter: all weights were trained", "leave --adapter out")
    if model["source"] != "hub" or init != "base":
        start = init if init != "base" else f"a model of source {model['source']}"
        fact = f"it fits the weights of {start}, which are on no hub"
        raise ConfigError("--adapter", fact, "publish the merged weights")
    kept = {name: file for name, file in files.items()
            if not name.startswith(("model", "config.json", "generation_config.json"))}  # fmt: skip
    settings = {**read_json(run.final / "adapter" / "adapter_config.json"), "base_model_name_or_path": model["name"],
                "revision": model["revision"]}  # fmt: skip
    return {**kept, "adapter_config.json": json.dumps(settings, indent=2).encode(),
            "adapter_model.safetensors": run.final / "adapter" / "adapter_model.safetensors"}  # fmt: skip


# ---- the hub -------------------------------------------------------------------------------------------------------------


class Hub:
    """The hub behind `endpoint` (None: huggingface.co), with errors of one line that hold no token."""

    def __init__(self, endpoint: str | None, token: str | None) -> None:
        self._api, self._token = HfApi(endpoint, token=token or False), token

    def licence(self, kind: str, name: str) -> str | None:
        """Of a model's or a dataset's card; None where it has none, or cannot be asked."""
        with suppress(HfHubHTTPError, OSError, ValueError):
            ask = self._api.model_info if kind == "model" else self._api.dataset_info
            card = ask(name, timeout=30).card_data
            found = card.get("license") if card is not None else None
            return str(found[0] if isinstance(found, list) else found) if found else None
        return None

    def send(self, what: Publication, *, private: bool) -> str:
        """One commit on the main branch, and its tag; returns the address.

        Raises:
            UserError: the repository holds something else, or is public against `private`, the hub refuses, or does not answer.
        """
        try:
            there, public = self._there(what.repo)
            if private and public:
                fact = "exists and is public, and --private makes no repository private that exists"
                raise ConfigError(f"--to {what.repo}", fact, "name another one, or make it private on the hub")
            if there and RECORD not in there:
                fact = f"exists and holds something else, such as {there[0]}"
                raise ConfigError(f"--to {what.repo}", fact, "name another one")
            self._api.create_repo(what.repo, private=private, exist_ok=True)
            operations = [CommitOperationAdd(name, file) for name, file in what.files.items()]
            gone = [CommitOperationDelete(name) for name in there if name not in what.files]
            self._api.create_commit(what.repo, [*operations, *gone], commit_message=f"{what.tag}, by prefill")
            self._api.create_tag(what.repo, tag=what.tag, exist_ok=True)
        except UserError:
            raise
        except Exception as error:  # httpx's, the hub's, the operating system's: they have no common one
            fact = " ".join(f"{type(error).__name__}: {error}".split())
            if self._token:
                fact = fact.replace(self._token, "***")
            raise ConfigError(f"--to {what.repo}", f"the hub did not take it: {fact[:300]}",
                              "the same command goes on where it stopped") from None  # fmt: skip
        return f"{self._api.endpoint}/{what.repo}/tree/{what.tag}"

    def _there(self, repo: str) -> tuple[list[str], bool]:
        """The files of a repository, and whether everybody may read them."""
        try:
            found = self._api.model_info(repo, timeout=30)
        except RepositoryNotFoundError:
            return [], False
        return sorted(
            file.rfilename for file in found.siblings or [] if file.rfilename != ".gitattributes"
        ), not found.private
