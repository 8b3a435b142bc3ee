"""Symbolic dimensions of graph inputs."""

from __future__ import annotations

import re

import onnx_ir as ir

_MADE_UP = re.compile(r"unk__\d+|.*dynamic_axes_\d+|.*DynamicDimension\.\d+")
"""Names that exporters give to sizes which no one named (tf2onnx, torch, Paddle), another one for each input."""


def symbol(value: ir.Value, k: int) -> str:
    """The name of a symbolic dimension of a graph input; leading ones that no one named are one batch."""
    assert value.shape is not None
    dim = value.shape[k]
    name = None if isinstance(dim, int) else dim.value
    if name is not None and not _MADE_UP.fullmatch(name):
        return name
    return "batch" if k == 0 else name or f"{value.name}[{k}]"
