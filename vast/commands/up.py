"""`offers` and `up`: list offers, and run a stage on a rented machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import click

from jobs.config.load import DEFAULT_PROFILE, Job, profile_names, resolve
from jobs.errors import ConfigError
from jobs.estimate.estimate import Estimate
from jobs.runs.rundir import resolve_init
from vast import policy as policies
from vast.commands import start
from vast.commands.offer_table import show_offers
from vast.commands.options import POSITIVE, cap_options, machine_options, policy_option, profile_option, runs_option
from vast.commands.wiring import Wiring, inputs_of
from vast.marketplace.rows import loading_hours, rank
from vast.policy import Policy
from vast.ports import Offer
from vast.records.run_dir import Folder, RunRequest, renting, require_writable
from vast.rental import earlier_runs, preflight
from vast.rental import plan as plans
from vast.rental.earlier_runs import UnfinishedRun
from vast.rental.image_needs import needs_of
from vast.rental.image_registry import Image
from vast.rental.plan import Wanted
from vast.shell.sshkey import public_key, require_usable
from vast.supervisor.state import Plan


@click.command()
@click.argument("stage", required=False)
@click.option("--profile", default=DEFAULT_PROFILE, show_default=True, help="Of the stage whose total is estimated.")
@machine_options
@cap_options
@policy_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Offers to show.")
@click.pass_obj
def offers(wiring: Wiring, stage: str | None, profile: str, gpu: str | None, gpus: int, min_vram: float | None,
           max_price: float | None, disk: float, interruptible: bool, max_cost: float | None, max_hours: float | None,
           policy_file: Path | None, limit: int) -> None:  # fmt: skip
    """Show offers that fit now, cheapest first; with a STAGE also what it would cost there."""
    policy = policies.load(policy_file, _caps(max_cost, max_hours))
    job = None if stage is None else resolve(stage, profile)
    wanted = Wanted(gpu, gpus, min_vram or 0.0, max_price, disk, interruptible)
    cloud, _ = wiring.connect(wiring.environ, wiring.home, wiring.clock)
    preflight.account(cloud, wiring.environ, wiring.home)
    found = preflight.offers(cloud, replace(plans.query_of(wanted, policy), limit=limit))
    hours = [None if job is None else plans.hours_of(plans.estimated(wiring.estimate, job, one)) for one in found]
    show_offers(found, hours, policy, interruptible)


@dataclass(frozen=True)
class UpOptions:
    """The argument and options of `up`, each under its own name."""

    stage: str
    profile: str
    image: str
    max_cost: float | None
    max_hours: float | None
    gpu: str | None
    gpus: int
    min_vram: float | None
    max_price: float | None
    disk: float
    interruptible: bool
    bid: float | None
    destroy_on: str | None
    policy_file: Path | None
    limit: int | None
    seed: int | None
    sets: tuple[str, ...]
    force: bool
    ssh_key: Path | None
    runs_dir: Path
    yes: bool
    detach: bool

    def policy(self) -> Policy:
        return policies.load(self.policy_file, {**_caps(self.max_cost, self.max_hours), **_destroy_on(self.destroy_on)})

    def job(self) -> Job:
        """The stage with everything decided. Raises ConfigError, also where it names paths of this machine."""
        job = resolve(self.stage, self.profile, limit=self.limit, sets=self.sets, seed=self.seed)
        preflight.require_no_paths(job)
        return job

    def machine(self) -> Wanted:
        """The machine to look for. Raises ConfigError unless --interruptible and --bid come together."""
        if self.interruptible != (self.bid is not None):
            raise ConfigError(
                "--interruptible", "goes with --bid", "see the least bids: python -m vast offers --interruptible"
            )
        return Wanted(
            self.gpu, self.gpus, self.min_vram or 0.0, self.max_price, self.disk, self.interruptible, self.bid
        )

    @property
    def profile_file(self) -> Path | None:
        """The profile's own file, where it is not one of those shipped."""
        return None if self.profile in profile_names() else Path(self.profile).absolute()


@click.command()
@click.argument("stage")
@profile_option
@click.option("--image", required=True, envvar="IMAGE", show_envvar=True,
              help="As pushed by make push: registry/name:tag. The machine pulls its -host tag.")  # fmt: skip
@cap_options
@machine_options
@click.option("--bid", type=POSITIVE, metavar="DOLLARS", help="Per hour, of an interruptible machine.")
@click.option("--destroy-on", metavar="ENDS", help="Which ends destroy the machine: done,fail (the default), done, fail or "
              "none. Otherwise it is kept for a person until a cap is near.")  # fmt: skip
