"""`harness`: any task of lm-evaluation-harness under any mask."""

from pathlib import Path

import click

from app.commands import options
from jobs.config.load import resolve
from jobs.config.schema import MASKS, Mask
from jobs.errors import ConfigError


@click.command()
@options.profile
@options.model
@click.option("--mask", type=click.Choice(MASKS), required=True, help="Which token may attend to which; the context, "
              "with its few-shot examples, is the prefix. bidirectional leaks the answer and cannot generate. See "
              "docs/harness.md.")  # fmt: skip
@click.option("--tasks", required=True, metavar="NAMES", help="Tasks, groups or tags of lm_eval, separated by commas; wildcards "
              "may be used. With a profile on the embedded data, their rows are read from there if they are in it.")  # fmt: skip
@options.limit
@click.option("--num-fewshot", type=options.Whole(min=0), metavar="K", help="Examples before each item, in place of the task's "
              "own number.")  # fmt: skip
@click.option("--chat", is_flag=True, help="Put each context into the tokenizer's chat template.")
@click.option("--include-path", type=options.Directory(exists=True),
              help="A directory of task files of your own.")  # fmt: skip
@click.option(
    "--out", type=options.FILE, help="Results and samples as JSON, in lm_eval's form, with mask and model in config."
)
@options.dtype
@options.batch(8192)
@options.runs
def harness(profile: str, model: str | None, mask: Mask, tasks: str, limit: int | None, num_fewshot: int | None,
            chat: bool, include_path: Path | None, out: Path | None, dtype: str | None, batch_tokens: int,
            runs_dir: Path) -> None:  # fmt: skip
    """Evaluate tasks of lm-evaluation-harness under any mask.

    Needs lm_eval, which make setup installs.
    """
    from app.commands.textfiles import require_writable

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError("--tasks", "names no task", "give one, such as --tasks sciq")
    data = resolve("stage1", profile).profile.data.eval
    if out is not None:
        require_writable(out)
    from app.harness.model import LEAKS
    from app.harness.model import PrefillLM  # isort: skip  # first: without lm_eval it names the remedy
    from app.harness import tasks as harness_tasks

    manager = harness_tasks.manager(data.source == "embedded", include_path)
    built = harness_tasks.build(manager, names, mask)
    lm = PrefillLM(mask, profile, model, runs_dir=str(runs_dir), dtype=dtype, batch_tokens=batch_tokens)
    results = harness_tasks.evaluate(lm, manager, built, limit=limit, num_fewshot=num_fewshot, chat=chat,
                                     samples=out is not None)  # fmt: skip
    if out is not None:
        harness_tasks.write(out, results)
    cut = f", {lm.counts['contexts_truncated']} contexts cut" if lm.counts["contexts_truncated"] else ""
    click.echo(f"{lm.loaded.origin} under {mask}{f', first {limit} items' if limit else ''}{cut}")
    click.echo(harness_tasks.tables(results))
    if lm.leaks:
        click.echo(LEAKS)
