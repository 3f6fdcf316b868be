"""A run's directory as read: the names of its files, its state, their content. Only `jobs.runs.rundir` writes.

state        summary.json   lock held   failed.json
complete     yes            any         any
running      no             yes         any
failed       no             no          yes
interrupted  no             no          yes        stopped by a signal, after a checkpoint
interrupted  no             no          no         killed: it had no time to write a reason
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jobs import lock
from jobs.config import strict_yaml
from jobs.errors import EXIT_STOPPED, DataError, UserError
from jobs.runs import atomic
from jobs.runs.records import checked

State = Literal["complete", "running", "failed", "interrupted"]
STOPPED: tuple[State, ...] = ("failed", "interrupted")  # to be resumed
ID_PATTERN = re.compile(r"(\d{8}-\d{6})(?:-(\d+))?")  # the time it was created, -2, -3, ... within one second


_MODEL_KEYS = ("source", "name", "revision", "config")  # dtype, device and the like make no other model


def base_model(record: Mapping[str, Any]) -> dict[str, Any]:
    """What names the model of a run's profile, of its stage.yaml; equal for runs of the same one."""
    model = (record.get("profile") or {}).get("model") or {}
    return {key: model.get(key) for key in _MODEL_KEYS}


class RunFiles:
    """The one place that names the files of a run."""

    def __init__(self, path: Path) -> None:
        self.path, self.stage = path, path.parent.name
        self.id = f"{self.stage}/{path.name}"  # such as stage1/20261122-234501
        self.log_path, self.checkpoints = path / "log.txt", path / "checkpoints"
        self.final = path / "final"  # the finetuned model, once training has ended

    @property
    def checkpoint_steps(self) -> list[int]:
        """Of what app/training/checkpoint.py has marked as complete."""
        names = [path.parent.name.removeprefix("checkpoint-") for path in self.checkpoints.glob("*/complete.json")]
        return [int(step) for step in names if step.isdecimal()]

    @property
    def age_key(self) -> tuple[str, int, str]:
        """Sorts runs by their creation."""
        match = ID_PATTERN.fullmatch(self.path.name)
        return (match[1], int(match[2] or 1), self.stage) if match else (self.path.name, 1, self.stage)

    def state(self) -> State:
        if (self.path / "summary.json").exists():
            return "complete"
        if lock.is_held(self.path / "lock"):
            return "running"
        if (self.path / "summary.json").exists():  # completed between the two questions
            return "complete"
        return "interrupted" if self._stopped() else "failed"

    def _stopped(self) -> bool:
        """Whether a signal or a kill ended it. A failed.json that cannot be read counts as a failure."""
        try:
            return bool(atomic.read_json(self.path / "failed.json").get("exit_code") == EXIT_STOPPED)
        except UserError:
            return not (self.path / "failed.json").exists()

    def read_job(self) -> dict[str, Any]:
        """stage.yaml: the record that `Job.from_dict` takes, with the keys fingerprint and init_runs."""
        path = self.path / "stage.yaml"
        return checked(path, strict_yaml.read(path, str(path)))

    def fingerprint(self) -> str | None:
        """The fingerprint of the job; None for a run that was killed before it wrote its job."""
        return self._recorded("fingerprint")

    def settings(self) -> str | None:
        """`Job.settings` of the job; in runs without contents, and of older code, that is the fingerprint."""
        return self._recorded("settings", "fingerprint")

    def _recorded(self, *keys: str) -> str | None:
        """The first of `keys` that stage.yaml has; None without the file. Raises DataError if it has none of them."""
        path = self.path / "stage.yaml"
        if not path.exists():
            return None
        record = self.read_job()
        found = next((record[key] for key in keys if isinstance(record.get(key), str)), None)
        if found is None:
            raise DataError(path, f"holds no {keys[-1]}", "delete the run's directory, or restore the file")
        return str(found)

    def read_metrics(self) -> dict[str, Any]:
        return self._read_json("metrics.json")

    def read_summary(self) -> dict[str, Any]:
        return self._read_json("summary.json")

    def _read_json(self, name: str) -> dict[str, Any]:
        return checked(self.path / name, atomic.read_json(self.path / name))

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """The lines of a log or of samples.jsonl; none if there is no such file. A torn last line is dropped."""
        return checked(self.path / name, atomic.read_jsonl(self.path / name))

    def verify(self) -> list[str]:
        """What differs from the manifest, such as `final/model.safetensors: missing`. Empty if nothing does."""
        return atomic.differences(self.path)
