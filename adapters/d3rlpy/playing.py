"""Episodes through d3rlpy's own `predict` and through our graph, step by step.

Loading an algorithm with the framework runs what its file pickles: this is for files that are one's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np

from surgery.adapters import Parity
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.errors import Refused
from surgery_adapters.playing import Graph, Tally, loading, make, play, scale

_DRAWN = ("crr",)
"""Algorithms whose `predict` draws among actions of the policy."""


def parity(path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int, seed: int) -> Parity:
    """Play by the framework's greedy actions; see `surgery.adapters.Playing`."""
    with loading("d3rlpy", path):
        algorithm: Any = d3rlpy.load_learnable(str(path), device="cpu:0")
    if (name := algorithm.config.get_type()) in _DRAWN:
        raise Refused(
            f"d3rlpy's '{name}' draws its actions, in predict too: there is nothing to compare",
            hint="leave out --check",
        )
    env = make(environment, tuple(algorithm.observation_shape), int(algorithm.action_size))
    graph, tally = Graph(checkpoint), Tally(environment, scale(env.action_space))
    discrete = algorithm.get_action_type() == d3rlpy.ActionSpace.DISCRETE
    scaler = algorithm.config.action_scaler

    def theirs(observation: Array) -> Array:
        return np.asarray(algorithm.predict(observation[None])[0])

    def ours(observation: Array) -> Array:
        said = graph.ask(observation[None])[0]
        if discrete:
            return np.asarray(said.argmax())
        return said if scaler is None else np.asarray(scaler.reverse_transform_numpy(said))

    return play(env, theirs, ours, tally, episodes, seed)
