"""`up`: run a stage on a rented machine. Every check before money, the plan, the question; then a supervisor is launched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar

import click

from jobs.config.campaign import campaign_names, require_stage
from jobs.config.job import Job
from jobs.config.load import DEFAULT_PROFILE
from jobs.errors import ConfigError
from jobs.estimate.estimate import Estimate
from jobs.runs.atomic import write_text_atomically
from vast import policy as policies
from vast.commands import options, start
from vast.commands.options import JobOptions
from vast.commands.plan_text import print_plan
from vast.commands.wiring import Wiring, inputs_of
from vast.marketplace.rows import rank
from vast.policy import Policy
from vast.ports import Cloud, Offer, OfferQuery, hourly
from vast.records.run_dir import Folder, RunRequest, renting, require_writable
from vast.rental import plan as plans
from vast.rental import preflight
from vast.rental import work as works
from vast.rental.image_needs import Needs
from vast.rental.onstart import onstart
from vast.shell.keys import require_usable
from vast.shell.local_copy import RECEIPT
from vast.supervisor.state import Plan

# Runs the supervisor of a new run and returns the exit code. The callback is for the moment when its journal has begun.
Launch = Callable[[Folder, Plan, Callable[[], None]], int]


@dataclass(frozen=True, kw_only=True)
class RentOptions(JobOptions):
    """The argument and options of `up`, each under its own name."""

    image: str
    runs_dir: Path
    max_cost: float | None = None
    max_hours: float | None = None
    gpu: str | None = None
    gpus: int = 1
    min_vram: float | None = None
    max_price: float | None = None
    disk: float = plans.DISK_GB
    interruptible: bool = False
    bid: float | None = None
    destroy_on: str | None = None
    policy_file: Path | None = None
    force: bool = False
    ssh_key: Path | None = None
    yes: bool = False
    PRICE_OPTION: ClassVar[str] = "--max-price"  # for the remedy where every offer is dearer

    def policy(self) -> Policy:
        return policies.load(self.policy_file, {**options.caps(self.max_cost, self.max_hours), **self.overrides()})

    def overrides(self) -> Mapping[str, Mapping[str, Any]]:
        """More layers of the policy."""
        ends = self.destroy_on
        if ends is None:
            return {}
        return {f"--destroy-on {ends}": {"destroy_on": {"done": "done" in ends, "fail": "fail" in ends}}}

    def work(self) -> works.Work:
        """A stage, or a campaign. Raises ConfigError, also where it names paths of this machine."""
        if self.stage in campaign_names() or self.stage.endswith((".yaml", ".yml")):
            profile = None if self.profile == DEFAULT_PROFILE else self.profile
            of_stage = {"--profile": profile, "--limit": self.limit, "--seed": self.seed, "--set": self.sets or None}
            given = [option for option, value in of_stage.items() if value is not None]
            return works.campaign(self.stage, given, self.gpus, self.runs_dir.absolute())
        require_stage(self.stage)
        job = self.job()
        preflight.require_no_paths(job)
        return works.Work(job.stage.name, f"{job.stage.name}, profile {job.profile.name}: {job.stage.title}", (job,))

    def machine(self, policy: Policy) -> OfferQuery:
        """The machine to look for. Raises ConfigError unless --interruptible and --bid come together."""
        if self.interruptible != (self.bid is not None):
            remedy = "see the least bids: python -m vast offers --interruptible"
            raise ConfigError("--interruptible", "goes with --bid", remedy)
        return plans.query_of(
            policy, gpu=self.gpu, gpus=self.gpus, min_vram_gb=self.min_vram or 0.0, max_price=self.max_price, bid=self.bid,
            disk_gb=self.disk, interruptible=self.interruptible,
        )  # fmt: skip


@click.command()
@click.argument("stage", metavar="STAGE|CAMPAIGN")
@options.profile_option
@options.image_option
@options.cap_options
@options.machine_options
@click.option("--bid", type=options.POSITIVE, metavar="DOLLARS", help="Per hour, of an interruptible machine.")
@click.option("--destroy-on", type=click.Choice(["done,fail", "done", "fail", "none"]), metavar="ENDS",
              help="Which ends destroy the machine: done,fail (the default), done, fail or none. Otherwise it is kept for a "
              "person until a cap is near.")  # fmt: skip
@options.policy_option
@options.job_options
@click.option(
    "--force", is_flag=True, help="Repeat a stage that is complete here, or begin anew one that is unfinished."
)
@options.ssh_key_option
@options.runs_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--detach", is_flag=True, help="Watch in the background; the terminal may be closed.")
@click.pass_obj
def up(wiring: Wiring, /, detach: bool, **given: Any) -> None:
    """Rent a machine and run STAGE, or a CAMPAIGN, on it.

    It is watched, everything is fetched, and the machine is destroyed.

    A campaign is the name of a file in jobs/campaigns, or the path of a YAML file. Runs that are complete here are passed
    over, there too.

    Prints the plan and asks, unless --yes. Ctrl-C asks for the end: a checkpoint, a last pull, and the machine is
    destroyed; a second Ctrl-C leaves, and `attach` continues.
    """
    code = rent(
        RentOptions(**given), wiring,
        lambda folder, plan, release: start.supervise(folder, wiring, plan, detach, on_begin=release),
    )  # fmt: skip
    raise click.exceptions.Exit(code)


def rent(asked: RentOptions, wiring: Wiring, launch: Launch) -> int:
    """Check, print the plan, ask, and launch a supervisor. Returns its exit code. Raises UserError before money is spent."""
    preflight.tools(wiring.which)
    policy, work, runs_dir = asked.policy(), asked.work(), asked.runs_dir.absolute()
    query = asked.machine(policy)
    now = datetime.fromtimestamp(wiring.clock.now(), UTC)
    run_id = plans.run_id_of(work.name, now, token_hex(2))
    root, first = wiring.root(run_id), work.jobs[0]
    sent = work.name if work.file is None else f"{root}/{plans.INPUTS}/{Path(work.file).name}"
    command = ("campaign", sent) if work.is_campaign else asked.command(root)  # a campaign always continues
    pulled = plans.host_image(asked.image)
    ssh_key = None if asked.ssh_key is None else asked.ssh_key.absolute()
    jobs, complete = (work.jobs, ()) if asked.force else work.left(runs_dir)
    profiles = ", ".join(sorted({job.profile.name for job in work.jobs}))
    request = RunRequest(
        f"campaign {work.name}" if work.is_campaign else work.name, profiles, asked.image, asked.gpu, asked.gpus,
        work.file if work.is_campaign else asked.profile_file, preflight.starting_runs(runs_dir, first),
        ssh_key=None if ssh_key is None else str(ssh_key), campaign=work.name if work.is_campaign else None,
        complete=complete if work.is_campaign else (),
    )  # fmt: skip
    for one in inputs_of(runs_dir, request):
        one.files()  # raises now if a file cannot be sent
    settings = work.settings(runs_dir)

    def refuse_twice() -> None:
        if not asked.force:
            works.refuse_complete(runs_dir, settings)
            works.refuse_open(runs_dir, command, run_id)

    refuse_twice()
    begun = None if asked.force else works.unfinished(runs_dir, settings)
    public = None if ssh_key is None else require_usable(ssh_key, wiring.environ)
    _, login = start.run_secrets(policy, wiring.environ)
    for job in jobs:
        preflight.terms(job, policy, wiring.environ)
    stores = {store for job in jobs if (store := preflight.artifacts(job, policy, wiring.environ))}
    require_writable(runs_dir)
    cloud, _ = wiring.connect(wiring.environ, wiring.home, wiring.clock)
    account = preflight.account(cloud, wiring.environ, wiring.home)
    if account.id is None and wiring.first_process is onstart:  # no other account's key could be told from its own
        raise preflight.MarketError("Vast.ai", "the account is shown without its number", preflight.UNSEEN)
    preflight.require_listing(cloud)
    image = wiring.registry(pulled, login)
    preflight.image(image.found, pulled, login is not None)
    needs = Needs(asked.image, image.labels or {})
    query = plans.for_image(query, needs, image.gb or 0.0, policy)
    query, found, estimate = _choose(cloud, wiring, jobs, query, asked.PRICE_OPTION)
    plan = Plan(run_id, pulled, command, query, policy.caps.dollars, policy.caps.hours * plans.HOUR, bid=asked.bid)
    best, hours = found[0], plans.hours_of(estimate)
    price = hourly(best, asked.bid)
    preflight.require_credit(account, price, policy)
    overhead = plans.overhead_hours(policy, best, query.down_gb)
    plans.require_caps(policy, price, hours, overhead=overhead, traffic=best.traffic)
    dollars = None if hours is None else price * (hours + overhead) + best.traffic
    request = replace(request, estimate_hours=hours, estimate_dollars=dollars)
    left = preflight.filters_left(cloud, query)
    print_plan(plan, policy, work, request, found, estimate, begun, image, needs, left, ", ".join(sorted(stores)))
    if image.found == "unknown":
        click.echo("its registry could not be asked for the image; the first machine will show it", err=True)
    if not asked.yes:
        _ask(wiring)
    folder = Folder(runs_dir, run_id)
    with renting(runs_dir, wiring.clock) as release:
        refuse_twice()  # the question may have waited for hours
        folder.make(request, policies.text(policy))
        if begun is not None:
            # it lists the verified local files: the new run pushes them to its machine and continues from them
            write_text_atomically(folder.path / RECEIPT, (begun.path / RECEIPT).read_text(encoding="utf-8"))
        plan = replace(plan, public_key=public or wiring.make_key(folder.path), account=account.id)
        click.echo(f"run {run_id}: {folder.path}", err=True)
        return launch(folder, plan, release)


def _choose(
    cloud: Cloud, wiring: Wiring, jobs: Sequence[Job], query: OfferQuery, price_option: str
) -> tuple[OfferQuery, tuple[Offer, ...], Estimate | None]:
    """The offers, cheapest for the jobs first, with the estimate for the first one; without --gpu a GPU that holds each.

    Raises MarketError, ConfigError.
    """
    found = preflight.offers(cloud, query, price_option)
    estimate = plans.estimated(wiring.estimate, jobs, found[0])
    query = replace(query, work_hours=plans.hours_of(estimate) or 0.0)
    found = tuple(sorted(found, key=lambda one: rank(one, query)))
    if query.gpu is None and (need := plans.least_vram(estimate)):
        query = replace(query, min_vram_gb=max(need, query.min_vram_gb))
        found = preflight.offers(cloud, query, price_option)
        estimate = plans.estimated(wiring.estimate, jobs, found[0])
    preflight.require_memory(estimate, found[0])
    return query, found, estimate


def _ask(wiring: Wiring) -> None:
    if not wiring.is_terminal():
        raise ConfigError("standard input", "is no terminal, so nobody can be asked", "check the plan, then add --yes")
    if not click.confirm("rent?", default=False):
        raise click.exceptions.Abort
