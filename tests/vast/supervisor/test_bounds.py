"""Constants that are in no policy, held against the policy and against each other: each in a range, with the reason.

Times are seconds. A constant far outside its range costs money, loses work or waits for nothing, and no other test would see it.
"""

from __future__ import annotations

import pytest

from jobs.runs import atomic
from vast import policy
from vast.host import attempt, classify, fixes, runner, watchdog
from vast.host import dead_man_switch as switch
from vast.host import probe as look
from vast.host import subprocess_run as programs
from vast.host import watched_job as watched
from vast.marketplace import http, vast_ai
from vast.records import reap as fleet
from vast.rental import image_registry as registry
from vast.rental import plan
from vast.shell import file_list as listing
from vast.shell import hostshell, network, pull, push, rsync, ssh
from vast.shell import local_copy as home
from vast.supervisor import journal
from vast.supervisor import loop as supervise
from vast.supervisor import machine_rules as trouble

POLICY = policy.load()
RENEW, SILENT, GRACE, URGENT = (
    POLICY.watchdog.renew,
    POLICY.watchdog.silent,
    POLICY.watchdog.grace,
    POLICY.cadence.urgent,
)


def within(least: float, value: float, most: float) -> None:
    assert least <= value <= most


def test_a_call_to_the_market_with_all_its_tries_does_not_outlast_a_renewal_of_the_lease() -> None:
    tries = 1 + len(http.PAUSES)
    within(3, http.CONNECT, 10)
    within(10, http.WHOLE, 60)
    assert tries * http.WHOLE + sum(http.PAUSES) <= RENEW
    within(max(http.INTERVALS.values()), http.LONGEST_WAIT, SILENT / 10)  # of a Retry-After, before a DELETE
    assert all(0.5 <= seconds <= 6 for seconds in http.INTERVALS.values())
    within(2**20, http.LARGEST, 2**26)  # an account of a thousand machines; and not our memory
    within(25 * 40, vast_ai.PAGE * vast_ai.PAGES, 100_000)
    within(2, registry.TIMEOUT, 30)


def test_a_command_on_a_host_leaves_time_for_the_next_renewal() -> None:
    within(10, hostshell.PROBE, hostshell.COMMAND)
    within(30, hostshell.COMMAND, RENEW / 4)  # a failed renewal is tried again after this
    within(ssh.CONNECT, hostshell.FRESH, 3 * URGENT + 1)  # what answered then may be another machine by now
    within(5, ssh.CONNECT, hostshell.PROBE / 2)  # direct, then by the proxy
    within(URGENT + 1, ssh.PERSIST, RENEW)  # one connection lasts over urgent looks, and not for ever
    within(1, ssh.CLOSE, 10)
    within(1, programs.KILL_PATIENCE, 10)
    within(0.001, programs.POLL, 0.1)
    within(2**22, programs.LARGEST, 2**28)
    within(2, network.is_up.__defaults__[0], 10)  # type: ignore[index]
    within(30, trouble.KEY_PAUSE, POLICY.deadlines.ssh / 4)  # several tries before the machine is given up


def test_a_transfer_renews_the_lease_and_ends_when_nothing_comes() -> None:
    within(600, hostshell.HASH, SILENT / 3)  # no transfer: the lease is not renewed meanwhile
    within(60, hostshell.RENEW, SILENT / 3)
    within(30, push.LEAST, 300)
    within(1e4, push.SLOWEST, 1e6)  # 0.08 to 8 Mbit/s: 30 GB over 40 Mbit/s take 100 minutes, and may
    assert push.time_for(30_000_000_000) > 30e9 / (40e6 / 8)
    within(4 * rsync.SILENT, rsync.STALL, SILENT / 3)
    within(1e5, rsync.STEP, rsync.STALL * 40e6 / 8 / 10)
    assert POLICY.market.min_down_mbit * 1e6 / 8 >= push.SLOWEST
    within(2e7, push.HASHED, 5e8)
    within(30, rsync.SILENT, rsync.STALL / 2)
    within(1e4, listing.MOST, 1e6)
    within(255, atomic.LONGEST, 4096)
    assert home.KEEP == 2  # the newest, and the one before it while the newest is being replaced


def test_the_disk_here_keeps_room_for_the_journal() -> None:
    within(2**20, journal.ROOM, 2**24)
    within(64 * journal.ROOM, pull.RESERVE, 2**30)
    within(40, plan.DISK_GB, 120)  # of a machine, in GB: image, model, checkpoints


def test_the_switch_deletes_as_often_as_money_asks_for() -> None:
    within(1, switch.FIRST_PAUSE, 10)
    within(30, switch.LONGEST_PAUSE, 120)
    within(10, watched.API_SECONDS, switch.LONGEST_PAUSE)
    within(1, watchdog.TICK, 10)
    within(1, fleet.FIRST_PAUSE, 10)
    within(30, fleet.LONGEST_PAUSE, POLICY.absence_spacing)
    within(5 * POLICY.absence_spacing, fleet.PATIENCE, 3600)


def test_the_runner_gives_a_job_what_the_policy_and_the_switch_count_on() -> None:
    assert runner.GRACE == GRACE
    within(0.05, runner.POLL, 1)
    within(30, attempt.RETRY_SECONDS, GRACE)  # a full disk may get some room
    within(2, attempt.PAUSES[-1], attempt.RETRY_SECONDS / 4)
    within(0.9 * attempt.RETRY_SECONDS, sum(attempt.PAUSES), attempt.RETRY_SECONDS)
    assert runner.PATIENCE == attempt.RETRY_SECONDS + 30
    within(200 * (classify._FAR + classify._AFTER), attempt.TAIL_BYTES, 2**20)  # 200 bytes a line
    within(1, look.SMI_SECONDS, hostshell.PROBE / 4)  # a driver that hangs must not hide the rest of a look
    within(POLICY.stall.beat_age, look.SILENCE, 3600)


def test_the_loop_cannot_spin() -> None:
    within(0.5, supervise.SHORTEST_WAIT, URGENT)
    within(2 * POLICY.offers, supervise.MOST_ACTS, 64)  # more than any look needs


@pytest.mark.parametrize("reason", fixes.LIMITS)
def test_a_fix_on_the_host_is_bounded_and_not_before_the_policy(reason: str) -> None:
    within(POLICY.retries.of(reason), fixes.LIMITS[reason], POLICY.retries.of(reason) + 3)
    within(10, fixes.HUB_SECONDS, fixes.HUB_SECONDS * 2 ** (fixes.LIMITS["hub-timeout"] - 1))
    assert fixes.HUB_SECONDS * 2 ** (fixes.LIMITS["hub-timeout"] - 1) <= look.SILENCE
