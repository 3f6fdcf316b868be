"""The plan of `up` in words."""

from __future__ import annotations

import click

from jobs.config.load import Job
from jobs.estimate.estimate import Estimate
from vast.marketplace.rows import loading_hours
from vast.policy import Policy
from vast.ports import Offer
from vast.records.run_dir import RunRequest
from vast.rental import plan as plans
from vast.rental import preflight
from vast.rental.earlier_runs import UnfinishedRun
from vast.rental.image_registry import Image
from vast.rental.plan import Wanted
from vast.supervisor.state import Plan


def print_plan(plan: Plan, policy: Policy, job: Job, request: RunRequest, best: Offer, count: int,
               need: Estimate | None, begun: UnfinishedRun | None) -> None:  # fmt: skip
    """Print the plan and its cost on stderr: standard output is for the lines of polls."""
    caps, price = policy.caps, plans.price_of(best, plan)
    estimate = "not known for this GPU"
    if request.estimate_hours is not None and request.estimate_dollars is not None:
        estimate = f"{request.estimate_hours:.1f} h of work, ${request.estimate_dollars:.2f} with loading and the end"
    if need is not None and need.peak_gb is not None:
        estimate += f"; the stage needs {need.peak_gb:g} GB of a GPU's memory"
    rows = {
        "stage": f"{job.stage.name}, profile {job.profile.name}: {job.stage.title}",
        "starts from": ", ".join(request.init_runs) or "the base model",
        **({} if begun is None else {"goes on": f"with {begun.run}, which is unfinished here; --force begins anew"}),
        "image": plan.image,
        "offer": f"{best.gpus} x {best.gpu}, {best.vram_gb:g} GB, ${price:.3f} per hour, {best.place or 'place unknown'}; "
        f"the cheapest of {count} that fit, or the next one if it is gone",
        "estimate": estimate,
        "caps": f"${caps.dollars:.2f} and {caps.hours:g} h, of which {caps.reserve_minutes:g} min are kept for the end",
        "attempts": f"{policy.attempts} machines, one after the other",
        "destroyed": _words_of(policy),
    }
    if plan.bid is not None:
        rows["bid"] = f"${plan.bid:.3f} per hour: the machine may be taken away, and the run goes on on another one"
    if policy.secrets:
        rows["secrets"] = f"{', '.join(policy.secrets)}, sent over ssh when the job starts"
    for name, value in rows.items():
        click.echo(f"{name:<12} {value}", err=True)


def print_image(plan: Plan, image: Image, wanted: Wanted, best: Offer, left: str) -> None:
    """What the image needs and weighs, and how many offers each filter leaves."""
    needs = preflight.UNKNOWN_NEEDS if image.labels is None else str(wanted.needs)
    rows = {"needs": needs}
    if image.gb is not None:
        minutes = 60 * loading_hours(best, image.gb)
        rows["loading"] = f"{image.gb:.2f} GB, about {minutes:.0f} min, ${best.traffic:.3f} of traffic on each machine"
    if plan.query.datacenter:
        rows["hosts"] = "in data centers only, since secrets are sent to them (market.datacenter)"
    if left:
        rows["offers"] = left
    for name, value in rows.items():
        click.echo(f"{name:<12} {value}", err=True)


def _words_of(policy: Policy) -> str:
    on = policy.destroy_on
    kept = [name for name, destroyed in (("done", on.done), ("failed", on.fail)) if not destroyed]
    return (
        "at the end, after a verified pull"
        if not kept
        else f"unless {' or '.join(kept)}; then kept until a cap is near"
    )
