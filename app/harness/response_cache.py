"""Whose answers a response cache of lm-evaluation-harness (`--use_cache`) holds; the file itself does not record it."""

import hashlib
from collections.abc import MutableMapping
from typing import Any

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
    """sha256 of some numbers out of every weight: a retrained checkpoint under an old name gets another one."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        some = weight.detach().reshape(-1)[:: max(1, weight.numel() // 64)]
        digest.update(name.encode() + some.float().cpu().numpy().tobytes())
    return digest.hexdigest()
