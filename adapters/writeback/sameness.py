"""Whether two graphs compute the same, node by node: what was edited, and what a framework makes of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.tensors import equal, shape_of

_CLOSE = 1e-6
"""Relative difference of attributes that are one number: they are stored in float32."""


def difference(ours: ir.Model, theirs: ir.Model, names: Mapping[str, str]) -> str | None:
    """The first place where two graphs differ, in words; None if they compute the same of the same parameters.

    Args:
      ours, theirs: with inputs and outputs of the same names. names: parameter of ours -> of theirs.
    """
    mine, others = (_ports(model) for model in (ours, theirs))
    for name, value in others.items():
        if name not in mine or _sizes(mine[name]) != _sizes(value):
            had = _sizes(mine[name]) if name in mine else "not there"
            return f"'{name}' is {had}, and would be {_sizes(value)}"
    if surplus := [name for name in mine if name not in others]:
        return f"there would be no '{surplus[0]}'"
    pairs = list(zip(_in_order(ours, others), _in_order(theirs, others), strict=True))
    seen = set[tuple[int, int]]()
    while pairs:
        a, b = pairs.pop()
        if a is None or b is None or (id(a), id(b)) in seen:
            if a is not b and (a is None or b is None):
                return "an operand is missing"
            continue
        seen.add((id(a), id(b)))
        found = _differ(a, b, names)
        if found is not None:
            return found
        if not _constant(a) and (one := a.producer()) is not None and (other := b.producer()) is not None:
            pairs += zip(_operands(one), _operands(other), strict=True)
    return None


def _ports(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for value in (*model.graph.inputs, *model.graph.outputs)}


def _in_order(model: ir.Model, names: Mapping[str, object]) -> list[ir.Value | None]:
    outputs = {str(value.name): value for value in model.graph.outputs}
    return [outputs[name] for name in names if name in outputs]


def _sizes(value: ir.Value) -> list[int | None]:
    """The shape without the batch, which is symbolic."""
    return [n if isinstance(n, int) else None for n in value.shape or ()][1:]


def _differ(a: ir.Value, b: ir.Value, names: Mapping[str, str]) -> str | None:
    """How the makers of two values differ, their operands left aside."""
    if a.name in names and a.is_initializer():
        if names[str(a.name)] == b.name:
            return None if _shape(a) == _shape(b) else f"'{a.name}' is {_shape(a)}, and would be {_shape(b)}"
        return f"'{b.name}' would stand where '{a.name}' does"
    first, second = _constant(a), _constant(b)
    if first is not None and second is not None:
        return None if equal(first, second) else f"the constant '{a.name}' would be another"
    one, other = a.producer(), b.producer()
    if one is None or other is None:
        return (
            None
            if (a.name, one, first) == (b.name, other, second)
            else f"'{b.name}' would be read, not '{a.name}'"
        )
    if (one.op_type, one.domain, a.index()) != (other.op_type, other.domain, b.index()):
        return f"where the graph has '{a.name}' ({one.op_type}), there would be a {other.op_type}"
    if not _alike(_attributes(one), _attributes(other)):
        return f"the {one.op_type} '{a.name}' would have other settings"
    if len(_operands(one)) != len(_operands(other)):
        return f"the {one.op_type} '{a.name}' would read {len(_operands(other))} operands, not {len(_operands(one))}"
    return None


def _shape(value: ir.Value) -> list[int]:
    return list(shape_of(value.const_value)) if value.const_value is not None else []


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor()
    return None


def _operands(node: ir.Node) -> list[ir.Value | None]:
    """Without absent ones at the end."""
    found = list(node.inputs)
    while found and found[-1] is None:
        found.pop()
    return found


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _alike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return ours.keys() == theirs.keys() and all(_equal(value, theirs[name]) for name, value in ours.items())


def _equal(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=_CLOSE, atol=0))
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return list(a) == list(b)
    return a == b
