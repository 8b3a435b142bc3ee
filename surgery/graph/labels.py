"""How the nodes of a graph are called in messages."""

from __future__ import annotations

import onnx_ir as ir


def label(node: ir.Node) -> str:
    """The name of a node, or of its first output."""
    return node.name or (node.outputs[0].name if node.outputs else None) or node.op_type


def full_label(node: ir.Node) -> str:
    """`node 'NAME' (OPERATOR)`"""
    return f"node '{label(node)}' ({node.op_type})"
