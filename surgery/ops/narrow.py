"""Narrow: fewer units; unread, constant and duplicated ones go exactly, others by importance."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.edits.copies import related
from surgery.edits.plan import Plan
from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused
from surgery.graph.layout import units
from surgery.graph.spaces import Analysis, Space
from surgery.ops.build import build
from surgery.ops.importance import Score, importance
from surgery.ops.seats import Seats, seats_of_fewer, with_linked
from surgery.ops.spare import Spare, bounds_of, spares

Found = dict[str, Spare]


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
      widths: space -> new number of units, of what can go exactly the newest goes first; None removes all that can,
        everywhere.
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
    if not wanted:  # a copy follows its original
        families = {name: family for name, family in families.items() if family[0].name == name}
    groups = _groups(analysis, [analysis.by_name[name] for name in families])
    find = partial(spares, checkpoint, analysis, families, bounds_of(checkpoint, analysis, families))
    if wanted:
        places = dict(ChainMap(*(_places(analysis, group, wanted[group[0]]) for group in groups)))
        found = find(places)
    else:
        places, found = _fewest(analysis, groups, find)
    edits, changed = list[SpaceEdit](), False
    for group in groups:
        for space in group:
            own, seats, scores = found[space.name], places[space.name], None
            if not own.suffices(seats):
                if by is None:
                    raise _too_few(space, seats, own, _least(analysis, group, found))
                scores = importance(checkpoint, analysis, space, by, observations=observations, seed=seed)
                changed = True
            if _count(seats) < space.size:
                edits.append(_edit(space, seats, own, scores))
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


def _groups(analysis: Analysis, spaces: Sequence[Space]) -> list[list[Space]]:
    """Spaces that must stay equally wide, because they are shuffled with each other; each one in one group."""
    names = dict.fromkeys(space.linked or (space.name,) for space in spaces)
    return [[analysis.by_name[name] for name in group] for group in names]


def _places(analysis: Analysis, group: Sequence[Space], goal: int) -> dict[str, Seats]:
    """Where the units that stay are afterwards: (old units, places) for units that can take each other's place."""
    if not group[0].linked:
        return {group[0].name: [(np.arange(group[0].size), np.arange(goal))]}
    names = [space.name for space in group]
    found = seats_of_fewer(analysis, names, goal)
    if found is None:
        widths = (n for k in range(1, group[0].size) for n in (goal - k, goal + k) if 0 < n < group[0].size)
        other = next((n for n in widths if seats_of_fewer(analysis, names, n) is not None), None)
        raise Refused(
            f"space '{group[0].name}' cannot go to {goal}: some of its units would move to another part of a "
            "channel shuffle",
            hint=None if other is None else f"the nearest width at which none does: {other}",
        )
    return found


def _count(seats: Seats) -> int:
    """How many units there are afterwards."""
    return sum(len(new) for _, new in seats)


def _fewest(
    analysis: Analysis, groups: Sequence[Sequence[Space]], find: Callable[[Mapping[str, Seats]], Found]
) -> tuple[dict[str, Seats], Found]:
    """Where the units that stay are if all go that can, and what those are.

    Of shuffled ones those go that find no place, and so what they read: their number is found step by step.
    """
    found, places = find({}), dict[str, Seats]()
    left = shuffled = [group for group in groups if group[0].linked]
    while left:
        for group in left:
            tried = _count(places.get(group[0].name, []))
            places |= _places(analysis, group, _least(analysis, group, found, tried + 1))
        found = find(places)
        left = [g for g in shuffled if not all(found[space.name].suffices(places[space.name]) for space in g)]
    for group in (group for group in groups if not group[0].linked):
        places |= _places(analysis, group, _least(analysis, group, found))
    return places, found


def _least(analysis: Analysis, group: Sequence[Space], found: Found, least: int = 1) -> int:
    """The fewest units, but not fewer than some, to which spaces can go exactly."""
    least = max(least, group[0].size - min(found[space.name].count for space in group))
    if not group[0].linked:
        return least
    for goal in range(least, group[0].size):
        places = seats_of_fewer(analysis, [space.name for space in group], goal)
        if places is not None and all(found[name].suffices(seats) for name, seats in places.items()):
            return goal
    return group[0].size


def _too_few(space: Space, seats: Seats, own: Spare, least: int) -> Refused:
    why = space.whole or (space.no_zero if own.count == 0 else None)
    if space.alike:
        why = f"{why}, with those of {_quoted(space.alike)}, which must lose the same share"
    return Refused(
        f"space '{space.name}' cannot go to {_count(seats)} exactly: of its {space.size} units {own}"
        + (f"; {why}" if why else ""),
        hint=(f"{least} is exact; for fewer, " if least < space.size else "")
        + f"remove units by importance: surgery narrow MODEL --width {space.name}={_count(seats)} --by l2",
    )


def _family(checkpoint: Checkpoint, analysis: Analysis, space: Space) -> list[Space]:
    """A space and the spaces of target and averaged networks that are edited with it, the original first."""
    return [analysis.by_name[name] for name in related([space.name], analysis, checkpoint.copies)]


def _edit(space: Space, places: Seats, own: Spare, scores: Array | None) -> SpaceEdit:
    """What can go exactly goes first, the newest of it, then what has the smallest score."""
    goal = _count(places)
    if space.whole is not None and own.merged and scores is None and space.size - goal != len(own.merged):
        raise Refused(
            f"space '{space.name}' cannot go to {goal} exactly: {space.whole}",
            hint=f"its duplicates go together: {space.size - len(own.merged)}",
        )
    source, fold, merge = np.zeros(goal, np.int64), list[int](), list[tuple[int, int]]()
    for old, new in places:
        count = len(old) - len(new)
        drop, merged, folded = own.within(old).chosen(count)
        gone = {*drop, *folded, *(k for k, _ in merged)}
        if scores is not None:
            gone |= _least_important(old, scores, gone, {first for _, first in merged}, count - len(gone))
        source[new] = [k for k in old.tolist() if k not in gone]
        fold += folded
        merge += merged
    place = {old: new for new, old in enumerate(source.tolist())}
    pairs = tuple((k, place[first]) for k, first in merge if first in place)
    return SpaceEdit(
        space.name, space.size, tuple(source.tolist()), merged=pairs, folded=tuple((k, None) for k in fold)
    )


def _least_important(units: Array, scores: Array, gone: set[int], last: set[int], count: int) -> set[int]:
    """So many of some units that are not gone yet, by their scores; what others were merged into goes last."""
    here = set(units.tolist())
    ranked = [int(k) for k in np.argsort(scores, kind="stable") if int(k) in here - gone]
    return set(sorted(ranked, key=lambda k: k in last)[:count])


def _notes(checkpoint: Checkpoint, analysis: Analysis, edits: list[SpaceEdit]) -> list[str]:
    """What is said of second moments, which only proportional gradients determine, and of running hidden states."""
    names = [edit.space for edit in edits if edit.merged]
    states = {part.space for side, _, axes in analysis.ports if side == "input" for part in units(*axes)}
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


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
