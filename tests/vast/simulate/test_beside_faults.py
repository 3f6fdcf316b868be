"""A store that does not answer, and ssh of our machine that cannot be started: neither says anything about the host."""

from __future__ import annotations

from dataclasses import replace

import pytest

import vast.supervisor.observe as observe_module
from tests.vast.fakes.worlds import HOURS, POLICY, broken
from vast.policy import Policy
from vast.ports import Host
from vast.simulate.fake_shell import FakeShell
from vast.simulate.faults import Fault, quiet
from vast.simulate.run import run
from vast.supervisor.state import Machine


def test_mutation_a_job_that_waits_for_its_bucket_counts_as_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    original = observe_module._stalled

    def stalled(machine: Machine, host: Host, policy: Policy) -> int:
        job = host.job if host.job is None or host.job.beat_age is not None else replace(host.job, beat_age=1e9)
        return original(machine, replace(host, job=job), policy)

    assert broken("bucket-unreachable") == set()
    monkeypatch.setattr(observe_module, "_stalled", stalled)
    assert broken("bucket-unreachable") == {"unknown"}


def test_a_bucket_that_does_not_answer_costs_time_and_no_work() -> None:
    made = quiet(0, HOURS)
    made.machines[1] = [Fault("bucket-unreachable", 0.0, 0.0, 0.5)]
    result = run(made, POLICY)
    assert (result.result, result.rentals, result.lost.total()) == ("done", 1, 0)


def test_mutation_a_machine_that_cannot_start_ssh_blames_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before there was vast.shell.transport's `not-run`."""
    assert broken("no-ssh-here") == set()
    monkeypatch.setattr(FakeShell, "network_is_up", lambda self: "own-network-down" not in self.world.active)
    assert broken("no-ssh-here") >= {"unknown"}
