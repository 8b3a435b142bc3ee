"""Symbolic dimensions of graph inputs."""

from __future__ import annotations

import re

import onnx_ir as ir

_MADE_UP = re.compile(r"unk__\d+|.*dynamic_axes_\d+|.*DynamicDimension\.\d+")
"""Names that exporters give to sizes which no one named (tf2onnx, torch, Paddle), another one for each input."""


def symbol(value: ir.Value, k: int) -> str:
    """The name of a symbolic dimension of a graph input.

    Where no one named it, it is the batch if it leads or is the input's only one: all batches are one.
    """
    assert value.shape is not None
    dim = value.shape[k]
    name = None if isinstance(dim, int) else dim.value
    if name is not None and not _MADE_UP.fullmatch(name):
        return name
    alone = sum(not isinstance(size, int) for size in value.shape) == 1
    return "batch" if k == 0 or alone else name or f"{value.name}[{k}]"
