"""python -m vast.simulate: many seeds, or one of them with its time line. Exit code 0: every invariant held."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import click

from jobs.errors import EXIT_BUG, UserError
from vast import policy as policies
from vast.simulate import campaign, run
from vast.simulate.campaign import Summary
from vast.simulate.faults import MODES, STEPS, schedule


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seeds", default=2000, show_default=True, type=click.IntRange(1), metavar="N", help="How many, from 0.")
@click.option(
    "--policy",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A policy file, laid over vast/policy.yaml.",
)
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Replay this one, with its time line.")
@click.option("--processes", default=min(8, os.cpu_count() or 1), type=click.IntRange(1),
              metavar="N", show_default="the processors, at most 8", help="Worlds at a time.")  # fmt: skip
def main(seeds: int, path: Path | None, as_json: bool, seed: int | None, processes: int) -> None:
    """Run the supervisor in simulated worlds full of faults."""
    try:
        policy = policies.load(path)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if seed is not None:
        one = run.run(schedule(seed), policy, trace=True)
        click.echo("\n".join([*one.lines, f"result: {one.result}"]))
        sys.exit(EXIT_BUG if one.violations else 0)
    found = campaign.campaign(range(seeds), partial(campaign.run_seed, policy=policy), min(processes, seeds))
    click.echo(json.dumps(found.to_dict(), sort_keys=True) if as_json else as_text(found))
    sys.exit(EXIT_BUG if found.violations else 0)


ROWS = (
    "rentals", "succeeded", "leaks", "double_rents", "lost_artifacts", "avoidable_losses", "named_losses",
    "wrong_verdicts", "overspend_max", "overspend_mean", "idle_dollars", "dollars", "seconds",
)  # fmt: skip


def as_text(found: Summary) -> str:
    lines = [f"{found.seeds} seeds, {found.violations} violations"]
    for row in ROWS:
        value = getattr(found, row)
        lines.append(f"  {row:<16}{value:>14{'.4g' if isinstance(value, float) else ''}}")
    met = ", ".join(f"{number} {mode} {found.modes[mode]}" for mode, number in MODES.items())
    lines.append(f"failure modes met, in how many seeds: {met}")
    lines += ["losses by cause:", *(f"  {cause:<42}{count:>6}" for cause, count in found.losses.most_common())]
    lines += [
        f"seed {seed}: {name}: {what}; replay: python -m vast.simulate --seed {seed}"
        for seed, name, what in found.failing[:20]
    ]
    day = campaign.day()
    lines.append(
        f"a healthy day, {STEPS} steps: {day.calls['api']} API calls, {day.calls['ssh']} ssh connections, "
        f"${day.idle_dollars:.2f} of ${day.dollars:.2f} idle"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
