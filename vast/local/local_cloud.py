"""The port Cloud over the container engine of this machine: its one offer costs nothing, its instances are containers.

Only answers of the engine on which the run began count. Another engine behind the same socket, as after a change of
DOCKER_HOST or a new data directory, does not have the run's container, and its 404 proves nothing.
"""

import itertools
import logging
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

from vast import ports
from vast.local.container_spec import ContainerSpec, environment, host_config
from vast.local.engine import Engine
from vast.local.engine_errors import EngineError, Missing, Refused, Silent

log = logging.getLogger(__name__)
T = TypeVar("T")

RUN = "prefill.run"  # the docker label that holds the label of the run
MACHINE = "prefill.machine"
ID_DIGITS = 12  # of a container's id: what `docker ps` shows, and an integer that JSON can hold
# A container whose start failed also stays `created`; create() has reported that.
STATUS = {
    "created": ports.Status.CREATED,
    "running": ports.Status.RUNNING,
    "paused": ports.Status.FROZEN,
    "restarting": ports.Status.REBOOTING,
    "exited": ports.Status.EXITED,
    "dead": ports.Status.EXITED,
}
NAME_TAKEN = 409
NO_GPU = "could not select device driver"  # docker's words


class LocalCloud:
    """Implements vast.ports.Cloud. `trouble`: the reason for the last None, False, "refused" or "unclear"."""

    def __init__(self, engine: Engine, spec: ContainerSpec) -> None:
        self._engine, self._spec = engine, spec
        self.trouble = ""

    def search(self, query: ports.OfferQuery) -> tuple[ports.Offer, ...] | None:
        """The one offer: this machine. After each ban it gets another number, since a container failed and not the machine."""
        if self.account() is None:
            return None
        number = next(one for one in itertools.count(1) if one not in query.banned_machines)
        gpus = 0 if self._spec.gpus == "none" else query.gpus
        return (ports.Offer(number, number, "this machine", gpus, 0.0, 0.0, place="here"),)

    def create(self, offer_id: int, contract: ports.Contract) -> ports.CreateResult:
        """The container's pid 1 is tini and its only child the command `contract.onstart`, the dead-man's switch."""
        label = ports.parse_label(contract.label)
        if label is None:
            return self._refused(None, f"{contract.label!r} is no label of a run")
        marks = {RUN: contract.label}
        try:
            container = self._engine.create(
                image=self._spec.image_id,
                # One name for all of a run's containers: the engine itself refuses a second one beside the first.
                name=f"prefill-{label.run_id}",
                entrypoint=["tini", "--"],
                command=shlex.split(contract.onstart),
                user=self._spec.user,
                environment=environment(self._spec) | dict(contract.env),
                working_dir="/opt/prefill",
                # The supervisor checks its health. A command that begins while a container is being paused can lock up an
                # engine: runc waits for the frozen process, and the engine for runc.
                healthcheck={"test": ["NONE"]},
                labels={**dict(self._spec.labels), **marks, MACHINE: str(offer_id)},
                host_config=self._engine.api.create_host_config(**host_config(self._spec, marks)),
            )
        except EngineError as error:
            refused = isinstance(error, Refused) and error.status != NAME_TAKEN and error.status < 500
            if refused or isinstance(error, Missing):
                return self._refused(None, str(error))
            self._note("create", error)
            return ports.CreateResult("unclear", None, str(error))
        number = _number(container)
        try:
            self._engine.start(container)
        except (Missing, Refused) as error:
            return self._refused(number, str(error))
        except EngineError as error:
            self._note("start", error)  # it exists, and its status decides
        return ports.CreateResult("created", number)

    def instances(self) -> tuple[ports.Instance, ...] | None:
        """Containers of every local run; one that is removed while they are listed is left out."""
        states = self._known("list", lambda: [self._looked(one) for one in self._engine.containers(RUN)])
        return None if states is None else tuple(one for one in states if isinstance(one, ports.Instance))

    def instance(self, instance_id: int) -> ports.Instance | ports.Gone | None:
        name = _name(instance_id)
        return self._known(name, lambda: self._looked(name))

    def destroy(self, instance_id: int) -> ports.Destroyed:
        """Remove the container at once, with its volume /runs. Only containers with a run's label are touched."""
        name = _name(instance_id)
        try:
            found = self._looked(name)
            if isinstance(found, ports.Instance):
                self._engine.remove(name)
            elif found is None:
                return "unclear"
        except Missing:
            pass
        except EngineError as error:
            self._note(f"remove {name}", error)
            return "unclear"
        return "accepted"

    def set_label(self, instance_id: int, label: str) -> bool:
        return False  # a container keeps the labels that it was made with

    def attach_key(self, instance_id: int, public_key: str) -> bool:
        return True  # the way in is the engine's, and needs none

    def account(self) -> ports.Account | None:
        """Nothing is charged: a credit of 0 is enough. None: no engine answers, or one that is not the run's."""
        found = self._known("engine", self._engine.identity)
        if found is not None and found != self._spec.engine:
            self._note("engine", f"another one answers ({found}); the run is on {self._spec.engine}")
        return ports.Account(0.0) if found == self._spec.engine else None

    def sweep(self, run_label: str) -> int | None:
        """Remove the volumes of containers that were removed by hand. Returns their number."""
        return self._known("volumes", lambda: self._engine.remove_left_volumes(f"{RUN}={run_label}"))

    # ---- answers

    def _known(self, what: str, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except EngineError as error:
            self._note(what, error)
            return None

    def _looked(self, name: str) -> ports.Instance | ports.Gone | None:
        """Raises EngineError, except Missing. None: the container is not one of ours."""
        try:
            row = self._engine.inspect(name)
        except Missing:
            return ports.GONE
        try:
            return _instance(row, name)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Silent(f"{name}: an odd answer: {error!r}") from None

    def _note(self, what: str, error: object) -> None:
        words = f"{what}: {error}"
        if words != self.trouble:
            log.warning("%s", words)  # once, however often it is asked again
        self.trouble = words

    def _refused(self, number: int | None, words: str) -> ports.CreateResult:
        if NO_GPU in words:
            words += "; install the NVIDIA container toolkit, or give --gpu none"
        self._note("create", words)
        return ports.CreateResult("refused", number, words)


def _number(container: str) -> int:
    return int(container[:ID_DIGITS], 16)


def _name(instance_id: int) -> str:
    return f"{instance_id:0{ID_DIGITS}x}"


def _instance(row: dict[str, Any], name: str) -> ports.Instance | None:
    """Raises KeyError and the like where the answer is not what the engine's API promises."""
    ident, labels, state = str(row["Id"]), row["Config"]["Labels"] or {}, row["State"]
    if not ident.startswith(name):
        raise ValueError(f"asked for {name}, and the answer is about {ident}")
    if RUN not in labels:
        return None
    status = STATUS.get(str(state["Status"]), ports.Status.UNKNOWN)
    text = str(state.get("Error") or (f"ended with {state.get('ExitCode')}" if status is ports.Status.EXITED else ""))
    machine = str(labels.get(MACHINE, ""))
    return ports.Instance(
        id=_number(ident),
        label=str(labels[RUN]),
        machine_id=int(machine) if machine.isdigit() else 0,
        status=status,
        message=f"{text}; out of memory" if state.get("OOMKilled") else text,
        dollars_per_hour=0.0,
        end=None,
        addresses=(ports.Address(ident[:ID_DIGITS], 0),),
    )
