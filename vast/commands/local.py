"""`python -m vast local STAGE`: the same supervisor with a container of this machine."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import click

from jobs.errors import UserError
from vast import policy as policies
from vast.commands import start
from vast.commands.options import FILE, JobOptions, caps, hours_option, job_options, profile_option, runs_option
from vast.commands.plan_text import print_rows
from vast.commands.wiring import Wiring, wiring_of
from vast.host import subprocess_run
from vast.local import container_spec
from vast.local.container_spec import Asked, ContainerSpec
from vast.local.engine import Engine
from vast.local.engine import connect as reach
from vast.local.engine_errors import EngineError, Missing
from vast.ports import OfferQuery
from vast.records.run_dir import Folder, RunRequest, require_writable
from vast.rental import plan as plans
from vast.rental import preflight
from vast.supervisor.state import Plan

POLICY = Path(__file__).parents[1] / "local" / "policy.yaml"
POLICY_NAME = "vast/local/policy.yaml"


@click.command()
@click.argument("stage")
@profile_option
@click.option("--image", default="prefill:local", show_default=True, envvar="IMAGE", show_envvar=True,
              help="As made by make image.")  # fmt: skip
@hours_option
@click.option("--gpu", default="auto", show_default=True, envvar="GPU", metavar="WHICH",
              help="auto, none, all, or numbers such as 0,1; auto: all of them where the engine can hand them on.")  # fmt: skip
@click.option("--cache", default=container_spec.CACHE["name"], show_default=True, envvar="CACHE",
              help="A volume's name or a directory, for models, data and compiled kernels.")  # fmt: skip
@click.option("--mount", "readable", multiple=True, envvar="MOUNTS", metavar="PATH",
              help="Readable in the container under the same path, such as data that a profile names. Repeatable.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Of the container, too. Repeatable.")
@click.option("--policy", "policy_file", type=FILE,
              help=f"A policy file, laid over vast/policy.yaml and {POLICY_NAME}.")  # fmt: skip
@job_options
@runs_option
@click.option("--yes", is_flag=True, help="As for up; nothing is asked here, since nothing is paid for.")
@click.pass_obj
def local(wiring: Wiring, /, image: str, max_hours: float | None, gpu: str, cache: str, readable: tuple[str, ...],
          labels: tuple[str, ...], policy_file: Path | None, runs_dir: Path, yes: bool, **options: Any) -> None:  # fmt: skip
    """Run STAGE in a container here, under the supervisor. It is watched, restarted, fetched and removed.

    It needs a container engine and neither an account nor ssh. Ctrl-C asks for the end: a checkpoint, a last pull, and the
    container is removed; a second Ctrl-C leaves, and `attach` continues.
    """
    asked = JobOptions(**options)
    policy = policies.load(policy_file, caps(max_hours=max_hours), over={POLICY_NAME: POLICY})
    job = asked.job()
    runs_dir = runs_dir.absolute()
    request = RunRequest(
        asked.stage, job.profile.name, image, gpu, profile_file=asked.profile_file,
        init_runs=preflight.starting_runs(runs_dir, job),
    )  # fmt: skip
    start.run_secrets(policy, wiring.environ)
    engine, identity = reach(wiring.environ)
    spec = decide(engine, identity, Asked(gpu, cache, readable, labels), image, wiring.environ)
    require_writable(runs_dir)
    now = datetime.fromtimestamp(wiring.clock.now(), UTC)
    run_id = plans.run_id_of(asked.stage, now, token_hex(2))
    command = asked.command(wiring.root(run_id))
    plan = Plan(run_id, image, command, OfferQuery(), policy.caps.dollars, policy.caps.hours * plans.HOUR)
    print_rows({
        "stage": f"{asked.stage}, profile {request.profile}",
        "starts from": ", ".join(request.init_runs) or "the base model",
        "image": f"{image} ({spec.image_id.removeprefix('sha256:')[:12]})",
        "container": f"user {spec.user}, GPUs: {spec.gpus}, cache {spec.cache}; removed at the end",
        "caps": f"{policy.caps.hours:g} h, of which {policy.caps.reserve_minutes:g} min are kept for the end",
        "attempts": f"at most {policy.attempts} containers, one after the other",
        "secrets": policy.secrets and f"{', '.join(policy.secrets)}, handed over when the job starts",
    })  # fmt: skip
    folder = Folder(runs_dir, run_id)
    folder.make(request, policies.text(policy))
    container_spec.write(folder.local, spec)
    click.echo(f"run {run_id}: {folder.path}", err=True)
    raise click.exceptions.Exit(start.run_to_its_end(start.session(folder, wiring_of(wiring, engine, spec)), plan))


def decide(engine: Engine, identity: str, asked: Asked, image: str, environ: Mapping[str, str]) -> ContainerSpec:
    """The container spec, once the image is here (pulled if absent). Raises UserError before anything is made."""
    where = f"--image {image}"
    try:
        info = engine.info()
        try:
            image_id = engine.image(image)
        except Missing:
            click.echo(f"{image}: not here; pulling it", err=True)
            engine.pull(image)
            image_id = engine.image(image)
    except EngineError as error:
        fact = f"no such image here, and it cannot be pulled ({error})"
        raise UserError(where, fact, "build it: make image; or correct --image") from None
    caller = (os.getuid(), os.getgid())
    listing = partial(subprocess_run.run, ["nvidia-smi", "-L"], timeout=20, env=os.environ)
    return container_spec.decide(asked, info, identity, image_id, environ, caller, lambda: listing().code == 0)
