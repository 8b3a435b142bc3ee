"""What a policy does to arrays, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from surgery.arrays import Array
from surgery.errors import ArgumentError
from surgery.policy.feeds import KNOWN
from surgery.torch.failures import no_gpu
from surgery.torch.stored import torch_dtype
from surgery.torch.travel import moved

TYPES: Mapping[ir.DataType, torch.dtype] = {kind: torch_dtype(kind) for kind in KNOWN}
ONNX_TYPES: Mapping[torch.dtype, ir.DataType] = {ours: theirs for theirs, ours in TYPES.items()}


class Tensors:
    """`surgery.policy.arrays.Arrays` on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def take(self, given: Any) -> Tensor:  # noqa: ANN401
        return moved(given, self._device)

    def cast(self, x: Tensor, dtype: ir.DataType) -> Tensor:
        return x.to(TYPES[dtype]).contiguous()

    def zeros(self, sizes: Sequence[int], dtype: ir.DataType) -> Tensor:
        return torch.zeros(*sizes, dtype=TYPES[dtype], device=self._device)

    def cleared(self, x: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, torch.zeros_like(x), x)

    def forbidden(self, scores: Tensor, where: Tensor) -> Tensor:
        return scores.masked_fill(where, -torch.inf)

    def channels_last(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def repeated(self, row: Tensor, count: int) -> Tensor:
        return row.expand(count, *row.shape[1:]).contiguous()

    def softmax(self, x: Tensor) -> Tensor:
        return x.softmax(-1)

    def log(self, x: Tensor) -> Tensor:
        return x.log()

    def one_hot(self, index: Tensor, count: int) -> Tensor:
        return torch.nn.functional.one_hot(index.long(), count).float()

    def host(self, x: Tensor) -> Array:
        return np.asarray(x.cpu().numpy())


def device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
      ArgumentError, MissingDependency: there is none of that name.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        place = torch.device(chosen)
    except RuntimeError as error:
        raise ArgumentError(f"there is no device '{name}'", hint="cpu, cuda, cuda:N or auto") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise no_gpu()
    if place.type not in ("cpu", "cuda"):
        try:
            torch.empty(0, device=place)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise ArgumentError(f"there is no device '{name}'", hint="cpu, cuda, cuda:N or auto") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(
            f"there is no device '{name}', only {torch.cuda.device_count()} of them",
            hint="they are counted from cuda:0",
        )
    return place
