"""Who reads the units of a space: the nodes that mix them, and the biases that a constant unit could be added to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from surgery.graph.atoms import Axis, find, leaves
from surgery.graph.labels import full_label
from surgery.graph.layout import Layout
from surgery.graph.records import Site
from surgery.graph.rules.recurrent import GATES
from surgery.graph.spaces import Analysis, Space

MOVES = frozenset(
    [
        *("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
        *("Slice", "Concat", "Split", "Gather", "Cast"),
    ]
)
"""Operators that only move numbers: a parameter behind them is still that parameter."""

_AFFINE = frozenset({"Gemm", "MatMul", "Conv"})


@dataclass(frozen=True)
class Reader:
    """One operand through which units are mixed.

    Attributes:
      node: the node. operand: index of its input. value: the name of that input.
      axis: along which the units lie; layout: of that axis.
      takes: "constants" can be folded away, only "zeros" leave no trace, or "nothing" does.
      bias: (node, operand) that is added to the result; None if there is none.
      sign: −1 where the bias is subtracted (the running mean of a batch norm).
    """

    node: ir.Node
    operand: int
    value: str
    axis: int
    layout: Layout
    takes: Literal["constants", "zeros", "nothing"]
    bias: tuple[ir.Node, int] | None = None
    sign: int = 1

    @property
    def where(self) -> str:
        """For messages."""
        return full_label(self.node)


def readers(analysis: Analysis, space: str) -> list[Reader]:
    """Everything that mixes the units of a space with each other.

    Returns:
      One entry per operand in which the units meet; a layer that reads them after a flatten, in several places or
      steps is listed each time.
    """
    found: list[Reader] = []
    seen: set[tuple[int, int, int]] = set()
    for site in analysis.trace.sites:
        if not _has(analysis, space, *site.axes):
            continue
        for operand, axis in _operands(analysis, site, space):
            key = (id(site.node), operand, axis)
            if key not in seen:
                seen.add(key)
                found.append(_reader(analysis, site, operand, axis))
    return found


def mixed_parameters(analysis: Analysis, space: str) -> str | None:
    """Where parameters alone are mixed over a space (a norm), so that no constant can leave; None if nowhere."""
    for site in analysis.trace.sites:
        mixed = None not in site.operands and _has(analysis, space, *site.axes)
        if mixed and not any(_operands(analysis, site, space)):
            return f"weights are mixed over it by {full_label(site.node)}"
    return None


def carried(analysis: Analysis, space: str) -> bool:
    """Whether a node keeps the units from step to step, and reads them itself."""
    return any(None in site.operands and _has(analysis, space, *site.axes) for site in analysis.trace.sites)


def summed(analysis: Analysis, space: Space) -> list[tuple[str, int]]:
    """The axes of tensors that make units of a space and answer for what these sum up to: (tensor, axis)."""
    return [
        (tensor, axis)
        for tensor, axis in dict.fromkeys((ref.tensor, ref.axis) for ref in space.axes)
        if any(
            leaf in analysis._roles.asked and analysis._names.get(find(leaf)) == space.name
            for leaf in leaves(analysis.trace.tensors[tensor][axis])
        )
    ]


def _has(analysis: Analysis, space: str, *axes: Axis) -> bool:
    return any(analysis._names.get(find(leaf)) == space for leaf in leaves(*axes))


def _operands(analysis: Analysis, site: Site, space: str) -> Iterator[tuple[int, int]]:
    """Operands that carry the units: (index of the input, axis)."""
    for k, value in enumerate(site.node.inputs):
        if value is None or analysis.trace.constant(value) or _stored(analysis, value):
            continue
        for axis, described in enumerate(analysis.trace.described(value) or ()):
            if _has(analysis, space, described):
                yield k, axis


def _reader(analysis: Analysis, site: Site, operand: int, axis: int) -> Reader:
    value = site.node.inputs[operand]
    assert value is not None
    described = analysis.trace.described(value)
    assert described is not None
    takes: Literal["constants", "zeros", "nothing"] = "zeros"
    if site.kind in ("mean", "extreme", "order"):
        takes = "nothing"
    elif site.kind == "contract" and any(site.constant) and site.node.op_type in _AFFINE:
        takes = "constants"
    elif site.node.op_type in GATES:
        takes = "constants" if operand == 0 else "nothing"
    layout = analysis.layout(described[axis])
    bias, sign = _bias(analysis, site.node) if takes == "constants" else (None, 1)
    return Reader(site.node, operand, str(value.name), axis, layout, takes, bias, sign)


def _bias(analysis: Analysis, node: ir.Node) -> tuple[tuple[ir.Node, int] | None, int]:
    own = 3 if node.op_type in GATES else None if node.op_type == "MatMul" else 2
    if own is not None and len(node.inputs) > own and node.inputs[own] is not None:
        scaled = node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) != 1.0
        return (None if scaled else (node, own)), 1
    uses = [use for use in node.outputs[0].uses() if use.node.op_type not in ("Shape", "Size")]
    if len(uses) != 1 or node.outputs[0].is_graph_output() or node.op_type in GATES:
        return None, 1
    use = uses[0]
    if use.node.op_type == "Add":
        other = use.node.inputs[1 - use.idx]
        if other is not None and (analysis.trace.constant(other) or _stored(analysis, other)):
            return (use.node, 1 - use.idx), 1
    if use.node.op_type == "BatchNormalization" and use.idx == 0:
        return (use.node, 3), -1
    return None, 1


def _stored(analysis: Analysis, value: ir.Value) -> bool:
    """Whether a value is made of parameters by moves alone, at whatever sizes: exporters compute some from inputs."""
    stack = [value]
    while stack:
        value = stack.pop()
        producer = value.producer()
        if producer is None and value.const_value is None:
            return False
        if producer is not None and (
            producer.op_type not in MOVES
            or (producer.op_type == "Gather" and not analysis.trace.constant(producer.inputs[1]))
        ):
            return False
        if producer is not None:
            moved = producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]
            stack.extend(v for v in moved if v is not None)
    return True


def sources(value: ir.Value | None) -> list[ir.Value]:
    """The parameters that a constant operand consists of, as far as only moves lie between."""
    found: dict[ir.Value, None] = {}
    stack, seen = [value], set[ir.Value]()
    while stack:
        value = stack.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None:
            if value.const_value is not None and value.const_value.dtype.is_floating_point():
                found[value] = None
        elif producer.op_type in MOVES:
            stack.extend(producer.inputs if producer.op_type == "Concat" else producer.inputs[:1])
    return list(found)


def destinations(value: ir.Value) -> set[tuple[ir.Node, int]]:
    """Where a parameter is used in the end, moves passed through."""
    found: set[tuple[ir.Node, int]] = set()
    stack = [value]
    while stack:
        for use in stack.pop().uses():
            if use.node.op_type in MOVES:
                stack.extend(use.node.outputs)
            else:
                found.add((use.node, use.idx))
    return found
