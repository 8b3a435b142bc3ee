"""Models of Stable-Baselines3 and sb3-contrib, trained for a moment by the real packages, and what they answer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

Arrays = Mapping[str, np.ndarray]

OBSERVATIONS: Mapping[str, Callable[[int], spaces.Space]] = {
    "vector": lambda more: spaces.Box(-2.0, 2.0, (5 + more,), np.float32),
    "one": lambda more: spaces.Box(-2.0, 2.0, (1 + more,), np.float32),
    "image": lambda more: spaces.Box(0, 255, (2 + more, 36, 36), np.uint8),
    "frame": lambda more: spaces.Box(0, 255, (1 + more, 36, 36), np.uint8),
    "dict": lambda more: spaces.Dict(
        camera=spaces.Box(0, 255, (1, 36, 36), np.uint8),
        position=spaces.Box(-1.0, 1.0, (3 + more,), np.float32),
    ),
    "number": lambda more: spaces.Discrete(6),
    "numbers": lambda more: spaces.MultiDiscrete([3, 4]),
}
"""Kind of observation -> its space, with some more features."""

ACTIONS: Mapping[str, Callable[[int], spaces.Space]] = {
    "choice": lambda more: spaces.Discrete(3 + more),
    "box": lambda more: spaces.Box(-1.0, 1.0, (2 + more,), np.float32),
    "one": lambda more: spaces.Box(-2.0, 2.0, (1 + more,), np.float32),
    "choices": lambda more: spaces.MultiDiscrete([2, 3]),
}


class World(gymnasium.Env):
    """Observations drawn at random, a reward that depends on the action, ten steps an episode."""

    def __init__(self, observation: str, action: str, more: int = 0) -> None:
        self.observation_space = OBSERVATIONS[observation](more)
        self.action_space = ACTIONS[action](more)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[object, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._step = 0
        return self.observation_space.sample(), {}

    def step(self, action: object) -> tuple[object, float, bool, bool, dict]:
        self._step += 1
        reward = float(np.sum(action) - 1)
        return self.observation_space.sample(), reward, False, self._step == 10, {}


class Uneven(World):
    """The small world, later: two more features, one of them unbounded, one more action."""

    def __init__(self) -> None:
        super().__init__("vector", "choice", 1)
        high = np.array([2, 2, 2, 2, 2, 7, np.inf], np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Row:
    """A kind of model.

    Attributes:
      algorithm: the real class. policy: its name there.
      observation, action: kinds of spaces.
      settings: of the algorithm.
      steps: that it is trained.
    """

    algorithm: type[BaseAlgorithm]
    policy: str
    observation: str
    action: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steps: int = 40

    def env(self, more: int = 0) -> World:
        return World(self.observation, self.action, more)

    def train(self, path: Path) -> None:
        """Save a model after a few updates."""
        model = self.algorithm(
            self.policy, self.env(), seed=0, device="cpu", **copy.deepcopy(dict(self.settings))
        )
        model.learn(self.steps)
        model.save(path)

    def load(self, path: Path, more: int | None = None) -> BaseAlgorithm:
        """The model in a file, with an environment that has some more features and actions, or without one."""
        env = None if more is None else self.env(more)
        with path.open("rb") as file:
            return self.algorithm.load(file, env=env, device="cpu")


_ON = {"n_steps": 20, "batch_size": 20, "n_epochs": 2}
_OFF = {"learning_starts": 10, "buffer_size": 100, "batch_size": 8}
_SMALL = {"net_arch": [12, 9]}
_ELU = {"net_arch": {"pi": [12], "vf": [7, 8]}, "activation_fn": torch.nn.ELU}
_SLIM_IMAGE = {"features_extractor_kwargs": {"features_dim": 24}}
_ACTOR_ONLY = {"net_arch": {"pi": [11], "qf": [12, 9]}}

ROWS: Mapping[str, Row] = {
    "dqn": Row(sb3.DQN, "MlpPolicy", "vector", "choice", {**_OFF, "policy_kwargs": _SMALL}),
    "dqn default": Row(sb3.DQN, "MlpPolicy", "number", "choice", _OFF),
    "dqn image": Row(sb3.DQN, "CnnPolicy", "image", "choice", {**_OFF, "policy_kwargs": _SLIM_IMAGE}, 16),
    "qrdqn": Row(
        sb3_contrib.QRDQN, "MlpPolicy", "vector", "choice", {**_OFF, "policy_kwargs": {**_SMALL, "n_quantiles": 7}}
    ),
    "ppo": Row(sb3.PPO, "MlpPolicy", "vector", "choice", _ON),
    "ppo elu": Row(sb3.PPO, "MlpPolicy", "vector", "box", {**_ON, "policy_kwargs": _ELU}),
    "ppo sde": Row(sb3.PPO, "MlpPolicy", "vector", "box", {**_ON, "use_sde": True, "policy_kwargs": _SMALL}),
    "ppo image": Row(sb3.PPO, "CnnPolicy", "image", "choice", {**_ON, "policy_kwargs": _SLIM_IMAGE}, 20),
    "ppo two extractors": Row(
        sb3.PPO, "CnnPolicy", "image", "choice",
        {**_ON, "policy_kwargs": {**_SLIM_IMAGE, "share_features_extractor": False}}, 20,
    ),
    "ppo dict": Row(
        sb3.PPO, "MultiInputPolicy", "dict", "choice",
        {**_ON, "policy_kwargs": {**_SMALL, "features_extractor_kwargs": {"cnn_output_dim": 10}}}, 20,
    ),
    "ppo choices": Row(sb3.PPO, "MlpPolicy", "numbers", "choices", {**_ON, "policy_kwargs": _SMALL}),
    "a2c": Row(sb3.A2C, "MlpPolicy", "vector", "choice", {"policy_kwargs": _SMALL}),
    "a2c tf": Row(
        sb3.A2C, "MlpPolicy", "vector", "choice",
        {"policy_kwargs": {**_SMALL, "optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}},
    ),
    "sac": Row(sb3.SAC, "MlpPolicy", "vector", "box", {**_OFF, "policy_kwargs": _SMALL}),
    "sac sde": Row(sb3.SAC, "MlpPolicy", "vector", "box", {**_OFF, "use_sde": True, "policy_kwargs": _ACTOR_ONLY}),
    "sac image": Row(
        sb3.SAC, "CnnPolicy", "image", "box", {**_OFF, "policy_kwargs": {**_SMALL, **_SLIM_IMAGE}}, 14
    ),
    "td3": Row(sb3.TD3, "MlpPolicy", "vector", "box", {**_OFF, "policy_kwargs": _ACTOR_ONLY}),
    "tqc": Row(
        sb3_contrib.TQC, "MlpPolicy", "vector", "box", {**_OFF, "policy_kwargs": {**_SMALL, "n_quantiles": 6}}
    ),
    "recurrent": Row(
        sb3_contrib.RecurrentPPO, "MlpLstmPolicy", "vector", "choice",
        {**_ON, "policy_kwargs": {**_SMALL, "lstm_hidden_size": 10}},
    ),
    "recurrent shared": Row(
        sb3_contrib.RecurrentPPO, "MlpLstmPolicy", "vector", "choice",
        {**_ON, "policy_kwargs": {
            "lstm_hidden_size": 10, "enable_critic_lstm": False, "shared_lstm": True, "n_lstm_layers": 2}},
    ),
}  # fmt: skip


class Saved(dict):
    """A trained model of every kind, made when it is first asked for."""

    def __init__(self, folder: Path, rows: Mapping[str, Row] = ROWS) -> None:
        super().__init__()
        self.folder, self.rows = folder, rows
        torch.set_num_threads(1)

    def __missing__(self, name: str) -> Path:
        self[name] = self.folder / f"{name.replace(' ', '-')}.zip"
        self.rows[name].train(self[name])
        return self[name]


def observations(row: Row, count: int, more: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Observations from the environment's space, by input name."""
    space = row.env(more).observation_space
    space.seed(seed)
    drawn = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([item[key] for item in drawn]) for key in space.spaces}
    return {"observation": np.stack(drawn)}


