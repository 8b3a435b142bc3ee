"""Stretches of experience for students with a memory: stored state, burn-in, then steps that are learned from.

R2D2 (Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning", §3): a network's own
state is kept where a stretch may begin, the first steps of a stretch only bring that old state up to date, and
neighbouring stretches overlap by half. As there, n-step targets need n more observations at the end. Unlike there, a
stretch may reach across the end of an episode: the state is forgotten where the next one begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surgery.arrays import Array


@dataclass(frozen=True)
class Window:
    """How long stretches are.

    Attributes:
      burn_in: steps that only bring the state up to date.
      unroll: steps that are learned from.
      state: numbers in the network's state; 0: it is not kept, and stretches begin with an empty one.
    """

    burn_in: int
    unroll: int
    state: int

    @property
    def stride(self) -> int:
        """Entries of a stream from one beginning to the next: stretches overlap by half."""
        return max(1, self.unroll // 2)

    def length(self, n_step: int) -> int:
        """Observations of a stretch."""
        return self.burn_in + self.unroll + n_step

    def learned(self, stretch: Array) -> Array:
        """The entries (B, T) that are learned from: (B, unroll)."""
        return stretch[:, self.burn_in : self.burn_in + self.unroll]

    def draw(
        self,
        written: Array,
        held: Array,
        *,
        stack: int,
        n_step: int,
        size: int,
        generator: np.random.Generator,
    ) -> tuple[Array, Array]:
        """Stretches, each as likely as the other.

        Args:
          written: (streams,) entries that were ever appended to each stream.
          held: (streams,) how many of them are still there.
          stack: frames of an observation.
          n_step: steps of a return.
          size: B.
          generator: of the draw.

        Returns:
          streams (B,), and the first entry of each stretch, counted from the stream's beginning (B,); empty if none
          is long enough.
        """
        gone = written - held
        oldest = np.where(gone > 0, gone + stack - 1, 0)
        first = -(-oldest // self.stride)
        last = (written - self.length(n_step)) // self.stride
        count = np.maximum(last - first + 1, 0)
        ends = np.cumsum(count)
        if not ends[-1]:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        number = generator.integers(ends[-1], size=size)
        streams = np.searchsorted(ends, number, side="right")
        begin = (first[streams] + number - (ends - count)[streams]) * self.stride
        return streams, begin
