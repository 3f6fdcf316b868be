"""The command line, `python -m app COMMAND`: the commands put together, and mistakes turned into one line."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from jobs.errors import ConfigError, UserError, accept_any_letter, full_output, one_line, wrong_python

try:
    import click

    from app import commands
    from app.runtime import collector
    from app.runtime.ending import FollowerEnded, RunEnded
    from app.runtime.ranks import launched, rank_in

    MODULES = [import_module(f"{commands.__name__}.{found.name}") for found in iter_modules(commands.__path__)]
except ImportError as error:
    wrong = wrong_python(error)
    print(f"error: {wrong}", file=sys.stderr)
    sys.exit(wrong.exit_code)

# As it was started: the installed command `prefill`, whose completion click derives from its name, or the module.
PROGRAM = "prefill" if Path(sys.argv[0]).name == "prefill" else "python -m app"
EXIT_INTERRUPTED = 130  # the shell's number for SIGINT; a run that can be resumed ends with 75 instead


class _AboveBars(logging.Handler):
    """Writes to stderr without tearing the progress bars there."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except OSError:  # a closed stderr is no reason to end a run
            self.handleError(record)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """What happens when a decoder-only model may read its prompt in both directions?

    Trains and scores causal language models under a prefix mask: the prompt bidirectional, the answer causal.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_AboveBars()], force=True)
    logging.getLogger("app").setLevel(logging.INFO)  # of every module here; of libraries, warnings
    if launched(os.environ) and context.invoked_subcommand != "run":
        fact = f"is {os.environ['WORLD_SIZE']}, and only `run` works in several processes"
        raise ConfigError("WORLD_SIZE", fact, "start it without a launcher")


for found in (value for module in MODULES for value in vars(module).values() if isinstance(value, click.Command)):
    cli.add_command(found)


def main() -> int:
    """Run the command line; users' mistakes become one line on stderr and an exit code of jobs/errors.py."""
    collector.begin()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # without a network it reports every retry, twice
    accept_any_letter()
    rank = rank_in(os.environ)
    if rank:  # one log and one summary: rank 0's
        os.environ["TQDM_DISABLE"] = "1"
        logging.disable(logging.WARNING)
    try:
        ended = cli.main(prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        if len(sys.argv) == 1:
            error.show()  # no command: click's message is the help
        else:
            named = [word for word in sys.argv[1:2] if word in cli.commands]
            click.echo(f"error: {one_line(error, PROGRAM, named)}", err=True)
        return error.exit_code
    except click.exceptions.Abort:  # click's form of KeyboardInterrupt
        click.echo("error: interrupted", err=True)
        return EXIT_INTERRUPTED
    except RunEnded as error:  # all ranks ended together
        if rank == 0:
            click.echo(f"error: {error}", err=True)
        return error.exit_code
    except FollowerEnded as error:
        return error.exit_code
    except UserError as error:
        click.echo(f"rank {rank}: {error}" if rank else f"error: {error}", err=True)
        return error.exit_code
    except OSError as error:
        full = full_output(error)
        click.echo(f"error: {full}", err=True)
        return full.exit_code
    except ModuleNotFoundError as error:  # a module that only some commands import
        wrong = wrong_python(error)
        click.echo(f"error: {wrong}", err=True)
        return wrong.exit_code
    return ended if isinstance(ended, int) else 0


if __name__ == "__main__":
    sys.exit(main())
