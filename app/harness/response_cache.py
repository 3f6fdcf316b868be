"""Whose answers a response cache of lm-evaluation-harness (`--use_cache`) holds; the file itself does not record it."""

import hashlib
import json
from collections.abc import MutableMapping
from itertools import chain
from typing import Any

import torch

from jobs.errors import ConfigError

_STAMP = "prefill"  # the harness's own keys are hex digits


def claim(cache: MutableMapping[str, Any], identity: dict[str, Any]) -> None:
    """Write `identity` into an empty cache; refuse one that holds the answers of something else.

    The harness's keys are made of the request's texts alone, so two masks would read each other's answers. Given the
    texts, an identity with mask, tokenizer and context length also fixes the prefix length of every request.

    Raises:
        ConfigError: the cache is not empty, and was not written under this identity.
    """
    found = cache.get(_STAMP)
    if found != identity and len(cache):
        known = found if isinstance(found, dict) else {}
        differs = next(key for key in identity if identity[key] != known.get(key)) if known else "model"
        raise ConfigError(f"--use_cache {getattr(cache, 'filename', '')}".strip(), f"holds the answers of another {differs}",
                          "give each mask and model a file of its own")  # fmt: skip
    cache[_STAMP] = identity


def fingerprint(model: Any) -> str:
    """sha256 of all weights and of the configuration: a checkpoint retrained or edited under an old name gets another one."""
    settings = [{key: value for key, value in one.to_dict().items() if key != "_name_or_path"}
                for one in (model.config, model.generation_config)]  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
