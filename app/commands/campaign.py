"""`campaign`: a matrix of suites, recipes, masks, seeds and models, in one process or dealt over several."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.commands import options
from app.runtime.ranks import die_with_the_launcher
from app.runtime.signals import StopFlag
from app.stage.campaign import Ledger, Standing, deal, devices_of, run_cells
from app.stage.run import require_paths
from jobs.columns import Column, table_lines
from jobs.config.campaign import Campaign, campaign_names, cells, read_campaign, require_parts, share
from jobs.errors import ConfigError
from jobs.estimate.estimate import estimate
from jobs.estimate.gpus import gpu_named

_COLUMNS = (Column("Profile", drop=2), Column("Suite"), Column("Order"), Column("Recipe"), Column("Mask"),
            Column("Seed", right=True), Column("Steps", right=True, drop=3), Column("State"), Column("Result", right=True),
            Column("Headline", drop=1, least=12))  # fmt: skip


@click.command()
@click.argument("name", metavar="CAMPAIGN")
@options.runs
@click.option("--plan", is_flag=True, help="Print runs, hours and dollars, and start nothing.")
@click.option("--gpu", metavar="NAME", help="GPU of the plan, such as H100_SXM.  [default: the campaign's]")
@click.option("--price", type=options.Finite(min=0, min_open=True), metavar="DOLLARS",
              help="What that GPU costs an hour.  [default: the campaign's]")  # fmt: skip
@click.option("--workers", type=options.Whole(min=1), default=1, show_default=True, metavar="N",
              help="Deal the runs over N processes, each with a GPU of its own where there are GPUs.")  # fmt: skip
@click.option("--share", "part", metavar="I/N", help="Only one of N shares, such as an element of a Slurm array. I counts from "
              "0: the halves are 0/2 and 1/2.")  # fmt: skip
@click.option("--worker", is_flag=True, hidden=True)  # started by --workers: ends with the process that deals
def campaign(name: str, runs_dir: Path, plan: bool, gpu: str | None, price: float | None, workers: int, part: str | None,
             worker: bool) -> None:  # fmt: skip
    """Run what is left of a CAMPAIGN, a matrix of runs.

    CAMPAIGN: the name of a file in jobs/campaigns, or the path of a YAML file.

    Runs that are complete already are passed over, and those that were interrupted go on: a killed campaign is started
    again with the same command.
    """
    if worker:
        die_with_the_launcher()
    chosen, where = read_campaign(name)
    every = cells(chosen, where)
    require_parts("--workers", workers, len(every))
    if part is not None and workers > 1:
        raise ConfigError("campaign", "expected --share or --workers, found both", "leave one out")
    if not plan and (gpu is not None or price is not None):
        raise ConfigError("campaign", "--gpu and --price are of a plan", "add --plan, or leave them out")
    gpu = chosen.gpu if gpu is None else gpu
    if gpu is not None:
        gpu_named(gpu)  # that of the file too, before anything runs
    index, parts = (0, 1) if part is None else _part(part, len(every))
    mine = share(every, index, parts)
    ledger = Ledger(name if name in campaign_names() else Path(name).stem, chosen, mine if plan else every, runs_dir)
    whole = "" if part is None else (
        f"share {part} of the {len(every)} runs; the shares are 0/{parts} to {parts - 1}/{parts}: start each")  # fmt: skip
    if plan:
        lines = list(_plan(ledger.standings(), chosen, gpu, price or chosen.dollars_an_hour, workers))
        click.echo("\n".join([*lines, *filter(None, [whole])]))
        return
    for cell in mine:
        require_paths(cell.job)
    ledger.declare(datetime.now(UTC))
    click.echo(f"{name}: {len(mine)} runs; primary: {_primary(chosen)}")
    if whole:
        click.echo(whole)
    try:
        if workers > 1:
            _deal(name, runs_dir, workers, ledger)
        else:
            run_cells(mine, runs_dir, now=lambda: datetime.now(UTC), say=click.echo, each=ledger.record)
    finally:
        ledger.record()
    if not worker:
        for line in table(ledger.standings(), Console().width):
            click.echo(line)


def _primary(chosen: Campaign) -> str:
    from app.report.campaign import in_words  # numpy, which the start of other commands does without

    return in_words(chosen.primary)


def _part(text: str, runs: int) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ConfigError(f"--share {text}", "expected I/N, with I from 0 to N - 1", "such as 0/4")
    require_parts("--share", int(found[2]), runs)
    return int(found[1]), int(found[2])


def table(standings: Sequence[Standing], width: int) -> list[str]:
    rows = [[*(word or "-" for word in one.cell.place.values()), one.state, *_result(one)] for one in standings]
    return table_lines(_COLUMNS, rows, width)


def _result(one: Standing) -> tuple[str, str]:
    """Result and headline as `runs` lists them: a run's first number, and its name or the reason why the run ended."""
    from app.report.run_list import row_of  # numpy, as above

    if one.run is None:
        return "-", ""
    row = row_of(one.run)
    return row.result, row.headline


def _plan(
    standings: Sequence[Standing], chosen: Campaign, gpu: str | None, price: float | None, workers: int
) -> Iterator[str]:
    """Runs by group, hours at most, dollars."""
    yield from table(standings, Console().width)
    todo = [one.cell.job for one in standings if one.state != "complete"]
    yield f"{len(standings)} runs, {len(standings) - len(todo)} of them complete; primary: {_primary(chosen)}"
    if gpu is None:
        yield "hours: not known; give --gpu"
        return
    found = [estimate(job, gpu, job.profile.gpus) for job in todo]
    if unknown := next((one.unknown or one.lack for one in found if one.hours is None or one.fits is False), None):
        yield f"hours: not known on {gpu}: {unknown}"
        return
    hours = sum(one.hours or 0.0 for one in found)
    days = f", {hours / workers:.1f} h with {workers} workers" if workers > 1 else ""
    cost = f"{hours * price:,.2f} dollars at {price:g} an hour" if price is not None else "dollars: give --price"
    yield f"{len(todo)} to run on {gpu}: at most {hours:.1f} h{days}; {cost}"


def _deal(name: str, runs_dir: Path, workers: int, ledger: Ledger) -> None:
    from app.runtime.launch import gpus_here

    devices = devices_of(workers, os.environ, gpus_here())
    console = Console()
    with StopFlag().listening() as stop, Live(console=console, auto_refresh=False) as live:
        deal(["campaign", name, "--runs-dir", str(runs_dir)], devices, ledger.path.with_suffix(""), stop=stop,
             look=progress(ledger.standings, live, console))  # fmt: skip


def progress(standings: Callable[[], Sequence[Standing]], live: Live, console: Console) -> Callable[[], None]:
    """On a terminal a table that is drawn anew; without one, a line for each change of a state."""
    before: dict[str, str] = {}

    def look() -> None:
        found = standings()
        if console.is_terminal:
            live.update(Text("\n".join(table(found, console.width))), refresh=True)
            return
        for one in found:
            if before.get(one.cell.name, "open") != one.state:
                console.out(f"{one.cell.name}: {one.state} {' '.join(_result(one))}".rstrip(" -"), highlight=False)
            before[one.cell.name] = one.state

    return look
