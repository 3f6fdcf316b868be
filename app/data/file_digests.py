"""sha256 of large files, kept between processes: every stage asks for that of the model, and 7 GB take a core 6 s.

As git's index has it, a file is the same while its path, its inode, its size and both its times are. That is enough to tell one
model from another. It finds no flipped bit on a disk: what looks for those reads the file (jobs/runs/atomic.py).
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.embedded.cache import cache_dir
from jobs.runs.atomic import known_sha256, settled, state_of

LEAST = 64 << 20  # bytes: smaller ones are read anew, which takes 50 ms


def kept_sha256(path: Path, now: Callable[[], int] = time.time_ns) -> str:
    """The sha256 of a file, in hex. Raises OSError."""
    state = state_of(path)
    if path.stat().st_size < LEAST:
        return known_sha256(path, now)
    from app.data.array_cache import Arrays, kept, key_of, numbers  # numpy, which no command needs that runs no stage

    begun = now()

    def pack(digest: str) -> Arrays | None:
        same = settled(state, begun) and state_of(path) == state
        return {"sha256": numbers(bytes.fromhex(digest))} if same else None

    key = key_of(["sha256", str(path.resolve()), *map(str, state)])
    return kept(cache_dir() / "digests" / f"{key}.safetensors", lambda: known_sha256(path, now), pack, _unpack)


def _unpack(arrays: dict[str, Any]) -> str:
    digest = bytes(arrays["sha256"].tolist())  # raises ValueError for what is no byte
    if len(digest) != 32:
        raise ValueError("no sha256")
    return digest.hex()
