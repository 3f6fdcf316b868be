"""What a process of `python -m app` has imported and read when it is forked off: see warm_process.py, which has this imported.

Nothing here depends on what the process is then asked for: modules, transformers' table of renamed weights, a tokenizer.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from pathlib import Path

from tokenizers import Tokenizer
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

for _name in (
    "accelerate",
    "app.__main__",
    "app.stage.work",
    "datasets",
    "peft",
    "transformers.models.llama.modeling_llama",
):
    import_module(_name)
del sys.modules["app.__main__"]  # what it imports stays, and it is executed again
get_checkpoint_conversion_mapping("llama")  # compiles 900 regular expressions
_from_file = Tokenizer.from_file
_read = {
    str(path): _from_file(str(path))
    for path in Path(os.environ.get("PREFILL_CACHE", "")).glob("models/*/tokenizer.json")
}
# The first time only: each process has its own copy, and may change it.
Tokenizer.from_file = staticmethod(lambda path: _read.pop(path, None) or _from_file(path))
gc.collect()
gc.freeze()
