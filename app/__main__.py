"""The command line: `python -m app COMMAND`. Heavy imports stay inside the commands, so that --help is instant."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.errors import EXIT_STOPPED, ConfigError, UserError
from jobs.load import DEFAULT_PROFILE, resolve, stage_names

if TYPE_CHECKING:
    from app.model import Loaded

MASKS = ["causal", "prefix", "bidirectional"]
profile_option = click.option(
    "--profile", default=DEFAULT_PROFILE, show_default=True, help="Name or path of a profile."
)
runs_option = click.option("--runs-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"),
                           show_default=True, envvar="PREFILL_RUNS", help="Where runs are kept.")  # fmt: skip
model_option = click.option("--model", metavar="PATH_OR_RUN", help="A checkpoint, run or stage in place of the profile's model.")  # fmt: skip
sets_option = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE",
                           help="Override one key, such as train.max_steps=20. Repeatable.")  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """What happens when a decoder-only model may read its prompt in both directions?

    Trains and scores causal language models under a prefix mask: the prompt bidirectional, the answer causal.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("prefill").setLevel(logging.INFO)


def _load(
    profile: str, model: str | None, runs_dir: Path, sets: tuple[str, ...] = (), dtype: str | None = None
) -> Loaded:
    from app.model import find_checkpoint, load

    chosen = resolve("stage1", profile, sets=sets).profile
    return load(chosen.model, checkpoint=find_checkpoint(model, runs_dir) if model else None, dtype=dtype)


@cli.command()
@click.argument("stage")
@profile_option
@click.option("--limit", type=click.IntRange(min=1), help="Items a task.")
@sets_option
@runs_option
@click.option("--seed", type=click.IntRange(min=0), help="In place of the stage's seed.")
@click.option("--force", is_flag=True, help="Repeat a stage that is complete already.")
@click.option("--resume", is_flag=True, help="Go on with the newest unfinished run of this very job.")
def run(stage: str, profile: str, limit: int | None, sets: tuple[str, ...], runs_dir: Path, seed: int | None,
        force: bool, resume: bool) -> None:  # fmt: skip
    """Run a STAGE, such as stage1. A stage that is complete already is not repeated."""
    job = resolve(stage, profile, limit=limit, sets=sets, seed=seed)
    from app.run import run_stage

    outcome = run_stage(job, runs_dir, force=force, resume=resume, now=lambda: datetime.now(UTC))
    state = "complete" if outcome.ran else "complete already; --force repeats it"
    click.echo(f"{stage}: {state}: {outcome.run.path}")


@cli.command()
@click.argument("stage", required=False)
@click.option("--all", "everything", is_flag=True, help="Every stage.")
@profile_option
@sets_option
def check(stage: str | None, everything: bool, profile: str, sets: tuple[str, ...]) -> None:
    """Validate a STAGE and a profile without running anything."""
    if (stage is None) == (not everything):
        raise ConfigError("check", "expected a stage or --all", f"stages: {', '.join(stage_names())}")
    for name in stage_names() if everything else [str(stage)]:
        job = resolve(name, profile, sets=sets)
        _check_paths(job)
        click.echo(f"{name}: valid with profile {job.profile.name}")


def _check_paths(job: Any) -> None:
    """Local paths that the profile names must exist."""
    profile = job.profile
    named = {"data.eval.path": profile.data.eval.path, "data.train.path": profile.data.train.path,
             "model.name": profile.model.name if profile.model.source == "path" else None}  # fmt: skip
    for key, path in named.items():
        if path is not None and not Path(path).expanduser().exists():
            raise ConfigError(f"profile {profile.name}: {key}", f"{path} does not exist", "correct the path")


@cli.command()
@profile_option
@model_option
@click.option("--mask", type=click.Choice(MASKS), required=True)
@click.option("--pairs", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON lines with context and continuation.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The same lines with scores."
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="In place of the profile's.")
@click.option("--format", "boundary", type=click.Choice(["harness", "reference"]), default="harness", show_default=True,
              help="Where a continuation begins, in tokens.")  # fmt: skip
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), default=8192, show_default=True, help="Padded tokens a batch."
)
@runs_option
def loglikelihood(profile: str, model: str | None, mask: str, pairs: Path, out: Path, dtype: str | None, boundary: str,
                  batch_tokens: int, runs_dir: Path) -> None:  # fmt: skip
    """Score continuations given contexts, under any mask."""
    from tqdm import tqdm

    from app import probe, score
    from app.encode import ENCODERS, require_fits
    from app.pairs import read_pairs, write_scored

    rows = read_pairs(pairs)
    loaded = _load(profile, model, runs_dir, dtype=dtype)
    probe.require(loaded.model, [mask], loaded.origin)
    requests = ENCODERS[boundary](loaded.tokenizer, [(row["context"], row["continuation"]) for row in rows])
    require_fits(requests, [f"{pairs}: pair {n}" for n in range(1, len(rows) + 1)], loaded.max_length)
    with tqdm(total=len(rows), desc="score", unit="pair", mininterval=1) as bar:
        scored = score.loglikelihood(loaded, requests, mask, batch_tokens=batch_tokens, progress=bar.update)
    write_scored(out, rows, scored)
    click.echo(
        f"{out}: {len(rows)} pairs under {mask}" + (", which LEAKS the answer" if mask == "bidirectional" else "")
    )


