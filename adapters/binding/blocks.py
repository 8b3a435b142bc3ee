"""Constants that are put together from several arrays, or from parts of one: reordered gates, stacked weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from surgery.arrays import Array
from surgery_adapters.binding.layout import Layout, Shape, content, contents, layouts

_MAX_BLOCKS = 64


@dataclass(frozen=True)
class Block:
    """Some entries of an array, as part of a constant.

    Attributes:
      key: of the array; None for zeros.
      seen: the shape that the array is seen with, some neighbouring axes joined.
      cut: (axis, first, last + 1) of the entries that are taken; None for all.
      layout: of what was taken.
    """

    key: str | None
    seen: Shape
    cut: tuple[int, int, int] | None
    layout: Layout

    @property
    def shape(self) -> Shape:
        """Of the part of the constant."""
        return self.layout.shape

    def apply(self, arrays: Mapping[str, Array]) -> Array:
        """The part of the constant."""
        if self.key is None:
            return np.zeros(self.shape, np.float32)
        return self.layout.apply(taken(arrays[self.key], self.seen, self.cut))


def taken(array: Array, seen: Shape, cut: tuple[int, int, int] | None) -> Array:
    """Some entries along one axis of a reshaped array."""
    array = array.reshape(seen)
    if cut is None:
        return array
    axis, start, stop = cut
    return array[(slice(None),) * axis + (slice(start, stop),)]


@dataclass(frozen=True)
class Bound:
    """What a constant of a graph is made of.

    Attributes:
      blocks: in their order along `axis`; one for a constant that is an array, or a part of one. A block that is
        itself put together (one direction of a recurrent layer) is a constant of its own.
      axis: of the constant, along which the blocks follow each other.
      shape: of the constant.
      factor: that all is multiplied by.
    """

    blocks: tuple[Block | Bound, ...]
    axis: int
    shape: Shape
    factor: float = 1.0

    @property
    def key(self) -> str:
        """The array that it is made of; the first, if there are several."""
        return next(iter(self.keys), "")

    @property
    def keys(self) -> tuple[str, ...]:
        """All arrays that it is made of."""
        held = (b.keys if isinstance(b, Bound) else (b.key,) for b in self.blocks)
        return tuple(dict.fromkeys(key for keys in held for key in keys if key is not None))

    def apply(self, arrays: Mapping[str, Array]) -> Array:
        """The constant."""
        parts = [block.apply(arrays) for block in self.blocks]
        return np.concatenate(parts, self.axis) * self.factor if len(parts) > 1 else parts[0] * self.factor


def whole(key: str, array: Array, layout: Layout, factor: float = 1.0) -> Bound:
    """A constant that is one array."""
    return Bound((Block(key, array.shape, None, layout),), 0, layout.shape, factor)


@dataclass(frozen=True)
class _Place:
    key: str
    seen: Shape
    axis: int
    index: int

    @property
    def next(self) -> _Place:
        return _Place(self.key, self.seen, self.axis, self.index + 1)


class Arrays:
    """Arrays that are looked up by their content, whole or slice by slice.

    Attributes:
      arrays: key -> array, of the element type of the graph's constants.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays
        self._whole: dict[bytes, list[str]] = {}
        for key, array in arrays.items():
            self._whole.setdefault(content(array), []).append(key)
        self._slices: dict[bytes, list[_Place]] | None = None

    def equal(self, constant: Array) -> list[tuple[str, Layout]]:
        """The arrays that a constant is, each in every layout in which it is."""
        return [
            (key, layout)
            for key in self._whole.get(content(constant), ())
            if self.arrays[key].size == constant.size
            for layout in layouts(self.arrays[key], constant)
        ]

    def scaled(self, constant: Array) -> list[tuple[str, Layout, float]]:
        """The arrays that a constant is a multiple of."""
        found = []
        size, top = constant.size, float(np.abs(constant).max(initial=0.0))
        order = np.sort(np.abs(constant.reshape(-1)))
        for key, array in self.arrays.items():
            peak = float(np.abs(array).max(initial=0.0))
            if array.size != size or size < 8 or not peak or not top:
                continue
            factor = top / peak
            if np.allclose(order, np.sort(np.abs(array.reshape(-1))) * factor, rtol=1e-5, atol=1e-6 * top):
                for sign in (factor, -factor):
                    found += [
                        (key, layout, sign) for layout in layouts(array * np.float32(sign), constant, 1e-5)
                    ]
        return found

    def joined(self, constant: Array) -> Bound | None:
        """The parts of arrays that a constant is put together from; None if there are none."""
        for axis, size in enumerate(constant.shape):
            if size > 1 and (blocks := self._blocks(constant, axis)) is not None:
                return Bound(tuple(blocks), axis, constant.shape)
        return None

    def _blocks(self, constant: Array, axis: int) -> list[Block] | None:
        digests = contents(constant, axis)
        blocks: list[Block] = []
        at = 0
        while at < len(digests):
            block = next(self._runs(constant, axis, digests, at), None)
            if block is None or len(blocks) == _MAX_BLOCKS:
                return None
            blocks.append(block)
            at += block.shape[axis]
        return blocks if any(block.key is not None for block in blocks) and self._complete(blocks) else None

    def _complete(self, blocks: list[Block]) -> bool:
        """Zeros beside only a part of an array may be the rest of it."""
        if all(block.key is not None for block in blocks):
            return True
        sizes: dict[str, int] = {}
        for block in blocks:
            if block.key is not None:
                sizes[block.key] = sizes.get(block.key, 0) + math.prod(block.shape)
        return all(self.arrays[key].size == size for key, size in sizes.items())

    def _runs(self, constant: Array, axis: int, digests: list[bytes], at: int) -> Iterator[Block]:
        """The block that begins at a slice: the longest one, and zeros only where nothing else fits."""
        runs: list[tuple[int, _Place]] = []
        for place in self.slices.get(digests[at], ()):
            stop, here = at, place
            while stop < len(digests) and here in self._at.get(digests[stop], ()):
                stop, here = stop + 1, here.next
            runs.append((stop - at, place))
        for length, place in sorted(runs, key=lambda run: -run[0]):
            part = constant.take(range(at, at + length), axis)
            if length < 2 or not np.any(part):
                break
            cut = (place.axis, place.index, place.index + length)
            source = taken(self.arrays[place.key], place.seen, cut)
            for layout in layouts(source, part):
                yield Block(place.key, place.seen, cut, layout)
        zeros = 0
        while at + zeros < len(digests) and not np.any(constant.take(at + zeros, axis)):
            zeros += 1
        if zeros:
            shape = tuple(zeros if k == axis else size for k, size in enumerate(constant.shape))
            yield Block(None, shape, None, Layout(shape, tuple(range(len(shape))), shape))

    @property
    def slices(self) -> Mapping[bytes, list[_Place]]:
        """Content of a slice -> where it is: every axis of every array, neighbouring axes joined too."""
        if self._slices is None:
            self._slices = {}
            for key, array in self.arrays.items():
                for seen in _joinings(array.shape):
                    view = array.reshape(seen)
                    for axis, size in enumerate(seen):
                        if size > 1:
                            for index, digest in enumerate(contents(view, axis)):
                                self._slices.setdefault(digest, []).append(_Place(key, seen, axis, index))
            self._at = {digest: set(places) for digest, places in self._slices.items()}
        return self._slices


