"""Installs a program that the image lacks, then becomes the job: python3 install_package.py PACKAGE... -- COMMAND...

It runs as the first words of the job, so that its output is in the job's log and whoever stops the job stops it too. Whatever
comes of it, the job is tried: its own error says best what is missing. Standard library only, and nothing of ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 300


def install(packages: Sequence[str]) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (["apt-get", "update", "-q"], ["apt-get", "install", "-yq", "--no-install-recommends", *packages]):
        print(f"[fix] {' '.join(argv)}", flush=True)
        try:
            done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"[fix] {argv[0]}: {type(error).__name__}", flush=True)
            return False
        if done.returncode != 0:
            print(f"[fix] {argv[0]} ended with {done.returncode}", flush=True)
            return False
    return True


if __name__ == "__main__":
    at = sys.argv.index("--")
    install(sys.argv[1:at])
    os.execvp(sys.argv[at + 1], sys.argv[at + 1 :])
