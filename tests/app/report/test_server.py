"""`report --serve`: a real server on a free port, a real client, and what is never served."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from app.report.render import Report, build_report
from app.report.server import ReportPages, ReportServer, parse_address
from jobs.errors import ConfigError
from jobs.runs.rundir import RunDir
from tests.app.fakes.command_line import Command, everything_in
from tests.app.fakes.synthetic_runs import write_run


@contextmanager
def served(pages: ReportPages, host: str = "127.0.0.1") -> Iterator[int]:
    """A server in a thread; its port."""
    with ReportServer(pages, host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(timeout=60)


def ask(port: int, path: str, method: str = "GET") -> tuple[HTTPResponse, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer, answer.read().decode()
    finally:
        connection.close()


class Counted:
    """Builds the report of a directory, and counts how often."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir, self.times = runs_dir, 0

    def __call__(self) -> Report:
        self.times += 1
        return build_report(self.runs_dir)

    def pages(self) -> ReportPages:
        return ReportPages(self.runs_dir, self)


# ---- what is served ----------------------------------------------------------------------------------------------------


def test_page_and_markdown_are_those_of_the_report_and_nothing_is_written(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    before, report = everything_in(tmp_path), build_report(tmp_path)
    with served(Counted(tmp_path).pages()) as port:
        for path in ("/", "/report.html", "/?again"):
            answer, text = ask(port, path)
            assert (answer.status, text) == (200, report.to_html())
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        answer, text = ask(port, "/report.md")
        assert (answer.status, text) == (200, report.to_markdown())
        assert answer.headers["Content-Type"] == "text/markdown; charset=utf-8"
    assert everything_in(tmp_path) == before


def test_no_other_file_and_no_listing_is_served(tmp_path: Path) -> None:
    run = write_run(tmp_path, "stage1")
    (tmp_path / "secret.txt").write_text("kept")
    outside = [f"/{run.id}/", f"/{run.id}/metrics.json", "/stage1/", "/secret.txt", "//secret.txt", "/../secret.txt",
               "/report.html/../secret.txt", "/%2e%2e/secret.txt", "/report.md/", "//["]  # fmt: skip
    with served(Counted(tmp_path).pages()) as port:
        for path in outside:
            answer, text = ask(port, path)
            assert answer.status == 404, path
            assert "kept" not in text and "metrics" not in text


def test_head_gives_the_headers_alone_and_other_methods_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    with served(Counted(tmp_path).pages()) as port:
        body = ask(port, "/")[1]
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:  # a client library hides a body
            connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            head, _, rest = b"".join(iter(partial(connection.recv, 65536), b"")).partition(b"\r\n\r\n")
        assert (head.split()[1], rest) == (b"200", b"")
        assert f"Content-Length: {len(body.encode())}".encode() in head
        assert [ask(port, "/", method)[0].status for method in ("POST", "PUT", "DELETE", "OPTIONS")] == [501] * 4


# ---- when it is made anew ----------------------------------------------------------------------------------------------


def test_a_reload_is_cheap_until_a_run_has_completed(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    build = Counted(tmp_path)
    with served(build.pages()) as port:
        first = ask(port, "/")[1]
        assert [ask(port, path)[1] for path in ("/", "/report.html")] == [first] * 2
        ask(port, "/report.md")
        assert build.times == 1
        write_run(tmp_path, "stage2", minute=1)
        assert ask(port, "/")[1] != first
        assert build.times == 2


def test_a_run_that_has_begun_or_was_changed_shows(tmp_path: Path) -> None:
    run = write_run(tmp_path, "stage1")
    pages = Counted(tmp_path).pages()
    assert "last attempt stage2/" not in pages.current().html
    begun = write_run(tmp_path, "stage2", minute=1, complete=False)
    assert f"last attempt {begun.id} is interrupted" in pages.current().html
    with RunDir.reopen(begun.path) as again:
        assert f"last attempt {begun.id} is running" in pages.current().html
        again.fail(4, "no learning")
    assert f"last attempt {begun.id} is failed" in pages.current().html

    summary = run.path / "summary.json"
    kept = pages.current()
    assert pages.current() is kept
    os.utime(summary, ns=(0, summary.stat().st_mtime_ns + 1))
    assert pages.current() is not kept


def test_without_a_completed_run_the_page_names_the_command(tmp_path: Path) -> None:
    build = Counted(tmp_path / "runs")
    with served(build.pages()) as port:
        for path in ("/", "/report.md"):
            answer, text = ask(port, path)
            assert answer.status == 503
            assert f"{tmp_path}/runs: no run to report; run: make demo RUNS={tmp_path}/runs, or one stage: make" in text
        write_run(tmp_path / "runs", "stage1")
        assert ask(port, "/")[0].status == 200


def test_a_damaged_run_is_a_page_and_its_repair_shows(tmp_path: Path) -> None:
    runs = tmp_path / "<b>runs"
    run = write_run(runs, "stage1")
    metrics = (run.path / "metrics.json").read_text()
    (run.path / "metrics.json").write_text("{torn")
    with served(Counted(runs).pages()) as port:
        answer, text = ask(port, "/")
        assert answer.status == 503 and "metrics.json: malformed JSON" in text
        assert "&lt;b&gt;runs" in text and "<b>" not in text
        (run.path / "metrics.json").write_text(metrics)
        assert ask(port, "/")[0].status == 200


def test_a_directory_that_may_not_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    pages = Counted(tmp_path).pages().current()
    assert f"{tmp_path}: cannot be read: Permission denied; let the server run as its owner: PREFILL_USER" in pages.html


def test_many_readers_at_once_share_one_report(tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    build = Counted(tmp_path)
    texts: list[str] = []
    with served(build.pages()) as port:
        readers = [threading.Thread(target=lambda: texts.append(ask(port, "/")[1])) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout=120)
    assert len(texts) == 8 and len(set(texts)) == 1
    assert build.times == 1


# ---- where it listens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8000", ("127.0.0.1", 8000)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("workstation:8000", ("workstation", 8000)),
        ("[::1]:8000", ("::1", 8000)),
    ],
)
def test_address_is_a_port_on_this_machine_or_names_its_host(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "x", ":8000", "[]:8000", "host:", "host:x", "-1", "65536", "8000.0", "²", "9" * 5000]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--serve: expected PORT or HOST:PORT, found .*; give such as 8000"):
        parse_address(text)


def test_a_port_that_is_taken_is_one_line_with_a_remedy(tmp_path: Path, command: Command) -> None:
    with served(Counted(tmp_path).pages()) as port:
        said = command("report", "--serve", port, "--runs-dir", tmp_path)
        said.refused(f"--serve 127.0.0.1:{port}: cannot listen there: Address already in use", f"--serve {port + 1}")
    command("report", "--serve", "192.0.2.1:8000", "--runs-dir", tmp_path).refused("cannot listen there")
    command("report", "--serve", "somewhere", "--runs-dir", tmp_path).refused('found "somewhere"')


def test_only_this_machine_is_answered_unless_asked(tmp_path: Path) -> None:
    pages = Counted(tmp_path).pages()
    with ReportServer(pages, *parse_address("0")) as server:
        assert server.server_address[0] == "127.0.0.1"
    with ReportServer(pages, "0.0.0.0", 0) as server:
        assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"  # an address that a browser can be given


# ---- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_0(number: signal.Signals, tmp_path: Path) -> None:
    write_run(tmp_path, "stage1")
    before = everything_in(tmp_path)
    words = [sys.executable, "-m", "app", "report", "--serve", "0", "--runs-dir", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            match = re.fullmatch(rf"the report of {tmp_path} is at http://127\.0\.0\.1:(\d+)/; Ctrl-C ends it\n", said)
            assert match, said
            assert ask(int(match[1]), "/")[0].status == 200
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "", "")
    assert everything_in(tmp_path) == before


def test_two_runs_named_by_hand_are_served_too(tmp_path: Path) -> None:
    ids = write_run(tmp_path, "stage1").id, write_run(tmp_path, "stage2", minute=1).id
    pages = ReportPages(tmp_path, partial(build_report, tmp_path, compare=ids))
    assert pages.current().html == build_report(tmp_path, compare=ids).to_html()
