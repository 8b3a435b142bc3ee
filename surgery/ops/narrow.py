"""Narrow: fewer units; unread, constant and duplicated ones go exactly, others by importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.edits.axis_maps import units_along
from surgery.edits.copies import related
from surgery.edits.execute import constants
from surgery.edits.plan import Plan
from surgery.edits.removal import alike, ranges
from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused
from surgery.graph.layout import units
from surgery.graph.readers import Reader, mixed_parameters, readers
from surgery.graph.spaces import Analysis, Space
from surgery.numeric.bounds import Bounds
from surgery.ops.build import build
from surgery.ops.importance import Score, classes, importance
from surgery.ops.seats import Seats, seats_of_fewer, with_linked
from surgery.ops.unread import unread

Array = np.ndarray[Any, np.dtype[Any]]


def narrow(
    checkpoint: Checkpoint,
    *,
    widths: Mapping[str, int] | None = None,
    by: Score | None = None,
    observations: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> Plan:
    """Remove units from spaces, exactly as far as that goes.

    *Unread* units are those whose outgoing weights are zero, as after widening with a zero start, or make unread units
    only. *Constant* units (dead ones are constantly zero) are those whose bounds, for every input in the declared
    range, are equal: their contribution is added to the biases behind them. *Duplicates* are made by the same numbers:
    the outgoing weights of one are added to the other's (where a sum is taken of units themselves, they are made by
    shares of the same numbers, which are added). All leave the function as it is. Any other unit is removed
    only on request, and then the outputs change by what the report says.

    Args:
      checkpoint: its weights are read.
      widths: space -> new number of units; None removes all that can go exactly, everywhere.
      by: the score by which further units are chosen (see `importance`); None refuses to remove any.
      observations: recorded inputs for scores of activity; random ones otherwise.
      seed: of random inputs.

    Returns:
      A plan that claims "equivalent", or "changed" if other units than unread, constant and duplicated ones go.

    Raises:
      UnknownName: a space that is not there. ArgumentError: a width that is not a shrinkage.
      Refused: a space that cannot change, or that has too few units to spare.
    """
    analysis = checkpoint.analysis
    if widths is not None and not widths:
        raise ArgumentError(
            "nothing to narrow to", hint="give widths (SPACE=N), or none at all for all that is exact"
        )
    wanted = with_linked(analysis, analysis.asked(widths or {}))
    for space, width in wanted.items():
        _check(space, width)
    free = list(wanted) or [space for space in analysis.spaces if not space.reasons]
    families = {space.name: _family(checkpoint, analysis, space) for space in free}
    known = _bounds(checkpoint, analysis, [member for family in families.values() for member in family])
    nobody = unread(analysis, list(families.values()), together=not wanted)
    edits, changed = [], False
    for group in _groups(analysis, free):
        if not wanted and any(families[space.name][0] is not space for space in group):
            continue  # a copy follows its original
        spares = {
            space.name: _spare(analysis, families[space.name], known, nobody.get(space.name, []))
            for space in group
        }
        goal = wanted.get(group[0]) or _least(analysis, group, spares)
        places = _places(analysis, group, goal)
        for space in group if goal < group[0].size else ():
            own, scores = spares[space.name], None
            if not own.suffices(places[space.name]):
                if by is None:
                    raise _too_few(space, goal, own, _least(analysis, group, spares))
                scores = importance(checkpoint, analysis, space, by, observations=observations, seed=seed)
                changed = True
            edits.append(_edit(space, places[space.name], own, scores))
    if not edits:
        raise Refused(
            "no unit of this model is unread, dead, constant or a duplicate",
            hint="remove others by importance: surgery narrow MODEL --width SPACE=N --by l2",
        )
    arguments = {"widths": {s.name: n for s, n in wanted.items()} or None, "by": by}
    return build(
        checkpoint, analysis, "narrow", edits, arguments=arguments, claim="changed" if changed else "equivalent",
        seed=seed, notes=_notes(checkpoint, analysis, edits),
    )  # fmt: skip


def _check(space: Space, width: int) -> None:
    where = {"space": f"{space.name} = {', '.join(f'{a.tensor}[{a.axis}]' for a in space.axes)}"}
    if not 0 < width < space.size:
        raise ArgumentError(
            f"cannot narrow space '{space.name}' to {width}: it is {space.size} wide", where=where,
            hint=f"1 to {space.size - 1} units; for more of them: surgery widen",
        )  # fmt: skip
    if space.reasons:
        hint = "surgery retire" if "input" in space.kinds else None
        raise Refused(f"space '{space.name}' cannot change: {space.reasons[0]}", where=where, hint=hint)


@dataclass(frozen=True)
class Spare:
    """Units of a space that can go exactly: unread, constant, and (duplicate, the unit that it is equal to)."""

    unread: list[int]
    constant: list[int]
    merged: list[tuple[int, int]]

    def within(self, units: Array) -> Spare:
        """Those among some units, the equal unit included."""
        here = set(units.tolist())
        pairs = [(k, kept) for k, kept in self.merged if k in here and kept in here]
        return Spare([k for k in self.unread if k in here], [k for k in self.constant if k in here], pairs)

    def suffices(self, places: Seats) -> bool:
        """Whether the units that find no place are all to spare."""
        return all(len(old) - len(new) <= self.within(old).count for old, new in places)

    @property
    def count(self) -> int:
        """How many."""
        return len(self.unread) + len(self.constant) + len(self.merged)


def _groups(analysis: Analysis, spaces: Sequence[Space]) -> list[list[Space]]:
    """Spaces that must stay equally wide, because they are shuffled with each other; each one in one group."""
    names = dict.fromkeys(space.linked or (space.name,) for space in spaces)
    return [[analysis.by_name[name] for name in group] for group in names]


def _places(analysis: Analysis, group: Sequence[Space], goal: int) -> Mapping[str, Seats]:
    """Where the units that stay are afterwards: (old units, places) for units that can take each other's place."""
    if not group[0].linked:
        return {group[0].name: [(np.arange(group[0].size), np.arange(goal))]}
    names = [space.name for space in group]
    found = seats_of_fewer(analysis, names, goal)
    if found is None:
        widths = (n for k in range(1, group[0].size) for n in (goal - k, goal + k) if 0 < n < group[0].size)
        other = next((n for n in widths if seats_of_fewer(analysis, names, n) is not None), None)
        raise Refused(
            f"space '{group[0].name}' cannot go to {goal}: some of its units would come into another part of a channel"
            " shuffle",
            hint=None if other is None else f"the nearest width at which none does: {other}",
        )
    return found


