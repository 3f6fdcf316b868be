"""Machines for rent without a market: the fake Vast API makes containers on create and removes them on destroy.

A container begins as a host of the ssh kind does: an ssh server in place of the image's entrypoint, the contract's onstart
as root beside it, the keys attached through the API, CONTAINER_ID and CONTAINER_API_KEY in the environment of pid 1. The API
listens at the gateway of a network without a way out, so that hosts and supervisors reach it, and nothing else.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from itertools import count
from pathlib import Path

from tests.containers.engine import LABEL, docker, remove, wait_for
from tests.vast.fakes.fake_market import Rental
from tests.vast.fakes.fake_vast import FakeVast

# As root, before anything of ours runs; also when the container is started again. An address has two ports: what is
# direct on a real host, and the proxy's. Its shell is pid 1 and reaps what is left behind.
BOOTSTRAP = """set -eu
mkdir -p ~/.ssh /run/sshd
ssh-keygen -A > /dev/null
/usr/sbin/sshd -E /var/log/sshd.log -p 22 -p 2222
bash /mnt/onstart.sh > /var/log/onstart.log 2>&1 || true
while :; do sleep 3600; done
"""
DIRECT, PROXY, CLOSED = 22, 2222, 9
PULLED_FROM = "registry.example/"  # what is here by its plain name is what this registry has
TOLD = ("/var/log/onstart.log", "/runs/.watchdog/log.txt", "/runs/.runner/job.log", "/runs/.runner/state.json")
NO_SUCH_IMAGE = "Error response from daemon: manifest for {} not found: manifest unknown: manifest unknown"


@dataclass
class Network:
    """`gateway`: the address at which its containers reach this machine."""

    name: str
    gateway: str
    subnet: IPv4Network
    serial: Iterator[int] = field(default_factory=lambda: count(1))

    def place(self) -> tuple[str, int]:
        """An address and a core. The address is one that nobody else is given, also while its container is cut off: the
        engine chooses from the lower half. Cores are given in turn: of the machines of all scenes, each has as many."""
        number = next(self.serial)
        return str(self.subnet[self.subnet.num_addresses // 2 + number]), number % (os.cpu_count() or 1)


@contextmanager
def private_network(name: str) -> Iterator[Network]:
    """An --internal network."""
    docker("network", "rm", name, code=None)
    try:
        # Made again with the subnet that the engine chose, named this time: only then may a container ask for an address.
        # Somebody else's network may be given that subnet in between, and then the engine chooses anew.
        for last in (False, False, False, True):
            docker("network", "create", "--internal", "--label", LABEL, name)
            found = "{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}"
            subnet, gateway = docker("network", "inspect", name, "--format", found).split()
            network = Network(name, gateway, IPv4Network(subnet))
            docker("network", "rm", name)
            lower = next(network.subnet.subnets())
            more = ["--subnet", subnet, "--gateway", gateway, "--ip-range", str(lower)]
            made = docker("network", "create", "--internal", "--label", LABEL, *more, name, code=0 if last else None)
            if made:
                break
        yield network
    finally:
        docker("network", "rm", name, code=None)


class Hosts:
    """The machines behind one fake API. `cache`: what each has as /cache; `options`: more for `docker run`; `direct`: the port
    that the API gives as direct.

    `most`: the largest number of machines that lived at a time; `failures`: what went wrong with the engine; `answer`: while
    it is cleared, a create makes its machine and does not say so.
    """

    def __init__(
        self, fake: FakeVast, network: Network, scratch: Path, cache: Path, *options: str, direct: int = DIRECT
    ) -> None:
        self.fake, self.network, self.cache, self.options, self.direct = fake, network, cache, options, direct
        self.most = 0
        self.answer = threading.Event()
        self.answer.set()
        self.failures: list[BaseException] = []
        self.containers: dict[int, str] = {}
        self._scratch = scratch
        self._addresses: dict[int, str] = {}
        self._makers: dict[int, threading.Thread] = {}
        self._lock = threading.Lock()
        fake.market.on_create, fake.market.on_destroy, fake.market.on_key = self._create, self._destroy, self._attach

    def living(self) -> list[int]:
        """The rentals that cost money now."""
        return [rental.id for rental in self.fake.market.living()]

    def only(self) -> str:
        """The container of the one machine; "" while there is none that runs."""
        ids = [number for number in self.living() if self.fake.market.rentals[number].status == "running"]
        assert len(ids) <= 1, f"{len(ids)} machines"
        return self.containers[ids[0]] if ids else ""

    # ---- what befalls a machine

    def cut(self, container: str) -> None:
        docker("network", "disconnect", self.network.name, container)

    def mend(self, container: str) -> None:
        """A host comes back to its own address."""
        address = next((self._addresses[number] for number, one in self.containers.items() if one == container), None)
        docker("network", "connect", *(("--ip", address) if address else ()), self.network.name, container)

    def forget_keys(self, container: str) -> None:
        docker("exec", container, "sh", "-c", ": > ~/.ssh/authorized_keys")

    # ---- what the market does

    def _create(self, rental: Rental) -> None:
        with self._lock:
            self.most = max(self.most, len(self.fake.market.living()))
            maker = self._makers[rental.id] = threading.Thread(target=self._make, args=(rental,))
        maker.start()
        self.answer.wait(60)

    def _make(self, rental: Rental) -> None:
        try:
            rental.status, rental.direct, rental.proxy = "loading", None, None
            asked = rental.request["image"]
            image = asked.removeprefix(PULLED_FROM)
            if image == asked or docker("image", "ls", "--quiet", image) == "":
                rental.message = NO_SUCH_IMAGE.format(asked)
                return
            here = self.given(rental.id)
            here.mkdir()
            (here / "onstart.sh").write_text(rental.request.get("onstart") or "")
            env = {name: value for name, value in (rental.request.get("env") or {}).items() if not name.startswith("-")}
            env |= {"CONTAINER_ID": rental.id, "CONTAINER_API_KEY": rental.api_key}
            given = [word for name, value in env.items() for word in ("--env", f"{name}={value}")]
            address, core = self.network.place()
            self._addresses[rental.id] = address
            # One core each: torch takes every core that it sees, and two such jobs would wait for each other's threads.
            container = docker(
                "run", "--detach", "--label", LABEL, "--network", self.network.name, "--ip", address, "--cpuset-cpus", core,
                "--no-healthcheck",  # it is an exec, and an engine hung for good where a pause met the beginning of one
                "--volume", f"{self.cache}:/cache", "--volume", f"{here}:/mnt", *given, *self.options,
                "--entrypoint", "/bin/bash", image, "-c", BOOTSTRAP,
            )  # fmt: skip
            self.containers[rental.id] = container
            wait_for("sshd", lambda: docker("exec", container, "cat", "/run/sshd.pid", code=None), 120)
            rental.direct, rental.proxy, rental.status = (address, self.direct), (address, PROXY), "running"
            self._attach(rental)  # what came while the container was being made
        except BaseException as error:
            self.failures.append(error)

    def _attach(self, rental: Rental) -> None:
        """An attached key is there from then on; one that is attached before the start comes with it."""
        if rental.status != "running":
            return
        lines = "".join(f"{key}\n" for key in rental.ssh_keys)
        install = ["sh", "-c", 'umask 077; printf %s "$1" > ~/.ssh/authorized_keys', "-", lines]
        docker("exec", self.containers[rental.id], *install, code=None)  # a paused or dead one takes none

    def _destroy(self, rental: Rental) -> None:
        self._makers[rental.id].join()
        container = self.containers.get(rental.id)
        if container is not None:
            self.keep(rental.id)
            remove(container)

    def keep(self, number: int) -> None:
        """What a machine has to tell, before it is removed."""
        container = self.containers[number]
        self.kept(number).mkdir(exist_ok=True)
        docker("unpause", container, code=None)
        for path in TOLD:
            docker("cp", f"{container}:{path}", self.kept(number), code=None)

    def given(self, number: int) -> Path:
        """What a machine has as /mnt."""
        return self._scratch / str(number)

    def kept(self, number: int) -> Path:
        return self.given(number) / "kept"

    def remove(self) -> None:
        """Whatever is left, at the end of a test; makers that are under way are waited for."""
        for maker in list(self._makers.values()):
            maker.join()
        remove(*self.containers.values())

    def left(self) -> list[str]:
        """Containers that still exist."""
        there = docker("ps", "--all", "--no-trunc", "--quiet").split()
        return [container for container in self.containers.values() if container in there]


def market(gateway: str, offers: int = 3) -> FakeVast:
    """The API at `gateway`, on a port of its own, on real time, with a few machines that are cheap and always there."""
    fake = FakeVast(time.time, gateway)
    for number in range(offers):
        fake.market.add_offer(11 + number, dph_base=0.30 + number / 100)
    return fake
