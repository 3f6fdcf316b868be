"""The ports of a command: the only place that makes the real ones, and the seam for tests.

A command gets a `Wiring` as click's `obj`; a test passes its own, with a fake shell and a clock that it moves.
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.config.load import stage_names
from jobs.errors import ConfigError, RunStateError, expanded
from jobs.estimate.estimate import estimate
from jobs.runs.atomic import io_errors_reported
from vast.host.subprocess_run import Ended
from vast.local import container_spec
from vast.local.container_spec import ContainerSpec
from vast.local.engine import Engine
from vast.local.engine import connect as reach
from vast.local.local_cloud import LocalCloud
from vast.local.transport import LocalTransport
from vast.marketplace.account_key import find_key
from vast.marketplace.http import DEFAULT_URL, checked_url
from vast.marketplace.ssh_hosts import Machine, SshHosts, load
from vast.marketplace.vast_ai import VastAI
from vast.ports import Address, Clock, Cloud, Seconds, label_text
from vast.records.run_dir import Folder, RunRequest
from vast.rental import image_registry
from vast.rental.image_registry import Image
from vast.rental.onstart import Switch, onstart, without_market
from vast.rental.plan import INPUTS, Estimator
from vast.secrets import Secret
from vast.session.clock import SystemClock
from vast.shell import network
from vast.shell.hostshell import CODE, ROOT, HostShell
from vast.shell.keys import make_key
from vast.shell.local_copy import LocalCopy
from vast.shell.push import Input
from vast.shell.ssh import SshTransport
from vast.shell.transport import Transport


@dataclass(frozen=True)
class ShellContext:
    folder: Folder
    request: RunRequest
    secrets: Mapping[str, Secret]
    clock: Clock
    environ: Mapping[str, str]
    instance: Callable[[], int | None]  # the current one: host keys are pinned per instance


def connect(environ: Mapping[str, str], home: Path, clock: Clock) -> tuple[Cloud, Secret]:
    """The market, and the account's key for a redactor. Raises AccountKeyError, UrlError."""
    key = find_key(environ, home)
    return VastAI(key, clock, environ.get("VAST_URL") or DEFAULT_URL), key


def host_shell(context: ShellContext, way: Transport, network_is_up: Callable[[], bool], **more: Any) -> HostShell:
    """The shell of a run over the transport `way`. more: arguments of HostShell."""
    folder, request = context.folder, context.request
    stage = request.stage if request.stage in stage_names() else None  # else a campaign, or a damaged request
    return HostShell(
        way, LocalCopy(folder.runs_dir, folder.path, request.campaign, request.complete, stage), folder.nonce(), context.clock,
        network_is_up, secrets=lambda: context.secrets, inputs=inputs_of(folder.runs_dir, request), **more,
    )  # fmt: skip


def over_ssh(context: ShellContext, *, key: Path | None = None, user: str = "root",
             probes: Sequence[tuple[str, int]] = (), **more: Any) -> HostShell:  # fmt: skip
    """probes: what shows that our own network works; default: the market's API. Raises UserError if ssh or rsync is missing."""
    folder, own = context.folder, context.request.ssh_key
    key = key or (None if own is None else Path(own))
    if not probes:
        api = checked_url(context.environ.get("VAST_URL") or DEFAULT_URL)
        probes = ((str(api.hostname), api.port or (443 if api.scheme == "https" else 80)),)
    policy = folder.kept_policy()
    way = SshTransport(folder.path, key, pin=lambda: str(context.instance() or ""), user=user, environ=context.environ)
    return host_shell(
        context, way, lambda: network.is_up(probes), grace=policy.watchdog.grace, mbit=policy.bandwidth_mbit,
        gpus=context.request.gpus, **more,
    )  # fmt: skip


def inputs_of(runs_dir: Path, request: RunRequest) -> tuple[Input, ...]:
    """Files the stage needs on its machine: the runs that it starts from, and a user's own profile file."""
    found = [Input(runs_dir, request.init_runs)] if request.init_runs else []
    if request.profile_file is not None:
        profile = Path(request.profile_file)
        found.append(Input(profile.parent, (profile.name,), to=INPUTS))
    return tuple(found)


