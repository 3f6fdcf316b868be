"""One look, one line: fields in a fixed order, `-` for what is not known, and a table of the same on a terminal."""

from __future__ import annotations

import io
import os
import pty
import sys
from dataclasses import fields

import pytest
from rich.console import Console

from tests.vast.fakes.scripted_shell import host, running
from tests.warm_python import run
from vast.ports import JobReport, OfferQuery
from vast.session.view import Board, Line, line_of, parse
from vast.supervisor.state import Machine, Observation, Phase, Plan, RunState, begin, changed

PLAN = Plan("stage1-20270115-080000", "image", ("run",), OfferQuery(), 12.0, 3600.0)


def state_with(job: JobReport | None, **more: object) -> RunState:
    machine = Machine(7, 70, 1.0, 0.0, job=job)
    return changed(begin(PLAN, 1_800_000_000.0), phase=Phase.RUNNING, attempt=2, machine=machine, **more)


def test_the_line_has_its_fields_in_the_order_that_is_promised() -> None:
    job = JobReport(
        "running", 1, step=120, total=6000, loss=1.83124, tokens_per_s=9100.4, fixes=("cuda-oom: memory halved",)
    )
    seen = Observation(1512.0, host=host(job))
    assert str(line_of(seen, state_with(job), 1_800_001_512.0)) == (
        "time=2027-01-15T08:25:12Z phase=running attempt=2 step=120/6000 loss=1.8312 tokens_per_s=9100 gpu=97 mem=81 "
        "cost=0.42/12.00 fix=cuda-oom:_memory_halved"
    )


def test_what_is_not_known_is_a_dash_and_never_a_zero() -> None:
    blind = Observation(10.0, host=None)
    line = line_of(blind, changed(begin(PLAN, 0.0)), 1_800_000_000.0)
    assert (line.step, line.loss, line.tokens_per_s, line.gpu, line.mem, line.fix) == ("-",) * 6
    unreachable = line_of(Observation(10.0, host=host(None, gpu_percent=None)), state_with(JobReport("running")), 0.0)
    assert (unreachable.step, unreachable.gpu) == ("-", "-")


@pytest.mark.parametrize("fix", ["two words", "tab\there", "escape \x1b[31m red", "", "line\nbreak"])
def test_no_word_of_a_host_can_break_the_line(fix: str) -> None:
    job = JobReport("running", fixes=(fix,))
    text = str(line_of(Observation(0.0, host=host(job)), state_with(job), 0.0))
    assert "\x1b" not in text and len(text.splitlines()) == 1
    assert parse(text) is not None and len(text.split()) == len(fields(Line))


def test_a_line_reads_back_and_anything_else_does_not() -> None:
    job = JobReport("running", 1, step=1, total=2)
    line = line_of(Observation(0.0, host=host(job)), state_with(job), 0.0)
    assert parse(str(line)) == line
    for torn in (str(line)[:-9].rsplit(" ", 1)[0], "", "hello", str(line) + " more=1"):
        assert parse(torn) is None


def test_the_table_shows_the_looks_and_the_messages() -> None:
    screen = io.StringIO()
    board = Board(Console(file=screen, force_terminal=True, width=160), "stage1-1")
    with board:
        for step in (60, 120):
            seen = Observation(60.0, host=running(step))
            board.look(line_of(seen, state_with(running(step).job), 1_800_000_000.0))
        board.say("alert: pull: [bold]three[/] failed")
    shown = screen.getvalue()
    assert "120/300" in shown and "tokens/s" in shown
    assert "[bold]three[/] failed" in shown  # words of others are no markup


def test_a_terminal_gets_the_table_and_a_pipe_the_lines() -> None:
    code = "from vast.commands.start import view_for; print(type(view_for('x')).__name__)"
    argv = [sys.executable, "-c", code]
    modules = ("tests.vast.fakes.command_process",)  # as of test_processes_of_vast.py
    piped = run(argv, modules, text=True).stdout
    ours, theirs = pty.openpty()
    try:
        run(argv, modules, stdout=theirs)
        on_terminal = os.read(ours, 1000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (piped.strip(), on_terminal.strip()) == ("Lines", "Board")
