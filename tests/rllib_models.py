"""Algorithms of RLlib, trained for a moment by the real package, and what their modules answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import ray
import torch
from gymnasium import spaces
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env

Arrays = Mapping[str, np.ndarray]
MODULE = "default_policy"


class World(gymnasium.Env):
    """Observations drawn at random, a reward that depends on the action, ten steps an episode."""

    def __init__(self, image: bool, discrete: bool, features: int, more: int) -> None:
        shape = (12, 12, 2 + features) if image else (4 + features,)
        self.observation_space = spaces.Box(-2.0, 2.0, shape, np.float32)
        actions = (2 if image else 3) + more
        self.action_space = (
            spaces.Discrete(actions) if discrete else spaces.Box(-1.0, 1.0, (actions - 1,), np.float32)
        )

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._step = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._step += 1
        return self._seen(), float(np.sum(action)), False, self._step == 10, {}

    def _seen(self) -> np.ndarray:
        shape = self.observation_space.shape
        return self.np_random.uniform(-2, 2, shape).astype(np.float32)


def start(features: int = 0, actions: int = 0) -> None:
    """Start Ray where it is not running; later environments have some more features and actions."""
    if not ray.is_initialized():
        ray.init(
            num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
            object_store_memory=100_000_000,
        )  # fmt: skip
    for image in (False, True):
        for discrete in (False, True):
            made = (image, discrete, features, actions)  # travels to the processes that act
            register_env(f"World{image:d}{discrete:d}", lambda _, made=made: World(*made))


@dataclasses.dataclass(frozen=True)
class Row:
    """A kind of algorithm.

    Attributes:
      config: makes its configuration. model: of its networks; None for the framework's default.
      discrete, image: kinds of its actions and observations.
      remote: whether it needs an environment runner in a process of its own.
      connectors: makes those that change an observation before the module sees it.
    """

    config: Callable[[], AlgorithmConfig]
    model: Any = None
    discrete: bool = True
    image: bool = False
    remote: bool = False
    connectors: Callable[..., Any] | None = None

    def train(self, path: Path) -> None:
        """Save an algorithm after a few updates."""
        start()
        config = (
            self.config()
            .environment(f"World{self.image:d}{self.discrete:d}")
            .env_runners(
                num_env_runners=int(self.remote),
                rollout_fragment_length=10,
                env_to_module_connector=self.connectors,
            )
            .learners(num_learners=0)
            .reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=10)
            .debugging(seed=0)
        )
        if self.model is not None:
            config = config.rl_module(model_config=self.model)
        algorithm = config.build_algo()
        learn(algorithm)
        algorithm.save_to_path(str(path))
        algorithm.stop()

    def inputs(self, checkpoint: Any, count: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
        """Random numbers for every input of a graph."""
        rng = np.random.default_rng(seed)
        return {
            v.name: rng.uniform(-2 if v.name == "observation" else -1, 1, (count, *v.shape[1:])).astype(
                np.float32
            )
            for v in checkpoint.model.graph.inputs
        }


_SMALL = {"fcnet_hiddens": [6, 5], "head_fcnet_hiddens": [4], "fusionnet_hiddens": [7]}
_CONV = [[3, 4, 2], [4, 3, 1, "valid"]]


def _ppo(**settings: object) -> PPOConfig:
    return PPOConfig().training(train_batch_size=40, minibatch_size=20, num_epochs=1, **settings)


def _dqn(**settings: object) -> DQNConfig:
    return DQNConfig().training(
        train_batch_size=8, num_steps_sampled_before_learning_starts=10, training_intensity=None, **settings
    )


def _sac(**settings: object) -> SACConfig:
    return SACConfig().training(
        train_batch_size=8, num_steps_sampled_before_learning_starts=10, training_intensity=None, **settings
    )


ROWS: Mapping[str, Row] = {
    "ppo": Row(_ppo, DefaultModelConfig(**_SMALL)),
    "ppo default": Row(_ppo),
    "ppo settings": Row(_ppo, {"fcnet_hiddens": [6], "fcnet_activation": "relu"}),
    "ppo box": Row(
        _ppo,
        DefaultModelConfig(**_SMALL, vf_share_layers=False, fcnet_use_layernorm=True, fcnet_activation="silu"),
        discrete=False,
    ),
    "ppo free": Row(_ppo, DefaultModelConfig(**_SMALL, free_log_std=True), discrete=False),
    "ppo image": Row(_ppo, DefaultModelConfig(conv_filters=_CONV, head_fcnet_hiddens=[5]), image=True),
    "ppo lstm": Row(_ppo, DefaultModelConfig(**_SMALL, use_lstm=True, lstm_cell_size=5, max_seq_len=4)),
    "ppo filter": Row(
        _ppo, DefaultModelConfig(**_SMALL), connectors=lambda *_, **__: MeanStdFilter(clip_by_value=1.5)
    ),
    "dqn": Row(_dqn, DefaultModelConfig(**_SMALL)),
    "dqn plain": Row(lambda: _dqn(dueling=False, double_q=False), DefaultModelConfig(**_SMALL)),
    "dqn atoms": Row(lambda: _dqn(num_atoms=5, v_min=-3.0, v_max=7.0), DefaultModelConfig(**_SMALL)),
    "dqn plain atoms": Row(lambda: _dqn(num_atoms=4, dueling=False), DefaultModelConfig(**_SMALL)),
    "dqn image": Row(_dqn, DefaultModelConfig(conv_filters=_CONV), image=True),
    "sac": Row(_sac, DefaultModelConfig(**_SMALL), discrete=False),
    "sac image": Row(
        _sac, DefaultModelConfig(conv_filters=_CONV, fusionnet_hiddens=[7], head_fcnet_hiddens=[4]), discrete=False,
        image=True
    ),
    "sac one critic": Row(lambda: _sac(twin_q=False), DefaultModelConfig(**_SMALL), discrete=False),
    "sac discrete": Row(_sac, DefaultModelConfig(**_SMALL)),
    "impala": Row(
        lambda: IMPALAConfig().training(train_batch_size_per_learner=20), DefaultModelConfig(**_SMALL), remote=True
    ),
    "appo": Row(
        lambda: APPOConfig().training(train_batch_size_per_learner=20),
        DefaultModelConfig(**_SMALL, vf_share_layers=False), remote=True
    ),
}  # fmt: skip


def learn(algorithm: Algorithm) -> None:
    """A few updates."""
    for _ in range(20):
        algorithm.train()
        if any(optimizer.state for optimizer in optimizers(algorithm)):
            return
    raise AssertionError("no update came about")


def load(path: Path, features: int = 0, actions: int = 0) -> Algorithm:
    """The algorithm in a folder, in a world with some more features and actions."""
    start(features, actions)
    return Algorithm.from_checkpoint(str(path))


def module_of(algorithm: Algorithm) -> Any:
    """The module that learns."""
    return algorithm.learner_group._learner.module[MODULE]


def optimizers(algorithm: Algorithm) -> Iterator[torch.optim.Optimizer]:
    """The framework's own optimizers."""
    yield from algorithm.learner_group._learner._named_optimizers.values()


