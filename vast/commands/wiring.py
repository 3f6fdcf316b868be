"""The ports of a command: the only place that makes the real ones, and the seam for tests.

A command gets a `Wiring` as click's `obj`; a test passes its own, with a fake shell and a clock that it moves.
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.errors import UserError
from jobs.estimate.estimate import estimate
from vast import policy as policies
from vast.local.engine import connect as reach
from vast.local.engine_errors import EngineError
from vast.marketplace.account_key import find_key
from vast.marketplace.http import DEFAULT_URL
from vast.marketplace.vast_ai import VastAI
from vast.ports import Clock, Cloud
from vast.records.run_dir import Folder, RunRequest
from vast.rental import image_registry
from vast.rental.image_registry import Image
from vast.rental.onstart import Switch, onstart
from vast.rental.plan import INPUTS, Estimator
from vast.secrets import Secret
from vast.session.clock import SystemClock
from vast.shell import network
from vast.shell.hostshell import ROOT, HostShell
from vast.shell.push import Input
from vast.shell.ssh import SshTransport
from vast.shell.sshkey import make_key
from vast.shell.transport import Transport


@dataclass(frozen=True)
class ShellContext:
    folder: Folder
    request: RunRequest
    secrets: Mapping[str, Secret]
    clock: Clock
    environ: Mapping[str, str]
    instance: Callable[[], int | None]  # the current one: host keys are pinned per instance


def api_address(environ: Mapping[str, str]) -> tuple[str, int]:
    parts = urlsplit(environ.get("VAST_URL") or DEFAULT_URL)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def connect(environ: Mapping[str, str], home: Path, clock: Clock) -> tuple[Cloud, Secret]:
    """The market, and the account's key for a redactor. Raises AccountKeyError, UrlError."""
    key = find_key(environ, home)
    return VastAI(key, clock, environ.get("VAST_URL") or DEFAULT_URL), key


def host_shell(context: ShellContext, way: Transport, network_is_up: Callable[[], bool], **more: Any) -> HostShell:
    """The shell of a run over the transport `way`. more: arguments of HostShell."""
    folder = context.folder
    return HostShell(
        way, folder.runs_dir, folder.path, folder.nonce(), context.clock, network_is_up,
        secrets=lambda: context.secrets, inputs=inputs_of(folder.runs_dir, context.request),
        campaign=context.request.campaign, earlier=context.request.complete, **more,
    )  # fmt: skip


def over_ssh(context: ShellContext, *, key: Path | None = None, user: str = "root",
             probes: Sequence[tuple[str, int]] = (), **more: Any) -> HostShell:  # fmt: skip
    """probes: what shows that our own network works; default: the market's API. Raises UserError if ssh or rsync is missing."""
    folder, own = context.folder, context.request.ssh_key
    key = key or (None if own is None else Path(own))
    policy, seen = policies.load(folder.policy), tuple(probes) or (api_address(context.environ),)
    way = SshTransport(folder.path, key, pin=lambda: str(context.instance() or ""), user=user, environ=context.environ)
    return host_shell(
        context, way, lambda: network.is_up(seen), grace=policy.watchdog.grace, mbit=policy.bandwidth_mbit,
        gpus=context.request.gpus, **more,
    )  # fmt: skip


def inputs_of(runs_dir: Path, request: RunRequest) -> tuple[Input, ...]:
    """Files the stage needs on its machine: the runs that it starts from, and a user's own profile file."""
    found = [Input(runs_dir, request.init_runs)] if request.init_runs else []
    if request.profile_file is not None:
        profile = Path(request.profile_file)
        found.append(Input(profile.parent, (profile.name,), to=INPUTS))
    return tuple(found)


def engine(environ: Mapping[str, str]) -> str:
    """The container engine that answers. Raises UserError, also where the docker SDK is not installed."""
    try:
        return f"answers: {reach(environ).identity()}"
    except EngineError as error:
        raise UserError("docker", f"the engine does not answer: {error}", "start it") from None


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
    engine: Callable[[Mapping[str, str]], str] = engine
    first_process: Callable[[Switch], str] = onstart  # the script that starts a machine's dead-man's switch
    root: Callable[[str], str] = lambda run_id: ROOT  # the runs directory of that run's machine
