"""One probe of a rented machine, run on it: the dead-man's switch, the job, the GPU, the disk. Always within seconds.

What cannot be known is null; nothing here changes anything.
"""

import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs import health
from jobs.clock import Clock
from jobs.errors import RunStateError
from jobs.runs.atomic import finite, read_json_or_nothing
from vast.host import jobstate, lease, processes, subprocess_run
from vast.host import runs as hostruns

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
SMI_SECONDS = 3.0
SILENCE = max(health.SILENCE.values())  # how long a phase without steps, such as a download, lasts without being hung

FAULTS = re.compile(
    r"[^\n]*(?:GPU is lost|fallen off the bus|Unable to determine the device handle|couldn't communicate with the NVIDIA "
    r"driver|Unknown Error|No devices were found|uncorrectable)[^\n]*",
    re.IGNORECASE,
)


def probe(root: Path, clock: Clock = time) -> dict[str, Any]:
    """The JSON object that vast/host/__main__.py prints; see there."""
    watch = root / hostruns.WATCHDOG
    busy, used, fault = gpu(ask_nvidia_smi())
    words = [lease.message(watch)]
    try:
        job = job_fields(root, clock)
    except RunStateError as error:
        job = None
        words.append(str(error))
    return {
        "nonce": lease.nonce(watch),
        "boot": boot(),
        "watchdog": lease.view(watch),
        "job": job,
        "gpu_percent": busy,
        "gpu_memory_percent": used,
        "disk_free_gb": disk_free_gb(root),
        "gpu_fault": fault,
        "message": "; ".join(word for word in words if word),
    }


def boot() -> str:
    """Changes with each start of the container or of its machine."""
    first = processes.stat(1)
    return f"{processes.boot_id()}/{first.ticks if first else 0}"


def disk_free_gb(root: Path) -> float | None:
    try:
        return round(shutil.disk_usage(root).free / 1e9, 3)
    except OSError:
        return None


# ---- the job ----------------------------------------------------------------------------------------------------------


def job_fields(root: Path, clock: Clock) -> dict[str, Any]:
    """The fields of vast.ports.JobReport. Raises RunStateError for a state.json that cannot be read."""
    directory = root / hostruns.RUNNER
    if jobstate.read(directory) is None:
        return {"phase": "absent"}
    state = jobstate.observe(directory)
    run = hostruns.run_of(root, state)
    beat = {} if run is None else read_json_or_nothing(run / "heartbeat.json")
    found = [] if run is None else hostruns.checkpoints(root, run)
    return {
        **{key: state[key] for key in ("phase", "attempt", "exit_code", "end_reason", "fingerprint", "fixes")},
        "run": None if run is None else hostruns.name_of(root, run),
        **{key: int(finite(beat.get(key)) or 0) for key in ("step", "total")},
        **{key: finite(beat.get(key)) for key in ("loss", "tokens_per_s")},
        "beat_age": beat_age(beat, clock) if beat else age_without_beat(state, time.clock_gettime(time.CLOCK_BOOTTIME)),
        "checkpoint": found[-1].name if found else None,
        "complete": hostruns.is_done(root, state, run),
    }


def age_without_beat(state: Mapping[str, Any], since_boot: float) -> float | None:
    """Seconds since the start of a job that runs and has written no heartbeat, once that is too long for its imports.

    since_boot: seconds, of the kernel's clock that nobody sets: a host may correct its time in the first minutes.
    """
    if state["phase"] != "running":
        return None
    age = since_boot - state["job"]["ticks"] / os.sysconf("SC_CLK_TCK")
    return age if age > SILENCE else None


def beat_age(beat: Mapping[str, Any], clock: Clock) -> float | None:
    """Seconds since the last progress of the run; None during a phase without steps, which may be long without being hung.

    A hung trainer still writes heartbeats in the background, so the last heartbeat with progress is used.
    """
    at = health.times(beat, "progress_") or health.times(beat, "")  # older heartbeats have the second one only
    if at is None:
        return None
    age = health.ago(*at, clock.time(), clock.monotonic())
    working = str(beat.get("phase")).partition(" ")[0] in health.WORKING
    return round(age, 3) if working or age > SILENCE else None


# ---- the GPU ------------------------------------------------------------------------------------------------------------


def ask_nvidia_smi() -> tuple[int, str] | None:
    """Its exit code and output; None without such a program; -1 if it hangs, as with a broken driver."""
    done = subprocess_run.run(NVIDIA_SMI, timeout=SMI_SECONDS, env=os.environ)
    if done.code is None and not done.timed_out:
        return None
    return -1 if done.code is None else done.code, f"{done.out}\n{done.err}"


def gpu(answer: tuple[int, str] | None) -> tuple[float | None, float | None, str | None]:
    """Percent of time and of memory of the busiest of several GPUs, since they work on one job; a fault of any of them."""
    if answer is None:
        return None, None, None
    code, text = answer
    found = FAULTS.search(text)
    busy, used = [], []
    for line in text.splitlines():
        with suppress(ValueError, ZeroDivisionError):
            percent, memory, total = (float(word) for word in line.split(","))
            used.append(100 * memory / total)
            busy.append(percent)
    words = " ".join(found[0].split()) if found else None
    fault = words if code != 0 or not busy else None
    return max(busy, default=None), round(max(used), 1) if used else None, fault
