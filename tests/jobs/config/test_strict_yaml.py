"""Strict reading of YAML, and dumps that read back."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import strict_yaml
from jobs.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: a: given twice, first in line 1; keep one of them"),
        ("train:\n  x: 1\n  x: 1\n", "f.yaml:3: train.x: given twice, first in line 2"),
        ("l:\n- {k: 1, k: 2}\n", "f.yaml:2: l[0].k: given twice"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2: malformed YAML: expected ',' or ']'"),
        ("a: b: c\n", "f.yaml:1: malformed YAML: mapping values are not allowed here"),
        ("a:\n\tb: 1\n", "f.yaml:2: malformed YAML: found character '\\t' that cannot start any token; indent with"),
        ("a: 1\nb: \x00\n", "f.yaml:2: malformed YAML: special characters are not allowed"),
        ("a: *b\n", "f.yaml:1: malformed YAML: found undefined alias"),
        ("a: &x [*x]\n", "f.yaml:1: a[0]: refers to itself"),
        ("a: !!python/name:os.system\n", "f.yaml:1: malformed YAML: could not determine a constructor"),
        ("a: 2026-13-01\n", "f.yaml: malformed YAML: month must be in 1..12"),
        ("a: 010\n", "f.yaml:1: a: YAML reads 010 as 8; write a plain decimal number"),
        ("a: 0x1F\n", "f.yaml:1: a: YAML reads 0x1F as 31"),
        ("a: 1:30\n", "f.yaml:1: a: YAML reads 1:30 as 90"),
        (
            f"a: {{b: {10**310}}}\n",
            "f.yaml:1: a.b: 10000000000000000... is more than any key takes; write a smaller number",
        ),
        ("a: -1e+308\n", "f.yaml:1: a: -1e+308 is more than any key takes"),
        ("a: 1\n---\na: 2\n", "f.yaml:2: expected one YAML document, found another; remove the line ---"),
        ("- 1\n", "f.yaml: expected a mapping of keys, found [1]"),
        ("", "f.yaml: expected a mapping of keys, found nothing"),
    ],
)
def test_bad_yaml_is_named_with_file_line_and_fact(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        strict_yaml.read(tmp_path / "f.yaml", "f.yaml")
    assert str(caught.value).startswith(message)


def test_ordinary_numbers_and_shared_anchors_are_read() -> None:
    text = "a: 0\nb: -1\nc: 0.5\nd: 2.0e-5\ne: 1_000\nf: '010'\ng: &x [1]\nh: *x\n"
    assert strict_yaml.parse(text, "f") == {
        "a": 0,
        "b": -1,
        "c": 0.5,
        "d": 2e-5,
        "e": 1000,
        "f": "010",
        "g": [1],
        "h": [1],
    }


@pytest.mark.parametrize("text", ["2e-5", "2E-05", "2.e-5", ".2e-4", "+0.2e-4", "2.0e-5"])
def test_a_float_is_one_as_in_yaml_1_2(text: str) -> None:
    assert strict_yaml.parse(f"a: {text}\n", "f") == {"a": 2e-5}
    assert (
        strict_yaml.parse(f"a: '{text}'\n", "f") == {"a": text} == strict_yaml.parse(strict_yaml.dump({"a": text}), "f")
    )


@pytest.mark.parametrize("text", ["e5", "2e", "2e-5x", "v2e5", "1.2.3e4"])
def test_what_only_looks_like_a_float_is_text(text: str) -> None:
    assert strict_yaml.parse(f"a: {text}\n", "f") == {"a": text}


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match=r"f\.yaml: expected UTF-8 text, found byte 3 that is not"):
        strict_yaml.read(tmp_path / "f.yaml", "f.yaml")


def test_a_directory_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml: cannot be read: Is a directory"):
        strict_yaml.read(tmp_path, "f.yaml")


FLOATS = st.sampled_from([math.inf, -math.inf]) | st.floats(-9e99, 9e99)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**100) + 1, 10**100 - 1)
    | FLOATS
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcyn0_", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text("abcyn0_", max_size=4), PLAIN, max_size=4))
def test_what_is_dumped_reads_back_equal(value: dict[str, object]) -> None:
    assert strict_yaml.parse(strict_yaml.dump(value), "f") == value


@given(value=PLAIN)
def test_a_shown_value_is_one_short_line(value: object) -> None:
    assert "\n" not in strict_yaml.show(value)
    assert len(strict_yaml.show(value)) <= 80


@pytest.mark.parametrize("text", ['"\\ud800"', 'a: "\\udfff"', '"\\ud800": 1', '[b, "x\\ud800y"]'])
def test_half_a_character_is_refused_and_the_error_can_be_printed(text: str) -> None:
    with pytest.raises(ConfigError, match="file.yaml:1: holds half a character") as caught:
        strict_yaml.parse(text, "file.yaml")
    str(caught.value).encode()


def test_two_files_of_one_text_are_parsed_once_and_neither_sees_the_other() -> None:
    parses = strict_yaml._parsed.cache_info().misses
    first, second = (strict_yaml.parse("of_two_files: {b: [1]}", where) for where in ("a.yaml", "b.yaml"))
    assert strict_yaml._parsed.cache_info().misses == parses + 1
    first["of_two_files"]["b"].append(2)
    assert second == {"of_two_files": {"b": [1]}}
    for where in ("a.yaml", "b.yaml"):
        with pytest.raises(ConfigError, match=f"^{where}:2: a: given twice"):
            strict_yaml.parse("a: 1\na: 2", where)


@pytest.mark.parametrize("text", ["!!binary aGk=: 1", "a: !!binary aGk=", "- !!binary aGk="])
def test_bytes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="file.yaml:1: holds !!binary"):
        strict_yaml.parse(text, "file.yaml")


@pytest.mark.parametrize(
    "text", ["*a" + "1" * 5000, "a: 0" + "1" * 3000, "a: 0" + "1" * 3000 + ".5", "a: &" + "b" * 5000 + "\n*c"]
)
def test_a_long_word_does_not_fill_the_message(text: str) -> None:
    with pytest.raises(ConfigError, match="file.yaml:[12]: ") as caught:
        strict_yaml.parse(text, "file.yaml")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("key", ["1e400", "1", "true", "~", "2026-01-01", ".nan"])
def test_a_key_that_is_no_text_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"file.yaml:2: a: expected a text as key, found {key}; put quotes"):
        strict_yaml.parse(f"a:\n  {key}: 1\n", "file.yaml")
    assert strict_yaml.parse(f"a:\n  '{key}': 1\n", "file.yaml") == {"a": {key: 1}}
