"""The command line as real processes: kill -9, the background, a terminal that nobody reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from jobs.errors import EXIT_DISK_FULL, RunStateError, UserError
from tests import warm_python
from tests.vast.fakes.command_line import IMAGE
from tests.vast.fakes.command_process import START
from tests.vast.fakes.fake_market import KEY
from tests.vast.fakes.fake_vast import FakeVast
from tests.vast.fakes.host import ROOT, until
from vast.__main__ import _flushed, main
from vast.commands import start
from vast.records.run_dir import Folder, folders

COMMAND = "tests.vast.fakes.command_process"
UP = ("up", "stage3b", "--profile", "ci", "--image", IMAGE, "--yes")


@pytest.fixture
def api() -> Iterator[FakeVast]:
    """Machines are ready at once: the clock of the processes is not this one's."""
    with FakeVast(lambda: START) as fake:
        fake.market.add_offer(11)
        fake.market.life = ((0, "running"),)
        yield fake


def call(
    api: FakeVast, runs: Path, kill: int | str, *words: str, seconds: float = 0.0, **more: object
) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "VAST_URL": api.url, "VAST_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", COMMAND, str(runs), str(kill), str(seconds), *words]
    return warm_python.run(argv, (COMMAND,), cwd=ROOT, env=environ, text=True, **more)


def only(runs: Path) -> Folder:
    (folder,) = folders(runs)
    return folder


def test_an_output_that_takes_nothing_or_not_every_letter_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overview = ["overview", "--runs-dir", str(tmp_path)]
    narrow = TextIOWrapper(BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert main(overview) == 0
    narrow.seek(0)
    assert "Stages\nstage" in narrow.read() and capsys.readouterr().err == ""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(overview) == EXIT_DISK_FULL
        monkeypatch.undo()
        assert capsys.readouterr().err.startswith("error: standard output: no space left on the disk; free some")
        with suppress(OSError):
            full.close()
    monkeypatch.setattr(sys, "stdout", None)
    assert _flushed(3) == 3


def test_a_supervisor_killed_with_sigkill_is_taken_over_from_its_journal(api: FakeVast, tmp_path: Path) -> None:
    killed = call(api, tmp_path, 2, *UP)
    assert killed.returncode == -9, killed.stderr
    folder = only(tmp_path)
    assert not folder.is_supervised()
    assert len(api.market.living()) == 1
    done = call(api, tmp_path, 0, "attach", folder.run_id, seconds=3600.0)
    assert done.returncode == 0, done.stderr
    assert api.market.living() == [] and len(api.market.rentals) == 1
    assert json.loads(folder.report.read_text())["result"] == "done"


def test_an_error_after_the_begin_reaches_the_log_and_no_file_that_got_the_number_of_the_closed_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(tmp_path, "run")
    folder.path.mkdir(parents=True)
    files = [tmp_path / str(number) for number in range(64)]

    def work(begun: Callable[[], None]) -> int:
        begun()
        opened = [path.open("wb") for path in files]
        raise UserError("run", f"failed with {len(opened)} files open")

    with capsys.disabled():  # pytest's own files have descriptors of their own
        pid = start.in_background(folder, work)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert [path.stat().st_size for path in files] == [0] * 64
    assert folder.log.read_text() == "error: run: failed with 64 files open\n"


@pytest.mark.parametrize("death", [lambda: os._exit(9), lambda: 1 / 0], ids=["killed", "a bug"])
def test_a_background_that_dies_before_it_has_begun_is_an_error_and_no_zombie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], death: Callable[[], object]
) -> None:
    folder = Folder(tmp_path, "run")
    folder.path.mkdir(parents=True)

    def work(begun: Callable[[], None]) -> int:
        (tmp_path / "pid").write_text(str(os.getpid()))
        death()
        return 0

    with (
        capsys.disabled(),
        pytest.raises(RunStateError, match="the supervisor ended before it had begun; see .*log.txt"),
    ):
        start.in_background(folder, work)
    with pytest.raises(ChildProcessError):
        os.waitpid(int((tmp_path / "pid").read_text()), os.WNOHANG)


def test_detach_goes_on_in_the_background_and_writes_its_log(api: FakeVast, tmp_path: Path) -> None:
    done = call(api, tmp_path, 0, *UP, "--detach")
    assert done.returncode == 0, done.stderr
    folder = only(tmp_path)
    assert f"follow: python -m vast attach {folder.run_id}" in done.stderr
    until(lambda: folder.report.exists() and not folder.is_supervised(), "the end of the run")
    assert api.market.living() == []
    assert "phase=running" in folder.log.read_text()
    assert KEY not in folder.log.read_text()


def test_sigterm_in_the_background_leaves_the_run_to_the_switch_and_attach(api: FakeVast, tmp_path: Path) -> None:
    assert call(api, tmp_path, "2:TERM", *UP, "--detach").returncode == 0
    folder = only(tmp_path)
    until(lambda: not folder.is_supervised() and "left: " in folder.log.read_text(), "the end of the supervisor")
    assert len(api.market.living()) == 1 and not folder.down.exists()
    done = call(api, tmp_path, 0, "attach", folder.run_id, seconds=3600.0)
    assert done.returncode == 0, done.stderr
    assert json.loads(folder.report.read_text())["result"] == "done"


def test_ctrl_c_while_detach_waits_ends_the_process_in_the_background(api: FakeVast, tmp_path: Path) -> None:
    done = call(api, tmp_path, "wait", *UP, "--detach")
    assert done.returncode == 130, done.stderr
    folder = only(tmp_path)
    assert f"was asked to end the run; follow: python -m vast attach {folder.run_id}" in done.stderr
    until(lambda: "KeyboardInterrupt" in folder.log.read_text(), "the end of the process in the background")
    assert api.market.rentals == {}


def test_a_mistake_in_detach_is_reported_to_its_caller(api: FakeVast, tmp_path: Path) -> None:
    killed = call(api, tmp_path, 2, *UP)
    assert killed.returncode == -9
    folder = only(tmp_path)
    (folder.path / "nonce").unlink()
    (folder.path / "request.json").write_text("{}")
    done = call(api, tmp_path, 0, "attach", folder.run_id, "--detach", seconds=3600.0)
    assert (done.returncode, "request.json: has other keys" in done.stderr) == (2, True), done.stderr


def test_a_reader_that_goes_away_ends_no_run(api: FakeVast, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = call(api, tmp_path, 0, *UP, stdout=write)
    finally:
        os.close(write)
    assert json.loads(only(tmp_path).report.read_text())["result"] == "done", done.stderr
    assert api.market.living() == []
    assert (done.returncode, "Broken" in done.stderr) == (0, False)
