"""
What runs on a GPU. Every test that makes sense on both devices is run on the CPU, too, so that a machine without a GPU finds
the mistakes that have nothing to do with it; what is on the GPU has the marker ``gpu``.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch as th

for folder in ("algorithms", "distributed", "resume"):
    sys.path.append(str(Path(__file__).parent.parent / folder))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """Where the test runs."""
    return request.param


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's convolutions round their inputs to 10 bits (TF32) unless they are told not to."""
    monkeypatch.setattr(th.backends.cudnn, "allow_tf32", False)