@cli.command()
@profile_option
@model_option
@click.option("--mask", type=click.Choice(MASKS[:2]), default="prefix", show_default=True)
@click.option("--prompt", help="One prompt.")
@click.option(
    "--prompts", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="A file with a prompt a line."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--chat", is_flag=True, help="Put each prompt into the tokenizer's chat template.")
@runs_option
def generate(profile: str, model: str | None, mask: str, prompt: str | None, prompts: Path | None, max_new_tokens: int,
             chat: bool, runs_dir: Path) -> None:  # fmt: skip
    """Answer prompts: prefill under a mask, then ordinary cached decoding."""
    if (prompt is None) == (prompts is None):
        raise ConfigError("generate", "expected one of --prompt and --prompts", "give a text, or a file")
    texts = (
        [prompt] if prompt is not None else [t for t in prompts.read_text(encoding="utf-8").splitlines() if t.strip()]
    )  # type: ignore[union-attr]
    if not texts:
        raise ConfigError(str(prompts), "holds no prompts", "one prompt a line")
    from transformers import TextStreamer

    from app import generate as decoding
    from app import probe

    loaded = _load(profile, model, runs_dir)
    probe.require(loaded.model, [mask], loaded.origin)
    ids = decoding.encode_prompts(loaded, texts, chat=chat)
    streamer = TextStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True) if len(ids) == 1 else None  # type: ignore[arg-type]
    answers = decoding.generate(loaded, ids, mask, max_new_tokens=max_new_tokens, streamer=streamer)
    if streamer is None:
        for text, answer in zip(texts, answers, strict=True):
            click.echo(f"> {text}\n{loaded.tokenizer.decode(answer, skip_special_tokens=True)}\n")


@cli.command()
@profile_option
@model_option
@sets_option
@runs_option
def probe(profile: str, model: str | None, sets: tuple[str, ...], runs_dir: Path) -> None:
    """Check the mask laws on the loaded model, per pattern and layer type. Exit 2 if one does not hold."""
    from app import probe as laws
    from app.attention import layer_types
    from app.mask import PATTERNS

    loaded = _load(profile, model, runs_dir, sets)
    kinds = layer_types(loaded.model)
    click.echo(f"{loaded.origin}: {', '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds))} layers, "
               f"{loaded.attention}, {loaded.dtype}, {loaded.device}")  # fmt: skip
    findings = [*laws.check_dependence(loaded.model, PATTERNS), *laws.check_equivalences(loaded.model, PATTERNS)]
    for finding in sorted(findings, key=lambda f: list(PATTERNS).index(f.pattern)):
        click.echo(f"{'holds' if finding.holds else 'FAILS':6} {finding.pattern:14} {finding.law}"
                   + (f" ({finding.detail})" if finding.detail else ""))  # fmt: skip
    if broken := sum(not finding.holds for finding in findings):
        raise ConfigError(
            loaded.origin, f"{broken} of {len(findings)} laws do not hold", "its scores under a mask mean nothing"
        )


@cli.command()
@runs_option
@click.option("--profile", help="Only runs of this profile. Default: that of the newest complete run.")
@click.option("--compare", nargs=2, metavar="RUN RUN", help="Set two runs beside each other in place of all stages.")
def report(runs_dir: Path, profile: str | None, compare: tuple[str, str] | None) -> None:
    """Print the results and write report.md and report.html."""
    from rich.console import Console

    from app.report import build_report, print_results, write_report

    built = build_report(runs_dir, profile=profile, compare=compare or None)
    print_results(built, Console())
    for path in write_report(built, runs_dir):
        click.echo(f"wrote {path}")


@cli.command()
@runs_option
def runs(runs_dir: Path) -> None:
    """List runs with their state and headline number."""
    from rich.console import Console

    from app.report_list import list_rows, print_runs

    print_runs(list_rows(runs_dir), Console())


def main() -> int:
    """Run the command line; users' mistakes become one line on stderr and an exit code of jobs/errors.py."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except KeyboardInterrupt:
        click.echo("error: interrupted", err=True)
        return EXIT_STOPPED
    except Exception as error:
        from app.stopping import TrainingEnded

        if not isinstance(error, TrainingEnded):
            raise
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
