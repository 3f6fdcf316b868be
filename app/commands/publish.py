"""`publish`: a finished run as a repository on the hub."""

import os
from pathlib import Path

import click

from app.commands import options
from jobs.config.load import resolve
from jobs.config.terms import setting
from jobs.errors import ConfigError
from jobs.runs.atomic import make_directory, write_text_atomically


@click.command()
@click.argument("run", metavar="RUN")
@options.profile
@click.option("--to", "repo", required=True, metavar="OWNER/NAME", help="The repository; it is made if there is none.")
@click.option("--private", is_flag=True, help="Make it private; one that exists and is public is refused.")
@click.option("--adapter", is_flag=True, help="The LoRA adapter alone, in place of the merged weights.")
@click.option("--license", "licence", metavar="ID", help="Of the base model, where its card names none and you have read that it "
              "allows derivatives.")  # fmt: skip
@click.option("--force", is_flag=True, help="Also a run of code that differs from its commit.")
@click.option(
    "--dry-run", is_flag=True, help="Write the card into the runs directory and list the files; send nothing."
)
@options.runs
def publish(run: str, profile: str, repo: str, private: bool, adapter: bool, licence: str | None, force: bool, dry_run: bool,
            runs_dir: Path) -> None:  # fmt: skip
    """Send a finished RUN to the hub, with an honest card. Weights, tokenizer, card, results: see docs/publish.md.

    RUN: such as stage3b/20261122-234501, or a stage, meaning its newest complete run of the profile. The token comes from
    HF_TOKEN, or the file that HF_TOKEN_FILE names.
    """
    chosen = resolve("stage1", profile).profile
    options.require_directory(runs_dir)
    from app.publish.publication import Hub, find_run, prepare, require_name

    require_name(repo)
    token = setting("HF_TOKEN", os.environ)
    if token is None and not dry_run:
        raise ConfigError("HF_TOKEN", "is not set", "set it, or HF_TOKEN_FILE, to a token that may write")
    hub = Hub(os.environ.get("HF_ENDPOINT"), token)
    found = find_run(run, runs_dir, chosen.name)
    what = prepare(found, runs_dir, repo, hub.licence, adapter=adapter, force=force, licence=licence)
    sizes = what.sizes()
    total = f"{len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB"
    if dry_run:
        for name, size in sizes.items():
            click.echo(f"{size:>15,}  {name}")
        path = runs_dir / "publish" / f"{what.tag}.md"
        make_directory(path.parent)
        write_text_atomically(path, what.card)
        click.echo(f"{total} would go to {repo}, tag {what.tag}; its card is {path}")
        return
    click.echo(f"{total} are at {hub.send(what, private=private)}")
