"""Wiring of a local run: the container engine of this machine in place of market, ssh and key."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from jobs.errors import RunStateError
from vast.commands.wiring import ShellContext, Wiring, host_shell
from vast.local import container_spec
from vast.local.container_spec import ContainerSpec
from vast.local.engine import Engine, connect
from vast.local.engine_errors import EngineError
from vast.local.local_cloud import LocalCloud
from vast.local.transport import LocalTransport
from vast.ports import Clock, Cloud, label_text
from vast.records.run_dir import Folder
from vast.rental.onstart import without_market
from vast.secrets import Secret
from vast.shell.hostshell import HostShell


def reopen(folder: Folder, environ: Mapping[str, str]) -> tuple[Engine, ContainerSpec]:
    """The engine of an existing run. Raises UserError if no engine answers, or a different one."""
    known = container_spec.read(folder.local)
    engine = connect(environ)
    try:
        found = engine.identity()
    except EngineError as error:
        raise RunStateError(folder.path, f"the container engine does not answer: {error}", "start it") from None
    if found != known.engine:
        fact = f"its container is on the engine {known.engine}, and {found} answers"
        raise RunStateError(folder.path, fact, "set DOCKER_HOST, or docker's context, to what it was at the start")
    return engine, known


def wiring_of_run(folder: Folder, wiring: Wiring) -> Wiring:
    """`wiring`; for a run of `vast local` with the engine in place of market, key and ssh. Raises UserError."""
    if not folder.local.exists() or wiring.first_process is without_market:
        return wiring
    return wiring_of(wiring, *reopen(folder, wiring.environ))


def wiring_of(wiring: Wiring, engine: Engine, spec: ContainerSpec) -> Wiring:
    cloud = LocalCloud(engine, spec)

    def market(environ: Mapping[str, str], home: Path, clock: Clock) -> tuple[Cloud, Secret]:
        return cloud, Secret("")

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

    return replace(wiring, connect=market, shell=shell, first_process=without_market)
