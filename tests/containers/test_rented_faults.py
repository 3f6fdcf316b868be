"""A rented run while its job, its disk, its machine, the network or the market fail."""

from __future__ import annotations

from typing import Any

from tests.containers.engine import docker, wait_for
from tests.containers.played import scene
from tests.containers.supervised import EVERY, PATIENCE, Scene, Stage


def state(it: Scene, name: str) -> Any:
    return it.state()[name]


@scene
def test_a_killed_job_is_started_again_and_goes_on_from_its_checkpoint(stage: Stage) -> None:
    with stage.scene("job-killed") as it:
        watcher = it.up()
        it.held()
        it.signal("KILL")
        assert watcher.ended() == 0
        assert it.results()["train"]["resumed_from_step"] == EVERY
        assert state(it, "retries") == [["killed", 1]]
        it.nothing_is_left(machines=1)


@scene
def test_a_full_disk_is_made_room_on_by_what_is_at_home(stage: Stage) -> None:
    """Room for two checkpoints of 39 MB and the result: the third fails, the older goes, the job resumes from the newer."""
    with stage.scene("disk-full", options=("--mount", "type=tmpfs,destination=/runs,tmpfs-size=110m")) as it:
        watcher = it.up("--set", "train.save_every=30", "--set", "train.max_steps=100")
        assert watcher.ended() == 0
        assert it.results(steps=100)["train"]["resumed_from_step"] == 60
        assert state(it, "retries") == [["disk-full", 1]]
        it.nothing_is_left(machines=1)


@scene
def test_a_dead_host_is_replaced_and_the_job_goes_on_from_the_checkpoint_at_home(stage: Stage) -> None:
    """The API goes on saying that it runs: only ssh knows better."""
    with stage.scene("host-killed", unreachable={"replace_after": 8.0}) as it:
        watcher = it.up()
        host = it.held()
        wait_for("the checkpoint at home", it.checkpoint_at_home, PATIENCE)
        docker("kill", host)
        assert watcher.ended() == 0
        assert it.results()["train"]["resumed_from_step"] == EVERY
        assert any("host-lost" in what for what in it.happened())
        it.nothing_is_left(machines=2)


@scene
def test_a_paused_host_is_waited_for(stage: Stage) -> None:
    with stage.scene("host-paused") as it:
        watcher = it.up()
        host = it.held()
        docker("pause", host)
        watcher.says("alert: unreachable")
        docker("unpause", host)
        it.signal("CONT", host)
        assert watcher.ended() == 0
        it.results()
        it.nothing_is_left(machines=1)


@scene
def test_a_host_behind_a_cut_network_that_forgot_the_key_gets_it_again(stage: Stage) -> None:
    with stage.scene("host-cut") as it:
        watcher = it.up()
        host = it.held()
        attached = it.fake.count("ssh")
        it.hosts.cut(host)
        watcher.says("alert: unreachable")
        it.hosts.forget_keys(host)
        it.hosts.mend(host)
        wait_for("the key to be attached", lambda: it.fake.count("ssh") > attached, PATIENCE)
        it.signal("CONT", host)
        assert watcher.ended() == 0
        it.results()
        it.nothing_is_left(machines=1)


@scene
def test_verdicts_are_frozen_while_our_own_network_is_down(stage: Stage) -> None:
    """Long enough for the host to count as lost, were it the host's fault."""
    with stage.scene("own-cut", unreachable={"replace_after": 8.0}) as it:
        watcher = it.up()
        host = it.held()
        it.hosts.cut(it.ours)
        watcher.says("alert: network")
        lines = len(watcher.looks())
        wait_for("looks for 12 s and more", lambda: len(watcher.looks()) >= lines + 4, PATIENCE)
        it.hosts.mend(it.ours)
        it.signal("CONT", host)
        assert watcher.ended() == 0
        it.results()
        assert not any("host-lost" in what for what in it.happened())
        it.nothing_is_left(machines=1)


@scene
def test_results_come_home_while_the_api_is_down_and_the_machine_goes_once_it_is_up(stage: Stage) -> None:
    with stage.scene("api-down") as it:
        watcher = it.up()
        host = it.held()
        it.fake.fail("500")
        watcher.says("alert: account")
        it.signal("CONT", host)
        wait_for("tries to destroy it", lambda: it.fake.count("destroy") >= 2, PATIENCE)
        it.results()
        assert it.hosts.living() and not watcher.code()
        it.fake.heal()
        assert watcher.ended() == 0
        it.nothing_is_left(machines=1)
