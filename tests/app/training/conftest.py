"""Memory for copies that is taken as from CUDA's driver, in small pieces."""

from __future__ import annotations

import pytest
import torch

from app.training import host_memory
from tests.app.fakes.gpu_memory import Driver, OnGpu


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver(refuses=False)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: found)
    monkeypatch.setattr(host_memory, "_PLAIN", (*host_memory._PLAIN, OnGpu))
    monkeypatch.setattr(host_memory, "_REGION", 3000)
    monkeypatch.setattr(host_memory, "_SLICE", 700)
    return found
