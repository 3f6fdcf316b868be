"""The burn-in of a machine: what nvidia-smi, a product on each GPU, disk and network show, and that it ends within its limits."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.warm_python import run
from vast.host import burnin, processes
from vast.host.burnin import burn_in, disk, driver, faults, fetched, problems_of, product, run_program
from vast.host.gpu_program import PROGRAM
from vast.host.subprocess_run import Ended

CARDS = "0, NVIDIA H200, 580.95.05, 143771, 5, 16\n1, NVIDIA H200, 580.95.05, 143771, 5, 16\n"
DETAILS = """
==============NVSMI LOG==============

Driver Version                            : 580.95.05
CUDA Version                              : 13.0

GPU 00000000:18:00.0
    GPU Recovery Action                   : None
    ECC Errors
        Volatile
            SRAM Correctable              : 3
            SRAM Uncorrectable Parity     : 0
            DRAM Uncorrectable            : 0
        Aggregate
            SRAM Uncorrectable Parity     : 7
            SRAM Threshold Exceeded       : No
    Remapped Rows
        Correctable Error                 : 0
        Uncorrectable Error               : 2
        Pending                           : No
        Remapping Failure Occurred        : No
"""
GPU: dict[str, Any] = {"index": 0, "name": "NVIDIA H200", "right": True, "tflops": 700.0, "to_gb_s": 50.0, "from_gb_s": 48.0,
       "filled_gb": 138, "total_gb": 139.8}  # fmt: skip


def answering(product_output: str = "", code: int | None = 0, cards: str = CARDS, err: str = "") -> burnin.Run:
    def run(argv: Sequence[str], seconds: float) -> Ended:
        assert 0 < seconds < burnin.WHOLE
        if argv[0] != "nvidia-smi":
            return Ended(code, product_output, err, timed_out=code is None)
        return Ended(0, DETAILS) if argv[1] == "-q" else Ended(0 if cards.strip() else 9, cards)

    return run


# ---- nvidia-smi -----------------------------------------------------------------------------------------------------------


def test_a_healthy_driver_names_its_cards_and_no_fault() -> None:
    found = driver(answering())
    assert (found["driver"], found["driver_cuda"], found["faults"]) == ("580.95.05", "13.0", [])
    assert [card["memory.total"] for card in found["cards"]] == ["143771", "143771"]


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("DRAM Uncorrectable            : 0", "DRAM Uncorrectable            : 4", "DRAM Uncorrectable: 4"),
    ("Uncorrectable Parity     : 0", "Uncorrectable Parity     : 1", "SRAM Uncorrectable Parity: 1"),
    ("Pending                           : No", "Pending                           : Yes", "Pending : Yes"),
    ("Failure Occurred        : No", "Failure Occurred        : Yes", "Remapping Failure Occurred : Yes"),
    ("Threshold Exceeded       : No", "Threshold Exceeded       : Yes", "SRAM Threshold Exceeded : Yes"),
    ("Recovery Action                   : None", "Recovery Action                   : Reset", "GPU Recovery Action : Reset"),
    ("    Remapped Rows", "    Xid Errors                 : 79\n    Remapped Rows", "Xid Errors : 79"),
])  # fmt: skip
def test_memory_errors_and_wishes_for_a_reset_are_faults(old: str, new: str, fault: str) -> None:
    assert old in DETAILS
    assert faults(DETAILS.replace(old, new)) == [fault]


def test_a_driver_that_fails_hangs_or_is_missing_is_named() -> None:
    broken = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    assert driver(lambda *_: Ended(9, f"{broken}\n")) == {"driver_error": f"exit code 9: {broken}"}
    assert driver(lambda *_: Ended(None, timed_out=True)) == {"driver_error": "killed after 15 s"}

    def missing(argv: Sequence[str], seconds: float) -> Ended:
        return run_program((f"/nowhere/{argv[0]}",), seconds)

    assert driver(missing) == {"driver_error": "/nowhere/nvidia-smi: cannot be started: No such file or directory"}
    assert product(missing, "python")["gpu_error"] == "/nowhere/python: cannot be started: No such file or directory"


# ---- the product ----------------------------------------------------------------------------------------------------------


def test_what_the_program_prints_is_read_after_any_warnings() -> None:
    printed = "a warning\n" + json.dumps({"torch": "2.13", "cuda": "13.0", "gpus": [GPU]}) + "\nanother at its exit\n"
    assert product(answering(printed), "python") == {"torch": "2.13", "cuda": "13.0", "gpus": [GPU]}


@pytest.mark.parametrize(("code", "printed", "said"), [
    (1, "Traceback\nImportError: libcudart.so.13", "exit code 1: ImportError: libcudart.so.13"),
    (None, "", "killed after 50 s"),
    (0, "", "exit code 0: no output"),
    (0, '{"gpus": 3}', 'exit code 0: {"gpus": 3}'),
    (0, json.dumps({"cuda": "13.0", "gpus": [], "error": "RuntimeError: The NVIDIA driver on your system is too old"}),
     "RuntimeError: The NVIDIA driver on your system is too old"),
])  # fmt: skip
def test_a_program_that_fails_is_a_problem(code: int, printed: str, said: str) -> None:
    found = product(answering(printed, code), "python")
    assert found["gpu_error"] == said and problems_of(found) == [f"gpu: {said}"]


@pytest.mark.parametrize(("change", "said"), [
    ({}, []),
    ({"right": False}, ["GPU 0: a bfloat16 product has a wrong result"]),
    ({"to_gb_s": 0.8}, ["GPU 0: to_gb_s 0.8, expected at least 1.5"]),
    ({"filled_gb": 70}, ["GPU 0: 70 GB of 139.8 GB of memory could be written and read back"]),
    ({"peer_gb_s": 0.3, "peer_right": True}, ["GPU 0: peer_gb_s 0.3, expected at least 0.7"]),
    ({"peer_gb_s": 20.0, "peer_right": False}, ["GPU 0: what the GPU before it sends arrives changed"]),
    ({"error": "AcceleratorError: uncorrectable ECC error"}, ["GPU 0: AcceleratorError: uncorrectable ECC error"]),
])  # fmt: skip
def test_problems_of_a_gpu_have_their_numbers(change: dict[str, Any], said: list[str]) -> None:
    assert problems_of({"gpus": [GPU | change]}) == said


@pytest.mark.parametrize(("name", "value"), [("disk_write_mb_s", 12.0), ("disk_read_mb_s", 20.0), ("shm_free_mb", 1.0)])
def test_a_slow_disk_or_no_shared_memory_is_a_problem(name: str, value: float) -> None:
    assert problems_of({name: value}) == [f"{name} {value:g}, expected at least {burnin.LEAST[name]:g}"]
    assert problems_of({name: float("nan")}) and problems_of({name: None}) == [] == problems_of({name: 1e6})


ON_CPU = """
import torch
torch.cuda.init = torch.cuda.empty_cache = lambda: None
torch.cuda.synchronize = torch.cuda.set_device = lambda device: None
torch.cuda.device_count, torch.cuda.get_device_name = (lambda: COUNT), (lambda index: "a CPU")
torch.cuda.mem_get_info = lambda device: (2 * 2**24, 3 * 2**24)  # in place of GIB
"""


def on_cpus(count: int, old: str = "", new: str = "") -> list[dict[str, Any]]:
    """What the program finds on the CPU in place of GPUs: their devices and pinned memory are replaced, and `old` in its text."""
    assert old in PROGRAM
    code = PROGRAM.replace('torch.device("cuda", index)', 'torch.device("cpu")').replace('{"pin_memory": True}', "{}")
    code = code.replace("2**27", "2**20").replace("2**30", "2**24").replace(old, new)
    argv = [sys.executable, "-c", f"COUNT = {count}" + ON_CPU + code, "128", "0.01"]
    done = run(argv, ("torch",), text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    gpus: list[dict[str, Any]] = json.loads(done.stdout)["gpus"]
    return gpus


def test_the_program_of_the_gpus_sees_a_wrong_product() -> None:
    line = "    first = left @ right\n"
    (gpu,) = on_cpus(1, line, line + "    first[2, 5] += 1\n")
    assert "error" not in gpu and gpu["right"] is False and "peer_gb_s" not in gpu


def test_each_gpu_is_right_and_gets_data_from_the_one_before_it_or_garbage() -> None:
    line = '    found["peer_right"]'
    gpus = on_cpus(3, line, "    got[7] += index == 2\n" + line)
    for gpu in gpus:
        assert "error" not in gpu and gpu["right"] and gpu["tflops"] > 0 and gpu["to_gb_s"] > 0 and gpu["peer_gb_s"] > 0
        assert (gpu["filled_gb"], gpu["total_gb"]) == (1, 3.0)
    assert [gpu["peer_right"] for gpu in gpus] == [True, True, False]


# ---- limits ---------------------------------------------------------------------------------------------------------------


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text("""import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
""")
    ended = run_program((sys.executable, str(tmp_path / "parent.py")), 1.0)
    assert ended.timed_out
    for _ in range(500):  # a killed process is gone once the kernel has come to it, mostly at the first look
        if (found := processes.stat(int(ended.out))) is None or found.dead:
            return
        time.sleep(0.01)
    raise AssertionError(f"{found} still runs 5 s after it was killed")


def test_a_check_that_hangs_is_named_and_the_others_answer() -> None:
    never = threading.Event()

    def broken() -> dict[str, Any]:
        raise OSError("gone")

    checks = {"disk": lambda: {"hung": never.wait(5)}, "download": lambda: {"down_mbit": 7.0}, "gpu": broken}
    found, late = burnin._at_once(checks, 0.1)
    assert late == ["disk: no answer within 0.1 s"]
    assert found == {"down_mbit": 7.0, "gpu_error": "OSError: gone"}
    never.set()


# ---- disk and network -----------------------------------------------------------------------------------------------------


def test_the_disk_is_written_read_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a burn-in that is killed at its time limit while it writes half a gigabyte."""
    seen: list[list[Path]] = []
    monkeypatch.setattr(burnin.os, "fdatasync", lambda file: seen.append(list(tmp_path.iterdir())))
    found = disk(tmp_path, size=2 * burnin.PIECE)
    assert seen == [[], []]
    assert found["disk_write_mb_s"] > 0 and found["disk_read_mb_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_not_filled(tmp_path: Path) -> None:
    assert "GB are free" in disk(tmp_path, size=2**60)["disk_error"] and list(tmp_path.iterdir()) == []


def test_the_rate_of_a_download() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if self.path == "/none" else 200)
            self.send_header("Content-Length", "100000" if self.path != "/slow" else "100000000")
            self.end_headers()
            self.wfile.write(b"x" * 100_000)
            if self.path == "/slow":
                over.wait(30)

        def log_message(self, *_: object) -> None:
            pass

    over = threading.Event()
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert fetched(f"{url}/some")["down_mbit"] > 0
        assert fetched(f"{url}/none") == {"down_mbit": None}
        assert fetched(f"{url}/slow", seconds=0.3)["down_mbit"] > 0  # what came of it
        over.set()
        server.shutdown()
    assert fetched("http://127.0.0.1:1/") == {"down_mbit": None}  # no fault of the machine


