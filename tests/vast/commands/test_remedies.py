"""What a person is asked to type can be typed as it stands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import vast.__main__ as program

WORDS = "|".join(sorted(program.cli.commands))
BARE = re.compile(rf"(?<!-m )\bvast ({WORDS})\b")


def _texts(path: Path) -> list[str]:
    """String constants of a module, without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]


def test_every_command_in_a_message_is_whole() -> None:
    rooms = [path for room in ("vast", "app", "jobs") for path in Path(room).rglob("*.py")]
    assert [(str(path), text) for path in rooms for text in _texts(path) if BARE.search(text)] == []
