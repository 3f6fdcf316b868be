"""sha256 of large files, kept between processes: every stage asks for that of the model, and 7 GB take a core 6 s.

As git's index has it, a file is the same while its path, its inode, its size and both its times are. That tells one model from
another, and finds no flipped bit on a disk: what looks for those reads the file (jobs/runs/atomic.py). Where times say too
little, nothing is kept: on disks that have whole seconds, and for a file that was written less than `SETTLED` ago, since pages
that a program has mapped get the time of their first change alone until they are on the disk.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from app.embedded.cache import cache_dir
from jobs.runs.atomic import known_sha256, state_of

LEAST = 64 << 20  # bytes: smaller ones are read anew, which takes 50 ms
SETTLED = 60_000_000_000  # ns; Linux begins to write changed pages after 30 to 35 s, unless told otherwise


def kept_sha256(path: Path, now: Callable[[], int] = time.time_ns) -> str:
    """The sha256 of a file, in hex. Raises OSError, also where the file may not be read and its digest is known."""
    with path.open("rb"):  # over NFS, opening asks the server for the times
        state = state_of(path)
    if state[2] < LEAST:
        return known_sha256(path, now)
    from app.data.array_cache import Arrays, kept, key_of, numbers  # numpy, which no command needs that runs no stage

    keep = now() - max(state[-2:]) > SETTLED and state[-1] % 1_000_000_000 != 0

    def pack(digest: str) -> Arrays | None:
        return {"sha256": numbers(bytes.fromhex(digest))} if keep and state_of(path) == state else None

    def unpack(arrays: Arrays) -> str:
        digest = bytes(arrays["sha256"].tolist())  # raises ValueError for what is no byte
        if len(digest) != 32:
            raise ValueError("no sha256")
        return digest.hex()

    key = key_of(["sha256", os.fsencode(path.resolve()), *map(str, state)])
    return kept(cache_dir() / "digests" / f"{key}.safetensors", lambda: known_sha256(path, now), pack, unpack)
