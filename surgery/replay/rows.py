"""What every row of a replay's rings is, besides its frame, and what n steps from there give."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from surgery.arrays import Array

EMPTY, TRANSITION, CONTEXT, CLOSING = range(4)
"""What a row is: nothing yet; an observation and what was done on it; an older frame of an episode's first stack; the
last observation of an episode that was cut off, from which a value is still taken."""


class Rows:
    """Columns of numbers, one of each for every row.

    Args:
      count: rows; all are empty.

    Attributes:
      kind: uint8, `EMPTY` … `CLOSING`.
      action: int64. reward: float32.
      terminated: bool, nothing follows.
      first: bool, an episode begins with this transition.
      cut: bool, the episode was cut off after this transition.
    """

    def __init__(self, count: int) -> None:
        self.kind = np.zeros(count, np.uint8)
        self.action = np.zeros(count, np.int64)
        self.reward = np.zeros(count, np.float32)
        self.terminated = np.zeros(count, np.bool_)
        self.first = np.zeros(count, np.bool_)
        self.cut = np.zeros(count, np.bool_)

    def write(self, rows: Array, columns: Mapping[str, Array | float]) -> int:
        """Put what `read` gave at rows (B,), none of them cut off; by how many there are more transitions then."""
        before = int((self.kind[rows] == TRANSITION).sum())
        for name, column in self._kept().items():
            column[rows] = columns[name]
        self.cut[rows] = False
        return int((self.kind[rows] == TRANSITION).sum()) - before

    def read(self, rows: Array) -> dict[str, Array]:
        """Columns of rows (B,) by name; where they are cut off, other rows say."""
        return {name: column[rows] for name, column in self._kept().items()}

    def _kept(self) -> dict[str, Array]:
        return {
            "kind": self.kind,
            "action": self.action,
            "reward": self.reward,
            "terminated": self.terminated,
            "first": self.first,
        }

    def needed(self, path: Array) -> Array:
        """How many rows after each transition must be there, (B,), for its n steps, whose rows are `path` (B, n)."""
        steps, ended = self._steps(path)
        final = path[np.arange(len(path)), steps - 1]
        return np.where(ended & self.terminated[final], steps - 1, steps)

    def look_ahead(self, path: Array, gamma: float, clip: float | None) -> tuple[Array, Array, Array]:
        """n-step returns, discounts of what follows, and steps taken, each (B,).

        Args:
          path: (B, n) the rows of the next n steps.
          gamma: discount per step.
          clip: rewards are cut to ±clip; None leaves them.
        """
        steps, _ = self._steps(path)
        reward = self.reward[path] if clip is None else np.clip(self.reward[path], -clip, clip)
        ages = np.arange(path.shape[1])
        returns = (reward * gamma**ages * (ages < steps[:, None])).sum(axis=1)
        final = path[np.arange(len(path)), steps - 1]
        discount = gamma**steps * ~self.terminated[final]
        return returns.astype(np.float32), discount.astype(np.float32), steps

    def _steps(self, path: Array) -> tuple[Array, Array]:
        """How many of the steps are taken, 1 … n, and whether the last of them ends the episode."""
        ends = self.terminated[path] | self.cut[path]
        ended = np.asarray(ends.any(axis=1))
        return np.where(ended, ends.argmax(axis=1) + 1, path.shape[1]), ended
