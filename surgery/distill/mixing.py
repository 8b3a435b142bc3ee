"""Batches with some of the teacher's transitions in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from surgery.replay import NOWHERE, Batch, Replay
from surgery.replay.frames import put


def mixed(batch: Batch, teacher: Replay, ratio: float, generator: np.random.Generator) -> Batch:
    """The batch with each element swapped for one of the teacher's with some probability, independently.

    Args:
      batch: B transitions of the student; changed in place where its arrays are.
      teacher: the teacher's transitions.
      ratio: the probability.
      generator: of the swaps and of what is drawn.
    """
    size = len(batch.rows)
    swapped = np.flatnonzero(generator.random(size) < ratio)
    if not len(swapped):
        return batch
    other = teacher.sample(len(swapped), generator)
    for name in ("observation", "action", "returns", "discount", "next_observation"):
        put(getattr(batch, name), swapped, getattr(other, name))
    weight, rows = batch.weight.copy(), batch.rows.copy()
    weight[swapped], rows[swapped] = 1.0, NOWHERE
    return replace(batch, weight=weight, rows=rows)
