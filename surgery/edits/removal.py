"""What a plan that removes units takes for granted, checked on the checkpoint; and constants folded into biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.edits.axis_maps import axis_map, belonging, units_along
from surgery.edits.parts import Fold
from surgery.edits.plan import Plan
from surgery.edits.units import SpaceEdit
from surgery.errors import PlanMismatch, Refused
from surgery.graph import layout
from surgery.graph.layers import RECURRENT
from surgery.graph.readers import destinations, sources
from surgery.graph.symbols import symbol
from surgery.graph.walk import lengths
from surgery.interface import Bound, Interface
from surgery.numeric.bounds import Bounds, bounds, spread
from surgery.numeric.evaluate import Evaluation, Frame
from surgery.tensors import shape_of

Pins = Mapping[str, list[tuple[int, Array, Array]]]
"""Input -> (axis, indices along it, their values)."""

_INNER = 5
"""Size given to symbolic dimensions other than the batch."""

_ALIKE = 1e-12
"""Relative distance of contributions that must be the same everywhere."""


def check_duplicates(plan: Plan, tensors: Mapping[str, ir.TensorProtocol]) -> None:
    """Refuse a plan that merges units which differ in this checkpoint.

    Raises:
      Refused: names the first tensor in which they do.
    """
    gone = {edit.space: edit.dropped for edit in plan.spaces if edit.dropped}
    for edit in plan.spaces if plan.claim != "changed" else ():
        pairs = [(old, edit.source[new]) for old, new in edit.merged]
        for tensor in plan.tensors if pairs else ():
            array = without(tensors[tensor.name].numpy(), tensor.axes, gone)
            if any(not alike(array, k, axis, edit, pairs) for k, axis in enumerate(tensor.axes)):
                one, other = pairs[0]
                raise Refused(
                    f"the units of '{edit.space}' to be merged are no longer the same ({other} and {one}, say): "
                    f"'{tensor.name}' makes them differently",
                    hint="training has told them apart; remove them by importance: surgery narrow --by l2",
                )


def without(array: Array, axes: Sequence[layout.Layout], gone: Mapping[str, Sequence[int]]) -> Array:
    """The array with zeros where it holds units that are removed: whether those differ is of no matter."""
    if not gone:
        return array
    kept = array.copy()
    for k, axis in enumerate(axes):
        np.moveaxis(kept, k, 0)[belonging(axis, gone)] = 0
    return kept


def alike(
    array: Array, k: int, axis: layout.Layout, edit: SpaceEdit, pairs: Sequence[tuple[int, int]]
) -> bool:
    """Whether a tensor makes units by the same numbers: replacing one of each pair by the other changes nothing.

    Args:
      array: the tensor. k: one of its axes, with the layout `axis`, in which a space may occur several times.
      edit: of that space. pairs: (unit, the unit that it should equal).
    """
    made = belonging(axis, {edit.space: [old for old, _ in pairs]}) & ~belonging(
        axis, {edit.space: [old for old, _ in pairs]}, "in"
    )
    if not made.any():
        return True
    source = np.arange(edit.before)
    source[[old for old, _ in pairs]] = [kept for _, kept in pairs]
    still = axis_map(axis, {edit.space: SpaceEdit(edit.space, edit.before, tuple(int(n) for n in source))})
    rows = np.moveaxis(array, k, 0)
    return bool(np.array_equal(rows[made], rows[still.source[made]]))


def check_unread(plan: Plan, tensors: Mapping[str, ir.TensorProtocol]) -> None:
    """Refuse a plan that removes units which something that stays reads in this checkpoint.

    Raises:
      Refused: names the first weight through which it does.
    """
    shrinking = [edit for edit in plan.spaces if edit.after < edit.before and edit.dropped]
    gone = {edit.space: edit.dropped for edit in shrinking} if plan.claim != "changed" else {}
    for tensor in plan.tensors if gone else ():
        array = tensors[tensor.name].numpy()
        read = np.zeros(array.shape, bool)
        for k, axis in enumerate(tensor.axes):
            read |= belonging(axis, gone, "in").reshape(-1, *(1,) * (array.ndim - k - 1))
        used = np.argwhere(read & ~makes(tensor.axes, gone) & (array != 0))
        if len(used):
            at = [int(k) for k in used[0]]
            raise Refused(
                f"the units to be removed are in use: '{tensor.name}'{at} is {float(array[tuple(at)]):.3g}, not 0",
                where={"entries in use": f"{len(used)} in '{tensor.name}'"},
                hint="training has connected them; remove units by importance instead: surgery narrow --by l2",
            )


def makes(axes: Sequence[layout.Layout], chosen: Mapping[str, Sequence[int]]) -> Array:
    """Mask of the elements of a tensor, in its shape, that make chosen units (space -> units)."""
    mask = np.zeros((1,) * len(axes), bool)
    for k, axis in enumerate(axes):
        own = np.logical_or.reduce([belonging(axis, chosen, role) for role in ("out", "mean", "zero")])
        mask = mask | own.reshape(-1, *(1,) * (len(axes) - k - 1))
    return mask


def unit_rows(array: Array, k: int, axis: layout.Layout, space: str, role: str = "out") -> Array:
    """What a tensor says about each unit that it makes, in their order: shape (units, numbers); empty if it makes none.

    Of shuffled units it may make some.
    """
    unit, rest = units_along(axis, space, role)
    if not (unit >= 0).any():
        return np.zeros((0, 0), array.dtype)
    rows = np.moveaxis(array, k, 0).reshape(len(unit), -1)
    order = np.lexsort((rest, unit))
    order = order[unit[order] >= 0]
    return rows[order].reshape(len(np.unique(unit[order])), -1)


def ranges(
    model: ir.Model, interface: Interface, wanted: list[str], pins: Pins | None = None
) -> dict[str, Bounds | None]:
    """Bounds of values for all inputs in the declared range; pinned features have one value."""
    given = {}
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    for value, shape in zip(inputs, _small_shapes(model, interface, inputs), strict=True):
        name = value.name or ""
        port = interface.input(name)
        if shape is not None:
            given[name] = _range(value, shape, port.low, port.high, (pins or {}).get(name, []))
    return bounds(model, given, wanted)


def _small_shapes(
    model: ir.Model, interface: Interface, inputs: Sequence[ir.Value]
) -> list[tuple[int, ...] | None]:
    """A shape for every input: one row, and a few of what else is symbolic; None where none is declared."""
    wanted: dict[str, int] = {}
    names = [[d if isinstance(d, int) else symbol(v, k) for k, d in enumerate(v.shape or ())] for v in inputs]
    for k, name in ((k, name) for row in names for k, name in enumerate(row) if isinstance(name, str)):
        wanted.setdefault(name, 1 if k == 0 or name.startswith(("batch", "N")) else _INNER)
    sizes = lengths(model, interface, wanted)
    shapes = [tuple(sizes[n] if isinstance(n, str) else n for n in row) for row in names]
    return [None if v.shape is None else shape for v, shape in zip(inputs, shapes, strict=True)]


def _range(
    value: ir.Value, shape: tuple[int, ...], low: Bound, high: Bound, pins: list[tuple[int, Array, Array]]
) -> Bounds:
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    if dtype.kind == "b":
        least, most = np.zeros(shape, bool), np.ones(shape, bool)
    elif dtype.kind in "iu":
        least, most = (np.full(shape, end, dtype) for end in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    else:
        least, most = np.full(shape, -np.inf), np.full(shape, np.inf)
    least = least if low is None else np.maximum(least, spread(low, shape, -np.inf)).astype(least.dtype)
    most = most if high is None else np.minimum(most, spread(high, shape, np.inf)).astype(most.dtype)
    for axis, places, values in pins:
        column = values.reshape((-1,) + (1,) * (len(shape) - axis - 1))
        for end in (least, most):
            end[(slice(None),) * axis + (places,)] = column
    return Bounds(least, most)


def pins(plan: Plan) -> Pins:
    """The values that a plan says its retired observations hold."""
    found: dict[str, list[tuple[int, Array, Array]]] = {}
    for port in plan.ports:
        for k, axis in enumerate(port.axes if port.side == "input" else ()):
            for edit in plan.spaces:
                known = {old: value for old, value in edit.folded if value is not None}
                unit, _ = units_along(axis, edit.space)
                places = np.flatnonzero(np.isin(unit, list(known)))
                if places.size:
                    values = np.array([known[int(unit[p])] for p in places])
                    found.setdefault(port.name, []).append((k, places, values))
    return found


def fold(plan: Plan, checkpoint: Checkpoint, model: ir.Model, *, double: bool) -> None:
    """Add what the constant units of a plan contribute to the biases behind them, in place.

    Args:
      model: the prepared graph of the checkpoint, before any edit.
      double: keep the biases in float64.

    Raises:
      Refused: a unit that is not constant in this checkpoint, or whose contribution no bias can hold.
      PlanMismatch: a node that the plan names is not there.
    """
    if not plan.folds or not any(edit.folded for edit in plan.spaces):
        return
    try:
        _fold(plan, checkpoint, model, double=double)
    except (IndexError, KeyError, ValueError) as error:
        raise PlanMismatch(f"the plan folds constants where the graph has none: {error}") from None


def _fold(plan: Plan, checkpoint: Checkpoint, model: ir.Model, *, double: bool) -> None:
    nodes = {str(node.outputs[0].name): node for node in model.graph if node.outputs}
    for place in plan.folds:
        for name in [place.node, *([place.bias[0]] if place.bias else [])]:
            if name not in nodes:
                raise PlanMismatch(f"the plan edits the node of '{name}', which is not here")
    read = [nodes[name] for place in plan.folds for name in (place.node, *(place.bias or ())[:1])]
    wanted = {str(v.name) for node in read for v in node.inputs if v is not None}
    wanted |= {str(v.name) for v in model.graph.inputs}
    known = ranges(model, checkpoint.interface, sorted(wanted), pins(plan))
    held = [_constants(plan, place, nodes[place.node], known) for place in plan.folds]
    vanish = {place.node for place, constants in zip(plan.folds, held, strict=True) if not _moves(constants)}
    # gates are cut out of their tensors at sizes that some exporters compute from the shapes of inputs
    shapes = {
        v: np.zeros_like(b.low) for v in model.graph.inputs if (b := known.get(str(v.name))) is not None
    }
    targets: dict[ir.Value, list[tuple[Array, tuple[ir.Node, int]]]] = {}
    for place, constants in zip(plan.folds, held, strict=True):
        if place.node in vanish:  # a factor of zero
            continue
        at, change = _change(model, nodes, place, constants, known)
        for value, delta in _delivered(model, at, change, shapes).items():
            targets.setdefault(value, []).append((place.sign * delta, at))
    for value, changes in targets.items():
        _add(value, changes, double)


def _constants(plan: Plan, place: Fold, node: ir.Node, known: Mapping[str, Bounds | None]) -> Array | None:
    """What a node reads, with everything but the units to be folded set to zero; None if they are not constant."""
    data = node.inputs[place.operand]
    found = None if data is None else known.get(str(data.name))
    if found is None:
        return None
    mask = np.zeros(found.low.shape[place.axis], bool)
    for edit in plan.spaces:
        mask |= np.isin(units_along(place.layout, edit.space)[0], [old for old, _ in edit.folded])
    column = mask.reshape((-1,) + (1,) * (found.low.ndim - place.axis - 1))
    if not found.constant[np.broadcast_to(column, found.low.shape)].all():
        return None
    return np.where(column, found.low, 0.0)


def _moves(constants: Array | None) -> bool:
    return constants is None or bool(constants.any())


def _change(
    model: ir.Model,
    nodes: Mapping[str, ir.Node],
    place: Fold,
    constants: Array | None,
    known: Mapping[str, Bounds | None],
) -> tuple[tuple[ir.Node, int], Array]:
    """The operand that takes what constants contribute, and by how much it changes."""
    node = nodes[place.node]
    if constants is None:
        raise Refused(
            f"the units to be folded are not constant where the node of '{place.node}' reads them",
            hint="they depend on the observation in this checkpoint",
        )
    if place.bias is None:
        raise Refused(
            f"the layer that reads the constants (node of '{place.node}') has no bias to fold them into"
        )
    at = (nodes[place.bias[0]], place.bias[1])
    operand = at[0].inputs[at[1]]
    stored = None if operand is None else known.get(str(operand.name))
    if stored is None:
        raise PlanMismatch(f"the node of '{place.bias[0]}' has no bias at operand {place.bias[1]}")
    contribution = _contribution(model, node, place, constants, known)
    return at, _bias_change(place, at[0], stored.low.shape, contribution)


def _contribution(
    model: ir.Model, node: ir.Node, place: Fold, constants: Array, known: Mapping[str, Bounds | None]
) -> Array:
    """What constants add to the result of a node; of a recurrent one to its gates, (directions, gates · H)."""
    if node.op_type in RECURRENT:
        weight = node.inputs[1]
        known_weight = known.get(str(weight.name)) if weight is not None else None
        steps = constants.reshape(-1, constants.shape[-1])
        if known_weight is None or not (steps == steps[0]).all():
            raise Refused(f"the constants that the node of '{place.node}' reads differ from step to step")
        return known_weight.low @ steps[0]  # type: ignore[no-any-return]
    evaluation = Evaluation(model.functions, {}, np.dtype(np.float64))
    frame = Frame(model.graph, versions=model.graph.opset_imports)
    operands = [
        None if v is None or (b := known.get(str(v.name))) is None else b.low for v in node.inputs[:2]
    ]
    results = []
    with np.errstate(all="ignore"):
        for value in (constants, np.zeros_like(constants)):
            operands[place.operand] = value
            results.append(np.asarray(evaluation.call(node, tuple(operands), frame)[0]))
    return results[0] - results[1]  # type: ignore[no-any-return]


def _bias_change(place: Fold, node: ir.Node, shape: tuple[int, ...], contribution: Array) -> Array:
    """The contribution in the shape of the bias.

    Raises:
      Refused: if it is not the same at every position (a convolution that pads with zeros).
    """
    if node.op_type in RECURRENT:
        return np.concatenate([contribution, np.zeros_like(contribution)], -1)
    wide = (
        (*shape, *(1,) * (contribution.ndim - 2)) if node.op_type in ("Conv", "BatchNormalization") else shape
    )
    wide = (1,) * (contribution.ndim - len(wide)) + wide
    along = tuple(k for k, n in enumerate(wide) if n == 1)
    mean = contribution.mean(along, keepdims=True)
    if np.abs(contribution - mean).max() > _ALIKE * np.abs(contribution).max():
        raise Refused(
            f"the constants contribute differently at different places of the node of '{place.node}'",
            hint="a convolution that pads with zeros sees a constant channel end at the border",
        )
    return mean.reshape(shape)  # type: ignore[no-any-return]


def _delivered(
    model: ir.Model, at: tuple[ir.Node, int], change: Array, shapes: Mapping[ir.Value, Array]
) -> dict[ir.Value, Array]:
    """The change of an operand as changes of the parameters that it consists of; `shapes` are inputs of any numbers."""
    node, operand = at
    value = node.inputs[operand]
    out: dict[ir.Value, Array] = {}
    covered = np.zeros(change.shape, bool)
    parameters = sources(value)
    for parameter in parameters:
        labels = _labels(model, value, parameters, parameter, shapes)
        if labels.shape != change.shape:
            break
        there = labels > 0
        tensor = parameter.const_value
        assert tensor is not None
        delta = np.zeros(tensor.size)
        delta[labels[there].astype(np.int64) - 1] = change[there]
        out[parameter] = delta.reshape(shape_of(tensor))
        covered |= there
    if (change[~covered] != 0).any():
        raise Refused(f"the bias of the node of '{node.outputs[0].name}' is computed, not stored")
    return {parameter: delta for parameter, delta in out.items() if delta.any()}


def _labels(
    model: ir.Model,
    value: ir.Value | None,
    parameters: list[ir.Value],
    one: ir.Value,
    shapes: Mapping[ir.Value, Array],
) -> Array:
    """Which element of a parameter stands where in an operand: its number from 1 on, 0 elsewhere."""
    given = {p: np.zeros(shape_of(p.const_value)) for p in parameters if p.const_value is not None}
    given[one] = np.arange(1.0, given[one].size + 1).reshape(given[one].shape)
    evaluation = Evaluation(model.functions, given, np.dtype(np.float64))
    assert value is not None
    frame = Frame(model.graph, versions=model.graph.opset_imports)
    frame.values.update(shapes)
    return np.asarray(evaluation.evaluate(frame, [value])[0])


def _add(value: ir.Value, changes: list[tuple[Array, tuple[ir.Node, int]]], double: bool) -> None:
    delta = changes[0][0]
    alike = all(np.allclose(other, delta, rtol=_ALIKE, atol=0) for other, _ in changes)
    if not alike or {at for _, at in changes} != destinations(value):
        raise Refused(
            f"'{value.name}' is the bias of several layers, and the constants reach only some of them alike"
        )
    tensor = value.const_value
    assert tensor is not None
    new = tensor.numpy().astype(np.float64) + delta
    dtype = ir.DataType.DOUBLE if double else tensor.dtype
    value.const_value = ir.Tensor(new.astype(dtype.numpy()), dtype=dtype, name=value.name)
