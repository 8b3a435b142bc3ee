"""Normalisers."""

from __future__ import annotations

import onnx_ir as ir

from surgery.graph.axes import UNIT
from surgery.graph.rules.table import Table
from surgery.graph.trace import Trace

RULES = Table()


@RULES("BatchNormalization", axes="channels: pointwise with scale, bias, mean and variance; else pointwise")
def batch_normalization(t: Trace, node: ir.Node) -> None:
    """Every channel is normalised by itself, over the other axes (in training) or by stored statistics."""
    x, *parameters = [value for value in node.inputs if value is not None]
    data = t.axes(x)
    column = [(x, data[1]), *((value, t.axes(value)[0]) for value in parameters)]
    for value in parameters:
        t.use("scale", value, t.axes(value))
    wide = [(value, axis) for value, axis in column if axis]
    channels = t.merge(node, wide, passes=0) if wide else UNIT
    t.put(node.outputs[0], [data[0], channels, *data[2:]])
    for value in node.outputs[1:]:
        t.put(value, [channels])