@policy_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Score only the first N items of each task.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="In place of the stage's seed.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override one key of the stage. Repeatable.")
@click.option(
    "--force", is_flag=True, help="Repeat a stage that is complete here, or begin anew one that is unfinished."
)
@click.option("--ssh-key", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="A private key without a passphrase, or whose agent runs. Default: a new one for this run.")  # fmt: skip
@runs_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--detach", is_flag=True, help="Watch in the background; the terminal may be closed.")
@click.pass_obj
def up(wiring: Wiring, /, **options: Any) -> None:
    """Rent a machine, run STAGE on it, watch it, bring everything home, and destroy it.

    Prints the plan and asks, unless --yes. Ctrl-C asks for the end: a checkpoint, a last pull, and the machine is
    destroyed; a second Ctrl-C leaves, and `attach` goes on.
    """
    asked = UpOptions(**options)
    preflight.tools(wiring.which)
    policy, job, wanted, runs_dir = asked.policy(), asked.job(), asked.machine(), asked.runs_dir.absolute()
    now = datetime.fromtimestamp(wiring.clock.now(), UTC)
    run_id = plans.run_id_of(asked.stage, now, token_hex(2))
    profile_file = asked.profile_file
    sent = asked.profile if profile_file is None else f"/runs/{plans.INPUTS}/{profile_file.name}"
    command = plans.command_of(asked.stage, sent, limit=asked.limit, sets=asked.sets, seed=asked.seed)
    plan = plans.plan_of(run_id, asked.image, command, wanted, policy)
    ssh_key = None if asked.ssh_key is None else asked.ssh_key.absolute()
    request = RunRequest(
        asked.stage, job.profile.name, asked.image, asked.gpu, asked.gpus,
        None if profile_file is None else str(profile_file), preflight.starting_runs(runs_dir, job),
        ssh_key=None if ssh_key is None else str(ssh_key),
    )  # fmt: skip
    for one in inputs_of(runs_dir, request):
        one.files()  # raises now if a file cannot be sent
    settings = job.settings(resolve_init(runs_dir, job))

    def refuse_twice() -> None:
        if not asked.force:
            earlier_runs.refuse_complete(runs_dir, asked.stage, settings)
            earlier_runs.refuse_open(runs_dir, plan.command)

    refuse_twice()
    begun = None if asked.force else earlier_runs.unfinished(runs_dir, asked.stage, settings)
    public = None
    if ssh_key is not None:
        public = public_key(ssh_key, wiring.environ)
        require_usable(ssh_key, wiring.environ)
    login = start.run_secrets(policy, wiring).login
    require_writable(runs_dir)
    cloud, _ = wiring.connect(wiring.environ, wiring.home, wiring.clock)
    account = preflight.account(cloud, wiring.environ, wiring.home)
    preflight.require_listing(cloud)
    answer = wiring.registry(plan.image, login)
    image = answer if isinstance(answer, Image) else Image(answer)
    preflight.image(image.found, plan.image, login is not None)
    wanted = replace(wanted, needs=needs_of(asked.image, image.labels or {}), image_gb=image.gb or 0.0)
    plan = plans.plan_of(run_id, asked.image, command, wanted, policy)
    found, need = preflight.offers(cloud, plan.query), 0.0
    estimate = plans.estimated(wiring.estimate, job, found[0])
    wanted = replace(wanted, work_hours=plans.hours_of(estimate) or 0.0)  # what is cheap for the work comes first
    plan = plans.plan_of(run_id, asked.image, command, wanted, policy)
    found = tuple(sorted(found, key=lambda one: rank(one, plan.query)))
    if asked.gpu is None and (need := plans.least_vram(estimate)):
        wanted = replace(wanted, min_vram_gb=max(need, wanted.min_vram_gb))
        plan = plans.plan_of(run_id, asked.image, command, wanted, policy)
        found = preflight.offers(cloud, plan.query)
        estimate = plans.estimated(wiring.estimate, job, found[0])
    preflight.require_memory(estimate, found[0])
    best, hours = found[0], plans.hours_of(estimate)
    price = plans.price_of(best, plan)
    preflight.require_credit(account, price, policy)
    overhead = plans.overhead_hours(policy, best, wanted.image_gb)
    plans.require_caps(policy, price, hours, overhead=overhead, traffic=best.traffic)
    dollars = None if hours is None else price * (hours + overhead) + best.traffic
    request = replace(request, estimate_hours=hours, estimate_dollars=dollars)
    print_plan(plan, policy, job, request, best, len(found), estimate, begun)
    print_image(plan, image, wanted, best, preflight.filters_left(cloud, plan.query))
    if image.found == "unknown":
        click.echo(
            "its registry could not be asked whether the image is there; the first machine will show it", err=True
        )
    if not asked.yes:
        _ask(wiring)
    folder = Folder(runs_dir, run_id)
    with renting(runs_dir, wiring.clock) as release:
        refuse_twice()  # the question may have waited for hours
        folder.make(request, policies.text(policy))
        if begun is not None:
            earlier_runs.copy_receipt(begun, folder)
        plan = replace(plan, public_key=public or wiring.make_key(folder.path), account=account.id)
        click.echo(f"run {run_id}: {folder.path}", err=True)
        raise click.exceptions.Exit(start.supervise(folder, wiring, plan, asked.detach, on_begin=release))


def _ask(wiring: Wiring) -> None:
    if not wiring.is_terminal():
        raise ConfigError("up", "nobody can be asked, since the input is no terminal", "check the plan and say --yes")
    if not click.confirm("rent?", default=False):
        raise click.exceptions.Abort


def _caps(max_cost: float | None, max_hours: float | None) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    if max_cost is not None:
        layers[f"--max-cost {max_cost:g}"] = {"caps": {"dollars": max_cost}}
    if max_hours is not None:
        layers[f"--max-hours {max_hours:g}"] = {"caps": {"hours": max_hours}}
    return layers


def _destroy_on(text: str | None) -> dict[str, dict[str, Any]]:
    if text is None:
        return {}
    ends = {word.strip() for word in text.split(",")} - {"none"}
    if not ends <= {"done", "fail"} or not text.strip():
        raise ConfigError(f"--destroy-on {text}", "expected done, fail, done,fail or none", "correct it")
    return {f"--destroy-on {text}": {"destroy_on": {"done": "done" in ends, "fail": "fail" in ends}}}


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
    needs = "not known: the registry does not show its labels" if image.labels is None else str(wanted.needs)
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
