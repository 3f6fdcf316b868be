"""The probe of our own network: it answers in time, whatever hangs."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from vast.shell import network


def test_a_target_that_takes_a_connection_proves_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        up = server.getsockname()
        with socket.create_server(("127.0.0.1", 0)) as gone:
            down = gone.getsockname()
        assert network.is_up([up])
        assert network.is_up([down, up])
        assert not network.is_up([down])
    assert not network.is_up([])


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(target: object, timeout: float) -> None:
        release.wait(60)
        raise OSError

    monkeypatch.setattr(network.socket, "create_connection", hang)
    began = time.monotonic()
    try:
        assert not network.is_up([("console.example.org", 443)], timeout=0.2)
        assert time.monotonic() - began < 10
    finally:
        release.set()


def test_a_thread_that_cannot_be_started_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert not network.is_up([("127.0.0.1", 1)])


def no_thread(_: object) -> None:
    raise RuntimeError("can't start new thread")
