"""The algebra of axes: every axis is a product of factors, and a factor is an atom or an ordered sum of axes.

    NCHW flatten          c · h · w                 NHWC flatten     h · w · c
    LSTM gates            4 · H                     fused q, k, v    3 · heads · d
    concatenation         a + b + c                 C51 head         actions · 51

An *atom* is one occurrence of a group of units in one axis. Occurrences that must change together belong to one
class of a union-find; splitting or cutting one of them splits or cuts all. Each occurrence keeps its own identity
(its own children when it is divided), so that the analysis can say of every *element of a parameter axis* what
it does: one fused weight may hold the rows of a query and of a key, which are edited differently.

Three primitives carry every operator rule: `split` (product), `cut` (sum) and `unify`; `derive` makes a new axis
whose occurrences remember the ones that they were computed from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Axis = tuple["Atom", ...]
UNIT: Axis = ()


@dataclass(frozen=True, slots=True)
class Product:
    """An atom that has been read as a product: its factors, outermost first."""

    factors: list[Atom]


@dataclass(frozen=True, slots=True)
class Concatenation:
    """An atom that has been read as a sum: its segments, in order."""

    segments: list[Axis]


class Mismatch(Exception):
    """Two axes that an operator equates have no common refinement."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Why a class of atoms must keep its size.

    Attributes:
      kind: "input", "output", "symbolic", "spatial", "kernel", "opaque", "mismatch", "mixer", "tied", "literal" …
      reason: one sentence that names the node or the value which caused it.
    """

    kind: str
    reason: str


class Atom:
    """One occurrence of a group of units in an axis.

    Attributes:
      size: number of units.
      origins: the occurrences in the operands that these units were computed from.
      mode: whether scaling these units needs "all" origins scaled (a sum) or "any" one of them (a product).
      passes: what travels back from these units to their origins: 2 zero and positive scale (homogeneous
        functions), 1 only zero (f(0) = 0), 0 nothing.
      barrier: the node that stops it where `passes` < 2.
    """

    __slots__ = ("_children", "_frozen", "_parent", "barrier", "mode", "origins", "passes", "size", "tensor")

    def __init__(self, size: int, *, tensor: str | None = None) -> None:
        self.size = size
        self.tensor = tensor
        self.origins: tuple[Atom, ...] = ()
        self.mode: Literal["all", "any"] = "all"
        self.passes = 2
        self.barrier: str | None = None
        self._parent: Atom | None = None
        self._children: Product | Concatenation | None = None
        self._frozen: list[Freeze] = []

    def __repr__(self) -> str:
        return f"Atom({self.size}{', ' + self.tensor if self.tensor else ''})"

    @property
    def frozen(self) -> list[Freeze]:
        """The reasons for which the whole class is frozen; empty if it is free."""
        return find(self)._frozen

    @property
    def segments(self) -> list[Axis] | None:
        """The ordered summands of a concatenation, or None for a plain group of units."""
        _expand(self)
        return self._children.segments if isinstance(self._children, Concatenation) else None


def find(atom: Atom) -> Atom:
    """The representative of the atom's class."""
    root = atom
    while root._parent is not None:
        root = root._parent
    while atom._parent is not None and atom._parent is not root:
        atom._parent, atom = root, atom._parent
    return root


def size_of(axis: Axis) -> int:
    """Number of elements along an axis."""
    return math.prod(atom.size for atom in axis)


def _inherit(child: Atom, parent: Atom, origins: Iterable[Atom]) -> Atom:
    child.tensor, child.mode, child.passes, child.barrier = (
        parent.tensor,
        parent.mode,
        parent.passes,
        parent.barrier,
    )
    child.origins = tuple(origins)
    return child


def _like(atom: Atom, template: Axis, origin_axes: Sequence[Axis]) -> Axis:
    """New occurrences for `atom` in the shape of `template`, each united with its counterpart there."""
    made = []
    for k, other in enumerate(template):
        child = _inherit(Atom(other.size), atom, [axis[k] for axis in origin_axes] or atom.origins)
        _join(other, child)
        made.append(child)
    return tuple(made)