# ---- the command ----------------------------------------------------------------------------------------------------------


# `-m vast.host` that writes 16 MB in place of 512.
LITTLE = """
import sys
from functools import partial
from vast.host import burnin
from vast.host.__main__ import main
burnin.disk = partial(burnin.disk, size=2 * burnin.PIECE)
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_prints_one_object_with_problems(tmp_path: Path) -> None:
    for name, text in (("nvidia-smi", f"case $1 in -q) cat <<'E'\n{DETAILS}\nE\n;; *) printf '{CARDS}' ;; esac"),
                       ("python", f"echo '{json.dumps({'cuda': '13.0', 'gpus': [GPU]})}'")):  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    root = tmp_path / "runs"
    root.mkdir()
    argv = [sys.executable, "-S", "-c", LITTLE, "burnin", "--root", str(root), "--python", str(tmp_path / "python"),
            "--download", "http://127.0.0.1:1/"]  # fmt: skip
    done = run(argv, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gpus"] == [GPU] and found["driver_cuda"] == "13.0" and found["unix_time"] > 1e9
    assert [one for one in found["problems"] if not one.startswith("disk_")] == []


def test_without_gpus_none_is_tried(tmp_path: Path) -> None:
    def never(argv: Sequence[str], seconds: float) -> Ended:
        raise AssertionError(argv)

    found = burn_in(tmp_path, download="http://127.0.0.1:1/", run=never, gpus=False)
    assert "gpus" not in found and "driver_error" not in found
