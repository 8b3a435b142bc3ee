"""What a node reads, and which nodes read a value."""

from __future__ import annotations

import onnx_ir as ir

from surgery.graph.control import captured


def data_of(node: ir.Node) -> ir.Value:
    """The first operand, which no operator leaves out."""
    value = node.inputs[0]
    assert value is not None
    return value


def operands(node: ir.Node) -> list[ir.Value]:
    """The operands of a node, without those that are left out."""
    return [value for value in node.inputs if value is not None]


def reads(node: ir.Node) -> list[ir.Value]:
    """The operands of a node, and what its branches or its body read from outside."""
    return operands(node) + captured(node)


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read the numbers of a value, and not its shape or type alone."""
    kept = [use for use in value.uses() if use.node.op_type not in ("Shape", "Size")]
    return [use.node for use in kept if use.node.op_type != "CastLike" or use.idx == 0]
