"""Units that can go exactly: those that nothing reads, copies of others, and constants that biases can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.edits.axis_maps import units_along
from surgery.edits.execute import constants
from surgery.edits.plan import Plan
from surgery.edits.removal import alike, fold, ranges, without
from surgery.edits.units import SpaceEdit
from surgery.errors import Refused
from surgery.graph.readers import Reader, carried, mixed_parameters, readers
from surgery.graph.spaces import Analysis, Space
from surgery.numeric.bounds import Bounds
from surgery.ops.build import folds
from surgery.ops.importance import classes
from surgery.ops.seats import Seats
from surgery.ops.unread import unread

Known = Mapping[str, Bounds | None]
Families = Mapping[str, Sequence[Space]]


@dataclass(frozen=True)
class Spare:
    """Units of a space that can go exactly.

    Attributes:
      unread: nothing reads them. merged: (duplicate, the unit that it is equal to). constant: a bias can hold them;
        duplicates among them, too.
    """

    unread: list[int]
    merged: list[tuple[int, int]]
    constant: list[int]

    def within(self, units: Array) -> Spare:
        """Those among some units, the equal unit included."""
        here = set(units.tolist())
        pairs = [(k, kept) for k, kept in self.merged if k in here and kept in here]
        return Spare([k for k in self.unread if k in here], pairs, [k for k in self.constant if k in here])

    def suffices(self, places: Seats) -> bool:
        """Whether the units that find no place are all to spare."""
        return all(len(old) - len(new) <= self.within(old).count for old, new in places)

    @property
    def units(self) -> set[int]:
        """All of them."""
        return {*self.unread, *self.constant, *(k for k, _ in self.merged)}

    @property
    def count(self) -> int:
        """How many."""
        return len(self.units)

    def unread_of(self, places: Seats) -> list[int]:
        """The unread ones that go if units have some places."""
        return sorted(k for old, new in places for k in self.within(old).chosen(len(old) - len(new))[0])

    def chosen(self, count: int) -> tuple[list[int], list[tuple[int, int]], list[int]]:
        """So many of them, the last ones, which are the newest: unread, merged and folded units."""
        last, merged = sorted(self.units, reverse=True)[:count], dict(self.merged)
        drop = set(self.unread).intersection(last)
        # with a constant go those that are equal to it
        fold = {k for k in set(self.constant).intersection(last) if k not in merged or merged[k] in last}
        pairs = [(k, merged[k]) for k in last if k not in drop and k not in fold]
        return sorted(drop), pairs, sorted(fold)

    def __str__(self) -> str:
        same = [k for k, _ in self.merged if k not in self.constant]
        return f"{len(self.unread)} are unread, {len(self.constant)} constant and {len(same)} duplicates"


def bounds_of(checkpoint: Checkpoint, analysis: Analysis, families: Families) -> Known:
    """The bounds of everything that reads units of some spaces."""
    names = {member.name for family in families.values() for member in family}
    wanted = {reader.value for name in names for reader in readers(analysis, name)}
    return ranges(analysis.model, checkpoint.interface, sorted(wanted))


def spares(
    checkpoint: Checkpoint,
    analysis: Analysis,
    families: Families,
    known: Known,
    places: Mapping[str, Seats],
) -> dict[str, Spare]:
    """What can go exactly from spaces and their copies.

    Args:
      families: space -> it and all that are edited like it, each first the one that leads.
      known: the bounds of what reads them.
      places: space -> where its units are afterwards: as many go as find none. Of a space that is not named, all that
        can.
    """
    lead = {name: family[0].name for name, family in families.items()}

    def given(nobody: Mapping[str, list[int]]) -> dict[str, Spare]:
        gone = {
            member.name: units
            for name, family in families.items()
            for member in family
            if (units := nobody.get(lead[name]))
        }
        found = {name: _spare(checkpoint, analysis, each, known, gone) for name, each in families.items()}
        return _in_proportion(families, lead, found)

    nobody = unread(analysis, list(families.values()))
    while True:
        found, chosen = given(nobody), dict(nobody)
        for name, seats in places.items():
            if lead[name] in nobody:
                chosen[lead[name]] = found[name].unread_of(seats)
        if chosen == nobody:
            return found
        left = unread(analysis, list(families.values()), chosen)
        if left == chosen:
            return given(left)
        nobody = {
            name: [k for k in units if k in left[name] or k not in chosen[name]]
            for name, units in nobody.items()
        }


def _spare(
    checkpoint: Checkpoint,
    analysis: Analysis,
    family: Sequence[Space],
    known: Known,
    gone: Mapping[str, list[int]],
) -> Spare:
    """One unit is always left; units that are gone already do not tell others apart."""
    space, nobody = family[0], gone.get(family[0].name, [])
    free = sorted(set(range(space.size)).difference(nobody))
    pairs = _duplicates(analysis, family, free, gone)

    def constant(still: set[int]) -> list[int]:
        apart = {kept for k, kept in pairs if k not in still}
        found = [k for k in free if k in still and k not in apart]
        return found if Spare(nobody, pairs, found).count < space.size else found[1:]

    still, zero = (_constants(analysis, family, known, zero=zero) for zero in (False, True))
    own = Spare(nobody, pairs, constant(still))
    held = zero.issuperset(own.constant) or _held(checkpoint, analysis, family, own)
    return own if held else replace(own, constant=constant(zero))


def _duplicates(
    analysis: Analysis, family: Sequence[Space], free: Sequence[int], gone: Mapping[str, list[int]]
) -> list[tuple[int, int]]:
    """Pairs (unit, the first one that it is equal to) of some units, in their order."""
    space = family[0]
    if any(member.no_net2net is not None for member in family):
        return []
    found = np.stack([classes(analysis, member, gone) for member in family], 1)
    label = np.unique(found, axis=0, return_inverse=True)[1].reshape(-1).tolist()
    if space.whole is not None and len(set(Counter(label).values())) > 1:
        return []
    first: dict[int, int] = {}
    pairs = [(k, kept) for k in free if (kept := first.setdefault(label[k], k)) != k]
    return pairs if all(_same(analysis, member, pairs, gone) for member in family) else []


def _in_proportion(families: Families, lead: Mapping[str, str], found: dict[str, Spare]) -> dict[str, Spare]:
    """Nothing is merged where spaces that are averaged together would not all lose the same share of their units."""

    def share(space: Space) -> Fraction:
        own = found.get(lead.get(space.name, ""))
        return Fraction(len(own.merged) if own else 0, space.size)

    sizes = {member.name: member for family in families.values() for member in family}
    apart = {
        name
        for name, family in families.items()
        for member in family
        for other in member.alike
        if other not in sizes or share(sizes[other]) != share(member)
    }
    return {name: replace(own, merged=[]) if name in apart else own for name, own in found.items()}


def _same(
    analysis: Analysis, space: Space, pairs: Sequence[tuple[int, int]], gone: Mapping[str, Sequence[int]]
) -> bool:
    """Whether pairs are duplicates in every occurrence, also where an axis has the space several times."""
    edit, tensors = SpaceEdit(space.name, space.size, tuple(range(space.size))), constants(analysis.model)
    for ref in space.axes if pairs else ():
        layouts = analysis.tensors[ref.tensor]
        array = without(tensors[ref.tensor].numpy(), layouts, gone)
        if not alike(array, ref.axis, layouts[ref.axis], edit, pairs):
            return False
    return True


def _constants(analysis: Analysis, family: Sequence[Space], known: Known, *, zero: bool) -> set[int]:
    """Units that leave nothing behind but what a bias can hold, or nothing at all."""
    return set.intersection(*(_constant(analysis, member, known, zero=zero) for member in family))


def _constant(analysis: Analysis, space: Space, known: Known, *, zero: bool) -> set[int]:
    """Units of which every node that reads them takes the same all the time, or nothing."""
    if space.no_zero or mixed_parameters(analysis, space.name) or carried(analysis, space.name):
        return set()
    good: dict[ir.Node, Array] = {}
    for place in readers(analysis, space.name):
        found = known.get(place.value)
        here = np.zeros(space.size, bool) if found is None else _still(place, space, found, zero=zero)
        # where two activations meet it is enough that one of them is zero
        good[place.node] = good.get(place.node, np.zeros(space.size, bool)) | here
    return set(np.flatnonzero(np.logical_and.reduce(list(good.values()))).tolist()) if good else set()


def _still(place: Reader, space: Space, found: Bounds, *, zero: bool) -> Array:
    """Units that are constant where a node reads them, or zero where only that leaves no trace; shape (units,)."""
    if place.takes == "nothing":
        return np.zeros(space.size, bool)
    unit, _ = units_along(place.layout, space.name)
    # a border of zeros ends a constant, unless that is zero, too
    zero_only = zero or place.takes == "zeros" or place.bias is None or _padded(place)
    good = (found.low == 0) & (found.high == 0) if zero_only else found.constant
    rows = np.moveaxis(good, place.axis, 0).reshape(len(unit), -1).all(1)
    still = np.ones(space.size, bool)
    still[unit[(unit >= 0) & ~rows]] = False
    return still


def _padded(place: Reader) -> bool:
    attributes = place.node.attributes
    return place.node.op_type == "Conv" and (
        any(attributes.get_ints("pads", [])) or attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
    )


def _held(checkpoint: Checkpoint, analysis: Analysis, family: Sequence[Space], own: Spare) -> bool:
    """Whether there are biases that can hold what the constant units contribute."""
    gone = own.constant
    left = tuple(k for k in range(family[0].size) if k not in gone)
    edits = [
        SpaceEdit(member.name, member.size, left, folded=tuple((k, None) for k in gone)) for member in family
    ]
    plan = Plan("narrow", {}, "equivalent", tuple(edits), (), (), folds=folds(analysis, edits))
    try:
        fold(plan, checkpoint, analysis.model.clone(), double=False)
    except Refused:
        return False
    return True
