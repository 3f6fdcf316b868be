"""The port Cloud over the HTTP API of Vast.ai. It is tested against the official client, `vastai` 1.9.1
(tests/vast/marketplace/test_fake_against_official.py); the live service has not been asked.

Not covered: reserved contracts, volumes, templates, and more than one thread.
"""

from collections.abc import Mapping

from vast import ports
from vast.marketplace import rows
from vast.marketplace.http import Answer, Client, Kind
from vast.secrets import Secret

PAGE = 25  # the most that the service gives at once
PAGES = 400  # a token that never ends is a fault


class VastAI(Client):
    """Implements vast.ports.Cloud. `trouble`: the reason for the last None, False or "unclear"."""

    def search(self, query: ports.OfferQuery) -> tuple[ports.Offer, ...] | None:
        answer = self.call("search", "POST", "/api/v0/bundles/", rows.filters(query))
        listed = answer.body.get("offers") if answer is not None and answer.ok else None
        if not isinstance(listed, list):
            self._explain("search", answer)
            return None
        found = []
        for row in listed:
            try:
                found.append(rows.offer(row, query.down_gb))
            except rows.OddRow as odd:
                self.note(f"search: an offer is left out: odd {odd}")
        if listed and not found:
            self._explain("search", answer)
            return None
        fitting = {one.id: one for one in found if rows.fits(one, query)}
        order = sorted(fitting.values(), key=lambda one: (rows.rank(one, query), one.id))
        return tuple(order[: query.limit])

    def create(self, offer_id: int, contract: ports.Contract) -> ports.CreateResult:
        """One request, never repeated: after a drop the contract may exist. 429 is "unclear" too, as gateways repeat."""
        if contract.registry_login is not None:
            self.redact.learn_login(Secret(contract.registry_login))
        if (wrong := self._unfit(contract)) is not None:
            return ports.CreateResult("refused", None, wrong)
        body: dict[str, object] = {
            "client_id": "me",
            "image": contract.image,
            "env": dict(contract.env),
            "disk": contract.disk_gb,
            "label": contract.label,
            "onstart": contract.onstart,
            "runtype": rows.RUNTYPE,
            "cancel_unavail": contract.bid is None,
        }
        if contract.bid is not None:
            body["price"] = contract.bid
        if contract.registry_login is not None:
            body["image_login"] = contract.registry_login
        answer = self.call("create", "PUT", f"/api/v0/asks/{offer_id}/", body, repeat=False)
        if answer is None:
            return ports.CreateResult("unclear", None, self.trouble)
        instance_key = answer.body.get("instance_api_key")
        if isinstance(instance_key, str):
            self.redact.learn(Secret(instance_key))
        result = rows.created(answer, self.redact(answer.words)[:500])
        if result.outcome != "created":
            self._explain("create", answer)
        return result

    def instances(self) -> tuple[ports.Instance, ...] | None:
        found: dict[int, ports.Instance] = {}
        left_out = 0  # rows without an id, with another label than ours
        token: object = None
        seen: set[str] = set()
        for _ in range(PAGES):
            query: dict[str, object] = {"select_filters": {}, "order_by": [{"col": "id", "dir": "asc"}], "limit": PAGE}
            if token is not None:
                query["after_token"] = token
            answer = self.call("show", "GET", "/api/v1/instances/", query=query)
            page, total, token = map(_body(answer).get, ("instances", "total_instances", "next_token"))
            if not isinstance(page, list) or not (token is None or (isinstance(token, str) and token not in seen)):
                self._explain("list", answer)
                return None
            try:
                shown, odd_rows = rows.listed(page, self.redact)
            except rows.OddRow as odd:
                self.note(f"list: a row that may be ours is odd in {odd}, so the list is not believed")
                return None
            found.update((one.id, one) for one in shown)
            left_out += odd_rows
            if token:
                seen.add(str(token))
                continue
            # Only the count distinguishes an account without instances from a list that came back empty.
            counted = type(total) is int
            rows_seen = len(found) + left_out
            if (counted and total != rows_seen) or (not counted and (total is not None or not found)):
                self.note(f"list: {rows_seen} instances, and the service counts otherwise or not at all")
                return None
            return tuple(found.values())
        self.note(f"list: it does not end after {PAGES} pages")
        return None

    def instance(self, instance_id: int) -> ports.Instance | ports.Gone | None:
        answer = self._of_one("show", "GET", instance_id, query={"owner": "me"})
        if answer is None or "instances" not in _body(answer):
            self._explain("show", answer)
            return None
        row = answer.body["instances"]
        if row is None:
            # GONE only without a message: a 404, or null with a message, may come from a bad key or a stale replica
            if answer.status == 200 and not answer.words:
                return ports.GONE
            self._explain("show", answer)
            return None
        try:
            one = rows.instance(row, self.redact)
        except rows.OddRow as odd:
            self.note(f"show {instance_id}: odd {odd}")
            return None
        if one.id != instance_id:
            self._explain("show", answer)
            return None
        return one

    def destroy(self, instance_id: int) -> ports.Destroyed:
        """ "accepted" also if the service has no such instance, which proves nothing: a stale replica answers so, too."""
        answer = self._of_one("destroy", "DELETE", instance_id, {})
        if answer is None or answer.status >= 500:
            return "unclear"
        absent = rows.no_such(answer.words, "instance") or rows.no_such(answer.words, "contract")
        taken = answer.ok and (answer.status == 204 or answer.body.get("success") is True)
        if taken or absent:
            return "accepted"
        self._explain("destroy", answer)
        return "unclear"

    def attach_key(self, instance_id: int, public_key: str) -> bool:
        if "PRIVATE KEY" in public_key or self.redact.holds(public_key):
            self.note("ssh key: not a public one; not sent")
            return False
        return self._managed("ssh key", "POST", f"{instance_id}/ssh", {"ssh_key": public_key.strip()})

    def set_label(self, instance_id: int, label: str) -> bool:
        return self._managed("label", "PUT", instance_id, {"label": label})

    def _of_one(
        self, kind: Kind, method: str, which: int | str, body: object = None, query: Mapping[str, object] | None = None
    ) -> Answer | None:
        """A call about one instance: by version 1 where version 0, which is being withdrawn, answers 410."""
        answer = self.call(kind, method, f"/api/v0/instances/{which}/", body, query)
        if answer is None or answer.status != 410:
            return answer
        return self.call(kind, method, f"/api/v1/instances/{which}/", body, query) or answer

    def _managed(self, what: str, method: str, which: int | str, body: dict[str, str]) -> bool:
        answer = self._of_one("manage", method, which, body)
        done = answer is not None and answer.ok and answer.body.get("success") is True
        if not done:
            self._explain(what, answer)
        return done

    def account(self) -> ports.Account | None:
        answer = self.call("show", "GET", "/api/v0/users/current")
        body = _body(answer)
        try:
            ident = rows.identifier(body.get("id"))
        except rows.OddRow:
            ident = None
        at = None if answer is None or answer.skew is None else self._clock.now() + answer.skew
        if "credit" in body and body["credit"] is None:
            return ports.Account(None, ident, at)  # not stated; the balance is not it
        for name in ("credit", "balance"):
            value = body.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12:
                return ports.Account(float(value), ident, at)  # may be negative: what is owed
        self._explain("account", answer)
        return None

    def _unfit(self, contract: ports.Contract) -> str | None:
        """Path, fact and remedy of a contract that the service would refuse, or that would carry a secret to the host."""
        sizes = {"label": len(contract.label.encode()), "onstart and args": len(contract.onstart.encode())}
        for name, most in rows.SIZES.items():
            if sizes[name] > most:
                return f"{name}: {sizes[name]} bytes, and the service takes {most}; shorten it"
        if not contract.disk_gb >= rows.LEAST_DISK:
            return f"disk: {contract.disk_gb:g} GB, and the service wants at least {rows.LEAST_DISK}; ask for more"
        seen_on_host = {"label": contract.label, "image": contract.image, "onstart": contract.onstart}
        for name, value in (*seen_on_host.items(), *(("env", f"{key}={value}") for key, value in contract.env)):
            if self.redact.holds(value):
                secret = "the account's key or the registry's login"
                return f"{name}: holds {secret}, which must not reach the host; remove it"
        return None

    def _explain(self, what: str, answer: Answer | None) -> None:
        """Log why an answer is not usable; where there was no answer, the client has done it."""
        if answer is not None and answer.ok:
            self.note(
                f"{what}: HTTP {answer.status}, but not the answer that is known: {self.redact(answer.words)[:200]}"
            )


def _body(answer: Answer | None) -> dict[str, object]:
    """Empty without an answer, and for one that is no success."""
    return {} if answer is None or not answer.ok or answer.body.get("success") is False else answer.body
