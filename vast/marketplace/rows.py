"""Parses the service's JSON into values of vast.ports. Pure; None stands for "cannot be understood", never for absence.

A list of instances must be complete, or a machine of ours could be missing from it. So the id and label of a row are read
strictly, and other fields, such as a price as text, may be unknown. A row whose label is not ours never voids a list. An odd
offer is dropped: there are others.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from jobs.estimate.gpus import is_datacenter
from jobs.runs.atomic import finite
from vast.marketplace.http import Answer
from vast.ports import Address, CreateResult, Instance, Offer, OfferQuery, Status, parse_label
from vast.secrets import printable

T = TypeVar("T")
Text = Callable[[str], str]
MB = 1000.0  # in a GB: as the official client counts, so that a card sold as 80 GB has at least 80
HOUR = 3600.0
SIZES = {"label": 256, "onstart and args": 4096}  # characters; bytes are counted, which is the stricter
LEAST_DISK = 8  # GB
RUNTYPE = "ssh_direc ssh_proxy"  # sic: ssh with a direct port, and by the proxy
STATUS = {status.value: status for status in Status}
HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,252}")  # goes into argv of ssh: never a leading dash
PORT = re.compile(r"[0-9]{1,5}")
NO_CREDIT = re.compile(r"insufficient[ _](credit|fund|balance)|lack[ _]of[ _]credit", re.IGNORECASE)


class OddRow(ValueError):
    """A row that is not what the service is known to send."""


def number(row: Mapping[str, object], name: str, default: float | None = None) -> float:
    """A finite number >= 0; null and a missing one are `default`, if there is one."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    found = finite(value)
    if found is None or found < 0:
        raise OddRow(name)
    return found