def _expand(atom: Atom) -> None:
    """Give an occurrence children of its own once its class has been divided (its origins first)."""
    pending = [atom] if _behind(atom) else []
    while pending:
        top = pending[-1]
        waiting = [origin for origin in top.origins if _behind(origin)] if top._children is None else []
        if waiting:
            pending.extend(waiting)
            continue
        pending.pop()
        if top._children is None:
            _divide(top, find(top))


def _behind(atom: Atom) -> bool:
    """Whether the class of an undivided occurrence has been divided (origins can be of other classes)."""
    root = find(atom)
    return atom._children is None and root is not atom and root._children is not None


def _divide(atom: Atom, root: Atom) -> None:
    """Mirror the division of the class in one of its occurrences."""
    aligned = [origin._children for origin in atom.origins if _parallel(origin._children, root._children)]
    if len(aligned) != len(atom.origins):
        # operands divided in another way: keep the links, but nothing is passed back through them
        aligned, atom.origins, atom.passes = [], tuple(leaves(atom.origins)), 0
        atom.barrier = atom.barrier or "a division its operands do not share"
    if isinstance(root._children, Product):
        rows = [tuple(part.factors) for part in aligned if isinstance(part, Product)]
        atom._children = Product(list(_like(atom, tuple(root._children.factors), rows)))
    elif isinstance(root._children, Concatenation):
        sums = [part.segments for part in aligned if isinstance(part, Concatenation)]
        atom._children = Concatenation(
            [
                _like(atom, segment, [part[k] for part in sums])
                for k, segment in enumerate(root._children.segments)
            ]
        )


def _parallel(left: Product | Concatenation | None, right: Product | Concatenation | None) -> bool:
    """Whether two occurrences of one class are divided in the same way at the top level."""
    if isinstance(left, Product) and isinstance(right, Product):
        return [atom.size for atom in left.factors] == [atom.size for atom in right.factors]
    if isinstance(left, Concatenation) and isinstance(right, Concatenation):
        one, other = ([[a.size for a in segment] for segment in part.segments] for part in (left, right))
        return one == other
    return False


def factors(axis: Axis) -> list[Atom]:
    """The axis as a flat list of factors (free atoms and concatenations), units of size 1 left out."""
    out: list[Atom] = []
    stack = list(reversed(axis))
    while stack:
        atom = stack.pop()
        if atom.size == 1:
            continue
        _expand(atom)
        if atom._children is None:
            out.append(atom)
        elif isinstance(atom._children, Product):
            stack.extend(reversed(atom._children.factors))
        else:
            segments = [segment for segment in atom._children.segments if size_of(segment)]
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


def leaves(axis: Axis) -> Iterator[Atom]:
    """All undivided occurrences of an axis, in order, those inside concatenations included."""
    for factor in factors(axis):
        if factor.segments is None:
            yield factor
        else:
            for segment in summands(factor):
                yield from leaves(tuple(segment))


def freeze(axis: Axis, why: Freeze) -> None:
    """Freeze every class that occurs in the axis."""
    for leaf in leaves(axis):
        root = find(leaf)
        if why not in root._frozen and len(root._frozen) < 8:
            root._frozen.append(why)


def concat(axes: Sequence[Axis]) -> Axis:
    """The ordered sum of axes."""
    parts = [axis for axis in axes if size_of(axis)]
    if len(parts) == 1:
        return parts[0]
    atom = Atom(sum(size_of(axis) for axis in parts))
    atom._children = Concatenation(parts)
    return (atom,)


def _bind(atom: Atom, children: Product | Concatenation) -> None:
    """Divide a free class."""
    root = find(atom)
    # a nameless anchor represents the class from now on: every real occurrence gets children of its own
    anchor = Atom(root.size)
    anchor._frozen, anchor._children, root._parent = root._frozen, children, anchor
    parts = (
        children.factors if isinstance(children, Product) else [a for axis in children.segments for a in axis]
    )
    for child in parts:
        child._frozen = list(root._frozen)
    _expand(atom)


