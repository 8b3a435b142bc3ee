"""Atoms: the occurrences of groups of units that axes are made of, and the classes that they belong to.

An *atom* is one occurrence of a group of units in one axis. In y = W₂ relu(W₁ x + b) the hidden units occur in the rows
of W₁, in b, in the columns of W₂, and in the results in between: atoms of one class of a union-find, as they must
change together. Splitting or cutting one of them splits or cuts all. Each occurrence keeps its own identity (its own
children when it is divided), so that the analysis can say of every *element of a parameter axis* what it does: one
fused weight may hold the rows of a query and of a key, which are edited differently.

An axis of size 1 is as a rule no group of units: broadcasting repeats it along whatever it meets, and it drops out. A
*single* is one unit all the same, such as the only action or channel, as long as it meets nothing but singles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_ir as ir

Axis = tuple["Atom", ...]
Place = tuple["Atom", int]
UNIT: Axis = ()
PORTS = frozenset({"input", "output"})
"""Kinds of reasons that say where a class stands, and not what was done with it."""
MOST_REASONS = 8
"""So many reasons of a frozen class are kept, and the first one of every kind."""


@dataclass(frozen=True, slots=True)
class Product:
    """An atom that has been read as a product: its factors, outermost first."""

    factors: list[Atom]


@dataclass(frozen=True, slots=True)
class Concatenation:
    """An atom that has been read as a sum: its segments, in order."""

    segments: list[Axis]


@dataclass(frozen=True, slots=True)
class Weave:
    """An atom whose units are those of several axes of one size in turn: a channel shuffle."""

    parts: list[Axis]

    @property
    def inside(self) -> list[Axis]:
        """The axes that it is made of."""
        return self.parts


@dataclass(frozen=True, slots=True)
class Part:
    """An atom that is one of several equal parts of a woven axis; where it ends depends on its size."""

    whole: Axis
    index: int
    count: int

    @property
    def inside(self) -> list[Axis]:
        """The axes that it is made of."""
        return [self.whole]


Children = Product | Concatenation | Weave | Part


class Mismatch(Exception):
    """Two axes that an operator equates have no common refinement."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Why a class of atoms must keep its size.

    Attributes:
      kind: "input", "output", "symbolic", "spatial", "kernel", "opaque", "mismatch", "mixer", "tied", "literal" …
      reason: one sentence that names the node or the value which caused it.
      node: that node, if it is one.
    """

    kind: str
    reason: str
    node: ir.Node | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Link:
    """How units follow from their origins, and with that what a demand that they be zero, or scaled, asks of these.

    relu(x) is zero where x is, and scaled as x is; tanh(x) is zero where x is, and no more; x + 1 is neither.

    Attributes:
      mode: whether "all" origins must be zero or scaled (x + y) or "any" one of them (x · y).
      passes: what travels back to the origins: 2 zero and positive scale (homogeneous functions), 1 only zero
        (f(0) = 0), 0 nothing.
      barrier: why not more travels back, where `passes` < 2: the node that lies in between.
      flat: the node whose slope is zero where these units are zero; None if there is none.
      linear: whether a unit at the mean of its origins' units is the mean of these units, too.
      place: where on another axis of the operand these units were taken from, if one place of it was chosen: the
        factor that this axis is, and the index. What is asked of them is asked of that place alone.
      shared: that others read these units, too, in words; a scale passes if all of them expect it. None if they do not.
    """

    mode: Literal["all", "any"] = "all"
    passes: int = 2
    barrier: str | None = None
    flat: str | None = None
    linear: bool = True
    place: Place | None = None
    shared: str | None = None


class Atom:
    """One occurrence of a group of units in an axis.

    Attributes:
      size: number of units.
      tensor: the parameter or constant in which this occurrence stands, if it does.
      origins: the occurrences in the operands that these units were computed from.
      link: how they were.
      single: whether this is an axis of size 1 that may become longer.
      parent: towards the representative of its class.
      children: how it is divided, if it is.
      reasons: why its class is frozen; they count in the representative alone.
    """

    __slots__ = ("children", "link", "origins", "parent", "reasons", "single", "size", "tensor")

    def __init__(self, size: int, *, tensor: str | None = None, single: bool = False) -> None:
        self.size = size
        self.tensor = tensor
        self.single = single
        self.origins: tuple[Atom, ...] = ()
        self.link = Link()
        self.parent: Atom | None = None
        self.children: Children | None = None
        self.reasons: list[Freeze] = []

    def __repr__(self) -> str:
        return f"Atom({self.size}{', ' + self.tensor if self.tensor else ''})"

    @property
    def frozen(self) -> list[Freeze]:
        """The reasons for which the whole class is frozen; empty if it is free."""
        return find(self).reasons

    @property
    def dropped(self) -> bool:
        """Whether this is one unit that is none to follow: it may be repeated, or its class is frozen."""
        return self.size == 1 and not (self.single and all(why.kind in PORTS for why in self.frozen))

    @property
    def segments(self) -> list[Axis] | None:
        """The ordered summands of a concatenation, or None for a plain group of units."""
        expand(self)
        return self.children.segments if isinstance(self.children, Concatenation) else None

    @property
    def woven(self) -> list[Axis] | None:
        """The axes behind a weave or a part of one, or None for anything else."""
        expand(self)
        return self.children.inside if isinstance(self.children, Weave | Part) else None


def find(atom: Atom) -> Atom:
    """The representative of the atom's class."""
    root = atom
    while root.parent is not None:
        root = root.parent
    while atom.parent is not None and atom.parent is not root:
        atom.parent, atom = root, atom.parent
    return root