def identifier(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise OddRow("id")
    return value


def text(row: Mapping[str, object], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise OddRow(name)
    return printable(value).strip()


def offer(row: object, down_gb: float = 0.0) -> Offer:
    """One row of `offers`; its traffic for `down_gb`. Raises OddRow."""
    if not isinstance(row, dict):
        raise OddRow("offer")
    return Offer(
        id=identifier(row.get("id")),
        machine_id=identifier(row.get("machine_id")),
        gpu=text(row, "gpu_name"),
        gpus=int(number(row, "num_gpus")),
        vram_gb=number(row, "gpu_ram") / MB,
        dollars_per_hour=number(row, "dph_total"),
        min_bid=None if row.get("min_bid") is None else number(row, "min_bid"),
        reliability=number(row, "reliability", 0.0),
        down_mbit=number(row, "inet_down", 0.0),
        up_mbit=number(row, "inet_up", 0.0),
        hours_left=number(row, "duration", 0.0) / HOUR,
        direct_ports=int(number(row, "direct_port_count", 0.0)),
        place=text(row, "geolocation"),
        cuda=_known(number, row, "cuda_max_good"),
        driver=_major(row.get("driver_version")),
        compute_cap=None if (found := _known(number, row, "compute_cap")) is None else int(found),
        cpu_arch=_text(row, "cpu_arch"),
        datacenter=row.get("hosting_type") == 1 or row.get("datacenter") is True,
        traffic=number(row, "inet_down_cost", 0.0) * down_gb,
        up_cost=number(row, "inet_up_cost", 0.0),
    )


def _major(version: object) -> int | None:
    """580 of "580.95.05"."""
    head = version.partition(".")[0] if isinstance(version, str) else ""
    return int(head) if head.isdecimal() and len(head) < 6 else None


def gpu_name(words: str) -> str:
    """A100_SXM4, a100 sxm4 and "A100 SXM4" are one GPU."""
    return " ".join(words.replace("_", " ").split()).upper()


def price(one: Offer, interruptible: bool) -> float | None:
    """Dollars per hour, at the least; None if the machine is not offered for that kind of contract."""
    return one.min_bid if interruptible else one.dollars_per_hour


def rank(one: Offer, query: OfferQuery) -> float:
    """The sort key, cheapest first: dollars for the expected work, for loading the image and for that traffic; or for an hour
    where the work is not known."""
    cost = price(one, query.interruptible) or 0.0
    return cost * (query.work_hours + loading_hours(one, query.down_gb)) + one.traffic if query.work_hours else cost


def loading_hours(one: Offer, gb: float) -> float:
    """Hours to load an image of `gb` GB: its download, and half as long again to unpack it."""
    return 1.5 * gb * 8000 / max(one.down_mbit, 1.0) / HOUR


def checks(query: OfferQuery) -> list[tuple[str, Callable[[Offer], bool]]]:
    """Every bound that the query sets, by a name for people. An offer that does not state a need of the image passes: the
    search has asked for it, and the machine itself shows the rest."""
    most, caps = query.max_dollars_per_hour, query.compute_caps

    def least(one: Offer) -> tuple[float, int]:
        compat = query.compat_cuda and is_datacenter(one.gpu)
        return (query.compat_cuda, query.compat_driver) if compat else (query.min_cuda, query.min_driver)

    price_name = "a price" if most is None else f"at most ${most:.2f} per hour"
    price_name += ", interruptible" * query.interruptible
    bounds: list[tuple[object, str, Callable[[Offer], bool]]] = [
        (True, f"{query.gpus} x {query.gpu or 'any GPU'}",
         lambda one: one.gpus == query.gpus and (query.gpu is None or gpu_name(one.gpu) == gpu_name(query.gpu))),
        (True, price_name,
         lambda one: (cost := price(one, query.interruptible)) is not None and (most is None or cost <= most)),
        (query.min_vram_gb, f"{query.min_vram_gb:g} GB of memory", lambda one: one.vram_gb >= query.min_vram_gb),
        (query.min_reliability, f"reliability {query.min_reliability:g}",
         lambda one: one.reliability >= query.min_reliability),
        (query.min_down_mbit, f"{query.min_down_mbit:.0f} Mbit/s", lambda one: one.down_mbit >= query.min_down_mbit),
        (query.min_hours, f"{query.min_hours:g} h", lambda one: one.hours_left >= query.min_hours),
        (True, "a direct port", lambda one: one.direct_ports >= 1),
        (query.banned_machines, "machines that are not banned", lambda one: one.machine_id not in query.banned_machines),
        (query.min_cuda, f"CUDA {query.min_cuda:g}", lambda one: one.cuda is None or one.cuda >= least(one)[0]),
        (query.min_driver, f"driver {query.min_driver}",
         lambda one: one.driver is None or one.driver >= least(one)[1]),
        (caps, "a compute capability for the image", lambda one: one.compute_cap is None or any(
            one.compute_cap // 100 == cap // 100 and one.compute_cap >= cap for cap in caps)),
        (query.cpu_arch, query.cpu_arch, lambda one: one.cpu_arch in ("", query.cpu_arch)),
        (query.datacenter, "a data center", lambda one: one.datacenter),
        (query.regions, " or ".join(query.regions), lambda one: one.place[-2:].upper() in query.regions),
    ]  # fmt: skip
    return [(name, holds) for is_set, name, holds in bounds if is_set]


def fits(one: Offer, query: OfferQuery) -> bool:
    """Checks the query again: a service that ignores a filter must not cost money."""
    return all(holds(one) for _, holds in checks(query))


def filters(query: OfferQuery) -> dict[str, object]:
    """The body of a search."""
    cost = "min_bid" if query.interruptible else "dph_total"
    body: dict[str, object] = {
        "verified": {"eq": True},
        "external": {"eq": False},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "num_gpus": {"eq": query.gpus},
        "direct_port_count": {"gte": 1},
        "disk_space": {"gte": query.disk_gb},
        "allocated_storage": query.disk_gb,
        "type": "bid" if query.interruptible else "on-demand",
        "order": [[cost, "asc"]],
        "limit": query.limit + len(query.banned_machines),
    }
    if query.min_cuda:  # together: alone the first was seen to drop GPUs silently
        body["cuda_max_good"] = {"gte": query.compat_cuda or query.min_cuda}
        body["compute_cap"] = {"gte": min(query.compute_caps, default=0)}
    wanted: tuple[tuple[str, str, object], ...] = (
        ("gpu_name", "eq", query.gpu and " ".join(query.gpu.replace("_", " ").split())),
        (cost, "lte", query.max_dollars_per_hour),
        ("cpu_arch", "eq", query.cpu_arch),
        ("datacenter", "eq", query.datacenter),
        ("geolocation", "in", list(query.regions)),
        ("gpu_ram", "gte", query.min_vram_gb * MB),
        ("reliability", "gte", query.min_reliability),
        ("inet_down", "gte", query.min_down_mbit),
        ("duration", "gte", query.min_hours * HOUR),
    )
    return body | {name: {operator: bound} for name, operator, bound in wanted if bound}


def instance(row: object, redact: Text) -> Instance:
    """One instance. Raises OddRow for an odd id. What cannot be read is unknown: 0, None, "" or Status.UNKNOWN."""
    if not isinstance(row, dict):
        raise OddRow("instance")
    word = row.get("actual_status")
    return Instance(
        id=identifier(row.get("id")),
        label=_text(row, "label"),
        machine_id=_known(identifier, row.get("machine_id")) or 0,
        status=STATUS.get(word, Status.UNKNOWN) if isinstance(word, str) else Status.UNKNOWN,
        message=redact(_text(row, "status_msg")),
        dollars_per_hour=_known(number, row, "dph_total") or 0.0,
        end=_known(number, row, "end_date") or None,
        addresses=addresses(row),
        start=_known(number, row, "start_date") or None,
    )


def listed(page: list[object], redact: Text) -> tuple[list[Instance], int]:
    """The instances of a page, and the number of rows without a usable id, none of which has a label of ours.

    Raises OddRow for a row that may be ours.
    """
    found, left_out = [], 0
    for row in page:
        try:
            found.append(instance(row, redact))
        except OddRow:
            if not isinstance(row, dict) or "label" not in row or parse_label(_text(row, "label")) is not None:
                raise
            left_out += 1
    return found, left_out


def _text(row: Mapping[str, object], name: str) -> str:
    return _known(text, row, name) or ""


def _known(read: Callable[..., T], *words: object) -> T | None:
    """The value that `read` returns; None where it raises OddRow."""
    try:
        return read(*words)
    except OddRow:
        return None


def addresses(row: Mapping[str, object]) -> tuple[Address, ...]:
    """Direct first, then the proxy's. Half of a pair is no address, and halves of different pairs are never joined."""
    direct = _address(row.get("public_ipaddr"), _host_port(row.get("ports")))
    proxy = _address(row.get("ssh_host"), row.get("ssh_port"))
    return tuple(pair for pair in (direct, proxy) if pair is not None)


def _host_port(ports: object) -> object:
    """ports["22/tcp"][0]["HostPort"], where there is one."""
    bound = ports.get("22/tcp") if isinstance(ports, dict) else None
    first = bound[0] if isinstance(bound, list) and bound else None
    return first.get("HostPort") if isinstance(first, dict) else None


def _address(host: object, port: object) -> Address | None:
    host = host.strip() if isinstance(host, str) else ""
    if isinstance(port, str) and PORT.fullmatch(port.strip()):
        port = int(port)
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536 or not HOST.fullmatch(host):
        return None
    return Address(host, port)


def no_such(words: str, what: str) -> bool:
    """Whether the message means that there is no such ask, instance or contract; "auth_error" does not."""
    plain = words.lower().replace("_", " ")
    return (f"no such {what}" in plain or f"{what} not found" in plain) and "auth error" not in plain


def created(answer: Answer, words: str) -> CreateResult:
    """What a reply to create means. Anything but a clear yes or a clear no is "unclear": 0, 1 or 2 contracts exist."""
    try:
        made = identifier(answer.body.get("new_contract"))
    except OddRow:
        made = None
    success = answer.body.get("success")
    if answer.status >= 500 or answer.status == 429:
        return CreateResult("unclear", made, words)
    if made is not None:
        return CreateResult("created" if answer.ok and success is True else "refused", made, words)
    if no_such(words, "ask"):
        return CreateResult("offer-gone", None, words)
    if answer.status == 402 or NO_CREDIT.search(words):
        return CreateResult("no-credit", None, words)
    if answer.lasting:
        return CreateResult("refused", None, f"{words}: {answer.lasting}", lasting=True)
    refusal = answer.status in (400, 403, 409) or (answer.ok and success is False)
    return CreateResult("refused" if refusal and words else "unclear", None, words)
