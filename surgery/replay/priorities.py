"""How likely each row of a replay is drawn: in proportion to the root of the loss that it last had, as in Dopamine."""

from __future__ import annotations

import numpy as np

from surgery.arrays import Array
from surgery.replay.sum_tree import SumTree

_EXPONENT = 0.5


class Priorities:
    """A priority for every row: what is new has the highest one that there was, so that it is soon drawn.

    Args:
      count: rows; all are 0 at first, which is never drawn.
    """

    def __init__(self, count: int) -> None:
        self._tree = SumTree(count)
        self._highest = 1.0

    @property
    def values(self) -> Array:
        """All of them, and the highest that there was, (rows + 1,) float32."""
        return np.append(self._tree.priorities, self._highest).astype(np.float32)

    def begin(self, rows: Array, drawn: Array) -> None:
        """Rows (B,) were written anew; those that are not to be `drawn` (B,) bool get 0."""
        self._tree.set(rows, np.where(drawn, self._highest, 0.0))

    def learned(self, rows: Array, loss: Array) -> None:
        """Rows (B,) had this loss (B,), at least 0."""
        priority = np.sqrt(np.asarray(loss, np.float64) + 1e-10)
        self._highest = max(self._highest, float(priority.max(initial=0.0)))
        self._tree.set(rows, priority)

    def restore(self, rows: Array, values: Array) -> None:
        """Take over, for some rows (B,), what `values` gave of all."""
        self._tree.set(rows, values[rows].astype(np.float64))
        self._highest = float(values[-1])

    def draw(self, count: int, generator: np.random.Generator) -> Array:
        """`count` rows in proportion to their priorities."""
        return self._tree.draw(count, generator)

    def weight(self, rows: Array) -> Array:
        """Dopamine's weights: 1 / √p, the largest being 1 (an importance exponent of one half)."""
        weight: Array = self._tree.priorities[rows] ** -_EXPONENT
        return np.asarray(weight / weight.max(), np.float32)
