"""Draws in proportion to priorities, many at a time (Schaul et al. 2016, arXiv:1511.05952, appendix B.2.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


class SumTree:
    """A complete binary tree whose leaves are priorities and whose nodes are sums, in one flat array.

    Node 1 is the root, node i has children 2i and 2i + 1, and the leaves begin at `_first`. Every method works on
    whole arrays: a set or a draw of B entries is one numpy expression per level.

    Args:
      capacity: number of leaves; all begin at zero.
    """

    def __init__(self, capacity: int) -> None:
        self._depth = max(1, (capacity - 1).bit_length())
        self._first = 1 << self._depth
        self._capacity = capacity
        self._nodes: Floats = np.zeros(2 * self._first)

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._nodes[1])

    @property
    def priorities(self) -> Floats:
        """All priorities, (capacity,); a view, not to be written to."""
        view = self._nodes[self._first : self._first + self._capacity]
        view.flags.writeable = False
        return view

    def set(self, index: Integers, priority: Floats) -> None:
        """Give the leaves at `index` (B,) the priorities (B,), at least 0; of an index given twice the last counts."""
        nodes = np.asarray(index, np.int64) + self._first
        self._nodes[nodes] = priority
        for _ in range(self._depth):
            nodes = np.unique(nodes >> 1)
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, mass: Floats) -> Integers:
        """The leaf at which the running sum of priorities passes each mass (B,) in [0, total)."""
        node = np.ones(len(mass), np.int64)
        mass = np.array(mass, np.float64)
        for _ in range(self._depth):
            left = 2 * node
            sums = self._nodes[left]
            # A mass that rounding has put at the end of an empty right half belongs to the left one.
            right = (mass >= sums) & (self._nodes[left + 1] > 0)
            mass = np.where(right, mass - sums, mass)
            node = left + right
        return node - self._first

    def draw(self, count: int, generator: np.random.Generator) -> Integers:
        """`count` leaves, one from each equal slice of the total mass, in proportion to their priorities."""
        slices = (np.arange(count) + generator.random(count)) / count
        return self.find(slices * self._nodes[1])
