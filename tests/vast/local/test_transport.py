"""Files and commands of a container: nothing that it sends gets out of its place, and a file is whole or not there."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import IO

import pytest

from tests.vast.fakes.fake_engine import Box, FakeEngine, Handler, tar_of
from vast.local import tar_stream
from vast.local.tar_stream import NoRoom, OddArchive, pack, save
from vast.local.transport import MOVE, LocalTransport
from vast.ports import Address


@pytest.fixture
def box(fake: FakeEngine) -> Box:
    return fake.box(status="running", files={"/runs/a/one": b"1" * 1000, "/runs/two": b"22"})


@pytest.fixture
def at(box: Box) -> Address:
    return Address(box.id[:12], 0)


@pytest.fixture
def transport(fake: FakeEngine) -> LocalTransport:
    return LocalTransport(fake.client(timeout=1.0), (1234, 5678), lambda: "x")


# ---- commands -------------------------------------------------------------------------------------------------------------


def test_a_command_answers_with_its_code(fake: FakeEngine, transport: LocalTransport, at: Address) -> None:
    fake.on_exec = lambda box, argv, stdin: (3, b"out \xff", b"err")
    reply = transport.run(at, ("job",), timeout=5)
    assert (reply.kind, reply.code, reply.out, reply.err) == ("ok", 3, "out �", "err")


@pytest.mark.parametrize("status", ["paused", "exited", "created"])
def test_a_container_that_does_not_run_is_unreachable(
    box: Box, transport: LocalTransport, at: Address, status: str
) -> None:
    box.status = status
    assert transport.run(at, ("job",), timeout=5).kind == "unreachable"


def test_a_container_that_is_gone_is_unreachable(fake: FakeEngine, transport: LocalTransport, at: Address) -> None:
    fake.boxes.clear()
    assert transport.run(at, ("job",), timeout=5).kind == "unreachable"
    assert transport.fetch(at, ["two"], "/runs", Path("nowhere"), timeout=5).kind == "unreachable"


def test_a_command_that_hangs_is_a_timeout(fake: FakeEngine, transport: LocalTransport, at: Address) -> None:
    fake.odd["POST /exec/.*/start"] = Handler.hang
    assert transport.run(at, ("job",), timeout=0.2).kind == "timeout"


def test_an_engine_that_drops_is_unreachable(fake: FakeEngine, transport: LocalTransport, at: Address) -> None:
    fake.odd[".*"] = Handler.drop
    assert transport.run(at, ("job",), timeout=5).kind == "unreachable"
    assert transport.fetch(at, ["two"], "/runs", Path("nowhere"), timeout=5).kind == "unreachable"
    assert transport.send(at, Path("nowhere"), "/runs", [], timeout=5).kind == "unreachable"


def test_an_address_of_another_kind_reaches_nothing(fake: FakeEngine, transport: LocalTransport) -> None:
    assert transport.run(Address("../info", 22), ("job",), timeout=5).kind == "unreachable"
    assert fake.calls == []


def test_closing_removes_what_containers_left(fake: FakeEngine) -> None:
    removed: list[str] = []
    LocalTransport(fake.client(), (1, 2), at_close=lambda: removed.append("volumes")).close()
    assert removed == ["volumes"] and fake.calls == []


# ---- fetch ------------------------------------------------------------------------------------------------------------------


def test_files_come_with_their_directories_also_from_a_dead_container(
    box: Box, transport: LocalTransport, at: Address, tmp_path: Path
) -> None:
    box.status = "exited"
    assert transport.fetch(at, ["a/one", "two"], "/runs", tmp_path / "in", timeout=5).good
    assert (tmp_path / "in/a/one").read_bytes() == b"1" * 1000 and (tmp_path / "in/two").read_bytes() == b"22"
    assert sorted(path.name for path in (tmp_path / "in").rglob("*")) == ["a", "one", "two"]


def test_a_file_that_is_missing_leaves_the_others_alone(transport: LocalTransport, at: Address, tmp_path: Path) -> None:
    reply = transport.fetch(at, ["three", "two"], "/runs", tmp_path, timeout=5)
    assert (reply.kind, reply.code) == ("ok", 1) and "three" in reply.err
    assert (tmp_path / "two").read_bytes() == b"22"


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../out", "", ".", "a\0b"])
def test_a_path_that_leaves_its_place_is_refused(
    fake: FakeEngine, transport: LocalTransport, at: Address, tmp_path: Path, path: str
) -> None:
    with pytest.raises(OddArchive):
        list(pack(tmp_path, [path], (1, 2), "below"))
    before = set(tmp_path.rglob("*"))
    assert not transport.fetch(at, [path], "/runs", tmp_path / "in", timeout=5).good
    assert set(tmp_path.rglob("*")) == before and fake.calls == []


def link(kind: bytes, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("two")
    info.type, info.linkname = kind, to
    return info


ODD_ARCHIVES = {
    "symlink": tar_of(link(tarfile.SYMTYPE, "/etc/passwd")),
    "hard link": tar_of(link(tarfile.LNKTYPE, "/etc/passwd")),
    "directory": tar_of(link(tarfile.DIRTYPE, "")),
    "device": tar_of(link(tarfile.CHRTYPE, "")),
    "two files": tar_of(("two", b"22"), ("../three", b"333")),
    "empty": b"",
    "nothing in it": bytes(1024),
    "no archive": b"x" * 2048,
    "torn": tar_of(("two", b"2" * 5000))[:2000],
    "torn between blocks": tar_of(("two", b"2" * 5000))[:1536],
    "torn head": tar_of(("two", b"22"))[:300],
}


@pytest.mark.parametrize("name", ODD_ARCHIVES)
def test_an_odd_archive_leaves_nothing_behind(
    fake: FakeEngine, transport: LocalTransport, at: Address, tmp_path: Path, name: str
) -> None:
    fake.odd["GET /containers/.*/archive"] = lambda handler: handler.archive(ODD_ARCHIVES[name])
    reply = transport.fetch(at, ["two"], "/runs", tmp_path / "in", timeout=5)
    assert not reply.good and reply.links == (
        {"two"} if name in ("symlink", "hard link", "directory", "device") else set()
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]


def test_the_name_in_the_archive_counts_for_nothing(
    fake: FakeEngine, transport: LocalTransport, at: Address, tmp_path: Path
) -> None:
    fake.odd["GET /containers/.*/archive"] = lambda handler: handler.archive(tar_of(("../../out", b"22")))
    assert transport.fetch(at, ["two"], "/runs", tmp_path / "in", timeout=5).good
    assert (tmp_path / "in/two").read_bytes() == b"22" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "sent"), [(5000, 1000), (500_000, 300_000)], ids=["at the head", "in the middle"])
def test_a_transfer_that_breaks_off_leaves_the_last_copy(
    fake: FakeEngine, transport: LocalTransport, at: Address, tmp_path: Path, size: int, sent: int
) -> None:
    (tmp_path / "two").write_bytes(b"older")

    def breaks(handler: Handler) -> None:
        handler.say(200, content=tar_of(("two", b"2" * size))[:sent], **{"Content-Length": "999999"})
        handler.drop()

    fake.odd["GET /containers/.*/archive"] = breaks
    assert transport.fetch(at, ["two"], "/runs", tmp_path, timeout=5).kind == "unreachable"
    assert [path.name for path in tmp_path.iterdir() if path.name != "s"] == ["two"]
    assert (tmp_path / "two").read_bytes() == b"older"


def test_a_transfer_that_trickles_ends_at_its_limit(
    fake: FakeEngine, transport: LocalTransport, at: Address, tmp_path: Path
) -> None:
    def trickle(handler: Handler) -> None:
        handler.say(200, content=tar_of(("two", bytes(99999999)))[:512], **{"Content-Length": "99999999"})
        while not handler.engine.hung.wait(0.01):
            handler.wfile.write(bytes(1 << 14))

    fake.odd["GET /containers/.*/archive"] = trickle
    began = time.monotonic()
    assert transport.fetch(at, ["two"], "/runs", tmp_path / "in", timeout=0.3).kind == "timeout"
    assert time.monotonic() - began < 10


def test_a_full_disk_here_is_distinguished(
    transport: LocalTransport, at: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: IO[bytes], length: int) -> None:
        target.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tar_stream.shutil, "copyfileobj", full)
    reply = transport.fetch(at, ["two"], "/runs", tmp_path, timeout=5)
    assert (reply.code, reply.no_room) == (1, True)
    assert not (tmp_path / ".two.part").exists()


def test_a_real_full_disk_is_one(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / ".two.part").symlink_to("/dev/full")
    with pytest.raises(NoRoom):
        save([tar_of(("two", b"2" * 500_000))], tmp_path / "two")


def test_what_is_here_already_is_not_read_again(tmp_path: Path) -> None:
    content = tar_of(("two", b"22"))
    save([content], tmp_path / "two")
    chunks = iter([content[:512], b"never asked for"])
    save(chunks, tmp_path / "two")
    os.utime(tmp_path / "two", (5, 5))
    save([tar_of(("two", b"33"))], tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == b"33"


# ---- send -------------------------------------------------------------------------------------------------------------------


def test_an_archive_for_a_container_has_its_owner_and_its_directories_once(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/one").write_bytes(b"1" * 700)
    (tmp_path / "a/two").write_bytes(b"")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(tmp_path, ["a/b/one", "a/two"], (7, 8), ".in")))) as archive:
        members = archive.getmembers()
        assert [one.name for one in members] == [".in", ".in/a", ".in/a/b", ".in/a/b/one", ".in/a/two"]
        assert {(one.uid, one.gid) for one in members} == {(7, 8)}
        content = archive.extractfile(members[3])
        assert content is not None and content.read() == b"1" * 700


def test_what_is_sent_is_moved_to_its_place_in_order(
    fake: FakeEngine, box: Box, transport: LocalTransport, at: Address, tmp_path: Path
) -> None:
    (tmp_path / "late").write_bytes(b"last")
    (tmp_path / "early").write_bytes(b"first")
    seen: list[tuple[list[str], bytes]] = []
    fake.on_exec = lambda box, argv, stdin: (seen.append((argv[3:], stdin)) or 0, b"", b"")  # type: ignore[func-returns-value]
    assert transport.send(at, tmp_path, "/runs", ["early", "late"], timeout=5).good
    assert box.files["/runs/.incoming-x/early"] == b"first" and box.files["/runs/.incoming-x/late"] == b"last"
    assert seen[0][0] == ["mkdir", "-p", "/runs"]
    assert seen[1][0][:2] == ["/usr/bin/python3", "-c"] and seen[1][0][3:] == ["/runs", ".incoming-x"]
    assert json.loads(seen[1][1]) == ["early", "late"]


def test_the_move_makes_directories_and_replaces_whole_files(tmp_path: Path) -> None:
    (tmp_path / ".in/a").mkdir(parents=True)
    (tmp_path / ".in/a/one").write_text("new")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one").write_text("old")
    subprocess.run([sys.executable, "-c", MOVE, str(tmp_path), ".in"], input=b'["a/one"]', check=True, timeout=30)
    assert (tmp_path / "a/one").read_text() == "new" and not (tmp_path / ".in").exists()


def test_what_cannot_be_sent_leaves_nothing_there(
    fake: FakeEngine, transport: LocalTransport, at: Address, tmp_path: Path
) -> None:
    seen: list[list[str]] = []
    fake.on_exec = lambda box, argv, stdin: (seen.append(argv[3:]) or 0, b"", b"")  # type: ignore[func-returns-value]
    fake.odd["PUT .*"] = lambda handler: handler.refuse(500, "write /runs: no space left on device")
    (tmp_path / "one").write_bytes(b"1")
    reply = transport.send(at, tmp_path, "/runs", ["one"], timeout=5)
    assert not reply.good and reply.no_room
    assert seen[-1] == ["rm", "-rf", "/runs/.incoming-x"]
    assert not transport.send(at, tmp_path, "/runs", ["nothing"], timeout=5).good
