"""The axis of an input that counts its features: one after the other, in parts, or in rows and columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from surgery.arrays import Array
from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph.layout import Factor, Sum, Units
from surgery.graph.layout import size as layout_size
from surgery.graph.singles import held
from surgery.graph.spaces import Analysis, Space
from surgery.interface import Interface

LARGEST = float(np.finfo(np.float32).max)
"""That a constant or a bias may be."""


def arranged(space: Space, order: Sequence[int | None], constants: Mapping[int, float]) -> SpaceEdit:
    """The edit that gives a space another order.

    Args:
      order: for every place the old unit that stands there; None for a new one, which borrows the scales of the last
        old unit before it.
      constants: old unit -> value, of those that go.

    Raises:
      ArgumentError: a value that float32 does not hold.
    """
    if wrong := [value for value in constants.values() if not abs(value) <= LARGEST]:
        raise ArgumentError(
            f"no feature of '{space.name}' can be retired at {wrong[0]}",
            hint="a finite number that float32 holds",
        )
    source, last = [], next((k for k in order if k is not None), 0)
    for unit in order:
        last = last if unit is None else unit
        source.append(last)
    fresh = frozenset(place for place, unit in enumerate(order) if unit is None)
    folded: tuple[tuple[int, float | None], ...] = tuple(sorted(constants.items()))
    return SpaceEdit(space.name, space.size, tuple(source), fresh, folded=folded)


@dataclass(frozen=True)
class InputAxis:
    """The axis of an input that counts its features.

    Attributes:
      input: name of the graph's input.
      parts: the parts that the network reads apart from one another (x[:, :4], x[:, 4:]), in order; as a rule there is
        one. A part that it reads as a table (3 rows of 4) has several factors, outermost first; a factor is the space
        of its units, None where these cannot change, and how many they are.
    """

    input: str
    parts: tuple[tuple[tuple[Space | None, int], ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Number of features of each part."""
        return [math.prod(size for _, size in part) for part in self.parts]

    @property
    def size(self) -> int:
        """Number of features."""
        return sum(self.sizes)

    @property
    def ranges(self) -> list[range]:
        """Which features each part has."""
        return [range(*pair) for pair in pairwise(accumulate(self.sizes, initial=0))]

    @property
    def spaces(self) -> list[Space]:
        """Those of its units that can be named, each once."""
        found = [space for part in self.parts for space, _ in part if space is not None]
        return list({space.name: space for space in found}.values())

    @property
    def table(self) -> bool:
        """Whether one feature more would be several numbers more."""
        return any(len(part) > 1 for part in self.parts) or len(self.spaces) < len(
            [space for part in self.parts for space, _ in part if space is not None]
        )

    def places(self, space: Space | None) -> list[list[int]]:
        """For every unit of a space the features that belong to it; every feature by itself if it is None."""
        if space is None:
            return [[k] for k in range(self.size)]
        found: list[list[int]] = [[] for _ in range(space.size)]
        for part, mine in zip(self.parts, self.ranges, strict=True):
            grid = np.array(mine).reshape([size for _, size in part])
            for k, (own, _) in enumerate(part):
                if own is space:
                    for unit in range(space.size):
                        found[unit] += [int(n) for n in grid.take(unit, k).reshape(-1)]
        return found

    def followed(self, edit: SpaceEdit) -> list[int | None]:
        """The features in their order after the edit of one space, None for new ones."""
        order: list[int | None] = []
        for part, mine in zip(self.parts, self.ranges, strict=True):
            grid: Array = np.array(mine).reshape([size for _, size in part])
            for k, (own, _) in enumerate(part):
                if own is not None and own.name == edit.space:
                    fresh = edit.is_fresh.reshape([-1 if at == k else 1 for at in range(grid.ndim)])
                    grid = np.where(fresh, -1, grid.take(edit.source, k))
            order += [None if n < 0 else int(n) for n in grid.reshape(-1)]
        return order

    def inner(self, space: Space) -> int:
        """How many features beside one another belong to a unit of a space."""
        sizes = [
            [n for _, n in part[k + 1 :]]
            for part in self.parts
            for k, (own, _) in enumerate(part)
            if own is space
        ]
        return math.prod(sizes[0])

    def names(self, interface: Interface, space: Space | None) -> list[str]:
        """The labels of the units of a space, or of all features; numbers where there are none."""
        labels = interface.input(self.input).labels
        places = self.places(space)
        if labels is None or len(labels) != self.size or any(len(own) != 1 for own in places):
            return [str(k) for k in range(len(places))]
        return [labels[own[0]] for own in places]

    def edits(
        self, order: Sequence[int | None], constants: Mapping[int, float] | None = None
    ) -> list[SpaceEdit]:
        """What gives the features another order; see `arranged`.

        Raises:
          ArgumentError: a new feature between two parts, or none that stays in a part.
          Refused: a feature that would move from one part to another, or a part that cannot change.
        """
        place_of = [k for k, mine in enumerate(self.ranges) for _ in mine]
        rows: list[list[int | None]] = [[] for _ in self.parts]
        at = 0
        for place, unit in enumerate(order):
            to = self._receiving(order, place, place_of) if unit is None else place_of[unit]
            if to < at:
                raise Refused(f"the features of '{self.input}' would move between {self._described()}")
            at = to
            rows[at].append(unit)
        found: dict[str, SpaceEdit] = {}
        still = set[str]()
        for part, row, mine in zip(self.parts, rows, self.ranges, strict=True):
            if row == list(mine):
                still |= {space.name for space, _ in part if space is not None}
                continue
            held = {mine.index(k): value for k, value in (constants or {}).items() if k in mine}
            for edit in self._part_edits(
                part, [None if k is None else mine.index(k) for k in row], held, mine
            ):
                if found.setdefault(edit.space, edit) != edit:
                    raise Refused(self._several(edit.space))
        for space in still & set(found):
            raise Refused(self._several(space))
        return list(found.values())

    def ambiguous(self) -> ArgumentError:
        """What to say where only a space can be named."""
        return ArgumentError(
            f"the features of '{self.input}' stand in {self._described()}: one more of what?",
            hint=f"name it: {self._ways('--observation ', '+1')}",
        )

    def notes(self, edits: Sequence[SpaceEdit]) -> list[str]:
        """What the change of a table means for the input."""
        found = []
        for edit in edits:
            new = [k for k, unit in enumerate(self.followed(edit)) if unit is None]
            places = ", ".join(str(k) for k in new[:8]) + (", …" if len(new) > 8 else "")
            found.append(
                f"{edit.space} {edit.before} → {edit.after} of {self._described()}: "
                f"'{self.input}' {self.size} → {self.size + len(new)}, new at {places}"
            )
        return found

    def _part_edits(
        self,
        part: tuple[tuple[Space | None, int], ...],
        row: list[int | None],
        constants: Mapping[int, float],
        mine: range,
    ) -> list[SpaceEdit]:
        """The edits of the factors of one part whose features come into another order."""
        if len(part) == 1:
            orders: list[list[int | None]] | None = [row]
        else:
            orders = _as_table(row, [size for _, size in part])
        if orders is None:
            raise Refused(
                f"the features of '{self.input}' stand in {self._described()}: what changes in one row changes in "
                "all of them",
                hint=f"name what changes: {self._ways()}",
            )
        found = []
        for k, ((space, size), order) in enumerate(zip(part, orders, strict=True)):
            if order == list(range(size)):
                continue
            if space is None or all(unit is None for unit in order):
                which = (
                    f"feature {mine.start}" if len(mine) == 1 else f"features {mine.start} to {mine.stop - 1}"
                )
                raise Refused(f"'{self.input}' keeps {which}: the network reads that part separately")
            gone = [unit for unit in range(size) if unit not in order] if constants else []
            held = {unit: self._constant(part, k, unit, constants) for unit in gone}
            found.append(arranged(_free(space), order, held))
        return found

    def _constant(
        self, part: tuple[tuple[Space | None, int], ...], k: int, unit: int, constants: Mapping[int, float]
    ) -> float:
        """What a unit that goes holds, the same in every row."""
        places = np.arange(math.prod(size for _, size in part)).reshape([size for _, size in part])
        values = {constants[int(n)] for n in places.take(unit, k).reshape(-1)}
        if len(values) > 1:
            raise Refused(
                f"features of '{self.input}' that are retired together have {len(values)} different constants",
                hint="give them one constant: pad absent rows with zeros, for example",
            )
        return values.pop()

    def _receiving(self, order: Sequence[int | None], place: int, place_of: Sequence[int]) -> int:
        """The part that a new feature belongs to."""
        before = [place_of[unit] for unit in order[:place] if unit is not None][-1:]
        after = [place_of[unit] for unit in order[place:] if unit is not None][:1]
        sides = sorted({*before, *after})
        if len(sides) > 1:
            raise ArgumentError(
                f"a new feature at {place} of '{self.input}' stands between {self._described()}",
                hint="name the part that it belongs to: --observation PART+K[@AT]",
            )
        return sides[0]

    def _described(self) -> str:
        """`parts that the network reads apart: x[1][0] (0 to 3), …` or `a table, x[1][0] · x[1][1] (3 · 4)`"""
        parts = []
        for part, mine in zip(self.parts, self.ranges, strict=True):
            names = " · ".join("a fixed one" if space is None else space.name for space, _ in part)
            shape = " · ".join(str(size) for _, size in part)
            parts.append(f"{names} ({shape if len(part) > 1 else f'{mine.start} to {mine.stop - 1}'})")
        return (
            f"parts that the network reads apart: {', '.join(parts)}"
            if len(parts) > 1
            else f"a table, {parts[0]}"
        )

    def _ways(self, before: str = "", after: str = "") -> str:
        """`x[1][1] (4, each of them 3 numbers)`, by commas."""
        each = [(space, len(self.places(space)[0])) for space in self.spaces]
        return ", ".join(
            f"{before}{space.name}{after} ({space.size}, each of them {n} number{'s' if n > 1 else ''})"
            for space, n in each
        )

    def _several(self, space: str) -> str:
        return (
            f"'{space}' cannot change in one place alone: its features stand several times in '{self.input}'"
        )


