"""What lies in a checkpoint of PyTorch beside its networks: carried as it is, whatever Python class it is of."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import surgery
from surgery.adapters import Reading
from surgery.errors import CorruptFile, UnknownFormat


@dataclasses.dataclass
class Settings:
    """Those of a script of one's own."""

    rate: float = 1e-3
    where: Path = Path("runs/1")


BESIDE: Mapping[str, Callable[[], object]] = {
    "arguments": lambda: argparse.Namespace(lr=1e-3, hidden=[64, 64]),
    "a dataclass": Settings,
    "a class": lambda: nn.ReLU,
    "paths and times": lambda: [
        Path("runs/1"),
        datetime.datetime(2024, 2, 29, 12),
        datetime.timedelta(hours=3),
    ],
    "recent returns": lambda: collections.deque([1.0, 2.5], maxlen=100),
    "statistics of NumPy": lambda: {
        "mean": np.arange(4.0),
        "var": np.ones(4, np.float32),
        "count": np.float64(3),
    },
    "an element type": lambda: np.dtype("float32"),
    "random states": lambda: [np.random.RandomState(0).get_state(), random.Random(0).getstate()],
    "a generator": lambda: np.random.default_rng(3).bit_generator.state,
    "an array of objects": lambda: np.array([None, "a"], object),
    "an array in Fortran's order": lambda: np.asfortranarray(np.eye(3)),
}


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("what", BESIDE)
def test_it_is_in_the_file_that_is_written_back(tmp_path, what):
    beside = BESIDE[what]()
    torch.save({"model": dense().state_dict(), "beside": beside}, tmp_path / "x.pt")
    checkpoint = surgery.load(tmp_path / "x.pt", reading=Reading(activation="relu"))
    surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).save(tmp_path / "wide.pt")
    found = torch.load(tmp_path / "wide.pt", weights_only=False)
    assert found["model"]["0.weight"].shape == (16, 4)
    assert pickle.dumps(found["beside"]) == pickle.dumps(
        torch.load(tmp_path / "x.pt", weights_only=False)["beside"]
    )


class Agent:
    """With a network in it."""

    def __init__(self) -> None:
        self.policy = dense()


@pytest.mark.parametrize("wrap", [lambda agent: agent, lambda agent: {"agent": agent}])
def test_an_object_that_holds_the_network_is_named_with_what_to_save_instead(tmp_path, wrap):
    torch.save(wrap(Agent()), tmp_path / "x.pt")
    with pytest.raises(UnknownFormat, match=r"an object of the class .*Agent") as caught:
        surgery.load(tmp_path / "x.pt")
    assert "state_dict()" in caught.value.hint


def test_a_call_of_a_function_is_refused_by_name(tmp_path):
    torch.save({"model": dense().state_dict(), "beside": torch.relu}, tmp_path / "x.pt")
    with pytest.raises(CorruptFile, match=r"a call of '.*getattr', which is not data"):
        surgery.load(tmp_path / "x.pt", reading=Reading(activation="relu"))
