"""A small honest model of the Vast.ai service: offers, contracts with a life cycle on a settable clock, money.

What the service is known to do stands in docs/vast.md; what is not known is not modelled. No I/O but the callbacks,
which run without the lock, so that they may take time and start real hosts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
KEY = "vast-account-key-0123456789abcdef0123456789abcdef"
# Seconds after the create from which on an instance shows this status.
LIFE: tuple[tuple[float, str | None], ...] = ((0, None), (1, "created"), (10, "loading"), (60, "running"))


class ManualClock:
    """vast.ports.Clock that only moves when told to, or slept on."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self.time = start
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def boot(self) -> str:
        return "the only boot"

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.sleeps.append(seconds)
        self.time += seconds


@dataclass
class Rental:
    """A contract, from its create to its end and beyond."""

    id: int
    offer: Row
    request: Row  # the body of the create
    created: float
    api_key: str  # of this instance: it may start, stop and destroy itself, and nothing else
    label: str | None
    foreign: bool = False
    listed_from: float = 0.0
    destroyed: float | None = None
    status: str | None = None  # set by a test or a callback; None follows the market's life cycle
    intended: str = "running"
    message: str = ""
    end_date: float | None = None
    direct: tuple[str, int] | None = None
    proxy: tuple[str, int] | None = None
    ssh_keys: list[str] = field(default_factory=list)


