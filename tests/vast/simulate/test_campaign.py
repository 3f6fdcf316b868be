"""2,000 seeds in 59 kinds of trouble, the earlier algorithm in the same worlds, a healthy day, and the command."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from typing import Any

import pytest
from click.testing import CliRunner

import vast.supervisor.schedule as schedule_module
from tests.vast.fakes import old_watcher
from tests.vast.fakes.worlds import POLICY
from vast.simulate import campaign
from vast.simulate.__main__ import main
from vast.simulate.campaign import Summary
from vast.simulate.faults import ANEW, MODES, schedule
from vast.simulate.invariants import IN_REACH
from vast.simulate.run import run
from vast.supervisor import advance, decide
from vast.supervisor.state import Phase


@pytest.fixture(scope="module")
def summary() -> Summary:
    return campaign.campaign(range(2000), partial(campaign.run_seed, policy=POLICY))


def test_every_invariant_holds_in_2000_seeds(summary: Summary) -> None:
    assert not summary.failing
    assert summary.violations == summary.leaks == summary.double_rents == summary.wrong_verdicts == 0


@pytest.mark.parametrize(
    "seed",
    [
        2055,
        2201,
        4492,
        6133,
        6714,
        7083,
        10095,
        10754,
        11199,
        13221,
        14039,
        15146,
        21022,
        21150,
        18757,
        19206,
        25588,
        27752,
        27771,
        35221,
        38435,
        40281,
        9927,
        37819,
        38173,
        40201,
        48605,
        37834,
        61181,
        61963,
        67891,
        68799,
    ],
)
def test_seeds_beyond_the_2000_that_once_broke_an_invariant_hold(seed: int) -> None:
    assert run(schedule(seed), POLICY).violations == []


SLOW = (372, 5855, 8262, 8299, 9274, 23971, 24806, 27449)


def test_mutation_the_pace_of_a_pull_is_known_only_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first slow pull near a cap left no time for the last one; a pull of half of what is left is ended for it now."""
    worlds = [schedule(seed) for seed in SLOW]
    for made in worlds:  # these seeds are older than that fault
        made.machines = {n: [one for one in faults if one.mode not in ANEW] for n, faults in made.machines.items()}
    assert [run(made, POLICY).lost for made in worlds] == [Counter()] * len(SLOW)
    for module in (advance, decide):
        monkeypatch.setattr(module, "UNFINISHED", 0.0)
    lost = [cause for made in worlds for cause in run(made, POLICY).lost]
    assert len(lost) == len(SLOW) and all(cause.startswith(IN_REACH) for cause in lost), lost


def test_mutation_a_machine_that_is_not_seen_yet_costs_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """It showed up when the budget was used up, and half an hour of work was lost."""

    def avoidable() -> list[str]:
        lost = [cause for seed in (10097, 26494) for cause in run(schedule(seed), POLICY).lost]
        return [cause for cause in lost if cause.startswith(IN_REACH)]

    assert avoidable() == []
    monkeypatch.setattr(schedule_module, "may_show", lambda t, state, policy: False)
    assert len(avoidable()) == 2


def test_a_last_pull_that_takes_longer_than_the_time_kept_for_it_is_named_as_the_cause() -> None:
    """The host became slow after the pull before it, so nothing could show that more time was needed."""
    assert run(schedule(27318), POLICY).lost == Counter({"pull slower than the reserve": 1})


def test_every_failure_mode_is_met_in_2000_seeds(summary: Summary) -> None:
    assert sorted(MODES.values()) == list(range(1, len(MODES) + 1))
    assert {mode: summary.modes[mode] for mode in MODES if summary.modes[mode] < 10} == {}
    assert summary.modes["dead-man's switch"] > 10


def test_every_loss_is_named_and_forced_and_most_runs_succeed(summary: Summary) -> None:
    assert summary.named_losses == summary.lost_artifacts > 100
    assert summary.avoidable_losses == 0, summary.losses
    assert (
        summary.succeeded > 0.5 * summary.seeds
    )  # of the rest nearly all fail for the job's sake, or for caps too small


def test_the_old_algorithm_leaks_loses_and_overspends_in_the_same_worlds(summary: Summary) -> None:
    old = campaign.campaign(range(2000), partial(old_watcher.run_seed, policy=POLICY))
    assert old.leaks > 100 and old.double_rents > 10 and old.wrong_verdicts > 10
    assert old.avoidable_losses > 100
    assert old.idle_dollars > 5 * summary.idle_dollars
    assert old.overspend_mean > 100 * summary.overspend_mean


def test_a_seed_replays_to_the_same_time_line() -> None:
    first, second = (run(schedule(17), POLICY, trace=True) for _ in range(2))
    assert first.lines == second.lines
    assert len(first.lines) > 10


def test_processes_sum_to_what_one_process_sums_to() -> None:
    one, two = (campaign.campaign(range(60), partial(campaign.run_seed, policy=POLICY), n) for n in (1, 2))
    one.seconds = two.seconds
    assert _rounded(one) == _rounded(two)


def _rounded(summary: Summary) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in summary.to_dict().items()}


def test_a_healthy_day_costs_few_calls_and_little_idle_time() -> None:
    day = campaign.day(POLICY)
    assert day.violations == []
    assert day.calls["api"] <= 200
    assert day.calls["ssh"] <= 450  # 288 of them renew the lease, every five minutes
    assert day.idle_dollars <= 0.03 * day.dollars


def test_the_command_prints_one_json_object() -> None:
    result = CliRunner().invoke(main, ["--seeds", "20", "--json", "--processes", "1"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    keys = "rentals leaks double_rents lost_artifacts wrong_verdicts overspend_max overspend_mean idle_dollars seconds"
    assert content.keys() >= set(keys.split())


def test_the_command_replays_a_seed_with_its_time_line() -> None:
    result = CliRunner().invoke(main, ["--seed", "3"])
    assert result.exit_code == 0
    assert "losses by cause:" in CliRunner().invoke(main, ["--seeds", "1", "--processes", "1"]).output
    assert "create  ->" in result.output and "result: " in result.output


def test_the_command_names_a_mistake_in_a_policy_without_a_traceback(tmp_path: Any) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("attempt: 3\n", encoding="utf-8")
    result = CliRunner().invoke(main, ["--policy", str(path)])
    assert result.exit_code == 2
    assert "attempts" in result.output


def test_phases_are_those_of_the_contract() -> None:
    assert [phase.value for phase in Phase] == [
        "idle",
        "provisioning",
        "running",
        "collecting",
        "terminating",
        "closed",
    ]


def test_there_are_never_more_processes_than_worlds() -> None:
    assert CliRunner().invoke(main, ["--seeds", "1", "--json", "--processes", "100000"]).exit_code == 0
