"""What can go wrong between a client and the fake Vast API."""

from __future__ import annotations

from dataclasses import dataclass, field

# Dropped or cut connections, with the act done or not; an answer that never comes; a contract made and refused.
SPECIAL = {"drop-before", "drop-after", "500-after", "truncated", "slow", "refused-with-contract"}

# What a fault sends in place of the answer: status and bytes. The act itself is not done, unless the fault says "after".
BODIES: dict[str, tuple[int, bytes]] = {
    "500": (500, b'{"success": false, "error": "internal", "msg": "try later"}'),
    "502-html": (502, b"<html><body><h1>502 Bad Gateway</h1></body></html>"),
    "html": (200, b"<!doctype html><html>log in to the network</html>"),
    "malformed": (200, b'{"success": true, "instances": [{"id": 7'),
    "empty-body": (200, b""),
    "wrong-types": (200, b'{"success": "yes", "instances": "none", "offers": 3, "new_contract": "x", "result_url": 7}'),
    "not-an-object": (200, b"[]"),
    "empty-list": (200, b'{"instances": [], "offers": []}'),  # as the old list gives it
    "empty-object": (200, b"{}"),
    "auth_error": (404, b'{"success": false, "error": "auth_error", "msg": "Invalid user key"}'),
    "401": (401, b'{"success": false, "error": "unauthorized", "msg": "Invalid user key"}'),
    "404": (404, b'{"success": false, "msg": "Session expired. Please log in again."}'),
    "no_such": (404, b'{"success": false, "error": "no_such_instance", "msg": "No such instance."}'),
    "410": (410, b'{"success": false, "error": "no_such_ask", "msg": "gone"}'),
    "no-credit": (400, b'{"success": false, "error": "insufficient_credit", "msg": "Insufficient credits"}'),
    "400": (400, b'{"success": false, "error": "invalid_args", "msg": "the image is no name"}'),
    "403-scope": (403, b'{"success": false, "error": "forbidden", "message": "Not permitted by this API key"}'),
    "403-offer": (403, b'{"success": false, "error": "forbidden", "msg": "Offer is not your own"}'),
    "409": (409, b'{"success": false, "detail": "offer is being rented"}'),
    "spending": (400, b'{"success": false, "message": "spending limit of the team is reached"}'),
    "410-deprecated": (
        410,
        b'{"success": false, "error": "deprecated_endpoint", "instances": [], "total_instances": 0}',
    ),
    "410-plain": (410, b"deprecated_endpoint"),
    "quota": (429, b'{"success": false, "error": "search_quota_exceeded"}'),
    "429-plain": (429, b"API requests too frequent: endpoint threshold=4.5\n"),
    "not-found": (404, b'{"success": false, "error": "not_found", "message": "Instance not found"}'),
    "null-message": (200, b'{"instances": null, "message": "try again"}'),
    "429": (429, b'{"success": false, "msg": "API requests too frequent"}'),
}


@dataclass
class Fault:
    """What goes wrong with the next `times` calls of an endpoint."""

    what: str  # a name of BODIES or of SPECIAL
    on: str  # an endpoint, or "*"
    times: int
    headers: dict[str, str] = field(default_factory=dict)
