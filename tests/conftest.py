"""Every test is deterministic, runs on one thread, and sees no setting of the person who started it."""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy is imported

import numpy as np
import pytest

TEACHERS = Path(__file__).parent.parent / "examples" / "teachers"
FOREIGN = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*FOREIGN, *(name for name in os.environ if name.startswith("_SURGERY"))]:
        monkeypatch.delenv(name, raising=False)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):  # never imported for a test that does not need it
        torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """What several tests share is the same, whichever of them comes first."""
    if fixturedef.scope != "function":
        _seed()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    _seed()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def teachers() -> Path:
    """The folder of the trained agents that ship with the project."""
    return TEACHERS


@pytest.fixture(scope="module")
def one_registry() -> Iterator[None]:
    """PyTorch's exporter reads its table of operators anew for every export: half of the time of a small one."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry as registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield
