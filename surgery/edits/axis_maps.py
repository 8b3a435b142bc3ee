"""The edit of one axis of a tensor, element by element, from the edits of the spaces that it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from surgery.arrays import Array
from surgery.edits.units import SpaceEdit
from surgery.errors import Refused
from surgery.graph.layout import Factor, Layout, Part, Sum, Units, Weave, text, units

_NO_PAIRS: Array = np.zeros((2, 0), np.int64)


@dataclass(frozen=True)
class AxisMap:
    """The edit of one axis, element by element; all arrays have shape (new size,).

    Attributes:
      before: old size.
      source: old index of each new element.
      fresh_in, fresh_out: elements that consume, or make, fresh units.
      started: elements of `fresh_out` that start at a mean or at zero, so that something may read their units at once.
      value: factor of the weights. grad: factor of their gradients.
      more_value: (new, old) element pairs, shape (2, n): old entries that are added to a new one.
      more_grad: likewise, of gradients.
    """

    before: int
    source: Array
    fresh_in: Array
    fresh_out: Array
    started: Array
    value: Array
    grad: Array
    more_value: Array = field(default_factory=lambda: _NO_PAIRS)
    more_grad: Array = field(default_factory=lambda: _NO_PAIRS)

    @property
    def shared(self) -> bool:
        """Whether weights along this axis are shared out among copies."""
        return bool((self.value != 1).any())

    @property
    def summed(self) -> bool:
        """Whether weights along this axis are added up."""
        return bool(self.more_value.size)


def axis_map(layout: Layout, edits: Mapping[str, SpaceEdit]) -> AxisMap:
    """The edit of an axis from the edits of the spaces in it."""
    return reduce(_outer, [_factor_map(factor, edits) for factor in layout] or [_still(1)])


def axis_maps(layouts: Sequence[Layout], edits: Mapping[str, SpaceEdit]) -> list[AxisMap | None]:
    """One map per axis of a tensor; None for an axis in which nothing changes."""
    return [
        axis_map(axis, edits) if any(part.space in edits for part in units(axis)) else None
        for axis in layouts
    ]


def _still(size: int) -> AxisMap:
    no, one = np.zeros(size, bool), np.ones(size)
    return AxisMap(size, np.arange(size), no, no, no, one, one)


def _factor_map(factor: Factor, edits: Mapping[str, SpaceEdit]) -> AxisMap:
    if isinstance(factor, int):
        return _still(factor)
    if isinstance(factor, Sum | Weave):
        joined = _joined([axis_map(part, edits) for part in factor.parts])
        return joined if isinstance(factor, Sum) else _in_turn(joined, len(factor.parts))
    if isinstance(factor, Part):
        return _part(axis_map(factor.whole, edits), factor)
    edit = edits.get(factor.space)
    if edit is None:
        return _still(factor.size)
    no, one = np.zeros(edit.after, bool), np.ones(edit.after)
    source = np.array(edit.source, np.int64)
    merged = np.array([(new, old) for old, new in edit.merged], np.int64).reshape(-1, 2).T
    fresh = edit.is_fresh
    if factor.role == "in":
        return AxisMap(edit.before, source, fresh, no, no, edit.share, one, more_value=merged)
    started = fresh if factor.role in ("mean", "zero") else no
    return AxisMap(edit.before, source, no, fresh, started, one, edit.share, more_grad=merged)


def _joined(parts: Sequence[AxisMap]) -> AxisMap:
    offsets = np.cumsum([0, *(part.before for part in parts)])
    starts = np.cumsum([0, *(len(part.source) for part in parts)])
    return AxisMap(
        int(offsets[-1]),
        np.concatenate([part.source + offset for part, offset in zip(parts, offsets, strict=False)]),
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("fresh_in", "fresh_out", "started", "value", "grad")
        ),
        *(
            np.concatenate(
                [
                    getattr(p, name) + np.array([[n], [o]])
                    for p, n, o in zip(parts, starts, offsets, strict=False)
                ],
                1,
            )
            for name in ("more_value", "more_grad")
        ),
    )


def _in_turn(joined: AxisMap, count: int) -> AxisMap:
    """The same elements, one of each part after the other."""
    order = in_turn(np.arange(len(joined.source)), count)
    new, old = (np.argsort(in_turn(np.arange(n), count)) for n in (len(joined.source), joined.before))
    return AxisMap(
        joined.before,
        old[joined.source][order],
        *(getattr(joined, name)[order] for name in ("fresh_in", "fresh_out", "started", "value", "grad")),
        *(np.stack([new[n], old[o]]) for n, o in (joined.more_value, joined.more_grad)),
    )


def in_turn(joined: Array, count: int) -> Array:
    """Elements of `count` parts that lie one part after the other, shape (n,), one of each part in turn.

    Raises:
      Refused: if the parts are of different sizes.
    """
    if len(joined) % count:
        raise Refused("units that are shuffled with each other would no longer be equally many")
    return np.asarray(joined.reshape(count, -1).T.reshape(-1))


def _part(whole: AxisMap, part: Part) -> AxisMap:
    """What lies in one part before and after; fresh units borrow from any unit that does."""
    if len(whole.source) % part.count:
        raise Refused(f"shuffled units that no longer come in {part.count} equal parts")
    size, new = whole.before // part.count, len(whole.source) // part.count
    here = slice(part.index * new, (part.index + 1) * new)
    source = whole.source[here] - part.index * size
    fresh = (whole.fresh_in | whole.fresh_out)[here]
    if ((source < 0) | (source >= size))[~fresh].any():
        raise Refused(f"units would leave their part of a channel shuffle: {text((part,))}")
    return AxisMap(
        size,
        source % size,
        *(getattr(whole, name)[here] for name in ("fresh_in", "fresh_out", "started", "value", "grad")),
        *(_pairs_of_part(pairs, part, new, size) for pairs in (whole.more_value, whole.more_grad)),
    )


def _pairs_of_part(pairs: Array, part: Part, new: int, size: int) -> Array:
    inside = pairs[:, pairs[0] // new == part.index] - np.array([[part.index * new], [part.index * size]])
    if ((inside[1] < 0) | (inside[1] >= size)).any():
        raise Refused(f"units would leave their part of a channel shuffle: {text((part,))}")
    return np.asarray(inside)


def _outer(left: AxisMap, right: AxisMap) -> AxisMap:
    return AxisMap(
        left.before * right.before,
        np.add.outer(left.source * right.before, right.source).reshape(-1),
        np.logical_or.outer(left.fresh_in, right.fresh_in).reshape(-1),
        np.logical_or.outer(left.fresh_out, right.fresh_out).reshape(-1),
        np.logical_or.outer(left.started, right.started).reshape(-1),
        np.multiply.outer(left.value, right.value).reshape(-1),
        np.multiply.outer(left.grad, right.grad).reshape(-1),
        _outer_pairs(left, right, "more_value"),
        _outer_pairs(left, right, "more_grad"),
    )


def _outer_pairs(left: AxisMap, right: AxisMap, name: str) -> Array:
    """(S₁ + E₁) ⊗ (S₂ + E₂) without S₁ ⊗ S₂, where S takes each element's source, and E adds more."""
    more = getattr(left, name), getattr(right, name)
    if not any(pairs.size for pairs in more):
        return _NO_PAIRS
    full = [
        np.concatenate([[np.arange(len(side.source)), side.source], pairs], 1)
        for side, pairs in zip((left, right), more, strict=True)
    ]
    sizes = (len(right.source), right.before)
    new, old = (np.add.outer(full[0][k] * sizes[k], full[1][k]) for k in (0, 1))
    extra = np.ones(new.shape, bool)
    extra[: len(left.source), : len(right.source)] = False
    return np.stack([new[extra], old[extra]])


