"""Remedies of the files that people write: jobs/config/strict_yaml.py and strict_json.py."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.config import strict_json, strict_yaml
from tests.remedies.cases import Action, World, remedy

Steps = Iterator[Action | None]
YAML = "jobs/config/strict_yaml.py"


def parsed(text: str) -> Action:
    return lambda: strict_yaml.parse(text, "a.yaml")


@remedy(YAML, "correct the path, or make it readable")
def _(w: World) -> Steps:
    yield lambda: strict_yaml.read(w.path("mine.yaml"), "mine.yaml")
    w.write("mine.yaml", "a: 1\n")
    yield lambda: strict_yaml.read(w.path("mine.yaml"), "mine.yaml")


@remedy(YAML, "write it as text")
def _(w: World) -> Steps:
    yield parsed("a: !!binary aGk=")
    yield parsed("a: hi")


@remedy(YAML, "put quotes around it, or remove it")
def _(w: World) -> Steps:
    yield parsed("a: {1: b}")
    yield parsed("a: {'1': b}")
    yield parsed("a: {}")


@remedy(YAML, "write the whole character")
def _(w: World) -> Steps:
    yield parsed('a: "\\ud83d"')
    yield parsed('a: "\\U0001f600"')


@remedy(YAML, "indent with spaces, not tabs")
def _(w: World) -> Steps:
    yield parsed("a:\n\tb: 1\n")
    yield parsed("a:\n  b: 1\n")


@remedy(YAML, "correct that line")
def _(w: World) -> Steps:
    yield parsed("a: {b: 1\n")
    yield parsed("a: {b: 1}\n")


@remedy(YAML, "keep one of them", "<error.remedy>")
def _(w: World) -> Steps:
    yield parsed("a: 1\na: 2\n")
    yield parsed("a: 2\n")


@remedy(YAML, "remove the line ---")
def _(w: World) -> Steps:
    yield parsed("a: 1\n---\nb: 2\n")
    yield parsed("a: 1\nb: 2\n")


@remedy(YAML, "write a plain decimal number")
def _(w: World) -> Steps:
    for text in ("010", "1:30", "0x10"):
        if text == "010":
            yield parsed(f"a: {text}")
    yield parsed("a: 10")


@remedy(YAML, "write fewer, without aliases of aliases")
def _(w: World) -> Steps:
    laughs = f"a: &a [{', '.join('l' * 9)}]\n"
    for name, of in zip("bcdefghi", "abcdefgh", strict=True):
        laughs += f"{name}: &{name} [{', '.join([f'*{of}'] * 9)}]\n"
    yield parsed(laughs)
    yield parsed("a: &a [l, l]\nb: *a\n")


@remedy(YAML, "save as UTF-8")
def _(w: World) -> Steps:
    w.write("a.yaml", "a: é".encode("latin-1"))
    yield lambda: strict_yaml.read(w.path("a.yaml"), "a.yaml")
    w.write("a.yaml", "a: é")
    yield None


@remedy("jobs/config/strict_json.py", "<remedy>")
def _(w: World) -> Steps:
    for text in ("[" * 100_000, '{"a": 1, "a": 2}'):
        try:
            strict_json.loads(text, "a.jsonl:1", "give one JSON object a line")
        except ValueError as error:
            assert error.remedy == "give one JSON object a line"  # type: ignore[attr-defined]
    yield lambda: strict_json.loads("{", "a.jsonl:1", "give one JSON object a line")
    yield lambda: strict_json.loads('{"a": 1}', "a.jsonl:1", "give one JSON object a line")


@remedy(YAML, "write a smaller number")
def _(w: World) -> Steps:
    yield parsed(f"a: {10**101}")
    yield parsed("a: 10")
