"""Inputs and outputs that a plan changes: values of the old model carried over to the new one, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from surgery.arrays import Array, Arrays
from surgery.edits.axis_maps import AxisMap, axis_maps, units_along
from surgery.edits.parts import PortEdit
from surgery.edits.plan import Plan
from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError
from surgery.graph.layout import Layout, units
from surgery.interface import LineageStep
from surgery.json_values import Json

Sources = dict[int, tuple[int | None, ...]]
"""Axis -> for every entry the old one that it was, or None for a new one."""


def grow(
    plan: Plan,
    arrays: Mapping[str, Array],
    rng: np.random.Generator | None = None,
) -> Arrays:
    """Values of the old model's inputs as inputs of the new one.

    Args:
      plan: what was done to the model.
      arrays: input name -> array in its old shape (hidden states of running rollouts, say); batch sizes are free.

      rng: fill fresh entries with other entries of the same array, drawn at random (to prove that they do not
        matter); None for zeros.

    Returns:
      The same with everything grown: copies hold what they copy, fresh units and new states start at zero, units that
      are gone are left out. Inputs that the plan leaves alone are returned as they are.

    Raises:
      ArgumentError: if an array does not have the old width.
    """
    edited = _edited(plan, "input")
    out: Arrays = {}
    for name, array in arrays.items():
        grown = array
        for k, axis in _maps(plan, edited, name, array):
            if grown.shape[k] != axis.before:
                raise ArgumentError(
                    f"axis {k} of '{name}' has {grown.shape[k]} units, the plan expects {axis.before}"
                )
            fresh = (axis.fresh_in | axis.fresh_out).reshape((-1,) + (1,) * (grown.ndim - k - 1))
            taken = np.take(grown, axis.source, axis=k)
            other = np.zeros((), grown.dtype) if rng is None else rng.permuted(taken)
            grown = np.where(fresh, other, taken)
        out[name] = grown
    for insertion in plan.insertions:
        for new in insertion.ports:
            if new.side == "input":
                start = new.zeros(out)
                other = start if rng is None else np.asarray(rng.standard_normal(start.shape))
                out[new.name] = other.astype(start.dtype)
    return out


def shrink(plan: Plan, arrays: Mapping[str, Array], *, weighted: bool = False) -> Arrays:
    """The part of the new model's outputs that the old one has: see `kept` for that part of the old ones.

    Args:
      weighted: give for every old unit the mean of its copies, weighted by their shares, instead of the first copy:
        the two have the same value, but only the mean has the derivative of the old unit.
    """
    edited = _edited(plan, "output")
    added = {port.name for insertion in plan.insertions for port in insertion.ports}
    out: Arrays = {}
    for name, array in arrays.items():
        if name in added:
            continue
        old = array
        for k, axis in _maps(plan, edited, name, array):
            if weighted:
                old = _collected(old, k, axis)
            elif _split(plan, edited[name].axes[k]):
                old = _summed_probability(old, k, axis)
            else:
                places = _places(axis)
                old = np.take(old, [places[unit] for unit in sorted(places)], axis=k)
        out[name] = old
    return out


def kept(plan: Plan, arrays: Mapping[str, Array]) -> Arrays:
    """The part of the old model's outputs that the new one still has, in its old order."""
    edited = _edited(plan, "output")
    out: Arrays = {}
    for name, array in arrays.items():
        old = array
        for k, axis in _maps(plan, edited, name, array):
            old = np.take(old, sorted(_places(axis)), axis=k)
        out[name] = old
    return out


def _edited(plan: Plan, side: str) -> dict[str, PortEdit]:
    return {port.name: port for port in plan.ports if port.side == side}


def _maps(
    plan: Plan, edited: Mapping[str, PortEdit], name: str, array: Array
) -> Iterator[tuple[int, AxisMap]]:
    """The axes of an input or output that change, and how."""
    axes = edited[name].axes if name in edited else ()
    if axes and array.ndim != len(axes):
        raise ArgumentError(f"'{name}' has {array.ndim} axes, the plan expects {len(axes)}")
    yield from ((k, axis) for k, axis in enumerate(axis_maps(axes, plan.edits)) if axis is not None)


