"""Where torch and Triton keep compiled kernels between processes: in the cache directory, so that a stage compiles them once.

torch's own place is below /tmp, which a restart empties and a container loses. The image's entry point (container/prefill)
names a place in its volume; everywhere else it is set here, when a model is loaded: torch reads it when it first compiles.
Not covered: a bound on its size; torch removes nothing, and each version of torch and of this program's layers adds some
megabytes.
"""

import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def keep_kernels(environ: MutableMapping[str, str], cache: Path) -> None:
    """Set INDUCTOR and TRITON in `environ` to directories below `cache`; leave those that are set.

    What is kept is executed: the directory is this user's alone. Where there can be none, torch's own place stays.
    """
    own = cache / "compiled" / str(os.getuid())
    with suppress(OSError):
        own.mkdir(parents=True, exist_ok=True)
        if own.is_symlink() or own.stat().st_uid != os.getuid() or not os.access(own, os.W_OK):
            return
        own.chmod(0o700)
        environ.setdefault(INDUCTOR, str(own / "inductor"))
        environ.setdefault(TRITON, str(own / "triton"))
