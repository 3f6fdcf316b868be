"""No secret in what a host says of itself: these texts go into the journal, lines and reports."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.vast.fakes.states import ADDRESS, host, job
from vast.ports import BurnIn
from vast.secrets import Redactor, Secret
from vast.session.guards import RedactedShell

SECRET = "hf-secret-77"


def test_every_text_of_a_host_is_redacted_and_all_else_is_as_it_said() -> None:
    seen = host(job(fixes=(f"fix {SECRET}",)), gpu_fault=f"Xid {SECRET}", message=f"message {SECRET}")
    tried = BurnIn(False, (f"problem {SECRET}",))
    shell = SimpleNamespace(
        probe=lambda addresses: seen, burn_in=lambda addresses, seconds: tried, stop=lambda: "stopped"
    )
    guarded = RedactedShell(shell, Redactor(Secret(SECRET)))  # type: ignore[arg-type]
    assert repr(guarded.probe(ADDRESS)) == repr(seen).replace(SECRET, "***")
    assert repr(guarded.burn_in(ADDRESS, 60.0)) == repr(tried).replace(SECRET, "***")
    assert guarded.stop() == "stopped"


@pytest.mark.parametrize(("kept", "shown"), [(40, "a ***"), (20, "a ***"), (19, "a 0123456789abcdef012")])
def test_half_of_a_secret_is_hidden_too_since_texts_are_cut(kept: int, shown: str) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    assert Redactor(Secret(key))(f"a {key[:kept]}") == shown
    assert Redactor(Secret(key))(f"{key} and {key[:30]} and {key[:30]}x{key}") == "*** and *** and ***x***"
    assert Redactor(Secret("word"))("a word of wor") == "a *** of wor"
    assert Secret("").hidden_in("a word") == "a word"
