"""What ssh and rsync are called with and what their ends mean, with programs of those names that a test decides about."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import UserError
from tests.vast.fakes.host import gone, until
from vast.host.subprocess_run import Ended
from vast.ports import Address
from vast.shell import rsync
from vast.shell.ssh import SshTransport, outcome
from vast.shell.transport import Pace, Reply

HOST, OTHER = Address("203.0.113.5", 40022), Address("ssh5.example.org", 12345)
# Records how it was called, makes the files that ssh makes, and does what `mode` says; the last argument is the command.
FAKE = r"""#!/bin/sh
here=${0%/*}
echo "$*" >> "$here/calls"
env > "$here/env"
for word; do
  case $word in
    HostKeyAlias=*) alias=${word#*=} ;;
    UserKnownHostsFile=*) known=${word#*=} ;;
    StrictHostKeyChecking=*) check=${word#*=} ;;
    ControlMaster=*) master=${word#*=} ;;
    ControlPath=*) socket=${word#*=} ;;
    exit) leave=1 ;;
  esac
  last=$word
done
[ -z "${leave:-}" ] || exit 0
mode=$(cat "$here/mode")
[ "$mode" = refused ] || [ "$check" != accept-new ] || echo "$alias ssh-ed25519 AAAA" >> "$known"
case $mode in
  run) [ "$master" != auto ] || : > "$socket"; sh -c "$last" ;;
  denied) echo 'root@203.0.113.5: Permission denied (publickey).' >&2; exit 255 ;;
  refused) echo 'ssh: connect to host 203.0.113.5 port 40022: Connection refused' >&2; exit 255 ;;
  timed) echo 'ssh: connect to host 203.0.113.5 port 40022: Connection timed out' >&2; exit 255 ;;
  changed) printf '@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n' >&2; exit 255 ;;
  hang) : > "$socket"; sleep 600 & echo $! > "$here/child"; wait ;;
  stall) sleep 600 & echo $! > "$here/child"; wait ;;
  persist) setsid sh -c 'echo $$ > "$1/child"; exec sleep 600' - "$here" & while [ ! -s "$here/child" ]; do sleep 0.01; done; echo here ;;
esac
"""


class Bench:
    def __init__(self, directory: Path) -> None:
        self.bin, self.run = directory / "bin", directory / "a run's"  # a blank and a quote must do no harm
        self.bin.mkdir()
        self.run.mkdir()
        for name in ("ssh", "rsync"):
            program = self.bin / name
            program.write_text(FAKE)
            program.chmod(0o755)
        self.mode("run")
        self.environ = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": "/nowhere",
            "VAST_API_KEY": "k",
            "HF_TOKEN": "t",
        }
        self.pin = "7"
        self.ssh = SshTransport(self.run, pin=lambda: self.pin, environ=self.environ)

    def mode(self, mode: str) -> None:
        (self.bin / "mode").write_text(mode)

    def calls(self) -> list[str]:
        path = self.bin / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def last(self) -> str:
        return self.calls()[-1].replace(str(self.ssh._private), "PRIVATE")

    def child(self) -> int:
        return int(until(lambda: (self.bin / "child").exists() and (self.bin / "child").read_text()))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.mode("run")
    made.ssh.close()


def run(bench: Bench, *argv: str, stdin: bytes = b"", timeout: float = 20.0, at: Address = HOST) -> Reply:
    return bench.ssh.run(at, argv or ("true",), stdin=stdin, timeout=timeout)


def test_a_command_as_it_is_called(bench: Bench) -> None:
    assert run(bench, "echo", "a b", "$HOME;'") == Reply("ok", 0, "a b $HOME;'\n")
    socket = bench.ssh._socket(HOST).name
    assert bench.last() == (
        "-F /dev/null -i PRIVATE/key -p 40022 -o BatchMode=yes -o ConnectTimeout=10 -o ConnectionAttempts=1"
        " -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o StrictHostKeyChecking=accept-new"
        f" -o UserKnownHostsFile=PRIVATE/{socket}.keys -o GlobalKnownHostsFile=/dev/null"
        " -o HostKeyAlias=prefill-7-203.0.113.5-40022 -o CheckHostIP=no -o HashKnownHosts=no -o UpdateHostKeys=no -o IdentitiesOnly=yes"
        " -o PreferredAuthentications=publickey -o ForwardAgent=no -o RequestTTY=no -o LogLevel=ERROR -o ControlMaster=auto"
        f" -o ControlPath=PRIVATE/{socket} -o ControlPersist=60 -o IdentityAgent=none"
        " -- root@203.0.113.5 echo 'a b' '$HOME;'\"'\"''"
    )


def test_nothing_of_our_environment_goes_along(bench: Bench) -> None:
    run(bench)
    names = {line.split("=", 1)[0] for line in (bench.bin / "env").read_text().splitlines()}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "HOME", "LC_ALL"}


def test_sockets_are_short_private_and_apart(bench: Bench) -> None:
    private = bench.ssh._private
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert len(str(bench.ssh._socket(HOST))) + 17 < 104
    assert len({bench.ssh._socket(HOST), bench.ssh._socket(OTHER)}) == 2


def test_a_private_directory_that_was_cleaned_away_is_made_again(bench: Bench) -> None:
    run(bench)
    bench.ssh.settle(HOST, ours=True)
    shutil.rmtree(bench.ssh._private)
    assert run(bench).good
    assert stat.S_IMODE(bench.ssh._private.stat().st_mode) == 0o700
    assert "StrictHostKeyChecking=yes" in bench.last()


def test_a_private_directory_of_another_user_is_not_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is in the list of processes: once a cleaner has removed it, others can put known_hosts of their own there."""
    run(bench)
    shutil.rmtree(bench.ssh._private)
    bench.ssh._private.symlink_to(bench.run)
    refused = run(bench)
    assert (refused.kind, refused.err) == ("not-run", f"{bench.ssh._private}: is not a directory of this user")
    bench.ssh._private.unlink()
    monkeypatch.setattr("vast.shell.ssh.os.geteuid", lambda: os.getuid() + 1)
    assert run(bench).kind == "not-run" and len(bench.calls()) == 1


def test_a_temporary_directory_that_is_too_deep_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    for name in ("d" * 100, "with a blank"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr("vast.shell.ssh.tempfile.gettempdir", lambda name=name: str(tmp_path / name))
        other = SshTransport(bench.run, environ=bench.environ)
        assert str(other._private).startswith("/tmp/prefill-")
        other.close()


# ---- host keys ---------------------------------------------------------------------------------------------------------


def test_a_key_is_accepted_once_and_pinned_when_the_nonce_has_matched(bench: Bench) -> None:
    run(bench)
    assert "StrictHostKeyChecking=accept-new" in bench.last()
    assert not (bench.run / "known_hosts").exists()
    bench.ssh.settle(HOST, ours=True)
    assert (bench.run / "known_hosts").read_text() == "prefill-7-203.0.113.5-40022 ssh-ed25519 AAAA\n"
    bench.ssh.settle(HOST, ours=True)  # as after every look
    assert (bench.run / "known_hosts").read_text().count("\n") == 1
    run(bench)
    assert "StrictHostKeyChecking=yes -o UserKnownHostsFile=PRIVATE/run/known_hosts" in bench.last()
    again = SshTransport(bench.run, pin=lambda: "7", environ=bench.environ)  # as after a restart of the supervisor
    assert "StrictHostKeyChecking=yes" in again.argv(HOST)
    assert "StrictHostKeyChecking=accept-new" in again.argv(OTHER)
    again.close()


def test_the_key_of_a_stranger_who_has_the_address_first_does_not_lock_our_machine_out(bench: Bench) -> None:
    run(bench)
    assert bench.ssh._candidates(HOST).read_text() == "prefill-7-203.0.113.5-40022 ssh-ed25519 AAAA\n"
    bench.ssh.settle(HOST, ours=False)
    assert "StrictHostKeyChecking=accept-new" in bench.ssh.argv(HOST)
    assert not bench.ssh._candidates(HOST).exists()
    bench.mode("denied")  # the key was met, and nothing of the run could be shown
    run(bench)
    assert not bench.ssh._candidates(HOST).exists()


def test_an_address_that_a_later_instance_is_given_is_a_first_contact_again(bench: Bench) -> None:
    run(bench)
    bench.ssh.settle(HOST, ours=True)
    first = bench.ssh._socket(HOST)
    bench.pin = "8"
    assert "StrictHostKeyChecking=accept-new" in bench.ssh.argv(HOST)
    assert bench.ssh._socket(HOST) != first
    bench.pin = "7"
    assert "StrictHostKeyChecking=yes" in bench.ssh.argv(HOST)


# ---- ends ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("denied", "denied"), ("refused", "unreachable"), ("timed", "unreachable"), ("changed", "wrong-host")],
)
def test_messages_of_ssh_are_classified(bench: Bench, mode: str, kind: str) -> None:
    bench.mode(mode)
    assert run(bench).kind == kind


@pytest.mark.parametrize("code", [0, 1, 2, 75, 126, 127])
def test_any_other_code_is_that_of_the_program_on_the_host(bench: Bench, code: int) -> None:
    reply = run(bench, "sh", "-c", f"echo 'Permission denied (publickey)' >&2; exit {code}")
    assert (reply.kind, reply.code, reply.good) == ("ok", code, code == 0)


def test_the_reason_of_a_failure_is_one_bounded_line_that_a_terminal_only_shows() -> None:
    reason = Reply("ok", 1, err="first\n\x1b[2J\u202ered" + "y" * 10_000 + "\n").reason
    assert reason.startswith("exit code 1:  [2J red") and reason.isprintable() and len(reason) < 600


def test_what_is_not_known_is_unreachable() -> None:
    assert outcome(Ended(255, err="")).kind == "unreachable"
    assert outcome(Ended(-9)).kind == "unreachable"
    assert outcome(Ended(None, err="ssh: cannot be started")).kind == "not-run"  # nothing is known of the host at all
    assert (
        outcome(Ended(255, err="root@h: Permission denied (publickey).\nHost key verification failed.")).kind
        == "wrong-host"
    )


def test_the_time_limit_holds_and_ends_all_that_was_started(bench: Bench) -> None:
    bench.mode("hang")
    socket = bench.ssh._socket(HOST)
    began = time.monotonic()
    assert run(bench, timeout=0.5).kind == "timeout"
    assert time.monotonic() - began < 10
    assert until(lambda: gone(bench.child()))
    assert any("-O exit" in call for call in bench.calls()), "the connection that hangs is not used again"
    assert not socket.exists()


def test_a_shared_connection_that_keeps_the_pipes_open_is_not_waited_for(bench: Bench) -> None:
    bench.mode("persist")
    began = time.monotonic()
    try:
        assert run(bench) == Reply("ok", 0, "here\n")
        assert time.monotonic() - began < 10
        assert not gone(bench.child()), "it has a session of its own and serves the next call"
    finally:
        os.kill(bench.child(), 9)


def test_close_ends_the_connections_and_leaves_nothing_behind(bench: Bench) -> None:
    run(bench)
    run(bench, at=OTHER)
    private = bench.ssh._private
    bench.ssh.close()
    assert sum("-O exit" in call for call in bench.calls()) == 2
    assert not private.exists() and bench.run.exists()


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "a b", "", "h;x", "root@h"])
def test_an_address_that_is_none_starts_nothing(bench: Bench, host: str) -> None:
    odd = Address(host, 22)
    assert run(bench, at=odd).kind == "unreachable"
    assert bench.ssh.fetch(odd, ["x"], "/runs", bench.run / "s", timeout=5).kind == "unreachable"
    assert bench.calls() == []


def test_a_disk_without_room_for_the_connections_raises_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that ends a run from memory still asks the host, and then destroys it."""

    def full() -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/prefill-x")

    monkeypatch.setattr("vast.shell.ssh._private_directory", full)
    ssh = SshTransport(bench.run, environ=bench.environ)
    assert ssh.run(HOST, ("true",), timeout=5) == Reply("not-run", err="/tmp/prefill-x: No space left on device")
    assert ssh.fetch(HOST, ["x"], "/runs", bench.run / "s", timeout=5).kind == "not-run"
    ssh.settle(HOST, True)
    ssh.close()
    assert bench.calls() == []


def test_a_command_is_ended_while_it_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vast.host.subprocess_run.WATCH", 0.05)
    bench.mode("stall")
    began = time.monotonic()
    reply = bench.ssh.run(HOST, ("true",), timeout=60, pace=Pace(lambda: not bench.child()))
    assert reply.kind == "timeout" and time.monotonic() - began < 20
    assert until(lambda: gone(bench.child()))


def test_missing_programs_are_reported_before_any_money_is_spent(bench: Bench) -> None:
    (bench.bin / "rsync").unlink()
    with pytest.raises(UserError, match="rsync: is not installed; install it, as by: apt-get install rsync"):
        SshTransport(bench.run, environ={"PATH": str(bench.bin)})


def test_much_input_and_output_pass_each_other(bench: Bench) -> None:
    data = b"x" * 3_000_000
    reply = run(bench, "cat", stdin=data)
    assert reply.out.encode() == data


# ---- rsync ---------------------------------------------------------------------------------------------------------------


def test_a_fetch_and_a_send_as_they_are_called(bench: Bench, tmp_path: Path) -> None:
    bench.mode("true")
    bench.ssh.fetch(HOST, ["a/b", "c"], "/runs", tmp_path / "into here", timeout=5)
    called = bench.last()
    assert called.startswith(
        "--times --no-implied-dirs --protect-args --files-from=- --from0 --timeout=60 --info=progress2 --inplace --rsh ssh -F /dev/null"
        " -i PRIVATE/key -p 40022 -o BatchMode=yes"
    )
    assert called.endswith(f" root@203.0.113.5:/runs/ {tmp_path}/into here/")
    assert "--inplace" in called and "links" not in called
    assert "ControlMaster=no" in called, "a connection made by a transfer would end with it"
    bench.ssh.send(Address("2001:db8::1", 22), bench.run, "/runs/.inputs", ["p.yaml"], timeout=5)
    assert bench.last().endswith(f" {bench.run}/ root@[2001:db8::1]:/runs/.inputs/")
    assert "--inplace" not in bench.last() and "--partial-dir=.rsync-partial --copy-links" in bench.last()
    assert rsync.listing(["a/b", "c"]) == b"a/b\0c\0"
    assert "--bwlimit" not in bench.last()
    bench.ssh.send(HOST, bench.run, "/runs", ["p"], timeout=5, pace=Pace(mbit=40))
    assert "--bwlimit=4883 " in bench.last()  # KiB/s


def test_a_transfer_is_ended_while_it_runs(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vast.host.subprocess_run.WATCH", 0.05)
    bench.mode("stall")
    asked: list[int] = []

    def proceed() -> bool:
        asked.append(1)
        return len(asked) < 2

    reply = bench.ssh.fetch(HOST, ["a"], "/runs", tmp_path / "in", timeout=300, pace=Pace(proceed))
    assert reply.kind == "timeout" and "a cap is near" in reply.reason and len(asked) == 2
    assert until(lambda: gone(bench.child()))


def printed(size: int) -> bytes:
    return f"\r  {size:,}  12%    1.20MB/s    0:10:00".encode()


def test_a_transfer_goes_on_as_long_as_bytes_come_and_ends_when_they_do_not() -> None:
    now = 0.0
    watch = rsync.Progress(Pace(), lambda: now)
    for hour in range(10):  # for hours, at 1 MB in 4 minutes
        for _ in range(15):
            now += 240
            assert watch(printed(int(now / 240) * rsync.STEP)) is None, hour
    size = int(now / 240) * rsync.STEP
    for _ in range(299):  # a host that sends a byte now and then
        now, size = now + 1, size + 1000
        assert watch(printed(size)) is None
    now += 1
    assert watch(printed(size)) == "less than 1 MB came in 300 s"


def test_while_rsync_compares_what_is_there_nothing_is_judged() -> None:
    now = 0.0
    watch = rsync.Progress(Pace(), lambda: now)
    for _ in range(10):
        now += 250
        assert watch(b"") is None


# What rsync 3.2.7 prints for links on the other side.
LINKED = 'skipping non-regular file "s/1/a b"\nskipping non-regular file "s/1/c"\n\r  3  15%    2.93kB/s    0:00:00 (xfr#1, to-chk=0/8)\n'
FULL = 'rsync: [receiver] write failed on "/r/x": No space left on device (28)\nrsync error: error in file IO (code 11)'


@pytest.mark.parametrize(
    ("ended", "reply"),
    [
        (Ended(0, "out"), Reply("ok", 0, "out")),
        (Ended(23, err="some files vanished"), Reply("ok", 23, err="some files vanished")),
        (Ended(0, LINKED), Reply("ok", 0, LINKED, links=frozenset({"s/1/a b", "s/1/c"}))),
        (Ended(11, err=FULL), Reply("ok", 11, err=FULL, no_room=True)),
        (Ended(12, err=FULL), Reply("ok", 12, err=FULL, no_room=True)),
        (Ended(255, err="x"), Reply("denied")),
        (Ended(12, err="connection unexpectedly closed"), Reply("denied")),
        (Ended(30, err="io timeout after 60 seconds"), Reply("denied")),
        (Ended(-9), Reply("unreachable")),
        (Ended(None, timed_out=True), Reply("timeout")),
    ],
)  # fmt: skip
def test_the_ends_of_rsync(ended: Ended, reply: Reply) -> None:
    assert rsync.reply(ended, lambda end: Reply("denied") if end.code == 255 else outcome(end)) == reply
