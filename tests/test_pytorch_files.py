"""PyTorch is the judge: an object that is read without it equals the one that it reads, bit for bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import nn

from surgery_adapters import pytorch


def same(ours: object, theirs: object) -> bool:
    """Whether an object that we read equals the one that PyTorch read, tensors bit for bit."""
    if isinstance(theirs, torch.Tensor):
        plain = theirs.detach().contiguous().reshape(-1)
        data = plain.view(torch.uint8) if plain.numel() else torch.empty(0, dtype=torch.uint8)
        return tuple(ours.shape) == tuple(theirs.shape) and ours.tobytes() == data.numpy().tobytes()
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == (str(theirs) if isinstance(theirs, torch.device) else theirs)


@pytest.mark.parametrize("name", ["cartpole-dqn.pt", "minatar-breakout-dqn.pt"])
def test_trained_agents_are_read_as_pytorch_reads_them(teachers, name):
    assert pytorch.detect(teachers / name)
    assert same(pytorch.read(teachers / name), torch.load(teachers / name, weights_only=True))


def _tied() -> object:
    layer = nn.Linear(3, 3)
    return {"a": layer.weight, "b": layer.weight, "transposed": layer.weight.T}


BASE = torch.arange(24.0).reshape(2, 3, 4)
OBJECTS: Mapping[str, Callable[[], object]] = {
    "plain data": lambda: {
        "i": 1,
        "f": 0.5,
        "b": True,
        "n": None,
        "s": "é",
        "l": [1, (2, 3)],
        "big": 1 << 70,
        7: b"x",
    },
    "sets": lambda: {"s": {1, 2}, "size": torch.Size([2, 3]), "device": torch.device("cpu")},
    "transposed": lambda: BASE.transpose(0, 2),
    "sliced": lambda: BASE[1:, ::2, 1:3],
    "expanded": lambda: torch.ones(1, 3).expand(5, 3),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "scalar": lambda: torch.tensor(3.5),
    "view of one element": lambda: BASE[1, 2, 3],
    "empty": lambda: torch.empty(0, 3),
    "parameter": lambda: nn.Parameter(BASE.clone()),
    "tied": _tied,
    "state dict": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict(),
    "ordered": lambda: OrderedDict(b=torch.ones(1), a=torch.zeros(2)),
    **{
        f"{dtype}": lambda dtype=dtype: torch.arange(-3.0, 9.0).to(torch.float32).to(dtype).reshape(3, 4)
        for dtype in (
            *(
                torch.float64,
                torch.float16,
                torch.bfloat16,
                torch.int8,
                torch.int16,
                torch.int32,
                torch.int64,
            ),
            *(torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
        )
    },
    "unsigned": lambda: {f"{d}": torch.arange(5).to(d) for d in (torch.uint16, torch.uint32, torch.uint64)},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("what", OBJECTS)
def test_objects_are_read_as_pytorch_reads_them(tmp_path, what, protocol):
    torch.save(OBJECTS[what](), tmp_path / "c.pt", pickle_protocol=protocol)
    with torch.serialization.safe_globals([getattr]):
        theirs = torch.load(tmp_path / "c.pt", weights_only=protocol == 2)
    assert same(pytorch.read(tmp_path / "c.pt"), theirs)


def test_numpy_numbers_are_read(tmp_path):
    torch.save({"a": np.float64(0.25), "b": np.int32(-3), "c": np.bool_(True)}, tmp_path / "c.pt")
    assert pytorch.read(tmp_path / "c.pt") == {"a": 0.25, "b": -3, "c": True}
