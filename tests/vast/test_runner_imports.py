"""The runner works with the system's interpreter on a rented machine: no packages, and next to nothing of `jobs`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# -I: neither PYTHONPATH nor the working directory; -S: no site-packages. __mp_main__ and such start with an underscore.
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import vast.runner
names = {name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names}
print(*sorted(names - {"__main__"}))
"""


def test_the_runner_imports_the_standard_library_and_of_jobs_only_errors_and_lock() -> None:
    command = [sys.executable, "-I", "-S", "-c", CODE, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert {name for name in found if name.startswith("jobs")} == {"jobs", "jobs.errors", "jobs.lock"}
    assert {name.partition(".")[0] for name in found} == {"jobs", "vast"}