def _joinings(shape: Shape) -> Iterator[Shape]:
    """A shape with any of its neighbouring axes joined, itself first."""
    for count in range(len(shape) - 1, -1, -1) if shape else ():
        for walls in combinations(range(1, len(shape)), count):
            ends = (0, *walls, len(shape))
            yield tuple(math.prod(shape[a:b]) for a, b in pairwise(ends))


def alike(pattern: Bound, key: str, array: Array, constant: Array) -> Bound | None:
    """A constant put together from an array as another was from its own, zeros in what is left.

    A layer's bias has its gates in the order of its weights. Rows of it (a bias for the input, one for the state)
    follow each other.

    Args:
      pattern: of the other constant, in blocks.
      key, array: what the constant is thought to be made of; gates along its last axis.
    """
    cuts = [b.cut for b in pattern.blocks if isinstance(b, Block) and b.cut is not None]
    long = [k for k, size in enumerate(constant.shape) if size > 1]
    if len(cuts) != len(pattern.blocks) or len(long) != 1 or array.ndim not in (1, 2):
        return None
    [axis] = long
    rows, width = (1, array.size) if array.ndim == 1 else array.shape
    if width != max(stop for _, _, stop in cuts):
        return None
    blocks: list[Block] = []
    for row in range(rows):
        for _, start, stop in cuts:
            shape = tuple(stop - start if k == axis else 1 for k in range(constant.ndim))
            layout = Layout((stop - start,), (0,), shape)
            blocks.append(Block(key, (array.size,), (0, row * width + start, row * width + stop), layout))
    if rest := constant.shape[axis] - array.size:
        shape = tuple(rest if k == axis else 1 for k in range(constant.ndim))
        blocks.append(Block(None, shape, None, Layout(shape, tuple(range(len(shape))), shape)))
    bound = Bound(tuple(blocks), axis, constant.shape)
    fits = rest >= 0 and np.array_equal(bound.apply({key: array}), constant)
    return bound if fits else None
