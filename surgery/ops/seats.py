"""Where the units of shuffled spaces go: old ones stay in the parts of the shuffles that they are in today.

Half of the units that a channel shuffle has put in turn goes into the next shuffle, half of that into the one after.
How many of a layer's units come how far depends on their number. A unit keeps its function if it comes exactly as far
as before: into the same parts. The places that do this are its *seats*.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from surgery.arrays import Array
from surgery.edits.axis_maps import in_turn
from surgery.errors import ArgumentError
from surgery.graph.layout import Factor, Layout, Part, Sum, Units, Weave, size, text, units
from surgery.graph.spaces import Analysis, Space

Seats = list[tuple[Array, Array]]
"""(old units, the places among the new ones that are in the same parts), for every combination of parts."""


def seats(analysis: Analysis, linked: Sequence[str], width: int) -> dict[str, Seats]:
    """The places of the units of spaces that are shuffled with each other.

    Args:
      analysis: of the graph.
      linked: names of the spaces.
      width: their new number of units, one that fits.

    Returns:
      Per space, disjoint sets of old units and of places, which cover all of them; either may be empty.
    """
    sizes = {name: analysis.by_name[name].size for name in linked}
    return _seats(_parts(analysis, linked), sizes, width)


def with_linked(analysis: Analysis, asked: Mapping[Space, int]) -> dict[Space, int]:
    """The asked widths, and the same for what is shuffled with these spaces.

    Raises:
      ArgumentError: two widths for spaces that must stay equally wide.
    """
    wanted = dict(asked)
    for space, width in asked.items():
        for name in space.linked:
            other = analysis.by_name[name]
            if wanted.setdefault(other, width) != width:
                raise ArgumentError(
                    f"'{space.name}' and '{name}' are shuffled with each other: they must stay equally wide",
                    hint="name one of them",
                )
    return wanted


def seats_of_fewer(analysis: Analysis, linked: Sequence[str], width: int) -> dict[str, Seats] | None:
    """Like `seats`, for a smaller width; None where a place has no unit to hold, or parts come out uneven."""
    parts = _parts(analysis, linked)
    if not _even(parts, dict.fromkeys(linked, width)):
        return None
    found = _seats(parts, {name: analysis.by_name[name].size for name in linked}, width)
    fits = all(len(places) <= len(old) for groups in found.values() for old, places in groups)
    return found if fits else None


def width_that_fits(analysis: Analysis, space: Space, width: int, limit: int) -> int | None:
    """The least width, from a given one on, at which all units of the spaces shuffled with one have a place."""
    fresh = all(analysis.by_name[name].no_zero is None for name in space.linked)
    parts, sizes = _parts(analysis, space.linked), dict.fromkeys(space.linked, space.size)
    for wide in range(width, min(2 * width + space.size, limit) + 1):
        if _even(parts, dict.fromkeys(sizes, wide)) and _fits(_seats(parts, sizes, wide), fresh=fresh):
            return wide
    return None


def _even(parts: Sequence[Part], sizes: Mapping[str, int]) -> bool:
    return all(size(part.whole, sizes) % part.count == 0 for part in parts)


def _fits(found: Mapping[str, Seats], *, fresh: bool) -> bool:
    """Whether every old unit has a place, and every place something to hold, if need be a fresh unit."""
    return all(
        len(places) >= len(old) and (fresh or len(old) or not len(places))
        for groups in found.values()
        for old, places in groups
    )


def _seats(parts: Sequence[Part], sizes: Mapping[str, int], width: int) -> dict[str, Seats]:
    before = _membership(parts, sizes)
    after = _membership(parts, dict.fromkeys(sizes, width))
    return {name: _grouped(before[name], after[name]) for name in sizes}


def _parts(analysis: Analysis, linked: Sequence[str]) -> list[Part]:
    """All parts of shuffles in which these spaces are, each once."""
    axes = [axis for axes in analysis.tensors.values() for axis in axes]
    for node in analysis.model.graph:
        for value in node.outputs:
            axes += [analysis.layout(axis) for axis in analysis.trace.described(value) or ()]
    found: dict[str, Part] = {}
    for axis in axes:
        for part in _walk(axis):
            if any(unit.space in linked for unit in units((part,))):
                found.setdefault(text((part,)), part)
    return list(found.values())


def _walk(axis: Layout) -> Iterator[Part]:
    for factor in axis:
        if isinstance(factor, Part):
            yield factor
            yield from _walk(factor.whole)
        elif isinstance(factor, Sum | Weave):
            for inner in factor.parts:
                yield from _walk(inner)


def _membership(parts: Sequence[Part], sizes: Mapping[str, int]) -> dict[str, Array]:
    """Per space which unit is in which part, shape (units, parts)."""
    member = {name: np.zeros((count, len(parts)), bool) for name, count in sizes.items()}
    names = list(sizes)
    for k, part in enumerate(parts):
        space, unit = _content((part,), names, sizes)
        for n, name in enumerate(names):
            member[name][unit[space == n], k] = True
    return member


def _content(axis: Layout, names: Sequence[str], sizes: Mapping[str, int]) -> tuple[Array, Array]:
    """The space and the unit of every element, shape (size,) each; space -1 for an element of another one."""
    space, unit = np.full(1, -1), np.zeros(1, np.int64)
    for factor in axis:
        own, index = _content_of(factor, names, sizes)
        space = np.where(own >= 0, own, space[:, None]).reshape(-1)
        unit = np.where(own >= 0, index, unit[:, None]).reshape(-1)
    return space, unit


def _content_of(factor: Factor, names: Sequence[str], sizes: Mapping[str, int]) -> tuple[Array, Array]:
    match factor:
        case Units() if factor.space in sizes:
            count = sizes[factor.space]
            return np.full(count, names.index(factor.space)), np.arange(count)
        case Sum() | Weave():
            columns = zip(*(_content(part, names, sizes) for part in factor.parts), strict=True)
            space, unit = (np.concatenate(column) for column in columns)
            if isinstance(factor, Sum):
                return space, unit
            return in_turn(space, len(factor.parts)), in_turn(unit, len(factor.parts))
        case Part():
            space, unit = _content(factor.whole, names, sizes)
            count = len(space) // factor.count
            here = slice(factor.index * count, (factor.index + 1) * count)
            return space[here], unit[here]
        case _:
            count = factor if isinstance(factor, int) else factor.size
            return np.full(count, -1), np.zeros(count, np.int64)


def _grouped(before: Array, after: Array) -> Seats:
    rows, kind = np.unique(np.concatenate([before, after]), axis=0, return_inverse=True)
    old, new = np.split(kind.reshape(-1), [len(before)])
    return [(np.flatnonzero(old == k), np.flatnonzero(new == k)) for k in range(len(rows))]
