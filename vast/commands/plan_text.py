"""What commands print: the plan of `up` in words, tables."""

import sys
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size
from textwrap import fill

import click

from jobs.columns import Column, table_lines
from jobs.estimate.estimate import Estimate
from vast.marketplace.rows import loading_hours
from vast.policy import Policy
from vast.ports import Offer, hourly
from vast.records.run_dir import Folder, RunRequest
from vast.rental import preflight
from vast.rental.image_needs import Needs
from vast.rental.image_registry import Image
from vast.rental.work import Work, fetched_run
from vast.supervisor.state import Plan


def print_rows(rows: Mapping[str, object]) -> None:
    """On stderr: standard output is for the lines of polls. An empty row is left out; a long one ends no line of a terminal
    within a word."""
    width = get_terminal_size().columns if sys.stderr.isatty() else sys.maxsize
    for name, text in rows.items():
        if text:
            row = f"{name:<12} {text}"
            click.echo(
                fill(row, width, subsequent_indent=" " * 13, break_long_words=False, break_on_hyphens=False), err=True
            )


def print_table(columns: Sequence[Column], cells: Sequence[Sequence[str]], *piped: Sequence[str]) -> None:
    """A table as wide as the terminal; in a pipe tab-separated lines, `piped` if given: the names and the rows."""
    if sys.stdout.isatty():
        lines = table_lines(columns, cells, get_terminal_size().columns)
    else:
        lines = ["\t".join(row) for row in piped or ([column.name for column in columns], *cells)]
    for line in lines:
        click.echo(line)


def print_plan(plan: Plan, policy: Policy, work: Work, request: RunRequest, found: Sequence[Offer], need: Estimate | None,
               begun: Folder | None, image: Image, needs: Needs, left: str, store: str) -> None:  # fmt: skip
    """Print the plan and its cost. found: the offers, best first. left: how many offers each filter leaves."""
    caps, best = policy.caps, found[0]
    estimate = "not known for this GPU"
    if request.estimate_hours is not None and request.estimate_dollars is not None:
        estimate = f"{request.estimate_hours:.1f} h of work, ${request.estimate_dollars:.2f} with loading and the end"
    if need is not None and need.peak_gb is not None:
        estimate += f"; {'a run' if work.is_campaign else 'the stage'} needs {need.peak_gb:g} GB of a GPU's memory"
    bid = f"${plan.bid or 0:.3f} per hour: the machine may be taken away, and the run continues on another one"
    minutes = 60 * loading_hours(best, image.gb or 0.0)
    loading = f"{image.gb or 0:.2f} GB, about {minutes:.0f} min, ${best.traffic:.3f} of traffic on each machine"
    print_rows({
        "campaign": work.is_campaign
        and f"{work.name}: {work.title}; {len(work.jobs)} runs, {len(request.complete)} of them complete here",
        "stage": None if work.is_campaign else work.title,
        "starts from": ", ".join(request.init_runs) or "the base model",
        "continues": begun and f"{fetched_run(begun)}, which is unfinished here; --force begins anew",
        "image": plan.image,
        "offer": f"{best.gpus} x {best.gpu}, {best.vram_gb:g} GB, ${hourly(best, plan.bid):.3f} per hour, "
        f"{best.place or 'place unknown'}; the cheapest of {len(found)} that fit, or the next one if it is gone",
        "estimate": estimate,
        "caps": f"${caps.dollars:.2f} and {caps.hours:g} h, of which {caps.reserve_minutes:g} min are kept for the end",
        "attempts": f"at most {policy.attempts} machines, one after the other",
        "destroyed": _destroyed(policy),
        "bid": None if plan.bid is None else bid,
        "secrets": policy.secrets and f"{', '.join(policy.secrets)}, sent over ssh when the job starts",
        "artifacts": store and f"also to {store}, while it trains",
        "needs": preflight.UNKNOWN_NEEDS if image.labels is None else str(needs),
        "loading": None if image.gb is None else loading,
        "hosts": plan.query.datacenter and "in data centers only, since secrets are sent to them (market.datacenter)",
        "offers": left,
    })  # fmt: skip


def _destroyed(policy: Policy) -> str:
    on = policy.destroy_on
    kept = " or ".join(name for name, destroyed in (("done", on.done), ("failed", on.fail)) if not destroyed)
    return f"unless {kept}; then kept until a cap is near" if kept else "at the end, after a verified pull"
