"""Gemma 3 270M out of its wheels: hybrid layers, whose window of 512 tokens our masks and an independent scorer both keep.

It needs 1.1 GB that `make stage1 PROFILE=gemma-270m` leaves in the cache, and is skipped without them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.attention import selfcheck
from app.attention.model_config import setting
from app.embedded.cache import cache_dir
from app.model.load import Loaded, load
from app.scoring.encode import encode_harness
from app.scoring.loglikelihood import loglikelihood
from jobs.config.load import resolve
from jobs.config.schema import Mask
from tests.app import oracle

pytestmark = [
    pytest.mark.zoo,  # two minutes of a core
    pytest.mark.skipif(
        not (cache_dir() / "models" / "gemma-3-270m-checked").is_dir(), reason="Gemma is not in the cache"
    ),
]
MASKS: tuple[Mask, ...] = ("causal", "prefix", "bidirectional")
PASSAGE = "The red box is on the shelf, the blue box under the table, and the green box in the car. " * 25
PAIRS = [
    (f"{PASSAGE}\nQuestion: Where is the blue box?\nAnswer:", choice) for choice in (" under the table", " in the car")
]


@pytest.fixture(scope="module")
def gemma() -> Iterator[Loaded]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCEPT_GEMMA_TERMS", "1")  # whoever filled the cache has accepted them
        yield load(resolve("stage1", "gemma-270m").profile.model)


def test_the_masks_hold_on_the_loaded_model(gemma: Loaded) -> None:
    assert gemma.tokenizer("a")["input_ids"][0] == gemma.tokenizer.bos_token_id == 2
    selfcheck.require(gemma.model, ("causal", "prefix"), gemma.origin)


@pytest.mark.parametrize("mask", MASKS)
def test_scores_beyond_the_window_are_those_of_an_independent_scorer(mask: Mask, gemma: Loaded) -> None:
    requests = encode_harness(gemma.tokenizer, PAIRS)
    assert len(requests[0].context) > setting(gemma.model.config, "sliding_window") == 512
    plain = oracle.plain(gemma.model)
    found = loglikelihood(gemma, requests, mask)
    for request, ours in zip(requests, found, strict=True):
        theirs = oracle.logprob(plain, list(request.context), list(request.continuation), mask)
        assert ours.logprob == pytest.approx(theirs, abs=3e-5)