class Market:
    def __init__(self, now: Callable[[], float], key: str = KEY) -> None:
        self.now, self.key = now, key
        self.lock = threading.RLock()
        self.offers: dict[int, Row] = {}
        self.rentals: dict[int, Rental] = {}
        self.credit, self.life = 25.0, LIFE
        self.listing_lag = 0.0  # seconds for which a fresh instance is missing from the list
        self.linger = 0.0  # seconds for which a destroyed one is still shown
        self.on_create: Callable[[Rental], None] = lambda rental: None
        self.on_destroy: Callable[[Rental], None] = lambda rental: None
        self.on_key: Callable[[Rental], None] = lambda rental: None  # a key was attached
        self._next = 7_000_001

    def add_offer(self, offer_id: int, **fields: Any) -> Row:
        """A plain RTX 4090 with `fields` in place of its own. Two offers may be of one machine, as `num_gpus` of it."""
        row: Row = {
            "id": offer_id, "machine_id": 40_000 + offer_id, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564,
            "dph_base": 0.40, "storage_cost": 0.15, "min_bid": 0.20, "reliability": 0.99, "direct_port_count": 40,
            "duration": 30 * 86400.0, "inet_down": 900.0, "inet_up": 700.0, "inet_down_cost": 0.001, "inet_up_cost": 0.002,
            "geolocation": "Norway, NO", "disk_space": 500.0, "verified": True, "external": False, "rentable": True,
            "rented": False, "score": 100.0, "cuda_max_good": 13.0, "driver_version": "580.95.05", "compute_cap": 890,
            "cpu_arch": "amd64", "hosting_type": 1, "datacenter": True,
        } | fields  # fmt: skip
        self.offers[offer_id] = row
        return row

    def search(self, query: Row) -> list[Row]:
        storage = float(query.get("allocated_storage", 5.0))
        with self.lock:
            rows = [row | {"dph_total": round(self._price(row, storage), 6)} for row in self.offers.values()]
        for name, value in query.items():
            if isinstance(value, dict):
                rows = [row for row in rows if all(_holds(op, row.get(name), want) for op, want in value.items())]
        for name, direction in reversed(query.get("order", [])):
            rows.sort(key=lambda row: row.get(name) or 0.0, reverse=direction == "desc")
        return rows[: int(query.get("limit", 64))]

    def create(self, offer_id: int, request: Row, *, callbacks: bool = True) -> Rental | str:
        """A contract, or the error's word."""
        with self.lock:
            offer = self.offers.get(offer_id)
            if offer is None or offer["rented"] or not offer["rentable"]:
                return "no_such_ask"
            if self.balance() <= 0:
                return "insufficient_credit"
            rental = self._rent(offer, request)
        if callbacks:
            self.on_create(rental)
        return rental

    def add_foreign(self, label: str | None = "somebody-else", **fields: Any) -> Rental:
        """An instance of the same account that another program made; no callback."""
        with self.lock:
            rental = self._rent(self.add_offer(90_000 + self._next), {"label": label, "disk": 10.0})
            rental.foreign, rental.listed_from = True, 0.0
            for name, value in fields.items():
                setattr(rental, name, value)
            return rental

    def destroy(self, instance_id: int) -> bool:
        with self.lock:
            rental = self.rentals.get(instance_id)
            if rental is None or rental.destroyed is not None:
                return False
            rental.destroyed = self.now()
            rental.offer["rented"] = False
        self.on_destroy(rental)
        return True

    def set_address(self, instance_id: int, direct: tuple[str, int] | None, proxy: tuple[str, int] | None) -> None:
        with self.lock:
            self.rentals[instance_id].direct, self.rentals[instance_id].proxy = direct, proxy

    def living(self) -> list[Rental]:
        """What costs money now: the truth that a test compares with, whatever the API says."""
        return [rental for rental in self.rentals.values() if rental.destroyed is None]

    def shown(self, *, listing: bool) -> list[Rental]:
        with self.lock:
            now = self.now()
            return [
                rental
                for rental in self.rentals.values()
                if (rental.destroyed is None or now < rental.destroyed + self.linger)
                and (not listing or now >= rental.listed_from)
            ]

    def status(self, rental: Rental) -> str | None:
        if rental.status is not None:
            return rental.status
        age = self.now() - rental.created
        return [word for after, word in self.life if after <= age][-1]

    def row(self, rental: Rental) -> Row:
        """As the service shows an instance; fields that neither client reads are left out."""
        status = self.status(rental)
        direct, proxy = rental.direct, rental.proxy
        port = {"HostIp": "0.0.0.0", "HostPort": str(direct[1])} if direct else None
        return {
            "id": rental.id, "machine_id": rental.offer["machine_id"], "label": rental.label,
            "actual_status": status, "intended_status": rental.intended, "cur_state": rental.intended,
            "next_state": rental.intended, "status_msg": rental.message or None,
            "dph_total": self._price(rental.offer, rental.request.get("disk", 10.0), rental.request.get("price")),
            "start_date": rental.created, "end_date": rental.end_date,
            "public_ipaddr": f"{direct[0]}\n" if direct else None, "ports": {"22/tcp": [port]} if port else {},
            "ssh_host": proxy[0] if proxy else None, "ssh_port": proxy[1] if proxy else None,
            "gpu_name": rental.offer["gpu_name"], "num_gpus": rental.offer["num_gpus"],
            "image_uuid": rental.request.get("image"), "image_runtype": rental.request.get("runtype"),
            "extra_env": [[name, value] for name, value in (rental.request.get("env") or {}).items()],
        }  # fmt: skip

    def cost(self, rental: Rental) -> float:
        """Dollars so far: from the create to the destroy, whatever the instance did meanwhile."""
        until = self.now() if rental.destroyed is None else rental.destroyed
        return self._price(rental.offer, rental.request.get("disk", 10.0), rental.request.get("price")) * (
            (until - rental.created) / 3600
        )

    def balance(self) -> float:
        return self.credit - sum(self.cost(rental) for rental in self.rentals.values())

    def _rent(self, offer: Row, request: Row) -> Rental:
        rental = Rental(
            id=self._next,
            offer=offer,
            request=request,
            created=self.now(),
            api_key=f"instance-key-{self._next:032x}",
            label=request.get("label"),
            listed_from=self.now() + self.listing_lag,
            end_date=self.now() + offer["duration"],
            direct=("198.51.100.7", 40000 + self._next % 1000),
            proxy=("ssh5.example.org", 20000 + self._next % 1000),
        )
        self._next += 1
        self.rentals[rental.id] = rental
        offer["rented"] = True
        return rental

    def _price(self, offer: Row, disk: float, bid: float | None = None) -> float:
        """Dollars per hour; `storage_cost` is per GB and month."""
        return float((bid or offer["dph_base"]) + disk * offer["storage_cost"] / 720)


def _holds(op: str, have: Any, want: Any) -> bool:
    if isinstance(want, str) and isinstance(have, int | float):
        want = float(want)  # the official client sends num_gpus as "1"
    if op in ("in", "notin"):
        return (have in want) == (op == "in")
    if op in ("eq", "neq"):
        return bool(have == want) == (op == "eq")
    if have is None:
        return False
    return bool({"gt": have > want, "gte": have >= want, "lt": have < want, "lte": have <= want}[op])
