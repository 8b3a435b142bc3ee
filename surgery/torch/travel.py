"""Numbers on their way to a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from surgery.arrays import Array


def moved(given: Array | Tensor, device: torch.device | str) -> Tensor:
    """Numbers on a device, of any element type; a GPU is not waited for: what goes there is copied from pinned memory,
    which PyTorch keeps until that is done."""
    place = torch.device(device)
    tensor = given
    if isinstance(tensor, np.ndarray):
        tensor = torch.from_numpy(np.require(tensor, requirements=["C", "W"]))
    if place.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(place)
    return (tensor.pin_memory() if place.type == "cuda" else tensor).to(place, non_blocking=True)
