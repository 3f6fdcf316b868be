"""Several machines write one run: all of them must see its directory."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from app.runtime.ranks import Ranks
from jobs.errors import RunStateError

LOOKS, PAUSE = 60, 1.0  # network storage may take a while to show a new directory


def require_shared(
    run: Path, ranks: Ranks, environ: Mapping[str, str], pause: Callable[[float], None] = time.sleep
) -> None:
    """Raise RunStateError on every rank unless each sees the lock that rank 0 has written. On one machine do nothing."""
    if environ.get("GROUP_WORLD_SIZE", "1") == "1":  # torchrun's number of machines
        return
    lock = run / "lock"
    written = ranks.share(lock.read_text(encoding="utf-8") if ranks.main else "")

    def look() -> None:
        for _ in range(LOOKS):
            if lock.is_file() and lock.read_text(encoding="utf-8") == written:
                return
            pause(PAUSE)
        raise RunStateError(run, f"rank {ranks.rank} is on a machine that does not see it",
                            "keep runs on storage that all machines share, at the same path (--runs-dir)")  # fmt: skip

    ranks.together(look, RunStateError)
