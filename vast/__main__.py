"""The command line, `python -m vast COMMAND`: the commands put together, and mistakes turned into one line."""

import logging
import os
import sys
from pathlib import Path

from jobs.errors import UserError, accept_any_letter, full_output, one_line, wrong_python

try:
    import click

    from vast.commands.attach import attach, down, pull
    from vast.commands.doctor import doctor
    from vast.commands.drill import drill
    from vast.commands.local import local
    from vast.commands.offers import offers
    from vast.commands.reap import reap
    from vast.commands.status import logs, overview_command, status
    from vast.commands.up import up
    from vast.commands.wiring import Wiring, with_hosts
    from vast.session.signals import EXIT_INTERRUPTED
    from vast.simulate.__main__ import main as simulate
except ImportError as error:
    wrong = wrong_python(error)
    print(f"error: {wrong}", file=sys.stderr)
    sys.exit(wrong.exit_code)

PROGRAM = "prefill-vast" if Path(sys.argv[0]).name == "prefill-vast" else "python -m vast"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """Rent a GPU, run a stage on it, watch it, fetch everything, and always destroy the machine.

    The account's key comes from VAST_API_KEY, or from where the official client keeps it. See docs/vast.md.
    """
    context.obj = with_hosts(context.obj or Wiring())
    # Preflight errors already name why a call failed; vast/session/session.py shows warnings while a run is supervised.
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr, force=True)


for command in (offers, up, attach, status, logs, down, pull, reap, doctor, drill, local, overview_command):
    cli.add_command(command)
cli.add_command(simulate, "simulate")


def main(arguments: list[str] | None = None, wiring: Wiring | None = None) -> int:
    """Run the command line; users' mistakes become one line on stderr and an exit code of jobs/errors.py."""
    accept_any_letter()
    try:
        code = cli.main(arguments, prog_name=PROGRAM, standalone_mode=False, obj=wiring)
    except click.ClickException as error:
        words = sys.argv[1:] if arguments is None else arguments
        if not words:
            error.show()  # no command: click's message is the help
        else:
            named = [word for word in words[:1] if word in cli.commands]
            click.echo(f"error: {one_line(error, PROGRAM, named)}", err=True)
        return error.exit_code
    except click.exceptions.Abort:
        click.echo("error: interrupted", err=True)
        return EXIT_INTERRUPTED
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except OSError as error:
        full = full_output(error)
        click.echo(f"error: {full}", err=True)
        return full.exit_code
    return code if isinstance(code, int) else 0


def _flushed(code: int) -> int:
    """Flush; a closed pipe must not make the interpreter print a message."""
    try:
        if sys.stdout is not None:  # it is for a process that was started without one
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


if __name__ == "__main__":
    sys.exit(_flushed(main()))
