"""The algebra of axes, operation by operation; random programs are in test_axes_labels."""

from __future__ import annotations

import math

import pytest

from surgery.graph.atoms import (
    UNIT,
    Atom,
    Axis,
    Freeze,
    Link,
    Mismatch,
    concat,
    factors,
    find,
    freeze,
    leaves,
    size_of,
    summands,
)
from surgery.graph.axes import cut, derive, split, take, unify


def axis(*sizes: int) -> Axis:
    return tuple(Atom(size) for size in sizes)


def shape(of: Axis) -> str:
    """An axis as text: `2·(3+5)·7`."""
    parts = []
    for atom in factors(of):
        if atom.segments is None:
            parts.append(str(atom.size))
        else:
            parts.append("(" + "+".join(shape(tuple(part)) or "1" for part in summands(atom)) + ")")
    return "·".join(parts)


# ---- single operations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "outer", "wanted"),
    [((12,), 3, ("3", "4")), ((3, 4), 3, ("3", "4")), ((3, 4), 6, ("3·2", "2")), ((2, 3, 5), 2, ("2", "3·5")),
     ((12,), 1, ("", "12")), ((12,), 12, ("12", "")), ((2, 1, 5), 2, ("2", "5"))],
)  # fmt: skip
def test_taking_a_head_divides_factors_where_needed(
    sizes: tuple[int, ...], outer: int, wanted: tuple[str, str]
):
    whole = axis(*sizes)
    head, tail = take(factors(whole), outer)
    assert (shape(tuple(head)), shape(tuple(tail))) == wanted
    assert size_of(whole) == math.prod(sizes)


@pytest.mark.parametrize(("sizes", "outer"), [((12,), 5), ((3, 4), 4), ((4, 3), 6), ((2, 3), 12)])
def test_a_head_across_factors_is_a_mismatch(sizes: tuple[int, ...], outer: int):
    whole = axis(*sizes)
    with pytest.raises(Mismatch):
        take(factors(whole), outer)


@pytest.mark.parametrize(
    ("sizes", "pieces", "wanted"),
    [((10,), (2, 3, 5), ("2", "3", "5")), ((10,), (10,), ("10",)), ((5, 3), (6, 9), ("2·3", "3·3")),
     ((10,), (0, 10), ("0", "10")), ((10,), (4, 0, 6), ("4", "0", "6")), ((5, 1), (1, 4), ("", "4"))],
)  # fmt: skip
def test_cutting_gives_pieces_in_order(
    sizes: tuple[int, ...], pieces: tuple[int, ...], wanted: tuple[str, ...]
):
    whole = axis(*sizes)
    made = cut(whole, pieces)
    assert tuple(shape(piece) for piece in made) == wanted
    assert [size_of(piece) for piece in made] == list(pieces)


@pytest.mark.parametrize(("sizes", "pieces"), [((5, 3), (7, 8)), ((10,), (3, 3)), ((2, 5), (3, 7))])
def test_a_cut_inside_a_block_is_a_mismatch(sizes: tuple[int, ...], pieces: tuple[int, ...]):
    with pytest.raises(Mismatch):
        cut(axis(*sizes), pieces)


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        ((12,), (3, 4), "3·4"),
        ((3, 4), (3, 2, 2), "3·2·2"),
        ((6, 2), (2, 6), "2·3·2"),
        ((2, 6, 5), (12, 5), "2·6·5"),
    ],
)
def test_unifying_refines_to_common_factors(left: tuple[int, ...], right: tuple[int, ...], wanted: str):
    a, b = axis(*left), axis(*right)
    unify(a, b)
    assert shape(a) == shape(b) == wanted
    assert [find(x) for x in leaves(a)] == [find(x) for x in leaves(b)]


@pytest.mark.parametrize(("left", "right"), [((3, 4), (4, 3)), ((12,), (13,)), ((2, 15), (5, 6))])
def test_no_common_refinement_is_a_mismatch(left: tuple[int, ...], right: tuple[int, ...]):
    a, b = axis(*left), axis(*right)
    with pytest.raises(Mismatch):
        unify(a, b)
    assert (size_of(a), size_of(b)) == (math.prod(left), math.prod(right))


def test_a_concatenation_divides_by_the_common_inner_block():
    a, b, inner = axis(2), axis(7), axis(5)
    joined = concat([a + inner, b + axis(5)])
    outer, common = split(joined[0], 9)
    assert (shape(outer), shape(common)) == ("(2+7)", "5")
    assert len({find(x) for x in (*leaves(common), *leaves(inner))}) == 1


