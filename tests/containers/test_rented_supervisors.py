"""A rented run whose supervisor dies, doubles, or never comes back."""

from __future__ import annotations

import json
import time

from tests.containers.engine import wait_for
from tests.containers.played import scene
from tests.containers.supervised import PATIENCE, Scene, Stage


def _slowly(it: Scene, host: str) -> str:
    """The log of the dead-man's switch, asked for once a second: each look is work for the engine."""
    time.sleep(1)
    return it.on_host("cat", "/runs/.watchdog/log.txt", host=host, code=None)


@scene
def test_a_killed_supervisor_is_resumed_also_from_the_midst_of_a_create(stage: Stage) -> None:
    with stage.scene("supervisor-killed") as it:
        it.hosts.answer.clear()
        first = it.up()
        wait_for("a machine whose create is not answered", it.hosts.living, PATIENCE)
        first.kill()
        it.hosts.answer.set()
        assert it.journal()[-1]["record"] == "act"
        second = it.background("attach", it.folder.name)
        host = it.held()
        second.kill()
        assert json.loads(it.vast("status", "--json"))
        third = it.background("attach", it.folder.name)
        it.signal("CONT", host)
        assert third.ended() == 0
        it.results()
        assert {record["token"] for record in it.journal()} == {1, 2, 3}
        it.nothing_is_left(machines=1)


@scene
def test_of_two_supervisors_one_acts(stage: Stage) -> None:
    with stage.scene("two-supervisors") as it:
        first = it.up()
        host = it.held()
        beside = it.background("attach", it.folder.name)  # the first lives
        wait_for("what it says", lambda: beside.output or beside.code(), PATIENCE)
        before = len(first.looks())
        wait_for("the first to look on", lambda: len(first.looks()) >= before + 3, PATIENCE)
        assert {record["token"] for record in it.journal()} == {1}
        first.kill()
        rivals = [it.background("attach", it.folder.name) for _ in range(2)]
        wait_for("one that takes over", lambda: {record["token"] for record in it.journal()} >= {1, 2}, PATIENCE)
        it.signal("CONT", host)
        ended = [one.ended() for one in rivals]
        assert 0 in ended
        tokens = [record["token"] for record in it.journal()]
        assert tokens == sorted(tokens)
        it.results()
        it.nothing_is_left(machines=1)


@scene
def test_a_machine_whose_supervisor_never_comes_back_destroys_itself(stage: Stage) -> None:
    """After a checkpoint of its job, and with its own key."""
    with stage.scene("switch", watchdog={"renew": 10.0, "silent": 30.0, "grace": 60.0}) as it:
        first = it.up("--set", "train.max_steps=100000")
        host = it.held()
        (rental,) = it.fake.market.living()
        first.kill()
        wait_for("the switch", lambda: "ending: nobody has renewed" in _slowly(it, host), PATIENCE)
        it.signal("CONT", host)
        wait_for("the machine to end", lambda: not it.hosts.left(), PATIENCE)
        (destroy,) = [request for request in it.fake.requests if request.endpoint == "destroy"]
        assert destroy.headers["Authorization"] == f"Bearer {rental.api_key}"
        job = json.loads((it.hosts.kept(rental.id) / "state.json").read_text())
        assert (job["phase"], job["end_reason"]) == ("ended", "stopped")
        told = (it.hosts.kept(rental.id) / "log.txt").read_text()
        assert told and rental.api_key not in told
        assert "error" not in it.vast("reap").lower()
        it.nothing_is_left(machines=1)
