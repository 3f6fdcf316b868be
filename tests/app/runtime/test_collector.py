"""The collector of garbage rests while a process starts, in an evaluation and when it ends. A child each: it belongs to a process."""

from __future__ import annotations

import subprocess
import sys

CYCLE = """
import gc, sys
from app.runtime import collector

class Cycle:
    def __init__(self, name):
        self.me, self.name = self, name
    def __del__(self):
        print(self.name, flush=True)

usual = gc.get_threshold()
collector.begin()
"""


def printed(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", CYCLE + code], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_what_starts_is_left_out_and_what_comes_later_is_collected() -> None:
    code = """
kept = Cycle("started")
assert gc.get_threshold()[0] > 50 * usual[0]
collector.settle()
assert gc.get_threshold() == usual and gc.get_freeze_count() > 1000
del kept
Cycle("later")
gc.collect()
collector.settle()  # a second stage of the process: what the first left may be garbage, and is not kept
collector.begin()
assert gc.get_threshold() == usual
Cycle("of the second stage")
collector.settle()
gc.collect()
"""
    assert printed(code).split("\n") == ["later", "of the second stage", ""]


def test_what_stays_after_a_collection_is_left_out_unless_a_model_is_there() -> None:
    code = """
collector.settle()
before = gc.get_freeze_count()
kept = [Cycle("kept")]
Cycle("garbage")
collector.collect(lambda: False)
assert gc.get_freeze_count() == before
Cycle("more garbage")
collector.collect(lambda: print("asked", flush=True) is None)  # after it has collected, or what is garbage would be left out
assert gc.get_freeze_count() > before
kept.clear()
gc.collect()  # left out, so it is not found any more
Cycle("of the next stage")
gc.collect()
print("end", flush=True)
os._exit(0)
"""
    assert printed("import os" + code).splitlines() == ["garbage", "more garbage", "asked", "of the next stage", "end"]


def test_it_rests_for_a_while_and_collects_as_usual_afterwards_whatever_happens() -> None:
    code = """
collector.settle()
try:
    with collector.resting():
        assert gc.get_threshold()[0] > 50 * usual[0]
        raise KeyError
except KeyError:
    assert gc.get_threshold() == usual
"""
    assert printed(code) == ""


def test_nothing_is_looked_at_once_more_at_the_end() -> None:
    assert printed('collector.settle(); Cycle("the end")') == ""
    assert printed('Cycle("the end of a command without a model")') == ""
