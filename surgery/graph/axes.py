"""The algebra of axes: every axis is a product of factors, and a factor is an atom or an ordered sum of axes.

    NCHW flatten          c · h · w                 NHWC flatten     h · w · c
    LSTM gates            4 · H                     fused q, k, v    3 · heads · d
    concatenation         a + b + c                 C51 head         actions · 51
    channel shuffle       a ⋈ b (in turn)           its halves       1/2 (a ⋈ b), 2/2 (a ⋈ b)

Three primitives carry every operator rule: `split` (product), `cut` (sum) and `unify`; `derive` makes a new axis
whose occurrences remember the ones that they were computed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from surgery.graph.atoms import (
    Atom,
    Axis,
    Concatenation,
    Freeze,
    Link,
    Mismatch,
    Part,
    Product,
    concat,
    expand,
    factors,
    find,
    freeze,
    occurs,
    same_weave,
    size_of,
    summands,
)

SQUARE = "the product of a unit with itself"
"""It is zero where the unit is, with no slope there; half of the unit makes a quarter of it."""

LINEAR = Link()
"""Of a sum, and of what is only moved: everything passes."""


def _bind(atom: Atom, children: Product | Concatenation) -> None:
    """Divide a free class."""
    root = find(atom)
    # a nameless anchor represents the class from now on: every real occurrence gets children of its own
    anchor = Atom(root.size)
    anchor.reasons, anchor.children, root.parent = root.reasons, children, anchor
    parts = (
        children.factors if isinstance(children, Product) else [a for axis in children.segments for a in axis]
    )
    for child in parts:
        child.reasons = list(root.reasons)
    expand(atom)


def split(atom: Atom, outer: int) -> tuple[Axis, Axis]:
    """Read one factor of size n as the product outer · (n / outer).

    Returns:
      The outer and the inner axis.

    Raises:
      Mismatch: if a concatenation has a segment that the inner size does not divide.
    """
    if atom.size % outer:
        raise Mismatch(f"{atom.size} units read as {outer} groups")
    inner = atom.size // outer
    if outer == 1 or inner == 1:
        return ((), (atom,)) if outer == 1 else ((atom,), ())
    expand(atom)
    if atom.children is None:
        _bind(atom, Product([Atom(outer), Atom(inner)]))
    if isinstance(atom.children, Product):
        head, tail = take(factors((atom,)), outer)
        return tuple(head), tuple(tail)
    if atom.woven is not None:
        raise Mismatch(f"{atom.size} shuffled units read as {outer} groups")
    return _split_sum(atom, outer, inner)


def _split_sum(atom: Atom, outer: int, inner: int) -> tuple[Axis, Axis]:
    """(a·r + b·r + …) = (a + b + …) · r: a product divides every segment by the common inner block."""
    parts = summands(atom)
    sizes = [size_of(tuple(part)) for part in parts]
    if any(size % inner for size in sizes):
        raise Mismatch(f"{_added(sizes)} units read in groups of {inner}")
    heads, tails = list[Axis](), list[Axis]()
    for part, size in zip(parts, sizes, strict=True):
        head, tail = take(part, size // inner)
        heads.append(tuple(head))
        tails.append(tuple(tail))
    for other in tails[1:]:
        unify(tails[0], other)
    total = Atom(outer)
    total.children = Concatenation(heads)
    common = derive(tails)
    atom.children = Product([total, *common])
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
            raise Mismatch(f"groups of {have} units read in groups of {size}")
        if need % atom.size == 0:
            head.append(atom)
            have *= atom.size
        elif atom.size % need:
            raise Mismatch(f"{atom.size} units read as {need} groups")
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
        raise Mismatch(f"{size_of(axis)} units cut into {_added(sizes)}")
    pieces = iter([axis] if len(wanted) == 1 else _cut(factors(axis), wanted))
    return [next(pieces) if size else (Atom(0),) for size in sizes]


def _cut(parts: list[Atom], sizes: Sequence[int]) -> list[Axis]:
    while parts[0].size == 1:
        _alone(parts.pop(0))
    first, inner = parts[0], parts[1:]
    block = size_of(tuple(inner))
    if any(size % block for size in sizes):
        raise Mismatch(f"cut into {_added(sizes)} units, inside groups of {block},")
    pieces = _cut_factor(first, [size // block for size in sizes])
    return [piece + tuple(inner) for piece in pieces]


def _cut_factor(atom: Atom, sizes: list[int]) -> list[Axis]:
    if atom.woven is not None:
        return _equal_parts(atom, sizes)
    if atom.segments is None:
        _bind(atom, Concatenation([(Atom(size),) for size in sizes]))
        return list(atom.segments or [])
    return _regroup([tuple(part) for part in summands(atom)], sizes)


def _equal_parts(atom: Atom, sizes: list[int]) -> list[Axis]:
    """Shuffled units can be cut into equal parts, which stay equal; which units those hold depends on their number."""
    if len(set(sizes)) > 1 or sizes[0] == 1:
        raise Mismatch(f"shuffled units cut into {_added(sizes)}")
    made = [Atom(size) for size in sizes]
    for k, part in enumerate(made):
        part.children = Part((atom,), k, len(sizes))
    return [(part,) for part in made]


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


def _added(sizes: Sequence[int]) -> str:
    """For messages: 3 + 5 + 3."""
    shown = [str(size) for size in sizes[:6]]
    return " + ".join(shown if len(sizes) <= 6 else [*shown, "…"])


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
        elif x.size == 1 or y.size == 1:
            _alone((a if x.size == 1 else b).pop(0))
        elif x.size > y.size:
            head, tail = take([x], y.size)
            a[:1] = [*head, *tail]
        else:
            head, tail = take([y], x.size)
            b[:1] = [*head, *tail]
    for single in (*a, *b):
        _alone(single)


def _alone(single: Atom) -> None:
    """One unit that an equal axis does not have: nobody could say where a second one goes."""
    freeze((single,), Freeze("single", "it is read as a part of a longer axis"))


def _join(x: Atom, y: Atom, *, new: bool = False) -> None:
    """Unite two factors of one size (the second one may be new: then it is in nothing yet).

    Raises:
      Mismatch: if one is made of the other (shuffled units that are read as those that they were shuffled from).
    """
    rx, ry = find(x), find(y)
    if rx is ry:
        return
    expand(x)
    expand(y)
    if not new and (x.children is None) != (y.children is None):
        divided, free = (x, ry) if y.children is None else (y, rx)
        if occurs(free, divided):
            raise Mismatch(f"{x.size} units in two orders")
    if x.children is not None and y.children is not None:
        _join_divided(x, y)
        rx, ry = find(x), find(y)
        if rx is ry:
            return
    if rx.children is None and ry.children is not None:
        rx, ry = ry, rx
    ry.parent = rx
    inherited = [why for why in ry.reasons if why not in rx.reasons]
    if inherited and rx.children is not None:
        for why in inherited:
            freeze((rx,), why)
    rx.reasons.extend(inherited)


def _join_divided(x: Atom, y: Atom) -> None:
    xs, ys = x.segments, y.segments
    if xs is not None and ys is not None:
        px, py = [tuple(p) for p in summands(x)], [tuple(p) for p in summands(y)]
        bounds = sorted({*_bounds(px), *_bounds(py)})
        sizes = [b - a for a, b in zip([0, *bounds], bounds, strict=False)]
        for one, other in zip(_regroup(px, sizes), _regroup(py, sizes), strict=True):
            unify(one, other)
    elif same_weave(x.children, y.children):
        for one, other in zip(x.woven or [], y.woven or [], strict=True):
            unify(one, other)
    elif x.woven is not None or y.woven is not None:
        raise Mismatch(f"{x.size} units in two orders")
    else:
        unify(tuple(factors((x,))), tuple(factors((y,))))


def _bounds(parts: Sequence[Axis]) -> list[int]:
    total, out = 0, []
    for part in parts:
        total += size_of(part)
        out.append(total)
    return out


def derive(axes: Sequence[Axis], link: Link = LINEAR) -> Axis:
    """A new axis in the class of the given ones (which are already unified), computed from all of them."""
    lists = [factors(axis) for axis in axes]
    if any(len(parts) != len(lists[0]) for parts in lists):
        lists = _align(lists)
    made = []
    for group in zip(*lists, strict=True):
        atom = Atom(group[0].size, single=group[0].single)
        atom.origins, atom.link = tuple(dict.fromkeys(group)), link
        if link.mode == "any" and len(group) > 1:
            atom.link = replace(link, linear=False)
            if len(atom.origins) < len(group):
                atom.link = _squared(atom.link)
        if group[0].segments is not None:
            _derive_sum(atom, group)
        _join(group[0], atom, new=True)
        made.append(atom)
    return tuple(made)


def _squared(link: Link) -> Link:
    barrier = SQUARE if link.passes > 1 else link.barrier
    return replace(link, passes=min(link.passes, 1), barrier=barrier, flat=link.flat or SQUARE)


def _align(lists: list[list[Atom]]) -> list[list[Atom]]:
    """Refine unified factor lists until all have the same lengths (a concatenation of one block, say)."""
    finest = max(lists, key=len)
    out = []
    for parts in lists:
        rest, row = list(parts), list[Atom]()
        for atom in finest:
            head, rest = take(rest, atom.size) if atom.size > 1 else (rest[:1], rest[1:])
            if [part.size for part in head] != [atom.size]:
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
    atom.children = Concatenation([derive(part, atom.link) for part in zip(*aligned, strict=True)])


def guarded(axes: Sequence[Axis], name: str | None) -> list[Axis]:
    """Occurrences through which a scale travels back only if all that read the value expect it."""
    link = Link(shared=f"'{name}' is read by several nodes")
    return [derive([axis], link) if axis else () for axis in axes]
