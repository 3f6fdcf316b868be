"""The burn-in of a rented machine before its job, inside a minute: python3 -m vast.host burnin.

GPUs (vast/host/gpu_program.py, nvidia-smi), disk, download, shared memory. The checks run at once, each with its own
time limit. `problems` lists faults with which no job can run, with their numbers. The supervisor judges what depends on the GPU's
model or on the contract (vast/shell/burn_in.py). A value that could not be measured is null.
"""

import json
import os
import re
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from vast.host import subprocess_run
from vast.host.bounded_http import exchange
from vast.host.gpu_program import PROGRAM
from vast.host.subprocess_run import Ended

WHOLE = 55.0  # seconds, for everything
GPU_SECONDS = 50.0  # most of it is the import of torch
SIDE, RATE_SECONDS = 8192, 2.0  # of the product
SMI_SECONDS = 15.0
DISK_SECONDS, DISK_BYTES, PIECE = 8.0, 512 * 2**20, 8 * 2**20
DOWNLOAD = "https://speed.cloudflare.com/__down?bytes=25000000"  # a service made for this; --download names another
DOWNLOAD_SECONDS = 10.0
PYTHON = "/usr/local/bin/prefill"  # of the image: with -c it is Python with torch and, if need be, a newer libcuda
SHARED = Path("/dev/shm")
LEAST = {
    "to_gb_s": 1.5,
    "from_gb_s": 1.5,
    "peer_gb_s": 0.7,
    "disk_write_mb_s": 30.0,
    "disk_read_mb_s": 60.0,
    "shm_free_mb": 32.0,
}
FILLED = 0.85  # of a GPU's memory; the rest is the driver's, and 1 GB that is left alone

NAMES = ("index", "name", "driver_version", "memory.total", "pcie.link.gen.max", "pcie.link.width.current")
QUERY = ("nvidia-smi", f"--query-gpu={','.join(NAMES)}", "--format=csv,noheader,nounits")
DETAILS = ("nvidia-smi", "-q")
_CUDA = re.compile(r"^CUDA Version\s*: (\d+\.\d+)", re.MULTILINE)
_VOLATILE = re.compile(r"^( *)Volatile\s*\n((?:\1 +.*\n?)+)", re.MULTILINE)
_UNCORRECTABLE = re.compile(r"(\w+ Uncorrectable[^:\n]*?)\s*: ([1-9]\d*)")
_FLAGS = re.compile(
    r"(Pending(?: Page Blacklist)?|Remapping Failure Occurred|SRAM Threshold Exceeded|Reset Required"
    r"|Drain and Reset Recommended)\s*: Yes|(GPU Recovery Action\s*: (?!None|N/A)\S.*)|([^\n]*\bXid\b[^\n]*: [1-9]\d*)"
)

Run = Callable[[Sequence[str], float], Ended]


def burn_in(
    root: Path, python: str = PYTHON, download: str = DOWNLOAD, run: Run | None = None, gpus: bool = True
) -> dict[str, Any]:
    """The JSON object that vast/host/__main__.py prints. gpus: whether there should be any."""
    run = run or run_program
    begun = time.monotonic()
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "disk": lambda: disk(root),
        "download": lambda: fetched(download),
        "shared memory": lambda: {"shm_free_mb": round(shutil.disk_usage(SHARED).free / 2**20, 1)},
    }
    if gpus:
        checks["driver"] = lambda: driver(run)
        checks["gpu"] = lambda: product(run, python)
    found, problems = _at_once(checks, WHOLE)
    problems += problems_of(found)
    return {**found, "problems": problems, "unix_time": time.time(), "seconds": round(time.monotonic() - begun, 1)}


def _at_once(checks: Mapping[str, Callable[[], dict[str, Any]]], limit: float) -> tuple[dict[str, Any], list[str]]:
    """Run the checks at the same time. Returns their findings, and the names of those that took more than `limit` seconds."""
    answers: dict[str, dict[str, Any]] = {}

    def one(name: str) -> None:
        try:
            answers[name] = checks[name]()
        except Exception as error:  # a host that nobody foresaw
            answers[name] = {f"{name}_error": f"{type(error).__name__}: {error}"[:300]}

    threads = {name: threading.Thread(target=one, args=(name,), daemon=True) for name in checks}
    until = time.monotonic() + limit
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(0.0, until - time.monotonic()))
    late = [f"{name}: no answer within {limit:g} s" for name in checks if name not in answers]
    return {key: value for name in checks for key, value in answers.get(name, {}).items()}, late


def problems_of(found: Mapping[str, Any]) -> list[str]:
    """The faults with which no job can run, as text with their numbers. Pure."""
    problems = [f"{name.removesuffix('_error')}: {value}" for name, value in found.items() if name.endswith("_error")]
    problems += [f"nvidia-smi: {line}" for line in found.get("faults", ())]
    problems += _too_low(found)
    for gpu in found.get("gpus", ()):
        name = f"GPU {gpu.get('index')}"
        if gpu.get("error"):
            problems.append(f"{name}: {gpu['error']}")
            continue
        if gpu.get("right") is not True:
            problems.append(f"{name}: a bfloat16 product has a wrong result")
        if gpu.get("peer_right") is False:
            problems.append(f"{name}: what the GPU before it sends arrives changed")
        problems += [f"{name}: {text}" for text in _too_low(gpu)]
        total, filled = gpu.get("total_gb"), gpu.get("filled_gb")
        if total is not None and filled is not None and filled < FILLED * total - 1:
            problems.append(f"{name}: {filled:g} GB of {total:g} GB of memory could be written and read back")
    return problems


