"""Episodes through the framework's own `predict` and through our graph, step by step, in the framework's environments.

Loading a model with the framework runs what its file pickles: this is for files that are one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3 as sb3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from surgery.adapters import Parity
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, Refused
from surgery.verify.outputs import runtime
from surgery_adapters.sb3 import normaliser
from surgery_adapters.sb3.file import Sb3File

Array = np.ndarray[Any, np.dtype[Any]]
LIMIT = 1e-5
"""Largest difference of a continuous action, as a share of its range or of 1."""
_MOST_STEPS = 3000
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
    try:
        with path.open("rb") as stream:
            model = algorithm.load(stream, env=venv, device="cpu")
    except (ValueError, KeyError) as error:
        raise ArgumentError(f"the model does not fit {environment}: {error}") from error
    playing = model.get_env()
    assert playing is not None
    try:
        return _compare(model, playing, _Graph(checkpoint, model.action_space), environment, episodes)
    finally:
        playing.close()


def _environment(file: Sb3File, path: Path, environment: str, seed: int) -> VecEnv:
    """One environment, as the framework's own training makes it."""
    space = file.space("observation_space")
    try:
        if space.image and _is_atari(environment):
            venv: VecEnv = make_atari_env(environment, seed=seed)
            frames = min(space.shape)  # (4, 84, 84), or (84, 84, 4) before the framework transposes
            return VecFrameStack(venv, frames) if frames > 1 else venv
        venv = make_vec_env(environment, seed=seed)
    except gymnasium.error.Error as error:
        raise ArgumentError(f"there is no environment '{environment}' here: {error}") from error
    beside = normaliser.find(path, space)
    if beside is not None:
        venv = VecNormalize.load(str(beside), venv)
        venv.training = venv.norm_reward = False
    return venv


def _is_atari(environment: str) -> bool:
    if "NoFrameskip" in environment or environment.startswith("ALE/"):
        import ale_py

        gymnasium.register_envs(ale_py)
        return True
    return False


class _Graph:
    """Our graph as something that acts: its recurrent state, and the framework's last step to an action."""

    def __init__(self, checkpoint: Checkpoint, space: gymnasium.Space[Any]) -> None:
        self._run, self._space = runtime(checkpoint.model), space
        inputs = checkpoint.model.graph.inputs
        self._other = {str(v.name): _zeros(v.shape) for v in inputs if not _observed(checkpoint, str(v.name))}
        self._images = {str(v.name) for v in inputs if v.dtype is not None and v.dtype.is_floating_point()}
        self._state = dict(self._other)
        kinds = {port.kind: port.name for port in checkpoint.interface.outputs if port.kind != "other"}
        wanted = ("q_values", "action", "mean", "logits")
        self._kind = next((kind for kind in wanted if kind in kinds), "")
        self._head = kinds.get(self._kind) or "logits"

    def reset(self) -> None:
        """Forget."""
        self._state = dict(self._other)

    def act(self, observation: Array | Mapping[str, Array]) -> Array:
        """The greedy action, as `predict` gives it: (1, …)."""
        named = observation if isinstance(observation, Mapping) else {"observation": observation}
        feeds = {
            k: v.astype(np.float32) if k in self._images else v.astype(np.int64) for k, v in named.items()
        }
        found = self._run({**self._state, **feeds})
        self._state |= {k.removesuffix(".next"): v for k, v in found.items() if k.endswith(".next")}
        return _settled(found[self._head], self._kind, self._space)


def _observed(checkpoint: Checkpoint, name: str) -> bool:
    return any(port.name == name and port.kind == "observation" for port in checkpoint.interface.inputs)


def _zeros(shape: Any) -> Array:  # noqa: ANN401
    return np.zeros([1, *(n if isinstance(n, int) else 1 for n in list(shape or ())[1:])], np.float32)


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


def _compare(model: BaseAlgorithm, venv: VecEnv, graph: _Graph, environment: str, episodes: int) -> Parity:
    steps, differing, largest, returns = 0, 0, 0.0, list[float]()
    differ = _difference(model.action_space)
    for _ in range(episodes):
        observation, state, start, total = venv.reset(), None, np.ones(1, bool), 0.0
        graph.reset()
        for _ in range(_MOST_STEPS):
            wanted, state = model.predict(observation, state, start, deterministic=True)  # type: ignore[arg-type]
            far = differ(graph.act(observation), wanted)  # type: ignore[arg-type]
            steps, differing, largest = steps + 1, differing + (far > LIMIT), max(largest, far)
            observation, reward, done, _ = venv.step(wanted)
            total, start = total + float(reward[0]), done
            if done[0]:
                break
        returns.append(total)
    return Parity(environment, tuple(returns), steps, differing, largest)


def _difference(space: gymnasium.Space[Any]) -> Callable[[Array, Array], float]:
    """How far two actions are apart: 0 or 1 where they are choices, else in the units of their range."""
    if not isinstance(space, gymnasium.spaces.Box):
        return lambda a, b: float(not np.array_equal(a, b))
    size = np.maximum(1.0, np.where(np.isfinite(space.high), np.abs(space.high), 1.0))
    return lambda a, b: float((np.abs(a - b) / size).max())
