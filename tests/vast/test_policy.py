"""vast/policy.yaml explains every key, and mistakes are reported with file, key path and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs.errors import ConfigError
from vast import policy
from vast.policy import Policy
from vast.supervisor.reasons import REASONS


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = field.annotation
        found += _keys(inner, f"{key}.") if isinstance(inner, type) and issubclass(inner, BaseModel) else [key]
    return found


def test_every_key_is_in_the_file_with_a_comment_above_it_or_above_its_section() -> None:
    lines = policy.DEFAULT.read_text(encoding="utf-8").splitlines()
    for key in _keys(Policy):
        *sections, name = key.split(".")
        indent = "  " * len(sections)
        start = lines.index(f"{sections[0]}:") if sections else 0
        number = next(n for n, line in enumerate(lines) if n >= start and re.match(rf"{indent}{name}:", line))
        commented = lines[number - 1].strip().startswith("#")
        assert commented or (sections and lines[start - 1].startswith("#")), key


def test_a_file_of_a_few_keys_is_laid_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("caps:\n  dollars: 3.0\n", encoding="utf-8")
    mine = policy.load(path)
    assert mine.caps.dollars == 3.0
    assert mine.caps.hours == policy.load().caps.hours


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cadense: {}", r'cadense.*did you mean "cadence"'),
        ("caps:\n  dollars: 0.0", r"caps\.dollars: expected a positive number"),
        ("attempts: '3'", r"attempts: expected a positive integer"),
        ("stall:\n  looks: 1", r"stall\.looks"),
        ("watchdog:\n  renew: 2.0", r"watchdog\.renew: expected"),
        ("watchdog:\n  renew: 3000.0", r"watchdog\.silent: expected at least 3 times renew"),
        ("caps:\n  hours: 0.1", r"expected less than caps\.hours"),
    ],
)
def test_a_mistake_names_file_key_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as error:
        policy.load(path)
    assert "mine.yaml" in str(error.value)


def test_reasons_that_start_again_have_a_limit_and_no_others() -> None:
    limited = {field.alias or name for name, field in type(policy.load().retries).model_fields.items()}
    assert limited == {name for name, reason in REASONS.items() if reason.again == "here"}
    assert policy.load().retries.of("nan") == 0
