"""Reads a Dockerfile, a compose file and a .dockerignore, as far as the promises of the image need it; each check returns
what it finds."""

from __future__ import annotations

import re
import shlex
from itertools import product
from typing import Any

import yaml

SECRET = re.compile(r"token|passw(or)?d|secret|credential|(api|private|access|auth|ssh)_?key", re.IGNORECASE)
USER_INFO = re.compile(r"://[^/\s\"']*@")


def instructions(text: str) -> list[tuple[str, str]]:
    """Every instruction with its arguments on one line; the text of a heredoc is left out."""
    found: list[tuple[str, str]] = []
    logical, heredoc = "", ""
    for line in text.splitlines():
        if heredoc:
            heredoc = "" if line.strip() == heredoc else heredoc
            continue
        if line.lstrip().startswith("#") or (not line.strip() and not logical):
            continue
        logical += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        word, _, rest = logical.strip().partition(" ")
        found.append((word.upper(), rest.strip()))
        if mark := re.search(r"<<-?[\"']?(\w+)", rest):
            heredoc = mark[1]
        logical = ""
    return found


def labels(text: str, stage: str) -> dict[str, str]:
    """The labels that a stage sets itself, with the defaults of the arguments that they name."""
    defaults: dict[str, str] = {}
    found: dict[str, str] = {}
    current = ""
    for word, rest in instructions(text):
        if word == "ARG" and "=" in rest:
            name, _, value = shlex.split(rest)[0].partition("=")
            defaults.setdefault(name, value)
        elif word == "FROM":
            current = rest.split()[-1]
        elif word == "LABEL" and current == stage:
            pairs = (pair.partition("=") for pair in shlex.split(rest))
            found |= {name: expand(value, defaults) for name, _, value in pairs}
    return found


# ---- images ---------------------------------------------------------------------------------------------------------------


def moves(image: str) -> bool:
    """Whether a name means another image tomorrow: no tag, or `latest`, and no digest."""
    last = image.rpartition("/")[2]
    return "@sha256:" not in last and (":" not in last or last.endswith(":latest"))


def expand(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], match[0]), text)


def latest_in_dockerfile(text: str) -> list[str]:
    defaults: dict[str, str] = {}
    stages = {"scratch"}
    found = []
    for word, rest in instructions(text):
        if word == "ARG":
            name, _, value = rest.partition("=")
            defaults.setdefault(name, value)
        used = re.findall(r"(?:--|,)from=([^\s,]+)", rest) if word in ("COPY", "RUN") else []
        if word == "FROM":
            parts = [part for part in rest.split() if not part.startswith("--")]
            used = parts[:1]
        for image in (expand(one, defaults) for one in used):
            if image not in stages and not image.isdigit() and moves(image):
                found.append(image)
        if word == "FROM" and len(parts) == 3:
            stages.add(parts[2])
    return found


def latest_in_compose(text: str) -> list[str]:
    services: dict[str, Any] = (yaml.safe_load(text) or {}).get("services") or {}
    found = []
    for service in services.values():
        image = str((service or {}).get("image", "scratch:none"))
        image = re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", image)  # without a default it is empty, which is no tag either
        if moves(re.sub(r"\$\{?\w+\}?", "", image)):
            found.append(image)
    return found


def latest_in_script(text: str) -> list[str]:
    return re.findall(r"[\w./-]+:latest\b", text)


# ---- hashes, root, secrets --------------------------------------------------------------------------------------------------


def unhashed_installs(text: str) -> list[str]:
    """Commands that install Python packages without --require-hashes, in a Dockerfile or a script."""
    joined = re.sub(r"\\\n", " ", text)
    commands = [
        part.strip()
        for line in joined.splitlines()
        if not line.lstrip().startswith("#")
        for part in re.split(r"[;&|]", line)
    ]
    installs = [one for one in commands if re.search(r"\b(pip[\d.]*|pipx|uv)\b.*\s(install|add|sync)\b", one)]
    return [one for one in installs if "--require-hashes" not in one]


def root_at_run_time(text: str) -> list[str]:
    """What is wrong with the user of the last stage: it is to be said there, in numbers, and neither is to be 0."""
    user = "none"
    for word, rest in instructions(text):
        if word == "FROM":
            user = "none"
        elif word == "USER":
            user = rest
    return [] if re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user) else [f"USER {user}"]


def secret_settings(text: str) -> list[str]:
    found = []
    for word, rest in instructions(text):
        if word in ("ARG", "ENV", "LABEL"):
            names = re.findall(r"([\w.]+)=", rest) or rest.split()[:1]
            if any(SECRET.search(name) for name in names) or USER_INFO.search(rest):
                found.append(f"{word} {rest}")
    return found


# ---- the build context --------------------------------------------------------------------------------------------------------


def copied(text: str, **choices: tuple[str, ...]) -> list[str]:
    """What COPY and ADD take from the build context; `choices`: the values that an argument may have."""
    found = []
    for word, rest in instructions(text):
        parts = [part for part in rest.split() if not part.startswith("--")]
        if word not in ("COPY", "ADD") or "--from=" in rest or parts[0].startswith("<<"):
            continue
        for source in (part for part in parts[:-1] if "://" not in part):
            named = [name for name in choices if name in re.findall(r"\$\{?(\w+)", source)]
            for values in product(*(choices[name] for name in named)):
                found.append(expand(source, dict(zip(named, values, strict=True))))
    return found


class IgnoreFile:
    """A .dockerignore: the last pattern that matches a path, or a directory above it, decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        self.patterns = [line for line in lines if line and not line.startswith("#")]

    def allows(self, path: str) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        allowed = True
        for pattern in self.patterns:
            if any(re.fullmatch(self._expression(pattern.removeprefix("!").strip("/")), one) for one in above):
                allowed = pattern.startswith("!")
        return allowed

    def is_allow_list(self) -> bool:
        """Whether a file that nobody thought of stays outside."""
        return (
            self.patterns[:1] in (["*"], ["**"])
            and not self.allows("nobody/thought/of.this")
            and not self.allows("this")
        )

    @staticmethod
    def _expression(pattern: str) -> str:
        pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
        words = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        return "".join(words.get(piece, re.escape(piece)) for piece in pieces)
