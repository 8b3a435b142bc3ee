"""Graphs beside each other: a network and its copies read the same inputs."""

from __future__ import annotations

import onnx_ir as ir


def beside(model: ir.Model, other: ir.Model, prefix: str) -> None:
    """Move one graph into another, in place: they read the same inputs, and share nothing else."""
    graph, moved = model.graph, other.graph
    for ours, theirs in zip(graph.inputs, moved.inputs, strict=True):
        theirs.replace_all_uses_with(ours)
    for name, value in list(moved.initializers.items()):
        moved.initializers.pop(name)
        value.name = name if name.startswith(prefix) else f"{prefix}{name}"
        graph.register_initializer(value)
    outputs = list(moved.outputs)
    moved.outputs.clear()
    for node in list(moved):
        moved.remove(node)
        node.name = f"{prefix}{node.name}"
        for value in node.outputs:
            if value not in outputs:
                value.name = f"{prefix}{value.name}"
        graph.append(node)
    graph.outputs.extend(outputs)