def _as_table(row: Sequence[int | None], sizes: Sequence[int]) -> list[list[int | None]] | None:
    """The orders of rows and columns that give the elements of a table this order; None if there are none.

    Args:
      row: for every new element, row by row, the old one that stands there, or None.
      sizes: of the table, outermost first.
    """
    known = [np.unravel_index(unit, tuple(sizes)) for unit in row if unit is not None]
    counts = [len({int(at[k]) for at in known}) for k in range(len(sizes))]
    for shape in _shapes(len(row), counts):
        orders: list[list[int | None]] = [[None] * n for n in shape]
        for place, unit in zip(np.ndindex(*shape), row, strict=True):
            for k, n in enumerate(() if unit is None else np.unravel_index(unit, tuple(sizes))):
                orders[k][place[k]] = int(n)
        rows = (tuple(n for n in at if n is not None) for at in itertools.product(*orders))
        grid = [int(np.ravel_multi_index(at, tuple(sizes))) if len(at) == len(sizes) else None for at in rows]
        if grid == list(row):
            return orders
    return None


def _shapes(total: int, least: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The shapes of so many elements with at least so many along each axis."""
    if len(least) == 1:
        yield from [(total,)] if total >= least[0] else []
        return
    for n in range(max(1, least[0]), total + 1):
        if total % n == 0:
            yield from ((n, *rest) for rest in _shapes(total // n, least[1:]))


def input_axis(analysis: Analysis, wanted: str) -> tuple[InputAxis, Space | None]:
    """The axis of an input that a request means, and which of its units, if it names them.

    Raises:
      UnknownName: no such input, axis or part. ArgumentError: an input with several axes of features.
      Refused: an axis that cannot be followed, or is mixed in a way that a change would show.
    """
    by_name = {space.name: space for space in analysis.spaces if "input" in space.kinds}
    ports = [name for side, name, _ in analysis.ports if side == "input"]
    for name in ports:
        found = _axes(analysis, name, by_name)
        for k, axis in found.items():
            for space in axis.spaces:
                if wanted == space.name:
                    return axis, _free(space)
            if wanted == f"{name}[{k}]":
                return _checked(axis), None
        meant = [axis for axis in found.values() if axis.size > 1] or list(found.values())
        if wanted == name and len(meant) == 1:
            return _checked(meant[0]), None
        if wanted == name and not found:
            raise _one_feature(analysis, name) or Refused(
                f"no axis of input '{name}' has features that could come, go or change places",
                hint="surgery inspect shows what each of its axes is, and why it is fixed",
            )
        if wanted == name:
            names = [axis.spaces[0].name if not axis.table else f"{name}[{k}]" for k, axis in found.items()]
            raise ArgumentError(
                f"input '{name}' has several axes of features", hint="name one of them: " + ", ".join(names)
            )
    if why := _one_feature(analysis, wanted):
        raise why
    if wanted in by_name:
        raise Refused(f"'{wanted}' cannot change by itself: its features stand several times in the input")
    raise UnknownName("input", wanted, [*ports, *by_name])


def _one_feature(analysis: Analysis, wanted: str) -> Refused | None:
    """Why the only feature of an input, or of one axis of it, stays alone; None if that is not why."""
    for side, name, axes in analysis.trace.ports:
        meant = axes if wanted == name else [a for k, a in enumerate(axes) if wanted == f"{name}[{k}]"]
        if side == "input" and (why := held(meant)) is not None:
            return Refused(
                f"'{wanted}' is one feature, and stays so: {why}",
                hint="teach a network that sees more: surgery distill",
            )
    return None


def input_space(analysis: Analysis, wanted: str) -> tuple[str, Space]:
    """The input and the one space of its features that a request means; errors are those of `input_axis`."""
    axis, _ = input_axis(analysis, wanted)
    space = axis.parts[0][0][0]
    if space is None or axis.table or len(axis.parts) > 1:
        raise Refused(f"the features of '{axis.input}' stand in {axis._described()}")
    return axis.input, space


def _axes(analysis: Analysis, name: str, by_name: Mapping[str, Space]) -> dict[int, InputAxis]:
    """The axes of an input that count features which can be followed, by number."""
    found: dict[int, InputAxis] = {}
    for k, layout in enumerate(
        next(axes for side, port, axes in analysis.ports if (side, port) == ("input", name))
    ):
        whole = layout[0] if len(layout) == 1 else None
        rows = whole.parts if isinstance(whole, Sum) else (layout,)
        axis = InputAxis(name, tuple(tuple(_factor(factor, by_name) for factor in row) for row in rows))
        if axis.spaces:
            found[k] = axis
    return found


def _factor(factor: Factor, by_name: Mapping[str, Space]) -> tuple[Space | None, int]:
    return by_name.get(factor.space) if isinstance(factor, Units) else None, layout_size((factor,))


def _checked(axis: InputAxis) -> InputAxis:
    if len(axis.spaces) == 1 and len(axis.parts) == 1:
        _free(axis.spaces[0])
    return axis


def _free(space: Space) -> Space:
    """Only its being an input may keep the space from changing."""
    if why := space.beside("input") or space.no_zero:
        raise Refused(f"'{space.name}' cannot change exactly: {why}")
    return space