def _least(analysis: Analysis, group: Sequence[Space], spares: Mapping[str, Spare]) -> int:
    """The fewest units to which spaces can go exactly."""
    most = min(own.count for own in spares.values())
    if not group[0].linked:
        return max(1, group[0].size - most)
    for goal in range(max(1, group[0].size - most), group[0].size):
        places = seats_of_fewer(analysis, [space.name for space in group], goal)
        if places is not None and all(own.suffices(places[name]) for name, own in spares.items()):
            return goal
    return group[0].size


def _too_few(space: Space, goal: int, own: Spare, least: int) -> Refused:
    return Refused(
        f"space '{space.name}' cannot go to {goal} exactly: of its {space.size} units {len(own.unread)} are unread, "
        f"{len(own.constant)} constant and {len(own.merged)} duplicates",
        hint=(f"{least} is exact; for fewer, " if least < space.size else "")
        + f"remove units by importance: surgery narrow MODEL --width {space.name}={goal} --by l2",
    )


def _bounds(checkpoint: Checkpoint, analysis: Analysis, spaces: list[Space]) -> dict[str, Bounds | None]:
    wanted = {reader.value for space in spaces for reader in readers(analysis, space.name)}
    return ranges(analysis.model, checkpoint.interface, sorted(wanted))


def _family(checkpoint: Checkpoint, analysis: Analysis, space: Space) -> list[Space]:
    """A space and the spaces of target and averaged networks that are edited with it, the original first."""
    return [analysis.by_name[name] for name in related([space.name], analysis, checkpoint.copies)]


