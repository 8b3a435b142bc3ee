"""A policy beside the model of Stable-Baselines3 that it was read from: what both do, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.policy import Policy


def both(
    model: Any, policy: Policy, draw: Callable[[np.random.Generator], Array], steps: int = 40
) -> Iterator[tuple[Array, Array]]:
    """(ours, theirs) of three environments; half way two of them start an episode, and forget.

    Args:
      draw: the next observations, three of them.
    """
    rng, state, starts = np.random.default_rng(0), None, np.ones(3, bool)
    for step in range(steps):
        observation = draw(rng)
        if step == steps // 2:
            starts = np.array([True, False, True])
            policy.reset(starts)
        theirs, state = model.predict(observation, state=state, episode_start=starts, deterministic=True)
        starts = np.zeros(3, bool)
        yield policy.act(observation, generator=rng), theirs
