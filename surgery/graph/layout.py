"""How one axis of a tensor is made of spaces: the form in which plans store it, and in which people read it.

network.4 · 7 · 7          the NCHW flatten of a convolution
(lstm + lstm + lstm + lstm)    gates; or 4 · lstm
1/2 (left ⋈ right)         the first half of a channel shuffle
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from surgery.errors import PlanMismatch

Role = Literal["out", "in", "mean", "zero"]
"""Whether elements make the units of a space ("out") or consume them ("in"). Those that make units which a
normaliser averages start new units at the "mean" of the old ones, or at "zero"."""


@dataclass(frozen=True, slots=True)
class Units:
    """The units of one space, in one place."""

    space: str
    size: int
    role: Role

    def __str__(self) -> str:
        return self.space


@dataclass(frozen=True, slots=True)
class Sum:
    """Layouts one after the other (a concatenation)."""

    parts: tuple[Layout, ...]

    def __str__(self) -> str:
        parts = [text(part) for part in self.parts]
        if len(set(parts)) == 1 and not parts[0].isdecimal():  # the same units, with other roles
            return f"{len(parts)} · {parts[0]}"
        return f"({' + '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Weave:
    """The elements of several layouts of one size in turn (a channel shuffle)."""

    parts: tuple[Layout, ...]

    def __str__(self) -> str:
        return f"({' ⋈ '.join(text(part) for part in self.parts)})"


@dataclass(frozen=True, slots=True)
class Part:
    """One of several equal parts of a layout, whatever its size."""

    whole: Layout
    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count} {text(self.whole)}"


Factor = int | Units | Sum | Weave | Part
Layout = tuple[Factor, ...]
"""Factors from the outermost to the innermost; an integer is a group of units that keeps its size."""


def text(layout: Layout) -> str:
    """The layout as people read it."""
    return " · ".join(str(factor) for factor in layout) or "1"


def size(layout: Layout, sizes: Mapping[str, int] | None = None) -> int:
    """Number of elements along the axis, with the given spaces at new sizes."""
    total = 1
    for factor in layout:
        match factor:
            case int():
                total *= factor
            case Units():
                total *= (sizes or {}).get(factor.space, factor.size)
            case Sum() | Weave():
                total *= sum(size(part, sizes) for part in factor.parts)
            case Part():
                total *= size(factor.whole, sizes) // factor.count
    return total


def resized(layout: Layout, sizes: Mapping[str, int]) -> Layout:
    """The layout with the given spaces at new sizes."""
    out: list[Factor] = []
    for factor in layout:
        match factor:
            case int():
                out.append(factor)
            case Units():
                out.append(replace(factor, size=sizes.get(factor.space, factor.size)))
            case Sum() | Weave():
                out.append(replace(factor, parts=tuple(resized(part, sizes) for part in factor.parts)))
            case Part():
                out.append(replace(factor, whole=resized(factor.whole, sizes)))
    return tuple(out)


def units(*layouts: Layout) -> Iterator[Units]:
    """All spaces that occur in some axes, in order."""
    for factor in (factor for layout in layouts for factor in layout):
        if isinstance(factor, Units):
            yield factor
        elif isinstance(factor, Sum | Weave):
            yield from units(*factor.parts)
        elif isinstance(factor, Part):
            yield from units(factor.whole)


def simplified(factors: Sequence[Factor]) -> Layout:
    """Adjacent plain factors multiplied; factors of size 1 left out."""
    out: list[Factor] = []
    for factor in factors:
        if isinstance(factor, int) and out and isinstance(out[-1], int):
            out[-1] *= factor
        elif factor != 1:
            out.append(factor)
    return tuple(out)


def to_json(layout: Layout) -> list[Any]:
    """Plain JSON: integers, {"space", "size", "role"}, {"sum" or "weave": [layouts]}, {"part", "index", "of"}."""
    out: list[Any] = []
    for factor in layout:
        match factor:
            case int():
                out.append(factor)
            case Units():
                out.append({"space": factor.space, "size": factor.size, "role": factor.role})
            case Sum():
                out.append({"sum": [to_json(part) for part in factor.parts]})
            case Weave():
                out.append({"weave": [to_json(part) for part in factor.parts]})
            case Part():
                out.append({"part": to_json(factor.whole), "index": factor.index, "of": factor.count})
    return out


def from_json(data: object) -> Layout:
    """The inverse of `to_json`.

    Raises:
      PlanMismatch: if the data is anything else.
    """
    if not isinstance(data, list):
        raise PlanMismatch(f"an axis layout is a list, not {data!r:.60}")
    return tuple(_factor(item) for item in data)


def _factor(item: object) -> Factor:
    match item:
        case int() if _is_size(item):
            return item
        case {"space": str(space), "size": int(count), "role": "out" | "in" | "mean" | "zero" as role} if (
            _is_size(count)
        ):
            return Units(space, count, role)
        case {"sum": list(parts)} if parts:
            return Sum(tuple(from_json(part) for part in parts))
        case {"weave": list(parts)} if parts:
            woven = Weave(tuple(from_json(part) for part in parts))
            if len({size(part) for part in woven.parts}) == 1:
                return woven
        case {"part": list(whole), "index": int(index), "of": int(count)} if 0 <= index < count:
            part = Part(from_json(whole), index, count)
            if size(part.whole) % count == 0:
                return part
    raise PlanMismatch(f"not a factor of an axis layout: {item!r:.80}")


def _is_size(number: int) -> bool:
    return not isinstance(number, bool) and 0 < number < 1 << 31
