"""Writes docs/cli.md from the help of the commands: `make docs`. A test compares the file with what this would write."""

from __future__ import annotations

from pathlib import Path

import click

from app.__main__ import cli

TARGET = Path(__file__).with_name("cli.md")
HEAD = """# Command line

<!-- Made by `make docs` from the commands' own help; do not edit. -->

Exit codes: 0 done; 1 a bug; 2 a mistake in input, configuration or state, reported as path, fact and remedy; 3 training
stopped at a loss that is NaN or infinite; 4 training stopped because nothing was learnt; 28 the disk is full; 75 stopped by
a signal after writing a checkpoint, to be continued with `--resume`; 130 interrupted.
"""


def command_help(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    """The help text as the terminal shows it, at a fixed width."""
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=110, max_content_width=110
    )
    return command.get_help(context)


def text() -> str:
    """docs/cli.md: the group first, then each command in alphabetical order."""
    root = cli.make_context("python -m app", [], resilient_parsing=True)
    parts = [HEAD, f"## python -m app\n\n```text\n{command_help(cli, 'python -m app')}\n```\n"]
    for name, command in sorted(cli.commands.items()):
        parts.append(f"## python -m app {name}\n\n```text\n{command_help(command, name, root)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
