"""The setting of a run, and the one comparison that a campaign declared as primary before it ran.

A campaign's runs directory has a campaign.yaml with

    primary: {suite: reading, order: context_first, measure: accuracy, trained: stage3b, control: stage3a}

All but `suite` may be left out. Every other comparison is exploratory: nothing is adjusted over those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.report.comparisons import Comparison
from jobs.config import strict_yaml
from jobs.errors import ConfigError

NAME = "campaign.yaml"
MEASURES = ("accuracy", "nll")


@dataclass(frozen=True, order=True)
class Setting:
    """Which tasks are scored, and how their prompts are written: those of older runs by default."""

    suite: str = "short"
    order: str = "context_first"
    shots: int = 0

    def __str__(self) -> str:
        shots = f", {self.shots} shots" if self.shots else ""
        return f"{self.suite}, {self.order.replace('_', ' ')}{shots}"


def setting_of(record: Mapping[str, Any]) -> Setting:
    """The setting in the record of a run, its stage.yaml."""
    stage = record.get("stage") or {}
    return Setting(**{key: stage[key] for key in ("suite", "order", "shots") if stage.get(key) is not None})


@dataclass(frozen=True)
class Primary:
    """The primary comparison; of a runs directory without a campaign, all fields are None."""

    suite: str | None = None
    order: str | None = None
    measure: str = "accuracy"
    trained: str | None = None
    control: str | None = None

    def is_about(self, setting: Setting) -> bool:
        return self.suite == setting.suite and self.order in (None, setting.order)

    def role(self, c: Comparison, setting: Setting) -> str:
        """`primary` or `exploratory`; empty without a campaign."""
        if self.suite is None:
            return ""
        models = (c.first.model, c.first.mask, c.second.model, c.second.mask)
        wanted = (self.trained or c.first.model, "prefix", self.control or c.second.model, "causal")
        declared = c.group == "control" and models == wanted and self.is_about(setting)
        return f"primary ({self.measure})" if declared else "exploratory"


def read_primary(runs_dir: Path) -> Primary:
    """The primary comparison of the campaign in `runs_dir`. Raises ConfigError for a file that does not declare one."""
    path = runs_dir / NAME
    if not path.exists():
        return Primary()
    found = strict_yaml.read(path, str(path)).get("primary")
    keys = tuple(Primary.__dataclass_fields__)
    if not isinstance(found, Mapping) or not isinstance(found.get("suite"), str) or set(found) - set(keys):
        raise ConfigError(f"{path}: primary", f"expected a mapping with suite and of {', '.join(keys)}", "declare one")
    if found.get("measure", MEASURES[0]) not in MEASURES:
        raise ConfigError(f"{path}: primary.measure", f"expected one of {', '.join(MEASURES)}", "correct it")
    return Primary(**found)
