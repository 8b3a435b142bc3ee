"""Why a shape is not known: the node that left it open, and what that was given."""

from __future__ import annotations

import onnx_ir as ir

from surgery.graph.facts import Facts
from surgery.graph.labels import full_label
from surgery.graph.operands import operands


def unknown_shape(facts: Facts, value: ir.Value) -> str:
    """A sentence on a value whose shape is not known."""
    text, node = f"the shape of '{value.name}' is not known", facts.unknown.get(value)
    if node is None:
        return text
    given = " and ".join(_sizes(facts, v) for v in operands(node))
    return f"{text}: {full_label(node)} of {given} leaves it open"


def _sizes(facts: Facts, value: ir.Value) -> str:
    """An operand with its shape, or with its numbers where they are known; symbols by name."""
    names = {size: name for name, size in facts.symbols.items() if name not in facts.sizes}
    array, shape = facts.known.get(value), facts.shapes.get(value)
    if array is None and shape is None:
        return f"'{value.name}'"
    numbers = ", ".join(
        str(names.get(n, n)) for n in (shape or () if array is None else array.reshape(-1)[:8].tolist())
    )
    return f"'{value.name}' [{numbers}]" if array is None else f"'{value.name}' = [{numbers}]"