def belonging(layout: Layout, chosen: Mapping[str, Sequence[int]], role: str | None = None) -> Array:
    """Mask of the elements of an axis, shape (size,), that belong to chosen units (space -> units) in any occurrence.

    Args:
      role: count only occurrences in this role; None for all.
    """
    mask = np.zeros(1, bool)
    for factor in layout:
        if isinstance(factor, Sum | Weave):
            own = np.concatenate([belonging(part, chosen, role) for part in factor.parts])
            own = in_turn(own, len(factor.parts)) if isinstance(factor, Weave) else own
        elif isinstance(factor, Part):
            own = np.split(belonging(factor.whole, chosen, role), factor.count)[factor.index]
        elif isinstance(factor, Units):
            counts = factor.space in chosen and role in (None, factor.role)
            own = (
                np.isin(np.arange(factor.size), chosen[factor.space])
                if counts
                else np.zeros(factor.size, bool)
            )
        else:
            own = np.zeros(factor, bool)
        mask = np.logical_or.outer(mask, own).reshape(-1)
    return mask


def units_along(layout: Layout, space: str, role: str | None = None) -> tuple[Array, Array]:
    """Which unit of a space each element of an axis belongs to.

    Args:
      layout: of the axis.
      space: its name.
      role: count only its occurrences in this role.

    Returns:
      Per element, shape (size,): the unit, -1 where it belongs to none; and a number that is equal for elements that
      differ in the unit alone.
    """
    unit, rest = np.full(1, -1), np.zeros(1, np.int64)
    for factor in layout:
        own, label, size = _units_of(factor, space, role)
        joined = np.broadcast_arrays(unit[:, None], own[None, :])
        unit = np.where(joined[0] >= 0, joined[0], joined[1]).reshape(-1)
        rest = np.add.outer(rest * size, label).reshape(-1)
    return unit, rest


def _units_of(factor: Factor, space: str, role: str | None) -> tuple[Array, Array, int]:
    if isinstance(factor, Part):
        unit, rest = (
            np.split(own, factor.count)[factor.index] for own in units_along(factor.whole, space, role)
        )
        return unit, rest, int(rest.max()) + 1
    if isinstance(factor, Sum | Weave):
        parts = [units_along(part, space, role) for part in factor.parts]
        sizes = [int(rest.max()) + 1 for _, rest in parts]
        offsets = np.cumsum([0, *sizes[:-1]])
        rest = np.concatenate([own + offset for (_, own), offset in zip(parts, offsets, strict=True)])
        unit = np.concatenate([unit for unit, _ in parts])
        if isinstance(factor, Weave):
            unit, rest = in_turn(unit, len(parts)), in_turn(rest, len(parts))
        return unit, rest, sum(sizes)
    if isinstance(factor, Units) and factor.space == space and role in (None, factor.role):
        return np.arange(factor.size), np.zeros(factor.size, np.int64), 1
    size = factor if isinstance(factor, int) else factor.size
    return np.full(size, -1), np.arange(size), size