def size_of(axis: Axis) -> int:
    """Number of elements along an axis."""
    return math.prod(atom.size for atom in axis)


def _like(atom: Atom, template: Axis, origin_axes: Sequence[Axis]) -> Axis:
    """New occurrences for `atom` in the shape of `template`, each united with its counterpart there."""
    made = []
    for k, other in enumerate(template):
        child = Atom(other.size, tensor=atom.tensor, single=other.single)
        child.origins = tuple(axis[k] for axis in origin_axes) or atom.origins
        child.link, child.parent = atom.link, find(other)
        made.append(child)
    return tuple(made)


def expand(atom: Atom) -> None:
    """Give an occurrence children of its own once its class has been divided (its origins first)."""
    pending = [atom] if _behind(atom) else []
    while pending:
        top = pending[-1]
        waiting = [origin for origin in top.origins if _behind(origin)] if top.children is None else []
        if waiting:
            pending.extend(waiting)
            continue
        pending.pop()
        if top.children is None:
            _divide(top, find(top))


def _behind(atom: Atom) -> bool:
    """Whether the class of an undivided occurrence has been divided (origins can be of other classes)."""
    root = find(atom)
    return atom.children is None and root is not atom and root.children is not None


def _divide(atom: Atom, root: Atom) -> None:
    """Mirror the division of the class in one of its occurrences."""
    aligned = [origin.children for origin in atom.origins if _parallel(origin.children, root.children)]
    if len(aligned) != len(atom.origins):
        # operands divided in another way: keep the links, but nothing is passed back through them
        aligned, atom.origins = [], tuple(leaves(atom.origins))
        barrier = atom.link.barrier or "its operands are grouped in different ways"
        atom.link = replace(atom.link, passes=0, linear=False, barrier=barrier)
    if isinstance(root.children, Product):
        rows = [_kept(part.factors) for part in aligned if isinstance(part, Product)]
        atom.children = Product(list(_like(atom, _kept(root.children.factors), rows)))
    elif isinstance(root.children, Concatenation):
        sums = [part.segments for part in aligned if isinstance(part, Concatenation)]
        atom.children = Concatenation(
            [
                _like(atom, _kept(segment), [_kept(part[k]) for part in sums])
                for k, segment in enumerate(root.children.segments)
            ]
        )
    elif root.children is not None:
        wovens = [part.inside for part in aligned if isinstance(part, Weave | Part)]
        made = [
            _like(atom, _kept(axis), [_kept(part[k]) for part in wovens])
            for k, axis in enumerate(root.children.inside)
        ]
        atom.children = replaced(root.children, made)


def replaced(children: Weave | Part, inside: list[Axis]) -> Weave | Part:
    """The same weave, or part of one, of other axes."""
    if isinstance(children, Weave):
        return Weave(inside)
    return Part(inside[0], children.index, children.count)


def _kept(axis: Sequence[Atom]) -> Axis:
    """The axis without singles that are none any more."""
    return tuple(atom for atom in axis if not (atom.single and atom.dropped))


def _sizes(axis: Sequence[Atom]) -> list[int]:
    return [atom.size for atom in _kept(axis)]


