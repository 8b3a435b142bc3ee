"""How one array is made of another: the axis permutations, reshapes and flips under which two arrays are equal."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from surgery.arrays import Array

Shape = tuple[int, ...]
_MAX_KERNEL = 16
"""Longest axis that is looked at in reverse: those of kernels."""


@dataclass(frozen=True)
class Layout:
    """`array.reshape(view)`, some axes reversed, its axes permuted, and reshaped to `shape`.

    Attributes:
      view: the shape that the array is seen with first. flipped: axes of it that are read backwards.
      permutation: of the axes of the view. shape: of the result.
    """

    view: Shape
    permutation: tuple[int, ...]
    shape: Shape
    flipped: tuple[int, ...] = ()

    def apply(self, array: Array) -> Array:
        """The array in this layout."""
        seen = np.flip(array.reshape(self.view), self.flipped)
        return np.asarray(seen.transpose(self.permutation).reshape(self.shape))


def layouts(array: Array, wanted: Array, tolerance: float = 0.0) -> Iterator[Layout]:
    """Every layout in which an array is another one, those without a flip first.

    Axes of length 1 are put where they are wanted, so two layouts never differ in them alone.

    Args:
      array: any shape. wanted: of the same size.
      tolerance: largest difference, relative to the largest element; 0 for equality.
    """
    found = False
    for layout in _unflipped(array.shape, wanted.shape):
        if _same(layout.apply(array), wanted, tolerance):
            found = True
            yield layout
    if found:
        return
    short = [axis for axis, size in enumerate(array.shape) if 1 < size <= _MAX_KERNEL]
    for count in range(1, len(short) + 1):
        for flipped in combinations(short, count):
            for layout in _unflipped(array.shape, wanted.shape):
                if layout.view == array.shape:
                    turned = Layout(layout.view, layout.permutation, layout.shape, flipped)
                    if _same(turned.apply(array), wanted, tolerance):
                        yield turned


def _unflipped(shape: Shape, wanted: Shape) -> Iterator[Layout]:
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for order in _orders(shape):
        if _fits(tuple(shape[axis] for axis in order), wanted):
            key = (shape, tuple(axis for axis in order if shape[axis] > 1))
            if key not in seen:
                seen.add(key)
                yield Layout(shape, order, wanted)
    for order in _orders(wanted):  # axes that are taken apart before they are permuted
        view = tuple(wanted[axis] for axis in order)
        if sum(size > 1 for size in view) > sum(size > 1 for size in shape) and _fits(view, shape):
            inverse = tuple(int(k) for k in np.argsort(order))
            key = (view, tuple(axis for axis in inverse if view[axis] > 1))
            if key not in seen:
                seen.add(key)
                yield Layout(view, inverse, wanted)


def _orders(shape: Shape) -> Iterator[tuple[int, ...]]:
    """Permutations of the axes that are longer than 1; the others stay where they are."""
    long = [axis for axis, size in enumerate(shape) if size > 1]
    for order in permutations(long):
        new = iter(order)
        yield tuple(next(new) if size > 1 else axis for axis, size in enumerate(shape))


def _fits(shape: Shape, wanted: Shape) -> bool:
    """Whether a reshape only joins neighbouring axes, or only takes axes apart."""
    ends, others = _ends(shape), _ends(wanted)
    return ends <= others or others <= ends


def _ends(shape: Sequence[int]) -> set[int]:
    return {math.prod(shape[: k + 1]) for k in range(len(shape))} - {1}


def _same(left: Array, right: Array, tolerance: float) -> bool:
    if not tolerance:
        return np.array_equal(left, right)
    return bool(np.abs(left - right).max(initial=0.0) <= tolerance * np.abs(right).max(initial=0.0))


def content(array: Array) -> bytes:
    """A digest of the elements in any order; +0 and −0 are equal."""
    return hashlib.blake2b(np.sort(array.reshape(-1) + 0.0).tobytes(), digest_size=16).digest()


def contents(array: Array, axis: int) -> list[bytes]:
    """`content` of every slice along an axis."""
    rows = np.sort(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) + 0.0, axis=1)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def telling(array: Array) -> bool:
    """Whether an array has elements enough that are different for its content to tell it from others."""
    return array.size > 1 and len(np.unique(array)) >= min(array.size, 3)