def filtered(algorithm: Algorithm, observation: np.ndarray) -> np.ndarray:
    """What the filter that an algorithm acts with makes of observations, of which it learns nothing."""
    connectors = algorithm.env_runner._env_to_module.connectors
    own = next(c for c in connectors if isinstance(c, MeanStdFilter))._filters[None]
    return np.stack([own(one, update=False) for one in observation])


@torch.no_grad()
def answers(module: Any, arrays: Arrays) -> dict[str, np.ndarray]:
    """What the framework's module computes, under the names of our outputs."""
    batch = {"obs": torch.as_tensor(arrays["observation"])}
    if hasattr(module, "pi_encoder"):
        found = _off_policy(module, batch, arrays)
    elif hasattr(module, "af"):
        both = {"": module.compute_q_values(batch), "_target": module.forward_target(batch)}
        found = {f"q_values{suffix}": values["qf_preds"] for suffix, values in both.items()}
        found |= {
            f"atom_logits{s}": values["qf_logits"] for s, values in both.items() if "qf_logits" in values
        }
    else:
        found = _actor_critic(module, batch, arrays)
    return {name: value.numpy() for name, value in found.items()}


def _head(output: torch.Tensor, module: Any, suffix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(module.action_space, spaces.Discrete):
        return {f"logits{suffix}": output}
    mean, deviation = output.chunk(2, dim=-1)
    return {f"mean{suffix}": mean, f"action_log_std{suffix}": deviation}


def _actor_critic(module: Any, batch: dict[str, Any], arrays: Arrays) -> dict[str, torch.Tensor]:
    recurrent, after = {k: torch.as_tensor(v)[:, None] for k, v in arrays.items() if "lstm" in k}, {}
    if recurrent:
        prefix = next(iter(recurrent)).partition("hidden")[0]
        state = {"h": recurrent[f"{prefix}hidden.0"], "c": recurrent[f"{prefix}cell.0"]}
        batch = {"obs": batch["obs"][:, None], "state_in": state}
    output = module._forward(batch)
    if recurrent:
        after = {
            f"{prefix}{kind}.0.next": output["state_out"][kind[0]].squeeze(1) for kind in ("hidden", "cell")
        }
    squeezed = output["action_dist_inputs"].squeeze(1) if recurrent else output["action_dist_inputs"]
    found = {**_head(squeezed, module), "value": module.compute_values(batch).reshape(-1, 1), **after}
    if hasattr(module, "_old_pi"):
        found |= _head(module.forward_target(batch)["target_network_action_dist_inputs"], module, "_target")
    return found


def _off_policy(module: Any, batch: dict[str, Any], arrays: Arrays) -> dict[str, torch.Tensor]:
    found = _head(module.pi(module.pi_encoder(batch)["encoder_out"]), module)
    if "action_log_std" in found:
        found["action_log_std"] = found["action_log_std"].clamp(-5, 2)  # as its distribution does
    if "critic_action" in arrays:
        batch = {**batch, "actions": torch.as_tensor(arrays["critic_action"])}
    for number, critic in enumerate(("qf", "qf_twin") if module.twin_q else ("qf",)):
        for prefix, suffix in (("", ""), ("target_", "_target")):
            encoder, head = (getattr(module, f"{prefix}{critic}{part}") for part in ("_encoder", ""))
            found[f"qf{number}{suffix}"] = module._qf_forward_train_helper(
                batch, encoder, head, squeeze=False
            )
    return found
