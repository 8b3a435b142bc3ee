"""From the sizes of tensors to the widths of spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgery.graph.layout import Layout, size, units
from surgery.graph.spaces import Analysis

Axis = tuple[Layout, int]
"""The layout of an axis, and how many elements it shall have."""


def widths(analysis: Analysis, axes: Sequence[Axis]) -> dict[str, int] | str:
    """The widths of the spaces in some axes that give these axes the sizes wanted.

    An axis may hold a space several times (gates), or with others (groups, heads); it is solved for the one of its
    spaces that can grow and is not known from another axis.

    Returns:
      Space -> its new width, of those that change; or why there are none.
    """
    found: dict[str, int] = {}
    for _ in range(len(axes)):
        before = len(found)
        for layout, wanted in axes:
            if size(layout, found) != wanted:
                _solve(analysis, layout, wanted, found)
        if len(found) == before:
            break
    for layout, wanted in axes:
        have = size(layout, found)
        if have != wanted:
            return _why(analysis, layout, wanted)
    return found


def _solve(analysis: Analysis, layout: Layout, wanted: int, found: dict[str, int]) -> None:
    """Find the one unknown space of an axis; its size is linear in that."""
    free = {
        part.space: part.size
        for part in units(layout)
        if _grows(analysis, part.space) and part.space not in found
    }
    if len(free) != 1:
        return
    ((space, now),) = free.items()
    base, step = size(layout, {**found, space: now}), size(layout, {**found, space: now + 1})
    more, rest = divmod(wanted - base, step - base)
    if more > 0 and not rest:
        found[space] = now + more


def _grows(analysis: Analysis, space: str) -> bool:
    return analysis.space(space).widenable


def _why(analysis: Analysis, layout: Layout, wanted: int) -> str:
    have, spaces = size(layout), list(dict.fromkeys(part.space for part in units(layout)))
    if wanted < have:
        return f"the target has {wanted} units, fewer than {have}"
    if have == 1:
        return "a single unit is not an axis that can grow"
    frozen = [space for space in map(analysis.space, spaces) if not space.widenable]
    if frozen and len(frozen) == len(spaces):
        return f"'{frozen[0].name}' cannot grow exactly: {frozen[0].reason}"
    if len(spaces) > 1:
        return (
            f"{have} units are made of several groups ({', '.join(spaces)}): which of them grow to {wanted}?"
        )
    return f"no width of '{spaces[0]}' gives {wanted} units" if spaces else f"{have} is not a number of units"


def whole(analysis: Analysis, found: Mapping[str, int]) -> str | None:
    """Why widths break a rule of their space that it grows by whole multiples only; None if they keep it."""
    for name, width in found.items():
        space = analysis.space(name)
        if space.whole and width % space.size:
            return f"'{name}' grows by whole multiples only: {space.whole}"
    return None
