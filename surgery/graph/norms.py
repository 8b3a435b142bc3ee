"""Normalisers written out in elementary operators: layer norm and RMS norm as exporters decompose them.

x / √(mean(x²) + ε) · γ                                    with √ as Sqrt and Div, or Sqrt, Reciprocal and Mul
(x − mean(x)) / √(mean((x − mean(x))²) + ε) · γ (+ β)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from surgery.graph.atoms import Axis
from surgery.graph.operands import operands
from surgery.graph.records import Site
from surgery.graph.trace import Trace

STANDARD_EPSILON = float(np.float32(1e-5))
"""What the standard adds to a variance where a node says nothing: a float32 number, as those are that are said."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A place where the last axis of a value is normalised, by mean and variance or by the mean square alone.

    Attributes:
      kind: "layer" or "rms".
      means: the nodes that average.
      data, result: the axis, before and after.
      scale: γ. shift: β, if there is one.
      epsilon: the node that holds ε, where (attribute or input index), its value, and whether it has no axis.
    """

    kind: Literal["layer", "rms"]
    means: tuple[ir.Node, ...]
    data: Axis
    result: Axis
    scale: ir.Value
    shift: ir.Value | None
    epsilon: tuple[ir.Node, int | str, float, bool]


def norms(trace: Trace) -> list[Norm]:
    """Every normaliser of one axis, as an operator or written out, in graph order."""
    found: dict[ir.Node, Norm] = {}
    for site in trace.sites:
        if site.kind == "mean" and site.node not in found:
            norm = _operator(trace, site) or _written_out(trace, site)
            if norm is not None:
                found[site.node] = norm
    return list(found.values())


def _operator(trace: Trace, site: Site) -> Norm | None:
    node = site.node
    if node.op_type not in ("LayerNormalization", "RMSNormalization"):
        return None
    x, scale, *rest = operands(node)
    data = trace.axes(x)
    if node.attributes.get_int("axis", -1) % len(data) != len(data) - 1:
        return None
    epsilon = (node, "epsilon", node.attributes.get_float("epsilon", STANDARD_EPSILON), True)
    kind: Literal["layer", "rms"] = "layer" if node.op_type == "LayerNormalization" else "rms"
    result = trace.axes(node.outputs[0])[-1]
    return Norm(kind, (node,), data[-1], result, scale, rest[0] if rest else None, epsilon)


def _written_out(trace: Trace, site: Site) -> Norm | None:
    """The normaliser whose mean square a node computes, over the last axis."""
    node = site.node
    square = _producer(node.inputs[0]) if node.op_type == "ReduceMean" else None
    x = None if square is None else _squared(trace, square)
    if x is None or not _last_axis(trace, node, x):
        return None
    add = _only_reader(node.outputs[0], "Add")
    root = None if add is None else _only_reader(add.outputs[0], "Sqrt")
    scaled = None if root is None else _divided(trace, x, root)
    if add is None or scaled is None:
        return None
    at = next(k for k, value in enumerate(add.inputs) if value is not node.outputs[0])
    epsilon, constant = trace.scalar(add.inputs[at]), add.inputs[at]
    gamma = _parameter(scaled, "Mul")
    if epsilon is None or epsilon.size != 1 or constant is None or gamma is None:
        return None
    where = (add, at, float(epsilon.reshape(-1)[0]), epsilon.ndim == 0)
    centred = _centred(trace, x)
    if centred is None:
        return Norm("rms", (node,), trace.axes(x)[-1], trace.axes(scaled)[-1], gamma[0], None, where)
    y, mean = centred
    beta = _parameter(gamma[1], "Add")
    shift = None if beta is None else beta[0]
    return Norm("layer", (mean, node), trace.axes(y)[-1], trace.axes(x)[-1], gamma[0], shift, where)


def _squared(trace: Trace, node: ir.Node) -> ir.Value | None:
    """x of x · x or x²."""
    x, other = [*node.inputs, None, None][:2]
    if node.op_type == "Mul" and x is other:
        return x
    power = trace.scalar(other) if node.op_type == "Pow" else None
    return x if power is not None and bool((power == 2).all()) else None


def _last_axis(trace: Trace, node: ir.Node, x: ir.Value) -> bool:
    """Whether a reduction is over the last axis alone, and keeps it."""
    rank, over = len(trace.shape(x)), trace.numbers(node, 1, "axes") or []
    return [k % rank for k in over] == [rank - 1] and node.attributes.get_int("keepdims", 1) == 1


def _divided(trace: Trace, x: ir.Value, root: ir.Node) -> ir.Value | None:
    """x / √…, written in one of the usual ways."""
    deviation = root.outputs[0]
    for node in _readers(deviation):
        if node.op_type == "Div" and list(node.inputs) == [x, deviation]:
            return node.outputs[0]
        one = trace.scalar(node.inputs[0]) if node.op_type == "Div" else None
        if node.op_type == "Reciprocal" or (one is not None and bool((one == 1).all())):
            product = _only_reader(node.outputs[0], "Mul")
            if product is not None and x in product.inputs:
                return product.outputs[0]
    return None


def _centred(trace: Trace, x: ir.Value) -> tuple[ir.Value, ir.Node] | None:
    """y and the node of mean(y), if x = y − mean(y)."""
    node = _producer(x)
    if node is None or node.op_type != "Sub":
        return None
    y, mean = node.inputs[0], _producer(node.inputs[1])
    if y is None or mean is None or mean.op_type != "ReduceMean" or mean.inputs[0] is not y:
        return None
    return (y, mean) if _last_axis(trace, mean, y) else None


def _parameter(value: ir.Value, kind: str) -> tuple[ir.Value, ir.Value] | None:
    """The initializer that a value is multiplied by, or that is added to it, and the result."""
    node = _only_reader(value, kind)
    if node is None:
        return None
    other = next((operand for operand in node.inputs if operand is not value), None)
    if other is None or other.const_value is None or other.producer() is not None:
        return None
    return other, node.outputs[0]


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    readers = list(_readers(value))
    return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    return (use.node for use in value.uses() if use.node.op_type != "Shape")