def settled(plan: Plan, arrays: Mapping[str, Array]) -> Arrays:
    """Inputs of the old model for which a plan promises equal outputs, made from any inputs.

    A retired observation holds its constant, and recurrent units that are merged hold the same state.
    """
    edited = _edited(plan, "input")
    out: Arrays = {}
    for name, array in arrays.items():
        changed = array
        for k, layout in enumerate(edited[name].axes if name in edited else ()):
            for space in dict.fromkeys(part.space for part in units(layout)):
                edit = plan.edits.get(space)
                if edit is not None and (edit.merged or edit.folded):
                    changed = _settle(changed, k, layout, edit)
        out[name] = changed
    return out


def _settle(array: Array, k: int, layout: Layout, edit: SpaceEdit) -> Array:
    unit, rest = units_along(layout, edit.space)
    moved = np.moveaxis(array, k, 0).copy()
    element = {(int(u), int(r)): e for e, (u, r) in enumerate(zip(unit, rest, strict=True))}
    for old, value in edit.folded:
        if value is not None:
            moved[unit == old] = value
    for old, new in edit.merged:
        for e in np.flatnonzero(unit == old):
            moved[e] = moved[element[edit.source[new], int(rest[e])]]
    return np.moveaxis(moved, 0, k)


def _places(axis: AxisMap) -> dict[int, int]:
    """Old element -> the new one that has its value, for all that have one."""
    there = np.flatnonzero(~(axis.fresh_in | axis.fresh_out))
    places = {int(axis.source[new]): int(new) for new in reversed(there)}
    pairs = np.concatenate([axis.more_value, axis.more_grad], 1)
    return places | {int(old): int(new) for new, old in pairs.T}


def _split(plan: Plan, layout: Layout) -> bool:
    starts = [plan.edits[part.space].start for part in units(layout) if part.space in plan.edits]
    return any(start is not None and start.kind == "split" for start in starts)


def _summed_probability(logits: Array, k: int, axis: AxisMap) -> Array:
    """The logit that has the probability of all copies together."""
    moved = np.moveaxis(logits, k, 0)
    total = np.full((axis.before, *moved.shape[1:]), -np.inf, moved.dtype)
    np.logaddexp.at(total, axis.source, moved)
    return np.moveaxis(total, 0, k)


def _collected(array: Array, k: int, axis: AxisMap) -> Array:
    """Sum of copies times shares along one axis, one row per old unit that is still there; fresh ones are left out."""
    moved = np.moveaxis(array, k, 0)
    shares = np.where(axis.fresh_in | axis.fresh_out, 0.0, axis.value * axis.grad)
    total = np.zeros((axis.before, *moved.shape[1:]), moved.dtype)
    np.add.at(total, axis.source, moved * shares.reshape((-1,) + (1,) * (moved.ndim - 1)))
    total[axis.more_grad[1]] = moved[axis.more_grad[0]]
    return np.moveaxis(total[sorted(_places(axis))], 0, k)


def record_ports(plan: Plan) -> list[Json]:
    """How the inputs and outputs that a plan changes come from the old ones, as a step of a lineage keeps it."""
    record: list[Json] = []
    for port in plan.ports:
        for k, axis in enumerate(axis_maps(port.axes, plan.edits)):
            if axis is not None:
                fresh = axis.fresh_in | axis.fresh_out
                source = [None if new else int(old) for old, new in zip(axis.source, fresh, strict=True)]
                record.append({"side": port.side, "port": port.name, "axis": k, "source": source})
    return record


def port_sources(lineage: Sequence[LineageStep], side: str, name: str) -> Sources:
    """What some steps did, together, to an input or output; axes that they left alone are missing."""
    found: Sources = {}
    for step in lineage:
        for entry in step.summary if isinstance(step.summary, list | tuple) else ():
            if not isinstance(entry, Mapping) or (entry.get("side"), entry.get("port")) != (side, name):
                continue
            axis, source = entry["axis"], entry["source"]
            if isinstance(axis, int) and isinstance(source, list | tuple):
                before = found.get(axis)
                places = [k if isinstance(k, int) else None for k in source]
                found[axis] = tuple(k if before is None or k is None else before[k] for k in places)
    return found