def split(atom: Atom, outer: int) -> tuple[Axis, Axis]:
    """Read one factor of size n as the product outer · (n / outer).

    Returns:
      The outer and the inner axis.

    Raises:
      Mismatch: if a concatenation has a segment that the inner size does not divide.
    """
    if atom.size % outer:
        raise Mismatch(f"{atom.size} units cannot be read as {outer} groups")
    inner = atom.size // outer
    if outer == 1 or inner == 1:
        return ((), (atom,)) if outer == 1 else ((atom,), ())
    _expand(atom)
    if atom._children is None:
        _bind(atom, Product([Atom(outer), Atom(inner)]))
    if isinstance(atom._children, Product):
        head, tail = take(factors((atom,)), outer)
        return tuple(head), tuple(tail)
    return _split_sum(atom, outer, inner)


def _split_sum(atom: Atom, outer: int, inner: int) -> tuple[Axis, Axis]:
    """(a·r + b·r + …) = (a + b + …) · r: a product divides every segment by the common inner block."""
    parts = summands(atom)
    sizes = [size_of(tuple(part)) for part in parts]
    if any(size % inner for size in sizes):
        raise Mismatch(f"segments {' + '.join(map(str, sizes))} are not all multiples of {inner}")
    heads, tails = list[Axis](), list[Axis]()
    for part, size in zip(parts, sizes, strict=True):
        head, tail = take(part, size // inner)
        heads.append(tuple(head))
        tails.append(tuple(tail))
    for other in tails[1:]:
        unify(tails[0], other)
    total = Atom(outer)
    total._children = Concatenation(heads)
    common = derive(tails, mode="all")
    atom._children = Product([total, *common])
    return (total,), common


def take(parts: Sequence[Atom], size: int) -> tuple[list[Atom], list[Atom]]:
    """Split a factor list into a leading part of the given size and the rest, dividing a factor where needed."""
    rest, head, have = list(parts), list[Atom](), 1
    while have < size:
        if not rest:
            raise Mismatch(f"an axis of {have} units where {size} are wanted")
        atom = rest.pop(0)
        need, remainder = divmod(size, have)
        if remainder:
            raise Mismatch(f"factors that do not meet at {size} units")
        if need % atom.size == 0:
            head.append(atom)
            have *= atom.size
        elif atom.size % need:
            raise Mismatch(f"{atom.size} units regrouped by {need}")
        else:
            first, second = split(atom, need)
            head.extend(factors(first))
            rest[:0] = factors(second)
            have = size
    return head, rest


def cut(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Cut an axis into consecutive segments of the given sizes (their sum is the size of the axis).

    Raises:
      Mismatch: if a boundary falls inside the inner factors of a product.
    """
    wanted = [size for size in sizes if size]
    if sum(wanted) != size_of(axis):
        raise Mismatch(f"segments {' + '.join(map(str, sizes))} of an axis of {size_of(axis)}")
    pieces = iter([axis] if len(wanted) == 1 else _cut(factors(axis), wanted))
    return [next(pieces) if size else (Atom(0),) for size in sizes]


def _cut(parts: list[Atom], sizes: Sequence[int]) -> list[Axis]:
    first, inner = parts[0], parts[1:]
    block = size_of(tuple(inner))
    if any(size % block for size in sizes):
        divisor = math.gcd(first.size, *(size for size in sizes))
        raise Mismatch(f"a cut inside blocks of {block} units (common divisor {divisor})")
    pieces = _cut_factor(first, [size // block for size in sizes])
    return [piece + tuple(inner) for piece in pieces]


def _cut_factor(atom: Atom, sizes: list[int]) -> list[Axis]:
    if atom.segments is None:
        _bind(atom, Concatenation([(Atom(size),) for size in sizes]))
        return list(atom.segments or [])
    return _regroup([tuple(part) for part in summands(atom)], sizes)


def _regroup(parts: list[Axis], sizes: list[int]) -> list[Axis]:
    """Walk over segments and cut those that a wanted boundary crosses; returns one axis per wanted size."""
    queue, out = list(parts), []
    for size in sizes:
        run, have = list[Axis](), 0
        while have < size:
            part = queue.pop(0)
            length = size_of(part)
            if length > size - have:
                part, rest = cut(part, [size - have, length - size + have])
                queue.insert(0, rest)
            run.append(part)
            have += size_of(part)
        out.append(concat(run))
    return out


def unify(left: Axis, right: Axis) -> None:
    """Make two axes of one size the same axis, refining both until their factors meet.

    Raises:
      Mismatch: if there is no common refinement (what has been united before that stays united).
    """
    if left == right:
        return
    if size_of(left) != size_of(right):
        raise Mismatch(f"axes of {size_of(left)} and {size_of(right)} units")
    a, b = factors(left), factors(right)
    while a and b:
        x, y = a[0], b[0]
        if x.size == y.size:
            a.pop(0)
            b.pop(0)
            _join(x, y)
        elif x.size > y.size:
            head, tail = take([x], y.size)
            a[:1] = [*head, *tail]
        else:
            head, tail = take([y], x.size)
            b[:1] = [*head, *tail]


def _join(x: Atom, y: Atom) -> None:
    """Unite two factors of one size."""
    rx, ry = find(x), find(y)
    if rx is ry:
        return
    _expand(x)
    _expand(y)
    if x._children is not None and y._children is not None:
        _join_divided(x, y)
        rx, ry = find(x), find(y)
        if rx is ry:
            return
    if rx._children is None and ry._children is not None:
        rx, ry = ry, rx
    ry._parent = rx
    inherited = [why for why in ry._frozen if why not in rx._frozen]
    if inherited and rx._children is not None:
        for why in inherited:
            freeze((rx,), why)
    rx._frozen.extend(inherited)


def _join_divided(x: Atom, y: Atom) -> None:
    xs, ys = x.segments, y.segments
    if xs is not None and ys is not None:
        px, py = [tuple(p) for p in summands(x)], [tuple(p) for p in summands(y)]
        bounds = sorted({*_bounds(px), *_bounds(py)})
        sizes = [b - a for a, b in zip([0, *bounds], bounds, strict=False)]
        for one, other in zip(_regroup(px, sizes), _regroup(py, sizes), strict=True):
            unify(one, other)
    else:
        unify(tuple(factors((x,))), tuple(factors((y,))))


def _bounds(parts: Sequence[Axis]) -> list[int]:
    total, out = 0, []
    for part in parts:
        total += size_of(part)
        out.append(total)
    return out


def derive(
    axes: Sequence[Axis], *, mode: Literal["all", "any"] = "all", passes: int = 2, barrier: str | None = None
) -> Axis:
    """A new axis in the class of the given ones (which are already unified), computed from all of them."""
    lists = [factors(axis) for axis in axes]
    if any(len(parts) != len(lists[0]) for parts in lists):
        lists = _align(lists)
    made = []
    for group in zip(*lists, strict=True):
        atom = Atom(group[0].size)
        atom.origins, atom.mode, atom.passes, atom.barrier = (
            tuple(dict.fromkeys(group)),
            mode,
            passes,
            barrier,
        )
        if group[0].segments is not None:
            _derive_sum(atom, group)
        _join(group[0], atom)
        made.append(atom)
    return tuple(made)


def _align(lists: list[list[Atom]]) -> list[list[Atom]]:
    """Refine unified factor lists until all have the same lengths (a concatenation of one block, say)."""
    finest = max(lists, key=len)
    out = []
    for parts in lists:
        rest, row = list(parts), list[Atom]()
        for atom in finest:
            head, rest = take(rest, atom.size)
            if len(head) != 1:
                raise Mismatch("operands divided in different ways")
            row.extend(head)
        out.append(row)
    return out


def _derive_sum(atom: Atom, group: Sequence[Atom]) -> None:
    """Segments of a derived concatenation are derived segment by segment."""
    rows = [
        [tuple(part) for part in summands(other)] if other.segments is not None else None for other in group
    ]
    sizes = [size_of(part) for part in rows[0] or []]
    aligned = []
    for other, row in zip(group, rows, strict=True):
        same = row is not None and [size_of(part) for part in row] == sizes
        aligned.append(row if same and row is not None else _cut_factor(other, sizes))
    atom._children = Concatenation(
        [
            derive(part, mode=atom.mode, passes=atom.passes, barrier=atom.barrier)
            for part in zip(*aligned, strict=True)
        ]
    )