@dataclass(frozen=True)
class Wiring:
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    home: Path = field(default_factory=Path.home)
    clock: Clock = field(default_factory=SystemClock)
    which: Callable[[str], str | None] = shutil.which
    is_terminal: Callable[[], bool] = lambda: sys.stdin.isatty()  # whether a question can be answered
    connect: Callable[[Mapping[str, str], Path, Clock], tuple[Cloud, Secret]] = connect
    shell: Callable[[ShellContext], HostShell] = over_ssh
    make_key: Callable[[Path], str] = make_key  # for the run in that directory; returns the public key
    estimate: Estimator = estimate
    registry: Callable[[str, Secret | None], Image] = image_registry.inspect
    engine: Callable[[Mapping[str, str]], tuple[Engine, str]] = reach
    first_process: Callable[[Switch], str] = onstart  # the script that starts a machine's dead-man's switch
    root: Callable[[str], str] = lambda run_id: ROOT  # the runs directory of that run's machine


# ---- a user's own machines in place of the market ----------------------------------------------------------------------

HOSTS = "VAST_HOSTS"  # names a hosts.yaml; every command then uses those machines
COMMAND: Seconds = 60.0
HOST = ("python3", "-m", "vast.host")


def with_hosts(wiring: Wiring) -> Wiring:
    """`wiring`, or the one over the machines of $VAST_HOSTS. Raises ConfigError."""
    path = wiring.environ.get(HOSTS)
    if not path:
        return wiring
    file = expanded(path)
    if not file.is_file():
        raise ConfigError(f"${HOSTS}={path}", "no such file", "name the list of machines, or unset it for the market")
    hosts = load(file)
    key = Path(os.path.expanduser(hosts.key))  # noqa: PTH111 # Path.expanduser raises where there is no such user
    if not key.is_file():
        raise ConfigError(f"{path}: key", f"no such private key: {key}", "name the one that the machines know")

    def root_of(run_id: str) -> str:
        return f"{hosts.root}/{run_id}"

    def market(environ: Mapping[str, str], home: Path, clock: Clock) -> tuple[Cloud, Secret]:
        directory = home / ".cache" / "prefill" / "hosts"  # of the machines' host keys
        with io_errors_reported(directory, "make it writable: it keeps the machines' host keys"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        transport = SshTransport(directory, key, pin=lambda: "own", user=hosts.user, environ=environ)

        def ask(machine: Machine, words: tuple[str, ...], stdin: bytes) -> Ended | None:
            address = Address(machine.address, machine.port)
            reply = transport.run(address, ("env", f"--chdir={CODE}", *HOST, *words), stdin=stdin, timeout=COMMAND)
            if reply.kind != "ok":
                return None
            transport.settle(address, True)
            return Ended(reply.code, reply.out, reply.err)

        return SshHosts(hosts, ask, clock), Secret("")

    def shell(context: ShellContext) -> HostShell:
        root = root_of(context.folder.run_id)
        machines = [(one.address, one.port) for one in hosts.machines]
        program = ("env", f"--chdir={CODE}", f"PREFILL_RUNS={root}", *HOST)
        return over_ssh(context, key=key, user=hosts.user, probes=machines, root=root, program=program)

    return replace(
        wiring, connect=market, shell=shell, root=root_of,
        first_process=lambda switch: without_market(switch, f"{root_of(switch.run_id)}/.watchdog"),
    )  # fmt: skip


# ---- the container engine of this machine in place of market, ssh and key ----------------------------------------------


def wiring_of_run(folder: Folder, wiring: Wiring) -> Wiring:
    """`wiring`; for a run of `vast local` with the engine in place of market, key and ssh.

    Raises UserError if no engine answers, or another one than the run's.
    """
    if not folder.local.exists() or wiring.first_process is without_market:
        return wiring
    known = container_spec.read(folder.local)
    engine, found = reach(wiring.environ)
    if found != known.engine:
        fact = f"its container is on the engine {known.engine}, and {found} answers"
        raise RunStateError(folder.path, fact, "set DOCKER_HOST, or docker's context, to what it was at the start")
    return wiring_of(wiring, engine, known)


def wiring_of(wiring: Wiring, engine: Engine, spec: ContainerSpec) -> Wiring:
    cloud = LocalCloud(engine, spec)

    def shell(context: ShellContext) -> HostShell:
        folder = context.folder

        def sweep() -> None:
            """Remove volumes of containers that a person deleted by hand."""
            if (last := folder.last()) is not None:
                cloud.sweep(label_text(last.state.run_id, last.state.deadline))

        way = LocalTransport(engine, spec.uid_gid(), at_close=sweep)
        gpus = 0 if spec.gpus == "none" else None
        # In place of a network: whether the run's engine answers.
        return host_shell(context, way, lambda: cloud.account() is not None, gpus=gpus)

    return replace(wiring, connect=lambda *_: (cloud, Secret("")), shell=shell, first_process=without_market)