def test_a_concatenation_of_other_blocks_is_a_mismatch():
    with pytest.raises(Mismatch):
        split(concat([axis(9), axis(6)])[0], 3)


def test_concatenations_of_other_boundaries_refine_each_other():
    a, b = concat([axis(3), axis(5)]), concat([axis(5), axis(3)])
    unify(a, b)
    assert shape(a) == shape(b) == "(3+2+3)"


def test_a_concatenation_of_one_part_is_the_part():
    a = axis(3)
    assert concat([a, (Atom(0),)]) is a


def test_size_one_drops_out():
    assert factors(axis(1, 1)) == []
    assert shape(axis(1, 3, 1)) == "3"
    assert size_of(UNIT) == 1


def test_occurrences_keep_their_identity_when_their_class_is_divided():
    a, b = axis(12), axis(12)
    unify(a, b)
    heads = take(factors(a), 3)[0]
    own = factors(b)
    assert [x.size for x in own] == [3, 4]
    assert own[0] is not heads[0]
    assert find(own[0]) is find(heads[0])
    assert factors(b)[0] is own[0], "asked again, the same occurrence"


def test_a_derived_axis_remembers_its_operands_and_is_divided_with_them():
    a, b = axis(12), axis(12)
    unify(a, b)
    made = derive([a, b])
    assert made[0].origins == (a[0], b[0])
    take(factors(a), 3)
    assert [[o.size for o in x.origins] for x in factors(made)] == [[3, 3], [4, 4]]
    assert factors(made)[0].origins == (factors(a)[0], factors(b)[0])


def test_division_of_the_result_divides_the_operands():
    a = axis(12)
    made = derive([a], Link(passes=1, barrier="here"))
    take(factors(made), 4)
    assert [x.size for x in factors(a)] == [4, 3]
    assert [(x.link.passes, x.link.barrier) for x in factors(made)] == [(1, "here")] * 2


def test_a_derived_concatenation_is_derived_part_by_part():
    a, b = concat([axis(3), axis(5)]), axis(8)
    unify(a, b)
    made = derive([a, b], Link("any"))
    assert shape(made) == "(3+5)"
    assert [len(leaf.origins) for leaf in leaves(made)] == [2, 2]
    assert [leaf.link.mode for leaf in leaves(made)] == ["any", "any"]


def test_tensors_are_inherited_by_parts():
    whole: Axis = (Atom(12, tensor="w"),)
    cut(whole, [5, 7])
    assert [leaf.tensor for leaf in leaves(whole)] == ["w", "w"]


WHY, OTHER = Freeze("input", "axis 1 of input 'x'"), Freeze("mixer", "node 'n'")


def test_a_freeze_reaches_the_whole_class_and_its_later_parts():
    a, b = axis(12), axis(12)
    unify(a, b)
    freeze(a, WHY)
    freeze(a, WHY)
    assert b[0].frozen == [WHY]
    assert [x.frozen for x in take(factors(b), 3)[0]] == [[WHY]]


def test_a_freeze_of_one_part_leaves_the_others_free():
    a = axis(12)
    parts = cut(a, [5, 7])
    freeze(parts[0], WHY)
    assert [leaf.frozen for leaf in leaves(a)] == [[WHY], []]


def test_unification_brings_freezes_together():
    a, b = axis(12), axis(3, 4)
    freeze(a, WHY)
    freeze(b[:1], OTHER)
    unify(a, b)
    assert [set(leaf.frozen) for leaf in leaves(b)] == [{WHY, OTHER}, {WHY}]
    assert [set(leaf.frozen) for leaf in leaves(a)] == [{WHY, OTHER}, {WHY}]


def test_a_later_freeze_reaches_a_divided_class():
    a, b = axis(12), axis(12)
    unify(a, b)
    take(factors(a), 3)
    freeze(b, WHY)
    assert all(leaf.frozen == [WHY] for leaf in leaves(a))


def test_long_chains_do_not_recurse():
    first = made = axis(12)
    for _ in range(5000):
        made = derive([made])
    take(factors(first), 3)
    assert [x.size for x in factors(made)] == [3, 4]
    other = axis(12)
    for _ in range(5000):
        new = axis(12)
        unify(new, other)
        other = new
    take(factors(other), 4)
