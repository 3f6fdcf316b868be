"""What a command imports before its work. A library that it does not need costs each of its starts up to three seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Calls one command after the other in one process and prints, for each, what is imported by then.
CHILD = """
import json, sys
from app.__main__ import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["app", *words]
    code = main()
    print("@" + json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
import gc
print(gc.get_freeze_count(), *gc.get_threshold())
"""


def imported(*commands: list[str]) -> tuple[list[set[str]], list[int]]:
    """The packages in memory after each command, and the collector's state at the end."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(commands)], capture_output=True, text=True, timeout=120
    )
    found = [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]
    assert [code for code, _ in found] == [0] * len(commands), done.stderr
    return [set(names) for _, names in found], [int(word) for word in done.stdout.splitlines()[-1].split()]


def test_commands_without_a_model_import_no_torch(trained: Path) -> None:
    where = ["--profile", "ci", "--runs-dir", str(trained)]
    light = [["--help"], ["check", "--all"], ["run", "stage3b", *where]]  # the run is complete already
    after, _ = imported(
        *light, ["runs", *where[2:]], ["campaign", "lookup", "--plan", "--runs-dir", str(trained / "other")]
    )
    assert "numpy" not in after[len(light) - 1]
    assert after[-1] & {"torch", "transformers", "datasets", "pyarrow", "pandas"} == set()


@pytest.mark.usefixtures("few_rows_here")
def test_a_stage_imports_what_it_uses_and_is_not_searched_for_garbage(tmp_path: Path) -> None:
    """accelerate is transformers' own import, scipy the one of its losses where it is installed."""
    after, (frozen, *thresholds) = imported(
        ["run", "stage1", "--profile", "ci", "--limit", "1", "--runs-dir", str(tmp_path)]
    )
    unused = {"datasets", "pandas", "peft", "lm_eval", "sklearn", "matplotlib", "tensorboard", "pytest"}
    assert after[0] & unused == set()
    assert frozen > 100_000, "torch and transformers are walked over in each full collection"
    assert thresholds[0] < 10_000, "the collector rests in the whole run"
