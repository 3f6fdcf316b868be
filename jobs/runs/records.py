"""The content of a run's files, and of a campaign's, as readers may rely on it: the type of each key that something reads.

Of other keys nothing is known. A number is finite, a count below 2**63; neither a text nor a bool is one.
"""

# ruff: noqa: UP013, a table of keys and types is read at a glance

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Required, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from jobs.errors import DataError
from jobs.runs.atomic import read_json, read_jsonl

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[Count, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]
Numbers = dict[str, float] | None
Counted = Count | None
Text = str | None
Number = float | None
Content = TypeVar("Content")
_STRICT = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class TaskScore(BaseModel):
    """One task of one evaluation, from metrics.json."""

    model_config = _STRICT
    items: Positive
    headline: Share
    stderr: float | None = None  # of a single item
    gold_nll: float | None = Field(default=None, alias="gold_nll_per_token")  # nats, of the right answer
    gold_nll_rounding: float = 0.0  # by which faster products than float32's may have moved it
    chance: Share
    prefix_violations: Count = 0
    truncated: Count = 0
    metric: str | None = None


_Macro = TypedDict("_Macro", {
    "value": Required[Share], "ci95": Required[Interval], "chance": Required[Share], "bootstrap": Positive,
}, total=False)  # fmt: skip
_Exact = TypedDict("_Exact", {"passes": dict[str, Count], "rescored": Counted}, total=False)
_Evaluation = TypedDict("_Evaluation", {
    "label": Required[str], "model": Required[str], "mask": Required[str], "format": Required[str], "metric": Required[str],
    "tasks": Required[Annotated[dict[str, TaskScore], Field(min_length=1)]], "macro": Required[_Macro],
    "items": Required[Positive], "seconds": Required[float], "items_per_s": Required[float], "tokens_per_s": Required[float],
    "tokens": Count, "model_run": Text, "leaks": bool, "suite": str, "order": str, "shots": Count, "exact": _Exact | None,
}, total=False)  # fmt: skip
_Source = TypedDict("_Source", {"source": str, "drawn": Count, "share": float})
_Data = TypedDict("_Data", {"sources": list[_Source]}, total=False)
_Train = TypedDict("_Train", {
    "mask": str, "steps": Count, "max_steps": Counted, "best_step": Counted, "kept_step": Counted, "train_examples": Counted,
    "eval_examples": Counted, "dropped_overlap": Counted, "dropped_length": Counted, "response_tokens": Counted,
    "params_trained": Counted, "params_total": Count, "train_loss": Number, "eval_loss_first": Number, "eval_loss_best": Number,
    "eval_loss_last": Number, "seconds": Number, "tokens_per_s": Number, "padding": Number, "data": _Data | None,
    "objective": dict[str, Number] | None,
}, total=False)  # fmt: skip
_Metrics = TypedDict("_Metrics", {
    "stage": str, "profile": str, "seed": Counted, "evaluations": list[_Evaluation] | None, "train": _Train | None,
    "estimate": Numbers, "actual": Numbers,
}, total=False)  # fmt: skip
_Summary = TypedDict("_Summary", {
    "profile": Required[str], "headline": Numbers, "seconds": Number, "dollars": Number, "estimate": Numbers, "actual": Numbers,
}, total=False)  # fmt: skip
_LogLine = TypedDict("_LogLine", {"step": Required[Count], "loss": Number, "eval_loss": Number}, total=False)
_Sample = TypedDict("_Sample", {
    "evaluation": Required[str], "task": Required[str], "id": Required[str], "sha": Required[str], "gold": Required[Count],
    "logprobs": list[float], "n_tokens": list[Positive], "pred_acc": Count, "pred_acc_norm": Count, "pred_acc_token": Count,
}, total=False)  # fmt: skip
_JobTrain = TypedDict("_JobTrain", {"mask": Text, "max_steps": Counted}, total=False)
_JobScore = TypedDict("_JobScore", {"limit": Counted}, total=False)
_Stage = TypedDict("_Stage", {
    "suite": Text, "order": Text, "shots": Counted, "seed": Count, "recipe": Text, "reference": Numbers,
    "train": _JobTrain | None, "score": _JobScore | None,
}, total=False)  # fmt: skip
_Profile = TypedDict("_Profile", {"name": Required[str], "model": dict[str, Any]}, total=False)
_Job = TypedDict("_Job", {"stage": _Stage, "profile": _Profile})
_Settings = TypedDict("_Settings", {"dollars_an_hour": Number}, total=False)
_Entry = TypedDict("_Entry", {"run": str}, total=False)
_Campaign = TypedDict("_Campaign", {
    "cells": Count, "fingerprints": list[str], "runs": list[_Entry] | None, "settings": _Settings | None,
}, total=False)  # fmt: skip

_KINDS: dict[str, Any] = {  # of a value, or of each line
    "metrics.json": list[_Metrics], "samples": list[_Sample], "summary.json": list[_Summary], "stage.yaml": list[_Job],
    "train_log.jsonl": list[_LogLine], "eval_log.jsonl": list[_LogLine], "campaign": list[_Campaign],
}  # fmt: skip
_SCORES = "metrics.json", "samples"
_ADAPTERS = {kind: TypeAdapter(of, config=_STRICT) for kind, of in _KINDS.items()}


def read_campaign_file(path: Path) -> dict[str, Any]:
    """campaigns/NAME.json, which `python -m app campaign` writes. Raises DataError."""
    return checked(path, read_json(path), "campaign")


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl, of each the keys that something reads. A torn last line is dropped, a bad one raises DataError.

    All lines are parsed and checked as one array, in a third of the time of each by itself. What is refused so is read again for
    its place and the fault.
    """
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1]
    number = lines.count(b"\n")
    a_row_begins_each = (b"\n" + lines).count(b'\n{"evaluation"') == number
    finite = b"NaN" not in lines and b"Infinity" not in lines  # pydantic passes them in keys that nothing reads
    if a_row_begins_each and finite:
        with suppress(ValidationError):
            joined = b"[" + lines[:-1].replace(b"\n", b",") + b"]"
            rows: list[dict[str, Any]] = _ADAPTERS["samples"].validate_json(joined)
            if len(rows) == number:
                return rows
    return checked(path, read_jsonl(path), "samples")


def checked(path: Path, value: Content, kind: str = "") -> Content:
    """`value`, the content of the file `path`, whose name is its kind. Raises DataError unless it is as its kind says."""
    lines, kind = isinstance(value, list), kind or path.name
    if kind not in _KINDS:
        return value
    try:
        _ADAPTERS[kind].validate_python(value if lines else [value])
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        number, *key = wrong["loc"]
        place = f"{path}:{int(number) + 1}" if lines else str(path)
        fact = "is missing" if wrong["type"] == "missing" else f"is {wrong['input']!r:.80}: {wrong['msg']}"
        of_run = "score the stage again" if kind in _SCORES else "delete the run's directory, or restore the file"
        remedy = "start the campaign again, or delete the file" if kind == "campaign" else of_run
        raise DataError(place, f"key {'.'.join(map(str, key))!r} {fact}", remedy) from None
    return value
