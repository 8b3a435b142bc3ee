"""Episodes through the framework's own `predict` and through our graph, step by step, in the framework's environments.

Loading a model with the framework runs what its file pickles: this is for files that are one's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3 as sb3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from surgery.adapters import Parity
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.envs.step import alive
from surgery.errors import ArgumentError, Refused
from surgery_adapters.playing import MOST_STEPS, Graph, Tally, found, is_game, loading, scale
from surgery_adapters.sb3 import normaliser
from surgery_adapters.sb3.file import Sb3File

_ALGORITHMS: Mapping[str, type[BaseAlgorithm]] = {
    "dqn": sb3.DQN, "qrdqn": sb3_contrib.QRDQN, "sac": sb3.SAC, "td3": sb3.TD3, "tqc": sb3_contrib.TQC,
    "recurrent": sb3_contrib.RecurrentPPO,
}  # fmt: skip


def play(path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int, seed: int) -> Parity:
    """Play whole episodes by the framework's greedy actions, and ask our graph at every step.

    Args:
      path: the saved model. checkpoint: what was read of it.
      environment: gymnasium's id. Images of one ALE game are made as the framework's `make_atari_env` does, and
        stacked as the model's observation space asks; `VecNormalize` beside the model normalises.
      episodes: how many, each up to 3,000 steps. seed: of the environment.

    Raises:
      ArgumentError: no such environment, or one that the model does not fit.
    """
    file = Sb3File.open(path)
    family = str(checkpoint.source["algorithm"])
    algorithm = _ALGORITHMS.get(family) or (sb3.PPO if "clip_range" in file.data else sb3.A2C)
    venv = _environment(file, path, environment, seed)
    with loading("Stable-Baselines3", path), path.open("rb") as stream:
        try:
            model = algorithm.load(stream, env=venv, device="cpu")
        except (ValueError, KeyError) as error:
            raise ArgumentError(f"the model does not fit {environment}: {error}") from error
    playing = model.get_env()
    assert playing is not None
    try:
        return _compare(model, playing, Graph(checkpoint, normalised=True), environment, episodes)
    finally:
        playing.close()


def _environment(file: Sb3File, path: Path, environment: str, seed: int) -> VecEnv:
    """One environment, as the framework's own training makes it."""
    space = file.space("observation_space")
    beside = normaliser.find(path, space)
    with found(environment):
        if len(space.shape) != 3 or not is_game(environment):
            return _normalised(make_vec_env(environment, seed=seed), beside)
        venv: VecEnv = make_atari_env(environment, seed=seed)
    frames = min(space.shape)  # (4, 84, 84), or (84, 84, 4) before the framework transposes
    venv = VecFrameStack(venv, frames) if frames > 1 else venv
    if beside is not None:  # of images with channels first: the framework moves none that are normalised
        venv = VecTransposeImage(venv)
    return _normalised(venv, beside)


def _normalised(venv: VecEnv, beside: Path | None) -> VecEnv:
    """Environments whose observations are normalised by statistics that no longer learn.

    Raises:
      ArgumentError: the statistics are of other observations.
    """
    if beside is None:
        return venv
    try:
        normalised = VecNormalize.load(str(beside), venv)
    except (AssertionError, ValueError) as error:
        raise ArgumentError(f"{beside} is for other observations: {error}") from error
    normalised.training = normalised.norm_reward = False
    return normalised


def _settled(value: Array, kind: str, space: gymnasium.Space[Any]) -> Array:
    """What the framework makes of what its networks say (`BasePolicy.predict`)."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return np.asarray(value.argmax(axis=1))
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        parts = np.split(value, np.cumsum(space.nvec)[:-1], axis=1)
        return np.stack([part.argmax(axis=1) for part in parts], axis=1)
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return (value > 0).astype(np.int8)
    if not isinstance(space, gymnasium.spaces.Box):
        raise Refused(f"there is no way to compare actions of a {type(space).__name__}")
    if kind == "action":  # between −1 and 1
        return np.asarray(space.low + 0.5 * (value + 1.0) * (space.high - space.low))
    return np.clip(value, space.low, space.high)


def _compare(model: BaseAlgorithm, venv: VecEnv, graph: Graph, environment: str, episodes: int) -> Parity:
    tally = Tally(environment, scale(model.action_space))
    for _ in range(episodes):
        with alive(environment):
            observation, state, start, total = venv.reset(), None, np.ones(1, bool), 0.0
        graph.reset()
        for _ in range(MOST_STEPS):
            wanted, state = model.predict(observation, state, start, deterministic=True)  # type: ignore[arg-type]
            ours = _settled(graph.ask(observation), graph.kind, model.action_space)  # type: ignore[arg-type]
            tally.add(ours, wanted)
            with alive(environment):
                observation, reward, done, _ = venv.step(wanted)
            total, start = total + float(reward[0]), done
            if done[0]:
                break
        tally.returns.append(total)
    return tally.parity()
