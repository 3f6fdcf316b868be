"""What runs on a rented machine works with the system's interpreter: no packages, and of `jobs` only what needs none."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# -I: neither PYTHONPATH nor the working directory; -S: no site-packages. __mp_main__ and such start with an underscore.
CODE = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2])
names = {name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names}
print(*sorted(names - {"__main__"}))
"""


@pytest.mark.parametrize("module", ["vast.host.runner", "vast.host.__main__", "vast.host.watchdog"])
def test_it_imports_the_standard_library_and_of_jobs_only_modules_without_packages(module: str) -> None:
    command = [sys.executable, "-I", "-S", "-c", CODE, str(ROOT), module]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    of_jobs = {name for name in found if name.partition(".")[0] == "jobs"}
    assert of_jobs <= {"jobs", "jobs.clock", "jobs.errors", "jobs.health", "jobs.lock", "jobs.runs", "jobs.runs.atomic"}
    assert {name.partition(".")[0] for name in found} <= {"jobs", "vast"}
