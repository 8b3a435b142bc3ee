"""The form of a graph that operations work on: functions inlined, known branches taken, merged constants apart."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from surgery.graph.branches import settle_branches

_APART = re.compile(r"^(?P<name>.+)@use(?P<use>\d+)$")

_STATES = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (5, 6)),
    **dict.fromkeys(("Gemm", "MatMul", "Sub"), (0,)),
    "Mul": (0, 1),
}
"""Operands that can be the state of a recurrence."""


def prepared(model: ir.Model, trained: Collection[str] = ()) -> ir.Model:
    """A clone: model-local functions inlined, an If with a known condition settled, merged constants one per use.

    Exporters merge equal tensors. Fifteen layers then share one zero bias, or two recurrent layers one initial state of
    zeros, which would tie their spaces to one another. Only 1-D tensors with one value everywhere and such states are
    taken apart; other sharing is meant, and what is cut into pieces is one tensor (the bias of queries, keys, values).

    Args:
      trained: parameters that an optimizer holds; they are left whole, as each has one history.
    """
    clone = model.clone()
    if clone.functions:
        clone = InlinePass()(clone).model
    settle_branches(clone)
    order = {node: k for k, node in enumerate(clone.graph)}
    for value in list(clone.graph.initializers.values()):
        uses = sorted(value.uses(), key=lambda use: (order.get(use.node, -1), use.idx))
        if (
            value.name in trained
            or len({use.node for use in uses}) < 2
            or all(use.node.op_type in ("Slice", "Split") and use.idx == 0 for use in uses)
            or not (_constant_vector(value.const_value) or _first_state(value))
        ):
            continue
        numbered = (f"{value.name}@use{k}" for k in itertools.count(1))
        # an edit has left some apart: a layer of another width than those that still share one
        free = (name for name in numbered if name not in clone.graph.initializers)
        for use in uses[1:]:
            name = next(free)
            apart = ir.Value(
                name=name, shape=value.shape, type=value.type, const_value=_named(value.const_value, name)
            )
            clone.graph.register_initializer(apart)
            use.node.replace_input_with(use.idx, apart)
    return clone


def merge_again(model: ir.Model) -> None:
    """Undo the separation, in place, wherever the copies are still equal."""
    for value, original in list(_separated(model)):
        one, other = value.const_value, original.const_value
        if one is None or other is None or tuple(one.shape) != tuple(other.shape):
            continue
        if np.array_equal(one.numpy(), other.numpy()):
            value.replace_all_uses_with(original)
            del model.graph.initializers[value.name or ""]


def original_name(tensor: str) -> str:
    """The tensor of the file that a separated constant belongs to."""
    found = _APART.match(tensor)
    return found["name"] if found else tensor


def _separated(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value]]:
    for name, value in model.graph.initializers.items():
        original = original_name(name)
        if original != name and original in model.graph.initializers:
            yield value, model.graph.initializers[original]


def _constant_vector(tensor: ir.TensorProtocol | None) -> bool:
    if tensor is None or len(tensor.shape) != 1 or not tensor.dtype.is_floating_point():
        return False
    array = tensor.numpy()
    return bool(array.size and (array == array[0]).all())


def _first_state(value: ir.Value) -> bool:
    """Zeros that a recurrent layer, or a cell written out, starts from."""
    tensor = value.const_value
    if tensor is None or len(tensor.shape) < 2 or not tensor.dtype.is_floating_point():
        return False
    return (
        any(use.idx in _STATES.get(use.node.op_type, ()) for use in value.uses()) and not tensor.numpy().any()
    )


def _named(tensor: ir.TensorProtocol | None, name: str) -> ir.TensorProtocol:
    assert tensor is not None
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
