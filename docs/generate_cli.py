"""Writes docs/cli.md from the help of the commands: `make docs`. A test compares the file with what this would write."""

from __future__ import annotations

from pathlib import Path

import click

from app.__main__ import cli as app
from vast.__main__ import cli as vast

TARGET = Path(__file__).with_name("cli.md")
HEAD = """# Command line

<!-- Made by `make docs` from the commands' own help; do not edit. -->

Exit codes: 0 done; 1 a bug; 2 a mistake in input, configuration or state, reported as path, fact and remedy; 3 training
stopped at a loss that is NaN or infinite; 4 training stopped because nothing was learnt; 28 the disk is full; 75 stopped by
a signal after writing a checkpoint, to be continued with `--resume`; 130 interrupted. `python -m vast up`, `attach` and `local`
end with the code of the job where it ended by itself, with 75 when a person asked for the end, and with 1 in all other cases.
"""


def command_help(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    """The help text as the terminal shows it, at a fixed width."""
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=110, max_content_width=110
    )
    return command.get_help(context)


def of_group(group: click.Group, program: str) -> list[str]:
    """The group first, then each command in alphabetical order."""
    root = group.make_context(program, [], resilient_parsing=True)
    parts = [f"## {program}\n\n```text\n{command_help(group, program)}\n```\n"]
    for name, command in sorted(group.commands.items()):
        parts.append(f"## {program} {name}\n\n```text\n{command_help(command, name, root)}\n```\n")
    return parts


def text() -> str:
    """docs/cli.md: the experiment's commands, then those for rented machines."""
    return "\n".join([HEAD, *of_group(app, "python -m app"), *of_group(vast, "python -m vast")])


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
