"""What is asked of a host and believed of its answers, over a host that is a directory."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from jobs.errors import RunStateError
from tests.vast.fakes.directory_host import DIRECT, NONCE, PROGRAM, PROXY, RUN, DirectoryHost, DirectoryTransport
from tests.vast.fakes.fake_market import ManualClock
from vast.secrets import Secret
from vast.shell.hostshell import HostShell
from vast.shell.local_copy import LocalCopy
from vast.shell.push import Input
from vast.shell.transport import FREELY, Kind, Reply

BOTH = (DIRECT, PROXY)
TOKEN = "hf_do_not_show_me"


def shell_of(way: DirectoryTransport, runs: Path, clock: ManualClock, **more: object) -> HostShell:
    own = runs / "vast" / "stage3b-20261123-101400"
    own.mkdir(parents=True, exist_ok=True)
    return HostShell(
        way,
        LocalCopy(runs, own),
        NONCE,
        clock,
        lambda: True,
        program=PROGRAM,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def shell(way: DirectoryTransport, tmp_path: Path, clock: ManualClock) -> HostShell:
    return shell_of(way, tmp_path / "runs", clock)


def test_a_probe_returns_the_job_the_run_and_its_newest_checkpoint(host: DirectoryHost, shell: HostShell) -> None:
    host.train(100, 200)
    found = shell.probe(BOTH)
    assert (found.contact, found.boot != "") == ("ok", True)
    assert found.job is not None
    assert (found.job.phase, found.job.run) == ("starting", RUN)
    assert found.job.checkpoint == f"{RUN}/checkpoints/checkpoint-200"


def test_the_second_pair_is_tried_and_then_used_first(way: DirectoryTransport, shell: HostShell) -> None:
    way.kinds[DIRECT] = "unreachable"
    assert shell.probe(BOTH).contact == "ok"
    assert [address for address, _, _ in way.calls] == [DIRECT, PROXY]
    shell.probe(BOTH)
    assert [address for address, _, _ in way.calls] == [DIRECT, PROXY, PROXY]


@pytest.mark.parametrize(
    ("kinds", "contact"),
    [
        (("unreachable", "unreachable"), "unreachable"),
        (("timeout", "timeout"), "unreachable"),
        (("unreachable", "denied"), "denied"),
        (("wrong-host", "denied"), "denied"),
        (("wrong-host", "timeout"), "wrong-host"),
    ],
)
def test_of_two_failures_the_one_with_a_remedy_is_reported(
    way: DirectoryTransport, shell: HostShell, kinds: tuple[Kind, Kind], contact: str
) -> None:
    way.kinds = dict(zip(BOTH, kinds, strict=True))
    assert shell.probe(BOTH).contact == contact


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("denied", "refuses the ssh key of this run (denied: made up)"),
        ("wrong-host", "shows another host key than at the first contact: another machine, or one that was made anew"),
        ("timeout", "does not answer (timeout: made up)"),
        ("unreachable", "cannot be reached (unreachable: made up)"),
    ],
)
def test_the_reason_of_an_ssh_failure_is_reported_once_until_it_changes(
    way: DirectoryTransport, shell: HostShell, caplog: pytest.LogCaptureFixture, kind: Kind, said: str
) -> None:
    way.kinds = dict.fromkeys(BOTH, kind)
    for _ in range(3):
        assert shell.probe(BOTH).message.startswith(f"{DIRECT.host}:{DIRECT.port} {said}")
    assert [record.getMessage() for record in caplog.records] == [f"no contact: {shell.probe(BOTH).message}"]
    way.kinds = {}
    assert shell.probe(BOTH).contact == "ok"
    way.kinds = dict.fromkeys(BOTH, kind)
    shell.probe(BOTH)
    assert len(caplog.records) == 2


def test_the_words_of_a_host_are_bounded_and_printable(
    way: DirectoryTransport, shell: HostShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = Reply("unreachable", err="x\x1b[2J\u202e" + "y" * 10_000)
    monkeypatch.setattr(way, "run", lambda *_, **__: evil)
    found = shell.probe(BOTH).message
    assert found.isprintable() and "\u202e" not in found and len(found) <= 500


def test_without_an_address_there_is_no_contact(shell: HostShell) -> None:
    assert shell.probe(()).contact == "unreachable"
    assert shell.start((), ("run", "stage3b")) is None


def test_nothing_is_believed_from_a_host_with_another_nonce(tmp_path: Path, clock: ManualClock) -> None:
    stranger = DirectoryHost(tmp_path / "other", nonce="ffff")
    stranger.train(100)
    way = DirectoryTransport(stranger)
    shell = shell_of(way, tmp_path / "runs", clock, secrets=lambda: {"HF_TOKEN": Secret(TOKEN)})
    found = shell.probe(BOTH)
    assert (found.contact, found.job, found.boot) == ("wrong-host", None, "")
    for done in (
        shell.start(BOTH, ("run", "stage3b")),
        shell.stop(BOTH),
        shell.renew_lease(BOTH, 9),
        shell.pull(BOTH, True),
    ):
        assert done is None
    assert set(way.actions()) == {"look"}
    assert set(way.settled) == {(DIRECT, False), (PROXY, False)}


def test_a_stranger_behind_the_first_pair_does_not_hide_our_machine_behind_the_second(
    tmp_path: Path, host: DirectoryHost, clock: ManualClock
) -> None:
    way = DirectoryTransport(DirectoryHost(tmp_path / "other", nonce="ffff"), host)
    shell = shell_of(way, tmp_path / "runs", clock)
    assert shell.probe(BOTH).contact == "ok"
    assert way.settled == [(DIRECT, False), (PROXY, True)]
    assert shell.stop(BOTH) is True
    assert way.calls[-1][0] == PROXY


def test_a_machine_that_has_no_nonce_yet_is_no_contact(tmp_path: Path, clock: ManualClock) -> None:
    bare = DirectoryHost(tmp_path / "bare")
    (bare.root / ".watchdog/config.json").unlink()
    assert shell_of(DirectoryTransport(bare), tmp_path / "runs", clock).probe(BOTH).contact == "unreachable"


@pytest.mark.parametrize("said", ["", "Welcome!", "[1]", '{"nonce": 1}', f'{{"nonce": "{NONCE}"}}', "{" * 10_000])
def test_an_odd_answer_is_no_contact(way: DirectoryTransport, shell: HostShell, said: str) -> None:
    way.replies["look"] = Reply("ok", out=said)
    assert shell.probe(BOTH).contact in ("unreachable", "wrong-host")


def test_what_is_odd_inside_an_answer_is_not_known(way: DirectoryTransport, shell: HostShell) -> None:
    answer = {
        "nonce": NONCE, "boot": "b1", "watchdog": {"armed": "yes"}, "gpu_percent": float("nan"),
        "disk_free_gb": True, "message": "red \x1b[31m alert", "job": {"phase": "flying"},
    }  # fmt: skip
    way.replies["look"] = Reply("ok", out="last login: today\n" + json.dumps(answer))
    found = shell.probe(BOTH)
    assert (found.contact, found.armed, found.job, found.gpu_percent) == ("ok", None, None, None)
    assert "\x1b" not in found.message


def test_a_job_whose_attempt_is_odd_is_not_known_and_the_rest_may_be_missing(
    way: DirectoryTransport, shell: HostShell
) -> None:
    answer = {"nonce": NONCE, "boot": "b1", "watchdog": {"armed": True, "lease_age": 1, "uptime": 2.5}}
    way.replies["look"] = Reply("ok", out=json.dumps({**answer, "job": {"phase": "ended", "attempt": "2"}}))
    assert shell.probe(BOTH).job is None
    fields = {"phase": "ended", "attempt": 2, "run": "../../etc/20261123-101500", "loss": "low", "complete": 1}
    way.replies["look"] = Reply("ok", out=json.dumps({**answer, "job": fields}))
    found = shell.probe(BOTH)
    assert (found.armed, found.uptime) == (True, 2.5)
    assert found.job is not None
    assert (found.job.attempt, found.job.run, found.job.loss, found.job.complete) == (2, None, None, False)


def test_a_number_that_would_overflow_a_float_is_not_known(way: DirectoryTransport, shell: HostShell) -> None:
    """The supervisor divides steps by seconds: a hostile host must not end it so."""
    job = {"phase": "running", "attempt": 1, "step": 10**400, "total": 10**400}
    way.replies["look"] = Reply("ok", out=json.dumps({"nonce": NONCE, "boot": "b1", "job": job}))
    found = shell.probe(BOTH).job
    assert found is not None and (found.step, found.total) == (0, 0)
    for odd in ({"attempt": 10**400}, {"exit_code": 10**400}, {"exit_code": True}):
        way.replies["look"] = Reply("ok", out=json.dumps({"nonce": NONCE, "boot": "b1", "job": {**job, **odd}}))
        assert shell.probe(BOTH).job is None


def test_secrets_go_before_every_start_and_are_nowhere_but_in_standard_input(
    way: DirectoryTransport, tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    shell = shell_of(way, tmp_path / "runs", clock, secrets=lambda: {"HF_TOKEN": Secret(TOKEN)})
    for _ in range(2):
        assert shell.start(BOTH, ("run", "stage3b", "--profile", "ci"), "h") is True
    assert way.actions() == ["look", "secrets", "start", "secrets", "start"]
    assert way.calls[1][2] == json.dumps({"HF_TOKEN": TOKEN}).encode()
    assert way.calls[2][1][len(PROGRAM) :] == (
        "start",
        "--root",
        "/runs",
        "--home",
        "h",
        "--",
        "run",
        "stage3b",
        "--profile",
        "ci",
    )
    assert not any(TOKEN in " ".join(argv) for _, argv, _ in way.calls)
    with caplog.at_level(logging.DEBUG):
        way.replies["secrets"] = Reply("ok", 2, err=f"error: {TOKEN}?")
        assert shell.start(BOTH, ("run", "stage3b")) is False
    assert TOKEN not in caplog.text
    assert "failed" in caplog.text


def test_a_start_that_the_host_refuses_is_no_start_and_one_without_an_answer_is_not_known(
    way: DirectoryTransport, shell: HostShell
) -> None:
    way.replies["start"] = Reply("ok", 75, err="error: the dead-man's switch is not armed")
    assert shell.start(BOTH, ("run", "stage3b")) is False
    way.replies["start"] = Reply("timeout")
    assert shell.start(BOTH, ("run", "stage3b")) is None


def test_the_nonce_is_looked_at_again_after_a_minute_and_after_a_call_without_an_answer(
    way: DirectoryTransport, shell: HostShell, clock: ManualClock
) -> None:
    shell.stop(BOTH)
    clock.sleep(30)
    shell.stop(BOTH)
    clock.sleep(31)
    shell.stop(BOTH)
    assert way.actions() == ["look", "stop", "stop", "look", "stop"]
    way.replies["stop"] = Reply("timeout")
    assert shell.stop(BOTH) is None
    shell.stop(BOTH)
    assert way.actions()[-2:] == ["look", "stop"]


def test_a_lease_is_renewed_on_the_host(host: DirectoryHost, shell: HostShell) -> None:
    assert shell.renew_lease(BOTH, 3600.4) is True
    assert json.loads((host.root / ".watchdog/lease.json").read_text())["until"] == 3600


def test_inputs_arrive_before_the_first_start_the_summary_last_and_once(
    way: DirectoryTransport, host: DirectoryHost, tmp_path: Path, clock: ManualClock
) -> None:
    runs, run = tmp_path / "runs", "stage3a/20261120-080000"
    for name in ("summary.json", "manifest.json", "final/model.safetensors", "lock"):
        path = runs / run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    inputs = (Input(runs, (run,)), Input(tmp_path, ("mine.yaml",), ".inputs"))
    shell = shell_of(way, runs, clock, inputs=inputs)
    assert shell.start(BOTH, ("run", "stage4")) is True
    host.train()
    assert shell.start(BOTH, ("run", "stage4")) is True
    assert way.sent == [f"{run}/final/model.safetensors", f"{run}/manifest.json", f"{run}/summary.json", "mine.yaml"]
    assert (host.root / ".inputs/mine.yaml").read_text() == "name: mine\n"
    shutil.rmtree(host.root / ".runner")  # released, and rented again by the same run: the same boot
    clock.sleep(120)
    way.sent.clear()
    assert shell.start(BOTH, ("run", "stage4")) is True and way.sent[-1] == "mine.yaml"
    way.breaks_after = 1
    (host.root / run / "summary.json").unlink()
    again = shell_of(way, runs, clock, inputs=inputs)  # as after a restart of the supervisor
    assert again.start(BOTH, ("run", "stage4")) is None
    assert not (host.root / run / "summary.json").exists(), "a torn input must not look complete"
    assert way.actions()[-1] == "look", "no start without inputs"


def test_whatever_may_take_long_ends_when_the_caller_wants_no_more_of_it(
    way: DirectoryTransport, host: DirectoryHost, tmp_path: Path, clock: ManualClock
) -> None:
    """At a cap: the inputs of a start may have 30 GB, and a host may hash a checkpoint for a quarter of an hour."""
    host.train(100)
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    shell = shell_of(way, tmp_path / "runs", clock, inputs=(Input(tmp_path, ("mine.yaml",), ".inputs"),))
    begun = len(way.paces)
    shell.start(BOTH, ("run", "stage4"), None, lambda: False)
    assert [pace.proceed() for pace in way.paces[begun:] if pace is not FREELY] == [False, False], "send, and sha256sum"
    begun = len(way.paces)
    shell.pull(BOTH, False, lambda: False)
    assert [pace.proceed() for pace in way.paces[begun:] if pace is not FREELY] == [False, False], (
        "the listing, the fetch"
    )


def test_a_machine_that_cannot_start_ssh_judges_no_host(way: DirectoryTransport, shell: HostShell) -> None:
    """No descriptors, no memory, no room for the directory of the connections: the host may be well."""
    way.kinds = dict.fromkeys(BOTH, "not-run")
    found = shell.probe(BOTH)
    assert found.contact == "unreachable" and "was not asked: ssh cannot be started on this machine" in found.message
    assert not shell.network_is_up()
    way.kinds = {}
    assert shell.probe(BOTH).contact == "ok" and shell.network_is_up()


def test_an_input_that_is_gone_stops_the_start(way: DirectoryTransport, tmp_path: Path, clock: ManualClock) -> None:
    shell = shell_of(way, tmp_path / "runs", clock, inputs=(Input(tmp_path, ("none.yaml",)),))
    assert shell.start(BOTH, ("run", "stage4")) is False
    assert "start" not in way.actions()
    with pytest.raises(RunStateError, match=r"none.yaml: is gone"):
        Input(tmp_path, ("none.yaml",)).files()


def test_the_log_is_read_and_followed(host: DirectoryHost, shell: HostShell) -> None:
    assert shell.log(BOTH) is None
    host.train()
    host.write(".runner/job.log", "one\ntwo\nthree\n")
    found = shell.log(BOTH, tail=1)
    assert found == ("three\n", 14)
    host.write(".runner/job.log", "one\ntwo\nthree\nfour\n")
    more = shell.log(BOTH, follow_from=14)
    assert more is not None and more[0] == "four\n"


def test_our_own_network_is_asked_of_the_probe_alone_and_close_closes(
    way: DirectoryTransport, shell: HostShell
) -> None:
    assert shell.network_is_up() is True
    shell.close()
    assert way.closed and not way.calls


def test_a_job_gets_the_policys_time_for_its_checkpoint(
    way: DirectoryTransport, tmp_path: Path, clock: ManualClock
) -> None:
    assert shell_of(way, tmp_path / "runs", clock, grace=42.0).stop(BOTH) is True
    assert way.actions()[-1] == "stop" and way.calls[-1][1][-2:] == ("--grace", "42")
