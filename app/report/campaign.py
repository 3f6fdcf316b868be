"""The setting of a run, the model of a campaign's cell, and the one comparison that a campaign declared before it ran.

`python -m app campaign` writes campaigns/NAME.json into the runs directory, with `declared` (when) and

    primary: {suite, order, profile, recipe, measure: accuracy or gold_nll, trained: mask, control: mask}

Order, profile and recipe may be null. Every other comparison is exploratory: nothing is adjusted over those.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.report.comparisons import Comparison
from jobs.config.campaign import Primary
from jobs.config.load import CELL
from jobs.errors import DataError, make_command
from jobs.runs.records import read_campaign_file

_MEASURES = {"gold_nll": "gold NLL in nats a token", "accuracy": "accuracy"}


@dataclass(frozen=True, order=True)
class Setting:
    """Which tasks are scored, and how their prompts are written: those of older runs by default."""

    suite: str = "short"
    order: str = "context_first"
    shots: int = 0

    def __str__(self) -> str:
        shots = f", {self.shots} shots" if self.shots else ""
        return f"{self.suite}, {self.order.replace('_', ' ')}{shots}"

    def command(self, stage: str, **options: Any) -> str:
        """The make command of a stage in this setting."""
        changed = {key: value for key, value in vars(self).items() if value != getattr(Setting, key)}
        shots = f" SET=shots={changed.pop('shots')}" if "shots" in changed else ""
        return make_command(stage, **changed, **options) + shots


def setting_of(record: Mapping[str, Any]) -> Setting:
    """The setting in the record of a run, its stage.yaml."""
    stage = record.get("stage") or {}
    return Setting(**{key: stage[key] for key in ("suite", "order", "shots") if stage.get(key) is not None})


def model_of(stage: str, record: Mapping[str, Any]) -> str:
    """The name of the model that a run trains: its stage, or for a campaign's cell its recipe and mask."""
    section = record.get("stage") or {}
    return f"{section.get('recipe') or CELL}.{(section.get('train') or {}).get('mask')}" if stage == CELL else stage


def steps_of(stage: str, record: Mapping[str, Any]) -> int:
    """The length of training of a campaign's cell, of which there may be several of one model; 0 for other runs."""
    train = (record.get("stage") or {}).get("train") or {}
    return int(train.get("max_steps") or 0) if stage == CELL else 0


def recipe_of(model: str) -> str:
    """The recipe of a campaign's model; empty for a stage of the experiment."""
    return model.rpartition(".")[0]


def is_about(primary: Primary | None, setting: Setting) -> bool:
    """Whether the primary comparison was declared for this setting; it is, in any order, where no order was declared."""
    return primary is not None and primary.suite == setting.suite and primary.order in (None, setting.order)


def role(primary: Primary | None, c: Comparison, setting: Setting) -> str:
    """`primary` or `exploratory`; empty without a campaign."""
    if primary is None:
        return ""
    recipes = {recipe_of(c.first.model), recipe_of(c.second.model)}
    declared = (
        c.group == "control"
        and is_about(primary, setting)
        and (c.first.mask, c.second.mask) == (primary.trained, primary.control)
        and recipes == {primary.recipe or recipe_of(c.first.model)}
    )
    return f"primary ({primary.measure.replace('_', ' ')})" if declared else "exploratory"


def in_words(primary: Primary) -> str:
    """`accuracy on short, trained prefix against trained causal`."""
    at = " ".join(filter(None, [primary.profile, primary.suite, primary.order, primary.recipe]))
    return f"{_MEASURES[primary.measure]} on {at}, trained {primary.trained} against trained {primary.control}"


def unfinished(ledger: Mapping[str, Any]) -> str:
    """How much of a campaign has no complete run yet; empty if all is there."""
    cells, done = int(ledger.get("cells") or 0), len(ledger.get("runs") or [])
    return f"Of the campaign {ledger.get('campaign')} {done} of {cells} runs are complete." if done < cells else ""


def read_primary(runs_dir: Path, profile: str, campaign: str | None = None) -> tuple[Primary | None, dict[str, Any]]:
    """The primary comparison of the campaign in `runs_dir` on `profile` that was declared last, None without a campaign; and the
    whole content of its file. campaign: the name of the one that is meant.

    Raises:
        DataError: a file of campaigns/ that declares none.
    """
    found, directory = [], runs_dir / "campaigns"
    for path in sorted(directory.glob("*.json")) if campaign is None else [directory / f"{campaign}.json"]:
        declared = read_campaign_file(path)
        try:
            primary = Primary.model_validate(declared.get("primary"))
        except ValidationError:
            remedy = "start the campaign again, or delete the file"
            raise DataError(path, "declares no primary comparison", remedy) from None
        if primary.profile in (None, profile):
            found.append((str(declared.get("declared")), primary, declared))
    return max(found, key=lambda entry: entry[0])[1:] if found else (None, {})
