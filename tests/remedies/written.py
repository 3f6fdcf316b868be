"""Every remedy that the code writes: the third argument of an error, of a run's end, or of a rule in the schema.

An expression inside a remedy is `{}`. A variable is followed to the texts that its function, or its file, assigns to it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ERRORS = {"UserError", "ConfigError", "DataError", "ModelError", "CheckpointError", "RunStateError", "DiskFull", "RunEnded",
          "EngineError", "AlreadyRunning"}  # fmt: skip
# What passes a remedy on, and which argument it is.
RULES = {"refused": 1, "combination": 2, "_load_errors_reported": 1}


def remedies(*packages: str) -> set[tuple[str, str]]:
    """(file, remedy) of each place in `packages`."""
    return {
        (str(path.relative_to(ROOT)), text)
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        for text in _of_file(ast.parse(path.read_text(encoding="utf-8")))
    }


def _of_file(tree: ast.Module) -> Iterator[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        at = 2 if name in ERRORS else RULES.get(name)
        if at is None:
            continue
        given = (
            call.args[at] if len(call.args) > at else next((k.value for k in call.keywords if k.arg == "remedy"), None)
        )
        if given is not None:
            around = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
            yield from _texts(given, [*reversed(around), tree])


def _texts(node: ast.expr, scopes: list[ast.AST]) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, scopes)
        yield from _texts(node.orelse, scopes)
    elif isinstance(node, ast.BoolOp):
        for one in node.values:
            yield from _texts(one, scopes)
    elif isinstance(node, ast.Name) and (values := _assigned(node.id, scopes)):
        for value in values:
            yield from _texts(value, scopes)
    else:
        yield f"<{ast.unparse(node)}>"


def _assigned(name: str, scopes: list[ast.AST]) -> list[ast.expr]:
    for scope in scopes:
        found: list[ast.expr] = []
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name) and target.id == name:
                        found.append(node.value)
                    elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        found += [
                            v
                            for t, v in zip(target.elts, node.value.elts, strict=False)
                            if isinstance(t, ast.Name) and t.id == name
                        ]
        if found:
            return found
    return []
