"""The algebra of axes against labels: random programs, compared with real arrays that numpy moves along."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.graph.atoms import (
    Atom,
    Axis,
    Freeze,
    Mismatch,
    concat,
    factors,
    find,
    freeze,
    leaves,
    size_of,
    summands,
)
from surgery.graph.axes import cut, derive, take, unify
from tests.steady import STEADY

WHY = Freeze("input", "axis 1 of input 'x'")

# The model: beside every axis lies an array of labels, one per element, which numpy moves as the operators would. The
# algebra gives every element a coordinate: one (class, unit) pair per factor. Elements with one label, or with labels
# that a unification has made one, must have one coordinate; labels that nothing made one must have different ones.


LONE = (0, 0)
"""The coordinate of a part of one unit: it has no class, it can never grow."""


def coordinates(of: Axis) -> list[tuple]:
    """(class, unit) of every element of an axis, outermost factor first."""
    out: list[tuple] = [()]
    for atom in factors(of):
        if atom.segments is None:
            own: list[tuple] = [((id(find(atom)), k),) for k in range(atom.size)]
        else:
            own = [c or (LONE,) for part in summands(atom) for c in coordinates(tuple(part))]
        out = [(*c, *d) for c in out for d in own]
    return out


def axis(*sizes: int) -> Axis:
    return tuple(Atom(size) for size in sizes)


class Program:
    """Axes, and beside each the numbers that real operators would have moved along; unified numbers are one."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self.labels: list[np.ndarray] = []
        self.equal: dict[int, int] = {}
        self.count = 0

    def add(self, made: Axis, labels: np.ndarray | None = None) -> None:
        if labels is None:
            labels = np.arange(self.count, self.count + size_of(made))
            self.count += len(labels)
        assert size_of(made) == len(labels)
        self.axes.append(made)
        self.labels.append(labels)

    def same(self, label: int) -> int:
        """The representative of a label under the unifications that have been asked for."""
        while label in self.equal:
            label = self.equal[label]
        return label

    def unite(self, left: np.ndarray, right: np.ndarray) -> None:
        for a, b in zip(left, right, strict=True):
            a, b = self.same(int(a)), self.same(int(b))
            if a != b:
                self.equal[b] = a

    def check(self) -> None:
        """Elements with one label have one coordinate: what was moved together, the algebra calls the same."""
        places: dict[int, set[tuple]] = defaultdict(set)
        for made, labels in zip(self.axes, self.labels, strict=True):
            had = coordinates(made)
            assert len(had) == size_of(made) == len(labels)
            for coordinate, label in zip(had, labels, strict=True):
                places[self.same(int(label))].add(tuple(sorted(set(coordinate) - {LONE})))
        assert all(len(found) == 1 for found in places.values())


KINDS = ["new", "concat", "cut", "split", "unify", "derive", "transpose", "pick"]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS),
                           st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=14)  # fmt: skip
SIZES = (1, 2, 3, 4, 5, 6, 8, 12)


def perform(program: Program, step: str, i: int, j: int) -> None:
    """One random operation; a Mismatch is an allowed answer, and must leave everything consistent."""
    if step == "new" or not program.axes:
        program.add(axis(*(SIZES[(i // 8**k) % len(SIZES)] for k in range(1 + j % 2))))
        return
    p, q = i % len(program.axes), j % len(program.axes)
    a, b, la, lb = program.axes[p], program.axes[q], program.labels[p], program.labels[q]
    if step == "concat" and len(la) + len(lb) <= 200:
        program.add(concat([a, b]), np.concatenate([la, lb]))
    elif step == "cut" and len(la) > 1:
        at = 1 + j % (len(la) - 1)
        for piece, labels in zip(cut(a, [at, len(la) - at]), (la[:at], la[at:]), strict=True):
            program.add(piece, labels)
    elif step == "derive":
        program.add(derive([a]), la)
    elif step == "unify" and len(la) == len(lb):
        unify(a, b)
        program.unite(la, lb)
    elif step == "pick" and len(la) == len(lb):
        derived = derive([a, b]) if coordinates(a) == coordinates(b) else derive([b])
        program.add(derived, lb)
    elif step in ("split", "transpose"):
        outers = [n for n in range(1, len(la) + 1) if len(la) % n == 0]
        outer = outers[j % len(outers)]
        head, tail = take(factors(a), outer)
        if step == "transpose":
            program.add((*tail, *head), la.reshape(outer, -1).T.ravel())


@settings(STEADY, max_examples=300)
@given(STEPS)
def test_what_the_algebra_calls_equal_carries_equal_labels(steps: list[tuple[str, int, int]]):
    program = Program()
    for step, i, j in steps:
        with contextlib.suppress(Mismatch):
            perform(program, step, i, j)
        sizes = [size_of(made) for made in program.axes]
        assert sizes == [len(labels) for labels in program.labels]
        for made in program.axes:
            assert math.prod(atom.size for atom in factors(made)) == size_of(made)
            assert all(leaf.size == find(leaf).size for leaf in leaves(made))
    program.check()


@settings(STEADY, max_examples=200)
@given(STEPS)
def test_nothing_is_equated_that_was_not_asked_for(steps: list[tuple[str, int, int]]):
    """Joining, cutting and deriving plain axes equates nothing."""
    program = Program()
    for step, i, j in steps:
        if step in ("new", "concat", "cut", "derive"):
            try:
                perform(program, step, i, j if step != "new" and program.axes else 0)
            except Mismatch:
                continue
    seen: dict[tuple, int] = {}
    for made, labels in zip(program.axes, program.labels, strict=True):
        for coordinate, label in zip(coordinates(made), labels, strict=True):
            if coordinate and LONE not in coordinate:
                assert seen.setdefault(tuple(sorted(coordinate)), int(label)) == label


@settings(STEADY, max_examples=150)
@given(STEPS)
def test_occurrences_keep_their_identity(steps: list[tuple[str, int, int]]):
    """Asking again gives the same occurrences, and two axes that were made apart never share one."""
    program = Program()
    fresh: list[Axis] = []
    for step, i, j in steps:
        before = len(program.axes)
        try:
            perform(program, step, i, j)
        except Mismatch:
            continue
        if step in ("new", "derive") and len(program.axes) > before:
            fresh.append(program.axes[-1])
    for made in program.axes:
        assert list(map(id, leaves(made))) == list(map(id, leaves(made)))
    owners = [id(leaf) for made in fresh for leaf in leaves(made)]
    assert len(owners) == len(set(owners))


@settings(STEADY, max_examples=150)
@given(STEPS, st.integers(0, 10**6))
def test_a_freeze_is_seen_by_every_occurrence_of_the_class(steps: list[tuple[str, int, int]], k: int):
    program, frozen = Program(), list[Axis]()
    for n, (step, i, j) in enumerate(steps):
        try:
            perform(program, step, i, j)
        except Mismatch:
            continue
        if n == len(steps) // 2:
            frozen.append(program.axes[k % len(program.axes)])
            freeze(frozen[0], WHY)
    assert all(WHY in leaf.frozen for made in frozen for leaf in leaves(made))
    classes: dict[int, list] = defaultdict(list)
    for made in program.axes:
        for leaf in leaves(made):
            classes[id(find(leaf))].append(leaf.frozen)
    assert all(every == some[0] for some in classes.values() for every in some)
