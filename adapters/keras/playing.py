"""Episodes through Keras' own predictions and through our graph, step by step.

Loading a model with the framework runs the code that its file names: this is for files that are one's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import keras
import numpy as np

from surgery.adapters import Parity
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.errors import Refused
from surgery_adapters.playing import Graph, Tally, loading, make, play, scale


def parity(path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int, seed: int) -> Parity:
    """Play by the model's greedy actions: its largest output, or the output itself; see `surgery.adapters.Playing`."""
    with loading("Keras", path):
        model: Any = keras.saving.load_model(str(path), compile=False, safe_mode=False)
    graph = Graph(checkpoint)
    if len(model.inputs) != 1:
        raise Refused(f"the model takes {len(model.inputs)} inputs, and an environment shows one observation")
    [port] = [k for k, value in enumerate(checkpoint.model.graph.outputs) if value.name == graph.head]
    env = make(environment, tuple(model.inputs[0].shape[1:]), int(model.outputs[port].shape[-1]))
    space, name, kind = env.action_space, checkpoint.interface.inputs[0].name, model.inputs[0].dtype

    def greedy(said: Array) -> Array:
        return np.asarray(said.argmax()) if isinstance(space, gymnasium.spaces.Discrete) else said

    def theirs(observation: Array) -> Array:
        said = model.predict_on_batch(observation[None].astype(kind))
        return greedy(np.asarray(said[port] if len(model.outputs) > 1 else said)[0])

    def ours(observation: Array) -> Array:
        return greedy(graph.ask({name: observation[None]})[0])

    return play(env, theirs, ours, Tally(environment, scale(space)), episodes, seed)
