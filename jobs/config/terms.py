"""Terms of use that a user accepts before a model is fetched, or a machine is paid for that would fetch it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from jobs.errors import ConfigError, expanded


@dataclass(frozen=True)
class Terms:
    """What and where they are, and the variable that accepts them by the value 1."""

    text: str
    variable: str


OF_EMBEDDED = {
    "gemma-3-270m": Terms("the Gemma Terms of Use (https://ai.google.dev/gemma/terms)", "ACCEPT_GEMMA_TERMS")
}


def require_terms(name: str | None, environ: Mapping[str, str]) -> Terms | None:
    """The accepted terms of an embedded model; None: it has none. Raises ConfigError where they are not accepted."""
    terms = OF_EMBEDDED.get(name or "")
    if terms is not None and setting(terms.variable, environ) != "1":
        remedy = f"read them, and to accept them set {terms.variable}=1"
        raise ConfigError(str(name), f"may be used under {terms.text}, which are not accepted yet", remedy)
    return terms


def setting(name: str, environ: Mapping[str, str]) -> str | None:
    """The variable NAME, or the content of the file that NAME_FILE names, as on a rented machine."""
    if environ.get(name):
        return environ[name]
    with suppress(KeyError, OSError, ValueError):
        return expanded(environ[f"{name}_FILE"]).read_text(encoding="utf-8").strip() or None
    return None
