from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from app.model.load import Loaded, find_checkpoint, load
from jobs.config.load import resolve
from tests.app.serve.serving import serving


@pytest.fixture(scope="package")
def loaded(trained: Path) -> Loaded:
    return load(resolve("stage1", "ci").profile.model, checkpoint=find_checkpoint("stage3b", trained, "ci"))


@pytest.fixture(scope="package")
def client(loaded: Loaded) -> Iterator[openai.OpenAI]:
    with serving(loaded) as found:
        yield found