def given(arrays: Arrays) -> np.ndarray | dict[str, np.ndarray]:
    """Observations as the framework's `predict` takes them."""
    return arrays["observation"] if "observation" in arrays else dict(arrays)


@torch.no_grad()
def answers(model: BaseAlgorithm, arrays: Arrays) -> dict[str, np.ndarray]:
    """What the framework's own networks compute, under the names of our outputs."""
    policy: Any = model.policy
    policy.set_training_mode(False)
    observation, _ = policy.obs_to_tensor(given(arrays))
    if hasattr(policy, "q_net"):
        found = {"q_values": policy.q_net(observation), "q_values_target": policy.q_net_target(observation)}
    elif hasattr(policy, "quantile_net"):
        cubes = {"": policy.quantile_net(observation), "_target": policy.quantile_net_target(observation)}
        found = {f"quantiles{suffix}": cube.transpose(1, 2) for suffix, cube in cubes.items()}
        found |= {f"q_values{suffix}": cube.mean(dim=1) for suffix, cube in cubes.items()}
    elif hasattr(policy, "action_net"):
        found = _actor_critic(policy, observation, arrays)
    else:
        found = _off_policy(policy, observation, torch.as_tensor(arrays["critic_action"]))
    return {name: value.numpy() for name, value in found.items()}


