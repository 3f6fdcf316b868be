"""What the service answers, compared with what this client assumes: one JSON line a call, for `vast drill`.

Kept are names and kinds of fields, statuses, ids, labels, prices and redacted messages: no other value, since an answer may hold
a key.
"""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vast.marketplace.http import Exchange
from vast.ports import Clock, parse_label

ENDPOINTS = (
    ("search", "POST", r"/api/v0/bundles/"), ("create", "PUT", r"/api/v0/asks/(\d+)/"),
    ("list", "GET", r"/api/v1/instances/"), ("show", "GET", r"/api/v[01]/instances/(\d+)/"),
    ("destroy", "DELETE", r"/api/v[01]/instances/(\d+)/"), ("label", "PUT", r"/api/v[01]/instances/(\d+)/"),
    ("ssh", "POST", r"/api/v[01]/instances/(\d+)/ssh/"), ("account", "GET", r"/api/v0/users/current"),
)  # fmt: skip
# The assumed kinds of each field's value; "absent" where a field may be missing.
NUMBERS = ("id", "machine_id", "num_gpus", "gpu_ram", "dph_total", "min_bid", "reliability", "inet_down", "inet_up",
           "inet_down_cost", "inet_up_cost", "duration", "direct_port_count", "cuda_max_good", "compute_cap")  # fmt: skip
OFFER = {**dict.fromkeys(NUMBERS, "number"), **dict.fromkeys(("gpu_name", "geolocation", "driver_version", "cpu_arch"), "text"),
         "hosting_type": "number null"}  # fmt: skip
INSTANCE = {
    "id": "number", "machine_id": "number", "label": "text", "actual_status": "text null", "intended_status": "text",
    "status_msg": "text null", "dph_total": "number", "start_date": "number null", "end_date": "number null",
    "public_ipaddr": "text null", "ports": "object null absent", "ssh_host": "text null", "ssh_port": "number text null",
}  # fmt: skip
KEPT = ("id", "label", "actual_status", "dph_total")
ANSWERS: Mapping[str, Mapping[str, str]] = {
    "search": {"offers": "list"},
    "create": {"success": "yes-no", "new_contract": "number", "instance_api_key": "text"},
    "list": {"instances": "list", "total_instances": "number", "next_token": "text null absent"},
    "show": {"instances": "object null"},
    "destroy": {"success": "yes-no"},
    "label": {"success": "yes-no"},
    "ssh": {"success": "yes-no"},
    "account": {"id": "number", "credit": "number"},
}
_KINDS = {bool: "yes-no", int: "number", float: "number", str: "text", list: "list", dict: "object", type(None): "null"}


def kind(value: object) -> str:
    return _KINDS[type(value)]  # JSON has no others


def odd(where: str, row: object, assumed: Mapping[str, str]) -> Iterable[str]:
    """Fields of another kind than assumed, such as "instance.label: number"."""
    if not isinstance(row, dict):
        yield f"{where}: {kind(row)}"
        return
    for name, kinds in assumed.items():
        found = kind(row[name]) if name in row else "absent"
        if found not in kinds.split():
            yield f"{where}.{name}: {found}"


def summary(exchange: Exchange) -> dict[str, Any]:
    """The line for one call, without its time."""
    name, match = exchange.path, None
    for one, method, pattern in ENDPOINTS:
        if method == exchange.method and (match := re.fullmatch(pattern, exchange.path)):
            name = one
            break
    body, answered = exchange.body, exchange.status is not None and 200 <= exchange.status < 300
    line: dict[str, Any] = {
        "call": name, "id": int(match[1]) if match is not None and match.groups() else None, "status": exchange.status,
        "skew": exchange.skew, "words": exchange.words, "success": body.get("success"), "odd": [], "rows": [],
    }  # fmt: skip
    if not answered:
        return line
    wrong = list(odd("answer", body, ANSWERS.get(name, {})))
    if name == "search" and isinstance(body.get("offers"), list):
        wrong += [text for row in body["offers"] for text in odd("offer", row, OFFER)]  # type: ignore[attr-defined]
    if name in ("list", "show"):
        seen = body.get("instances")
        rows = seen if isinstance(seen, list) else [] if seen is None else [seen]
        ours = [row for row in rows if isinstance(row, dict) and parse_label(str(row.get("label"))) is not None]
        wrong += [text for row in ours for text in odd("instance", row, INSTANCE)]
        line["rows"] = [{field: row.get(field) for field in KEPT} for row in ours]
    if name == "create":
        line["id"] = body.get("new_contract")
    return {**line, "odd": sorted(set(wrong))}


class Recorder:
    """Appends a line for each call to `path`; several processes may write to one file."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock

    def __call__(self, exchange: Exchange) -> None:
        line = json.dumps({"t": self._clock.now(), **summary(exchange)}, separators=(",", ":")) + "\n"
        with suppress(OSError), self._path.open("ab", buffering=0) as file:  # a full disk must not end a supervisor
            file.write(line.encode())