def _spare(
    analysis: Analysis, family: Sequence[Space], known: Mapping[str, Bounds | None], unread: list[int]
) -> Spare:
    """What can go exactly from a space and its copies; one unit is always left."""
    space = family[0]
    if any(mixed_parameters(analysis, member.name) for member in family):
        return Spare(unread, [], [])
    constant = set(range(space.size))
    for member in family:
        found = _constant(readers(analysis, member.name), member, known) if member.no_zero is None else []
        constant &= set(found)
    free = sorted(constant - set(unread))
    gone = free[1:] if len(free) + len(unread) == space.size else free
    if any(member.no_net2net is not None for member in family):
        return Spare(unread, gone, [])
    _, first, label = np.unique(
        np.stack([classes(analysis, member) for member in family], 1),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    same = first[label.reshape(-1)]
    if space.whole is not None and len(set(np.bincount(same)[np.unique(same)])) > 1:
        return Spare(unread, gone, [])
    others = constant | set(unread)
    pairs = [(k, int(same[k])) for k in range(space.size) if same[k] != k]
    pairs = [(k, kept) for k, kept in pairs if k not in others and kept not in others]
    return Spare(unread, gone, pairs if all(_same(analysis, member, pairs) for member in family) else [])


def _same(analysis: Analysis, space: Space, pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether pairs are duplicates in every occurrence, also where an axis has the space several times."""
    edit, tensors = SpaceEdit(space.name, space.size, tuple(range(space.size))), constants(analysis.model)
    return not pairs or all(
        alike(tensors[ref.tensor].numpy(), ref.axis, analysis.tensors[ref.tensor][ref.axis], edit, pairs)
        for ref in space.axes
    )


def _constant(places: list[Reader], space: Space, known: Mapping[str, Bounds | None]) -> list[int]:
    """Units that leave nothing behind, or only what a bias can hold, at every node that reads them."""
    good: dict[ir.Node, Array] = {}
    for place in places:
        found = known.get(place.value)
        here = np.zeros(space.size, bool) if found is None else _still(place, space, found)
        # where two activations meet it is enough that one of them is zero
        good[place.node] = good.get(place.node, np.zeros(space.size, bool)) | here
    return [int(k) for k in np.flatnonzero(np.logical_and.reduce(list(good.values())))] if good else []


def _still(place: Reader, space: Space, found: Bounds) -> Array:
    """Units that are constant where a node reads them, or zero where only that leaves no trace; shape (units,)."""
    if place.takes == "nothing":
        return np.zeros(space.size, bool)
    unit, _ = units_along(place.layout, space.name)
    # a border of zeros ends a constant, unless that is zero, too
    zero_only = place.takes == "zeros" or place.bias is None or _padded(place)
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


def _edit(space: Space, places: Seats, own: Spare, scores: Array | None) -> SpaceEdit:
    """Unread units go first, then constant ones, then duplicates, then those of the smallest score."""
    goal = sum(len(new) for _, new in places)
    if space.whole is not None and own.merged and scores is None and space.size - goal != len(own.merged):
        raise Refused(
            f"space '{space.name}' cannot go to {goal} exactly: {space.whole}",
            hint=f"its duplicates go together: {space.size - len(own.merged)}",
        )
    source, fold, merge = np.zeros(goal, np.int64), list[int](), list[tuple[int, int]]()
    for old, new in places:
        folded, merged, gone = _removed(old, len(old) - len(new), own.within(old), scores)
        source[new] = [k for k in old.tolist() if k not in gone]
        fold += folded
        merge += merged
    place = {old: new for new, old in enumerate(source.tolist())}
    pairs = tuple((k, place[first]) for k, first in merge if first in place)
    return SpaceEdit(
        space.name, space.size, tuple(source.tolist()), merged=pairs, folded=tuple((k, None) for k in fold)
    )


def _removed(
    units: Array, count: int, own: Spare, scores: Array | None
) -> tuple[list[int], list[tuple[int, int]], set[int]]:
    """Of some units so many: constant ones, duplicates, and all that go."""
    drop = own.unread[:count]
    fold = own.constant[: count - len(drop)]
    merge = own.merged[: count - len(drop) - len(fold)]
    gone = {*drop, *fold, *(k for k, _ in merge)}
    if scores is not None:
        here = set(units.tolist())
        ranked = [int(k) for k in np.argsort(scores, kind="stable") if int(k) in here - gone]
        keep_for = {first for _, first in merge}
        ranked = [k for k in ranked if k not in keep_for] + [k for k in ranked if k in keep_for]
        gone |= set(ranked[: count - len(gone)])
    return fold, merge, gone


def _notes(checkpoint: Checkpoint, analysis: Analysis, edits: list[SpaceEdit]) -> list[str]:
    """What is said of second moments, which only proportional gradients determine, and of running hidden states."""
    names = [edit.space for edit in edits if edit.merged]
    states = {
        part.space for side, _, axes in analysis.ports if side == "input" for a in axes for part in units(a)
    }
    notes = []
    if checkpoint.optimizer is not None and names:
        notes.append(
            f"second moments of merged units in {_quoted(names)} are exact where their outgoing weights were"
            " proportional, else an upper bound"
        )
    if running := [name for name in names if name in states]:
        notes.append(
            f"equal for hidden states in which merged units of {_quoted(running)} are equal, as from the start"
        )
    return notes


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
