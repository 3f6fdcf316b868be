"""A stage with everything decided, the `Job`: what a run records, and the fingerprint that it is found again by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from jobs.config import strict_yaml
from jobs.config.profile import Profile
from jobs.config.schema import Score, Stage, Train
from jobs.config.suites import DEFAULT_SUITE
from jobs.config.validate import Layer, validate
from jobs.errors import ConfigError

# Keys that jobs of older code lack, and the value that stands for their absence: with it a key is left out of the fingerprint.
_LATER = {"profile.data.train.revision": None, "stage.score.exact": False, "stage.train.data": "auto",
          "stage.train.cut": "prompt", "stage.train.layers": "all", "stage.score.layers": "all", "stage.train.epochs": None,
          "stage.train.objective.causal_anneal": None, "stage.train.lora.quantization": None,
          "profile.data.train.subset": None, "profile.data.train.weight": None, "profile.data.train.streaming": False,
          "profile.data.temperature": 1.0}  # fmt: skip
# Further such keys; all of them are left out together, or none.
_OF_SUITE = {"suite": DEFAULT_SUITE, "order": "context_first", "shots": 0}
_NOT_RESULTS = {
    "stage": {"title", "reference", "recipe"},
    "profile": {"name", "gpus", "sharding", "report_to", "artifacts", "artifacts_mbit", "train", "score", "stages"},
}


@dataclass(frozen=True)
class Job:
    """A stage with everything decided, the profile it runs with, and how much less memory it is to take.

    halvings: how often to halve what is in memory at a time (`run --halve-memory`). `stage` stays as it was written, so
    neither the fingerprint nor the run's stage.yaml depends on it; `train`, `score` and `halved` apply it.
    contents: what the profile's paths and hub names held when the job was started, key -> digest or commit
    (app/data/contents.py); empty for embedded data and in runs of older code.
    profile_given: its name or path, for remedies; None in a job that was read from a record.
    """

    stage: Stage
    profile: Profile
    halvings: int = 0
    contents: Mapping[str, str] = field(default_factory=dict)
    profile_given: str | None = field(default=None, compare=False)

    def changed(self, values: Mapping[str, Any]) -> Job:
        """The same job with other values, by key: `train.graph` of a section of the stage, `train`, or one of the profile."""
        stage, profile = self.stage, self.profile
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            if section:
                name, value = section, getattr(stage, section).model_copy(update={name: value})
            if name in ("train", "score"):
                stage = stage.model_copy(update={name: value})
            else:
                profile = profile.model_copy(update={name: value})
        return replace(self, stage=stage, profile=profile)

    @property
    def train(self) -> Train | None:
        """`stage.train` with micro_batch_size halved: to the next smaller divisor of batch_size where the half is none.

        batch_size stays, so gradients are accumulated over more forward passes. The length of a packed row is not halved
        here, since it may be left to the trainer: see `halved`.
        """
        train = self.stage.train
        if train is None or not self.halvings:
            return train
        sizes = range(self.halved(train.micro_batch_size), 0, -1)
        return train.model_copy(update={"micro_batch_size": next(n for n in sizes if train.batch_size % n == 0)})

    @property
    def score(self) -> Score | None:
        """`stage.score` with batch_tokens halved."""
        score = self.stage.score
        if score is None or not self.halvings:
            return score
        return score.model_copy(update={"batch_tokens": self.halved(score.batch_tokens)})

    def halved(self, size: int) -> int:
        """`size`, such as the tokens of a packed row, after the job's halvings; 1 at least."""
        return max(1, size >> self.halvings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that YAML and JSON can hold, without halvings; `from_dict` gives the Job back."""
        return {"stage": self.stage.model_dump(mode="json"), "profile": self.profile.model_dump(mode="json")}

    def record(self, init_runs: Mapping[str, str]) -> dict[str, Any]:
        """What `RunDir.write_job` takes: this job, its fingerprint, and the runs it starts from."""
        record: dict[str, Any] = {"fingerprint": self.fingerprint(init_runs), "init_runs": dict(init_runs)}
        if self.profile_given is not None and is_path(self.profile_given):
            record["profile_given"] = self.profile_given
        if self.contents:
            record |= {"settings": self.settings(init_runs), "contents": dict(self.contents)}
        return record | self.to_dict()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], where: str = "job") -> Job:
        """The job in a `to_dict()` or `record()`. `where` is the file that errors name."""
        sections = {}
        for key in ("stage", "profile"):
            section = record.get(key)
            if not isinstance(section, Mapping):
                raise ConfigError(f"{where}: {key}", "missing, expected a mapping", "is this the stage.yaml of a run?")
            sections[key] = [Layer(where, section, prefix=key)]
        contents = record.get("contents") or {}
        if not isinstance(contents, Mapping):
            raise ConfigError(f"{where}: contents", f"expected a mapping, found {strict_yaml.show(contents)}")
        return cls(stage=validate(Stage, sections["stage"]), profile=validate(Profile, sections["profile"]),
                   contents={str(key): str(value) for key, value in contents.items()})  # fmt: skip

    @property
    def commits(self) -> dict[str, str]:
        """The hub's commits among `contents`, by the same keys."""
        return {key: value.split()[-1] for key, value in self.contents.items() if value.startswith("commit ")}

    @property
    def pinned(self) -> Job:
        """The job with the commits of `contents` in place of branches and tags, so that what is loaded is what they name."""
        model, data, commits = self.profile.model, self.profile.data, self.commits
        sources = [
            one.model_copy(update={"revision": commits[key]}) if key in commits else one
            for key, one in data.sources.items()
        ]
        train = sources if isinstance(data.train, list) else sources[0]
        revision = {"revision": commits["model"]} if "model" in commits else {}
        return self.changed(
            {"model": model.model_copy(update=revision), "data": data.model_copy(update={"train": train})}
        )

    def fingerprint(self, init_runs: Mapping[str, str]) -> str:
        """sha256 of all that affects the results, contents included: equal fingerprints mean the same experiment."""
        return self._digest(init_runs, {"contents": dict(self.contents)} if self.contents else {})

    def settings(self, init_runs: Mapping[str, str]) -> str:
        """The fingerprint without contents: equal settings, whatever the data.

        Titles, reference numbers and the profile's name are left out; the number of GPUs, sharding, halvings and the store of
        artifacts, since a run may be resumed with others; and the profile's sections for training and scoring, whose values
        are in the stage already.
        `init_runs` maps names of `init_from` to run ids.
        """
        return self._digest(init_runs, {})

    def _digest(self, init_runs: Mapping[str, str], more: Mapping[str, Any]) -> str:
        job = self.to_dict()
        for path, default in _LATER.items():
            *steps, key = path.split(".")
            section: Any = reduce(lambda inside, step: inside and inside[step], steps, job)
            # Several sources of data are no older than these keys.
            if isinstance(section, dict) and section[key] == default:
                del section[key]
        if job["stage"]["train"] is not None:
            del job["stage"]["train"]["keep_weights"], job["stage"]["train"]["push_every"]  # no results
        if all(job["stage"][key] == value for key, value in _OF_SUITE.items()):
            for key in _OF_SUITE:
                del job["stage"][key]
        content = {**affecting_results(job), **more, "init_runs": dict(init_runs)}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def affecting_results(job: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of `Job.to_dict()`, or of the record of a run, that can change its numbers."""
    return {
        part: {key: value for key, value in job[part].items() if key not in left_out}
        for part, left_out in _NOT_RESULTS.items()
    }


def is_path(profile: str) -> bool:
    """Whether a profile was given by the path of its file; any other text is a name."""
    return profile.endswith((".yaml", ".yml")) or "/" in profile


def flat(section: Mapping[str, Any], separator: str = ".", path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with the path of its keys, such as `train.mask`."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from flat(value, separator, f"{path}{key}{separator}")
        else:
            yield f"{path}{key}", value