def _actor_critic(policy: Any, observation: Any, arrays: Arrays) -> dict[str, torch.Tensor]:
    if hasattr(policy, "lstm_actor"):
        starts = torch.zeros(len(arrays["observation"]))
        states = {name: _states(arrays, name) for name in ("lstm_actor", "lstm_critic")}
        distribution, after = policy.get_distribution(observation, states["lstm_actor"], starts)
        critic = states["lstm_critic" if policy.lstm_critic is not None else "lstm_actor"]
        found = {"value": policy.predict_values(observation, critic, starts)}
        for kind, tensor in zip(("hidden", "cell"), after, strict=True):
            found |= {f"lstm_actor.{kind}.{k}.next": layer for k, layer in enumerate(tensor)}
    else:
        distribution = policy.get_distribution(observation)
        found = {"value": policy.predict_values(observation)}
    inner = distribution.distribution
    if isinstance(inner, list):
        return {**found, "logits": torch.cat([part.logits for part in inner], dim=1)}
    if isinstance(inner, torch.distributions.Normal):
        return {**found, "mean": inner.mean, "action_log_std": inner.stddev.log()}
    return {**found, "logits": inner.logits}


def _states(arrays: Arrays, module: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    layers = [
        [arrays[f"{module}.{kind}.{k}"] for k in range(4) if f"{module}.{kind}.{k}" in arrays]
        for kind in ("hidden", "cell")
    ]
    return tuple(torch.as_tensor(np.stack(kind)) for kind in layers) if layers[0] else None


def _off_policy(policy: Any, observation: Any, action: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {"action": policy.actor(observation, deterministic=True) if hasattr(
        policy.actor, "log_std") else policy.actor(observation)}  # fmt: skip
    if hasattr(policy.actor, "log_std"):
        mean, log_std, latent = policy.actor.get_action_dist_params(observation)
        found["mean"] = mean
        if latent:
            variance = latent["latent_sde"] ** 2 @ policy.actor.get_std() ** 2
            log_std = 0.5 * torch.log(variance + 1e-6)
        found["action_log_std"] = log_std
    else:
        found["action_target"] = policy.actor_target(observation)
    for suffix, critic in (("", policy.critic), ("_target", policy.critic_target)):
        values = critic(observation, action)
        parts = values.unbind(dim=1) if isinstance(values, torch.Tensor) else values
        found |= {f"qf{k}{suffix}": part for k, part in enumerate(parts)}
    return found
