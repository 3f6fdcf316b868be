"""Every call of the port Cloud by name, the faults of the fake, and what a call answers when it cannot know."""

from __future__ import annotations

from collections.abc import Callable
from email.message import Message

import pytest

from tests.vast.fakes.fake_faults import BODIES
from tests.vast.fakes.fake_market import KEY, ManualClock
from vast.host.bounded_http import Response
from vast.marketplace.vast_ai import VastAI
from vast.ports import Cloud, Contract, OfferQuery
from vast.secrets import Secret

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEFha2U someone@here"
PASSWORD = "registry-pass-9d8df!fd"
CONTRACT = Contract("run-1", "docker.io/someone/prefill:1", 40.0, "echo armed", (("STAGE", "stage1"),))

CALLS: dict[str, Callable[[Cloud, int], object]] = {
    "search": lambda cloud, _: cloud.search(OfferQuery()),
    "create": lambda cloud, _: cloud.create(12, CONTRACT).outcome,
    "list": lambda cloud, _: cloud.instances(),
    "show": lambda cloud, number: cloud.instance(number),
    "destroy": lambda cloud, number: cloud.destroy(number),
    "ssh": lambda cloud, number: cloud.attach_key(number, PUBLIC_KEY),
    "label": lambda cloud, number: cloud.set_label(number, "prefill/run-1/1790000000"),
    "account": lambda cloud, _: cloud.account(),
}
NOTHING = {"create": "unclear", "destroy": "unclear", "ssh": False, "label": False}  # the others: None
FAULTS = [*BODIES, "drop-before", "drop-after", "500-after", "truncated"]


def answering(clock: ManualClock, monkeypatch: pytest.MonkeyPatch, status: int, data: bytes) -> VastAI:
    """A client whose every request is answered with these bytes."""
    cloud = VastAI(Secret(KEY), clock, "https://example.org")
    monkeypatch.setattr(cloud, "_send", lambda *_, **__: Response(status, Message(), data))
    return cloud
