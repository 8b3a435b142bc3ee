"""How much each unit of a space matters: the scores by which a network is made narrower than is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.edits.axis_maps import units_along
from surgery.edits.execute import constants
from surgery.edits.removal import unit_rows, without
from surgery.errors import ArgumentError, GraphError
from surgery.graph.readers import Reader, readers, summed
from surgery.graph.spaces import Analysis, Space
from surgery.numeric import Unsupported, run
from surgery.probes import probes

Score = Literal["l1", "l2", "activation", "taylor"]
SCORES: tuple[Score, ...] = get_args(Score)

_ROWS = 32
"""Observations that scores of activity are averaged over, where none are recorded."""
_STEP = 1e-30


def importance(
    checkpoint: Checkpoint,
    analysis: Analysis,
    space: Space,
    by: Score,
    *,
    observations: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> Array:
    """A score for every unit, shape (units,); the smallest goes first.

    Args:
      by: "l1" or "l2": norm of the weights that make the unit, times that of the weights that read it. "activation":
        mean |h| times the norm of the weights that read it. "taylor": the first-order change of the outputs when the
        unit is taken away, ‖∂y/∂g‖ for a gate g on it, in the root mean square over observations.
      observations: recorded inputs; random ones in the declared range otherwise.
      seed: of the random inputs.

    Raises:
      ArgumentError: an unknown score. GraphError: a network that cannot be evaluated, for scores of activity.

    References:
      Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (arXiv:1608.08710), for l1. He et al., Soft Filter
      Pruning, IJCAI 2018 (arXiv:1808.06866), for l2. Hu et al., Network Trimming, 2016 (arXiv:1607.03250), for
      activity. Molchanov et al., Pruning Convolutional Neural Networks, ICLR 2017 (arXiv:1611.06440), for Taylor; here
      of the outputs instead of a loss, as a checkpoint knows no loss. The product with the reading weights makes the
      first three invariant to h → c·h, U → U/c, which changes no function.
    """
    if by not in SCORES:
        raise ArgumentError(f"unknown score '{by}'", hint=", ".join(SCORES))
    if by in ("l1", "l2"):
        order = 1 if by == "l1" else 2
        return _norm(analysis, space, "out", order) * _norm(analysis, space, "in", order)
    inputs = probes(checkpoint, _ROWS, seed, observations)
    try:
        if by == "activation":
            active = _activity(analysis, readers(analysis, space.name), space, inputs)
            return active * _norm(analysis, space, "in", 2)
        return _taylor(analysis, readers(analysis, space.name), space, inputs)
    except Unsupported as reason:
        raise GraphError(
            f"the network cannot be evaluated: {reason.message}", hint="score by weights: --by l2"
        ) from None


def _norm(analysis: Analysis, space: Space, role: str, order: int) -> Array:
    """Norm of all weights that make each unit ("out") or read it ("in"); biases and scales are not counted."""
    total = np.zeros(space.size)
    tensors = constants(analysis.model)
    for ref in {(ref.tensor, ref.axis) for ref in space.axes if ref.role == role}:
        tensor, layouts = tensors.get(ref[0]), analysis.tensors[ref[0]]
        if tensor is None or analysis.fills[ref[0]] != "random":
            continue
        unit, _ = units_along(layouts[ref[1]], space.name, role)
        rows = np.moveaxis(np.abs(tensor.numpy().astype(np.float64)) ** order, ref[1], 0).reshape(
            len(unit), -1
        )
        np.add.at(total, unit[unit >= 0], rows[unit >= 0].sum(1))
    return total ** (1 / order)


def _activity(analysis: Analysis, places: list[Reader], space: Space, inputs: Mapping[str, Array]) -> Array:
    values = run(analysis.model, inputs, outputs=sorted({place.value for place in places}))
    total = np.zeros(space.size)
    for place in places:
        unit, _ = units_along(place.layout, space.name)
        rows = np.moveaxis(np.abs(values[place.value]), place.axis, 0).reshape(len(unit), -1).mean(1)
        count = np.maximum(np.bincount(unit[unit >= 0], minlength=space.size), 1)
        np.maximum(total, np.bincount(unit[unit >= 0], rows[unit >= 0], space.size) / count, out=total)
    return total


def _taylor(analysis: Analysis, places: list[Reader], space: Space, inputs: Mapping[str, Array]) -> Array:
    """One complex-step run per unit with a gate on what reads it, of the nodes behind these places only."""
    values = run(analysis.model, inputs, outputs=sorted({place.value for place in places}))
    cut = analysis.model.clone()
    twins = dict(zip(analysis.model.graph, cut.graph, strict=True))
    gates = [_entry(cut, twins[place.node], place.operand) for place in places]
    total = np.zeros(space.size)
    for k in range(space.size):
        given = dict(inputs)
        for name, place in zip(gates, places, strict=True):
            unit, _ = units_along(place.layout, space.name)
            value = values[place.value]
            gate = np.where(unit == k, 1 + 1j * _STEP, 1.0)
            given[name] = value * gate.reshape((-1,) + (1,) * (value.ndim - place.axis - 1))
        found = run(cut, given, dtype=np.complex128)
        total[k] = np.sqrt(
            sum(float(np.square(y.imag / _STEP).mean()) for y in found.values() if y.dtype.kind == "c")
        )
    return total


def _entry(model: ir.Model, node: ir.Node, operand: int) -> str:
    """Make an operand of a node an input of the graph, in place; its name."""
    value = ir.Value(name=f"{node.outputs[0].name}.gated{operand}", type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(value)
    node.replace_input_with(operand, value)
    return str(value.name)


def classes(analysis: Analysis, space: Space, gone: Mapping[str, Sequence[int]]) -> Array:
    """For every unit the first one that is made by the same numbers everywhere, shape (units,).

    Where those who make units answer for their sum, these are shares: what is proportional to the same numbers. Units
    that are gone (space -> units) tell nobody apart.
    """
    tensors = constants(analysis.model)
    same = np.zeros(space.size, np.int64)
    for ref in {(ref.tensor, ref.axis): ref for ref in space.axes if ref.role == "out"}.values():
        layouts = analysis.tensors[ref.tensor]
        unit, _ = units_along(layouts[ref.axis], space.name, "out")
        array = without(tensors[ref.tensor].numpy(), layouts, gone)
        made = np.full(space.size, -1)
        made[np.unique(unit[unit >= 0])] = _labels(unit_rows(array, ref.axis, layouts[ref.axis], space.name))
        _, label = np.unique(np.column_stack([same, made]), axis=0, return_inverse=True)
        same = label.reshape(-1)
    if (rows := _summed_rows(analysis, space, gone)).size:
        _, label = np.unique(np.column_stack([same, _directions(rows)]), axis=0, return_inverse=True)
        same = label.reshape(-1)
    first = np.full(int(same.max()) + 1, space.size)
    np.minimum.at(first, same, np.arange(space.size))
    return first[same]


def _summed_rows(analysis: Analysis, space: Space, gone: Mapping[str, Sequence[int]]) -> Array:
    """The numbers that make units and are added up for those that are merged, shape (units, numbers)."""
    tensors, rows = constants(analysis.model), [np.zeros((space.size, 0))]
    for name, axis in summed(analysis, space):
        layouts = analysis.tensors[name]
        array = without(tensors[name].numpy(), layouts, gone)
        made = unit_rows(array, axis, layouts[axis], space.name, "in")
        unit, _ = units_along(layouts[axis], space.name, "in")
        rows.append(np.zeros((space.size, made.shape[1])))
        rows[-1][np.unique(unit[unit >= 0])] = made
    return np.concatenate(rows, 1)


def _directions(rows: Array) -> Array:
    """A number per row, equal for rows that are positive multiples of each other within the rounding of float32."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length, length, 1)
    order = np.argsort(rows @ np.random.default_rng(0).standard_normal(rows.shape[1]), kind="stable")
    apart = np.abs(np.diff(rows[order], axis=0)).max(1) > 1e-5
    label = np.zeros(len(rows), np.int64)
    label[order[1:]] = np.cumsum(apart)
    return label


def _labels(rows: Array) -> Array:
    """A number per row, equal for equal rows; compared as bytes, as a row may be long."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault((row + 0).tobytes(), len(known)) for row in rows])
