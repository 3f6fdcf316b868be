"""What a process of `python -m app` has imported and read when it is forked off: see warm_process.py, which has this imported.

Nothing here depends on what the process is then asked for: modules, transformers' table of renamed weights, the tokenizer.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pathlib import Path

from tokenizers import Tokenizer
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from app.embedded.cache import DEFAULT_MODEL, cache_dir

for _name in (
    "accelerate",
    "app.__main__",
    "app.stage.work",
    "datasets",
    "peft",
    "transformers.models.llama.modeling_llama",
):
    import_module(_name)  # fmt: skip
del sys.modules["app.__main__"]  # what it imports stays, and it is executed again
get_checkpoint_conversion_mapping("llama")  # compiles 900 regular expressions


def _identity(path: Path) -> tuple[int, int]:
    """tests/app/fakes/small_cache.py copies the file with its time."""
    return path.stat().st_size, path.stat().st_mtime_ns


_from_file = Tokenizer.from_file
_read = {_identity(path): _from_file(str(path)) for path in cache_dir().glob(f"models/{DEFAULT_MODEL}/tokenizer.json")}
# The first time only: a process has one copy, and may change it.
Tokenizer.from_file = staticmethod(lambda path: _read.pop(_identity(Path(path)), None) or _from_file(path))
gc.set_threshold(700, 10, 10)
gc.collect()
gc.freeze()
