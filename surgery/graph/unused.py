"""Nodes and constants that nothing reads any more."""

from __future__ import annotations

import onnx_ir as ir


def drop_unused(model: ir.Model, value: ir.Value | None) -> None:
    """Remove what only computed an operand that has been replaced."""
    pending = [value]
    while pending:
        value = pending.pop()
        if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if producer is None:
            if value.name in model.graph.initializers and value.const_value is not None:
                del model.graph.initializers[str(value.name)]
        elif producer.graph is not None and not any(
            out.uses() or out.is_graph_output() for out in producer.outputs
        ):
            pending.extend(producer.inputs)
            model.graph.remove(producer, safe=True)
