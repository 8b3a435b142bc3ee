"""Every test is deterministic, runs on one thread, and sees no setting of the person who started it."""

from __future__ import annotations

import functools
import gc
import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy is imported
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the commands that tests start would compile everything anew

import numpy as np
import pytest

TEACHERS = Path(__file__).parent.parent / "examples" / "teachers"
FOREIGN = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES")
EXPORTER = "torch.onnx._internal.exporter._registration"
COMPOSITES = "torch._export.utils"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*FOREIGN, *(name for name in os.environ if name.startswith("_SURGERY"))]:
        monkeypatch.delenv(name, raising=False)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):  # never imported for a test that does not need it
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(0)  # torch.manual_seed formats the whole stack where there is no GPU


@pytest.fixture
def quiet_log() -> Iterator[None]:
    """The command line sends the log to a stream that lives as long as its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """What several tests share is the same, whichever of them comes first."""
    if fixturedef.scope != "function":
        _seed()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    _seed()


def pytest_collection_finish() -> None:
    """Rubbish is not looked for among frameworks and thousands of tests, which stay, nor after every few graphs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """PyTorch's exporter makes its tables of operators anew for every export: two thirds of the time of a small one."""
    if exporter := sys.modules.get(EXPORTER):
        registry = exporter.ONNXRegistry
        if not isinstance(vars(registry)["from_torchlib"], staticmethod):
            registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
    composites = sys.modules.get(COMPOSITES)
    if composites and not hasattr(composites._materialize_cpp_cia_ops, "cache_info"):
        composites._materialize_cpp_cia_ops = functools.cache(composites._materialize_cpp_cia_ops)


@pytest.fixture(scope="session", autouse=True)
def _logs_of_sb3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Its loggers make a folder each time that an agent learns, in the system's temporary one unless told where."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3-logs")))
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def teachers() -> Path:
    """The folder of the trained agents that ship with the project."""
    return TEACHERS


@pytest.fixture
def model(tmp_path: Path, teachers: Path) -> Path:
    """A copy of a small trained agent: spaces `network.0` (120 wide) and `network.2` (84 wide)."""
    path = tmp_path / "agent.onnx"
    path.write_bytes((teachers / "cartpole-dqn.onnx").read_bytes())
    return path
