"""The port Cloud over a user's own machines that have an ssh server: hosts.yaml in place of a market, at the price of 0.

Each machine runs the host image (`make push` names it NAME:TAG-host), as a rented one does. To rent one is to write the run's
label into a file there and to start its dead-man's switch (vast/host/rental.py); to destroy it is to end both and to remove the
run's directory. A machine that does not answer proves nothing, and its instance is never GONE.
"""

import json
import re
import shlex
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from jobs.config import strict_yaml
from jobs.config.schema import Positive, PositiveFloat, Strict, Text, combination
from jobs.config.validate import Layer, validate
from vast import ports
from vast.host.subprocess_run import Ended
from vast.marketplace import rows
from vast.secrets import printable

STAMPS = 2**20  # an instance's id is its machine's number times this, plus a number that differs for each rental
PORT = Annotated[int, Field(gt=0, lt=65536)]
WORD = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$")]


class Machine(Strict):
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$")]
    port: PORT = 22
    gpu: Text
    gpus: Positive
    memory_gb: PositiveFloat  # of one GPU

    @property
    def number(self) -> int:
        """The same in every process, whatever the order of the file."""
        return zlib.crc32(f"{self.address}:{self.port}".encode()) + 1


class Hosts(Strict):
    """hosts.yaml. root: a directory on each machine that is ours: what a run leaves there is removed at its end."""

    user: WORD = "root"
    key: Text  # a private key, which every machine knows
    root: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+)+$")] = "/runs"
    machines: Annotated[list[Machine], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        numbers = [one.number for one in self.machines]
        if len(set(numbers)) != len(numbers):
            raise combination("machines", "one address and port stands there twice", "remove one of the two")
        return self


def load(path: Path) -> Hosts:
    """The list of machines in a file. Raises ConfigError."""
    return validate(Hosts, [Layer(str(path), strict_yaml.read(path, str(path)))])


# The machine, the words after `python3 -m vast.host`, standard input. The answer of a machine whose host key and login were
# accepted; None: there was none. It limits the time.
Ask = Callable[[Machine, tuple[str, ...], bytes], Ended | None]


class SshHosts:
    """Implements vast.ports.Cloud. `trouble`: the reason for the last None, "refused" or "unclear"."""

    def __init__(self, hosts: Hosts, ask: Ask, clock: ports.Clock) -> None:
        self._hosts, self._ask, self._clock = hosts, ask, clock
        self._known: dict[int, ports.Instance] = {}  # by machine: what was seen last
        self.trouble = ""

    def search(self, query: ports.OfferQuery) -> tuple[ports.Offer, ...] | None:
        """Machines that answer and are not rented, in the order of the file."""
        answers = [(one, self._rental(one)) for one in self._hosts.machines]
        if all(rental is None for _, rental in answers):
            return None
        free = [one for one, rental in answers if rental is not None and (not rental or not rental["alive"])]
        offers = [
            ports.Offer(one.number, one.number, one.gpu, one.gpus, one.memory_gb, 0.0, 0.0, place=one.address)
            for one in free
        ]
        return tuple(offer for offer in offers if rows.fits(offer, query))[: query.limit]

    def create(self, offer_id: int, contract: ports.Contract) -> ports.CreateResult:
        machine = self._machine(offer_id)
        if machine is None:
            return ports.CreateResult("offer-gone", None, "this machine is not in the list of hosts any more")
        number = machine.number * STAMPS + int(self._clock.now()) % STAMPS
        rental = {"label": contract.label, "id": number, "argv": shlex.split(contract.onstart)}
        answer = self._ask(machine, ("rent", "--root", self._hosts.root), json.dumps(rental).encode())
        if answer is None:
            return ports.CreateResult("unclear", None, self._note(machine, "does not answer"))
        if answer.code == 0:
            return ports.CreateResult("created", number)
        words = self._note(machine, answer.err)
        return ports.CreateResult("offer-gone" if "is rented by" in answer.err else "refused", None, words)

    def instances(self) -> tuple[ports.Instance, ...] | None:
        """The rentals. A machine that does not answer counts as offline, with its last known rental."""
        found = [one for one in map(self._instance, self._hosts.machines) if one is not None]
        return tuple(one for one in found if isinstance(one, ports.Instance))

    def instance(self, instance_id: int) -> ports.Instance | ports.Gone | None:
        machine = self._machine(instance_id // STAMPS)
        found = None if machine is None else self._instance(machine)
        if isinstance(found, ports.Instance) and found.id != instance_id:
            return ports.GONE  # another run has the machine
        return None if isinstance(found, ports.Instance) and found.status is ports.Status.OFFLINE else found

    def destroy(self, instance_id: int) -> ports.Destroyed:
        machine = self._machine(instance_id // STAMPS)
        if machine is None:
            self.trouble = f"{instance_id}: its machine is not in the list of hosts any more; put it back"
            return "unclear"
        number = str(instance_id)
        answer = self._ask(machine, ("release", "--root", self._hosts.root, "--id", number), b"")
        if answer is None or answer.code != 0:
            self._note(machine, "does not answer" if answer is None else answer.err)
            return "unclear"
        return "accepted"

    def set_label(self, instance_id: int, label: str) -> bool:
        return False  # only the run itself writes it

    def attach_key(self, instance_id: int, public_key: str) -> bool:
        return True  # the machines know the key already

    def account(self) -> ports.Account | None:
        """Nothing is charged."""
        return ports.Account(0.0)

    # ---- answers

    def _machine(self, number: int) -> Machine | None:
        return next((one for one in self._hosts.machines if one.number == number), None)

    def _rental(self, machine: Machine) -> Mapping[str, Any] | None:
        """{} if the machine is free; None: no answer, or an odd one."""
        answer = self._ask(machine, ("rental", "--root", self._hosts.root), b"")
        if answer is None or answer.code != 0:
            self._note(machine, "does not answer" if answer is None else answer.err)
            return None
        try:
            rental = json.loads(answer.out)["rental"]
            if rental is None:
                return {}
            odd = type(rental["id"]) is not int or not isinstance(rental["label"], str)
            odd = odd or not isinstance(rental["alive"], bool)
        except (ValueError, KeyError, TypeError, RecursionError):
            odd = True
        if odd:
            self._note(machine, "an odd answer")
            return None
        return dict(rental)

    def _instance(self, machine: Machine) -> ports.Instance | ports.Gone | None:
        rental = self._rental(machine)
        if rental is None:
            known = self._known.get(machine.number)
            return None if known is None else _made(machine, known.id, known.label, ports.Status.OFFLINE)
        if not rental:
            self._known.pop(machine.number, None)
            return ports.GONE
        # A switch takes a moment to arm: until then a rental is being made ready, later it has ended.
        fresh = 0 <= int(self._clock.now()) % STAMPS - rental["id"] % STAMPS < 120
        status = ports.Status.RUNNING if rental["alive"] or fresh else ports.Status.EXITED
        found = _made(machine, rental["id"], printable(rental["label"]), status)
        self._known[machine.number] = found
        return found

    def _note(self, machine: Machine, words: str) -> str:
        last = words.strip().splitlines()[-1:] or ["no reason given"]
        self.trouble = printable(f"{machine.address}:{machine.port}: {re.sub('^error: ', '', last[0])}")[:500]
        return self.trouble


def _made(one: Machine, number: int, label: str, status: ports.Status) -> ports.Instance:
    return ports.Instance(number, label, one.number, status, "", 0.0, None, (ports.Address(one.address, one.port),))