def _too_low(found: Mapping[str, Any]) -> list[str]:
    known = [(name, found[name], least) for name, least in LEAST.items() if found.get(name) is not None]
    return [f"{name} {value:g}, expected at least {least:g}" for name, value, least in known if not value >= least]


# ---- the GPUs -------------------------------------------------------------------------------------------------------------


def driver(run: Run) -> dict[str, Any]:
    """driver, driver_cuda, cards (as nvidia-smi names them), faults."""
    listed, details = (run(argv, SMI_SECONDS) for argv in (QUERY, DETAILS))
    if listed.code != 0:
        return {"driver_error": _last_words(listed, SMI_SECONDS)}
    rows = [[word.strip() for word in line.split(",")] for line in listed.out.splitlines()]
    cards = [dict(zip(NAMES, row, strict=True)) for row in rows if len(row) == len(NAMES)]
    cuda = _CUDA.search(details.out)
    return {
        "driver": cards[0]["driver_version"] if cards else None,
        "driver_cuda": cuda[1] if cuda else None,
        "cards": cards,
        "faults": faults(details.out),
    }


def faults(details: str) -> list[str]:
    """Of `nvidia-smi -q`: memory errors since the driver was loaded, and flags that ask for a reset of the GPU."""
    blocks = (block[2] for block in _VOLATILE.finditer(details))
    memory = [f"{name}: {count}" for block in blocks for name, count in _UNCORRECTABLE.findall(block)]
    return memory + [" ".join(one[0].split()) for one in _FLAGS.finditer(details)]


def product(run: Run, python: str, side: int = SIDE, seconds: float = RATE_SECONDS, *steps: str) -> dict[str, Any]:
    """torch, cuda and gpus: see vast/host/gpu_program.py. steps: the ones that are taken; none: all of them."""
    ended = run((python, "-c", PROGRAM, str(side), str(seconds), *steps), GPU_SECONDS)
    objects = [line for line in ended.out.splitlines() if line.startswith("{")]
    with suppress(ValueError):
        found = json.loads(objects[-1] if objects else "")
        if isinstance(found, dict) and isinstance(found.get("gpus"), list):
            cause = {"gpu_error": found["error"]} if found.get("error") else {}
            return {"torch": found.get("torch"), "cuda": found.get("cuda"), "gpus": found["gpus"], **cause}
    return {"gpu_error": _last_words(ended, GPU_SECONDS)}


def _last_words(ended: Ended, seconds: float) -> str:
    """Why a program failed: the last line that it printed, or that it was killed after `seconds`."""
    if ended.timed_out:
        return f"killed after {seconds:g} s"
    line = (ended.err.strip() or ended.out.strip() or "no output").splitlines()[-1]
    return (line if ended.code is None else f"exit code {ended.code}: {line}")[:300]


def run_program(argv: Sequence[str], seconds: float) -> Ended:
    return subprocess_run.run(argv, timeout=seconds, env=os.environ)


# ---- the rest -------------------------------------------------------------------------------------------------------------


def disk(root: Path, size: int = DISK_BYTES, seconds: float = DISK_SECONDS) -> dict[str, Any]:
    """disk_write_mb_s, synced, and disk_read_mb_s, with the page cache dropped; disk_free_gb."""
    free, piece = shutil.disk_usage(root).free, os.urandom(PIECE)
    if free < 2 * size:
        return {"disk_error": f"{free / 1e9:.1f} GB are free"}
    with tempfile.TemporaryFile(dir=root, buffering=0) as file:  # without a name: a kill leaves nothing of it
        written, begun = 0, time.monotonic()
        while written < size and time.monotonic() - begun < seconds:
            written += file.write(piece)
            os.fdatasync(file)
        write = written / max(1e-6, time.monotonic() - begun)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        got, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds and (data := file.read(PIECE)):
            if got % PIECE == 0 and len(data) == PIECE and data != piece:
                return {"disk_error": "what was written is not what is read"}
            got += len(data)
        read = got / max(1e-6, time.monotonic() - begun)
    return {
        "disk_write_mb_s": round(write / 1e6, 1),
        "disk_read_mb_s": round(read / 1e6, 1),
        "disk_free_gb": round(free / 1e9, 1),
    }


def fetched(url: str, seconds: float = DOWNLOAD_SECONDS) -> dict[str, Any]:
    """down_mbit, also of a download that did not end in time; null if nothing came, which need not be a fault of the machine."""
    begun, got = time.monotonic(), [(0, 0, 0.0)]

    def received(status: int, size: int) -> None:
        got.append((status, size, time.monotonic() - begun))

    request = urllib.request.Request(url, headers={"User-Agent": "prefill-vast"})
    with suppress(OSError, HTTPException, ValueError):
        exchange(request, seconds, redirects=True, received=received)
    status, size, took = got[-1]
    return {"down_mbit": round(8 * size / max(1e-6, took) / 1e6, 1) if status == 200 else None}