def _parallel(left: Children | None, right: Children | None) -> bool:
    """Whether two occurrences of one class are divided in the same way at the top level."""
    if isinstance(left, Product) and isinstance(right, Product):
        return _sizes(left.factors) == _sizes(right.factors)
    if isinstance(left, Concatenation) and isinstance(right, Concatenation):
        one, other = ([_sizes(segment) for segment in part.segments] for part in (left, right))
        return one == other
    return same_weave(left, right) and all(
        _sizes(one) == _sizes(other)
        for one, other in zip(left.inside, right.inside, strict=True)  # type: ignore[union-attr]
    )


def same_weave(left: Children | None, right: Children | None) -> bool:
    """Whether two divisions are weaves of equally many axes, or the same part of one."""
    if isinstance(left, Weave) and isinstance(right, Weave):
        return len(left.parts) == len(right.parts)
    if isinstance(left, Part) and isinstance(right, Part):
        return (left.index, left.count) == (right.index, right.count)
    return False


def factors(axis: Axis) -> list[Atom]:
    """The axis as a flat list of factors (free atoms, concatenations, weaves); of size 1 singles alone."""
    out: list[Atom] = []
    stack = list(reversed(axis))
    while stack:
        atom = stack.pop()
        if atom.dropped:
            continue
        expand(atom)
        if atom.children is None:
            out.append(atom)
        elif isinstance(atom.children, Product):
            stack.extend(reversed(atom.children.factors))
        elif isinstance(atom.children, Weave | Part):
            out.append(atom)
        else:
            segments = [segment for segment in atom.children.segments if size_of(segment)]
            if len(segments) == 1:
                stack.extend(reversed(segments[0]))
            else:
                out.append(atom)
    return out


def summands(atom: Atom) -> list[list[Atom]]:
    """The factor lists of a concatenation's segments, nested concatenations flattened."""
    out: list[list[Atom]] = []
    for segment in atom.segments or []:
        if size_of(segment) == 0:
            continue
        inner = factors(segment)
        if len(inner) == 1 and inner[0].segments is not None:
            out.extend(summands(inner[0]))
        else:
            out.append(inner)
    return out


def spans(atom: Atom) -> Iterator[tuple[Axis, range]]:
    """The segments of a concatenation with the numbers of their units; anything else is one segment."""
    start = 0
    for part in summands(atom) or [[atom]]:
        axis = tuple(part)
        yield axis, range(start, start + size_of(axis))
        start += size_of(axis)


def leaves(*axes: Axis) -> Iterator[Atom]:
    """All undivided occurrences of some axes, in order, those inside concatenations and weaves included."""
    for factor in (factor for axis in axes for factor in factors(axis)):
        if factor.segments is None and factor.woven is None:
            yield factor
        yield from leaves(*map(tuple, summands(factor)), *(factor.woven or []))


def occurs(root: Atom, atom: Atom) -> bool:
    """Whether an atom is made of units of a class, among others."""
    pending, seen = [atom], set[Atom]()
    while pending:
        top = pending.pop()
        expand(top)
        for inner in (part for axis in _inside(top.children) for part in axis):
            own = find(inner)
            if own is root:
                return True
            if own not in seen:
                seen.add(own)
                pending.append(inner)
    return False


def _inside(children: Children | None) -> list[Axis]:
    match children:
        case Product():
            return [tuple(children.factors)]
        case Concatenation():
            return children.segments
        case Weave() | Part():
            return children.inside
    return []


def freeze(axis: Axis, why: Freeze) -> None:
    """Freeze every class that occurs in the axis."""
    for leaf in leaves(axis):
        reasons = find(leaf).reasons
        new = all(why.kind != other.kind for other in reasons)
        if why not in reasons and (new or len(reasons) < MOST_REASONS):
            reasons.append(why)


def concat(axes: Sequence[Axis]) -> Axis:
    """The ordered sum of axes."""
    parts = [axis for axis in axes if size_of(axis)]
    if len(parts) == 1:
        return parts[0]
    atom = Atom(sum(size_of(axis) for axis in parts))
    atom.children = Concatenation(parts)
    return (atom,)


def weave(axes: Sequence[Axis]) -> Axis:
    """The units of several axes of one size in turn: a₁ b₁ a₂ b₂ …"""
    atom = Atom(sum(size_of(axis) for axis in axes))
    atom.children = Weave(list(axes))
    return (atom,)
