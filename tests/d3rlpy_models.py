"""Algorithms of d3rlpy, trained for a moment by the real package, and what they answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.models.encoders import PixelEncoderFactory, SimBaEncoderFactory, VectorEncoderFactory
from d3rlpy.models.q_functions import IQNQFunctionFactory, MeanQFunctionFactory, QRQFunctionFactory
from d3rlpy.optimizers import RMSpropFactory
from d3rlpy.optimizers.lr_schedulers import CosineAnnealingLRFactory
from d3rlpy.preprocessing import (
    MinMaxActionScaler,
    MinMaxObservationScaler,
    PixelObservationScaler,
    StandardObservationScaler,
)

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """A kind of algorithm.

    Attributes:
      config: makes its configuration.
      discrete: whether it chooses one of three actions, or moves in two directions.
      image: whether it sees images.
    """

    config: Callable[[], Any]
    discrete: bool = True
    image: bool = False

    def observations(self, count: int, more: int = 0, seed: int = 0) -> np.ndarray:
        """(count, 5 + more), or images (count, 2 + more, 12, 12)."""
        rng = np.random.default_rng(seed)
        if self.image:
            return rng.integers(0, 256, (count, 2 + more, 12, 12), dtype=np.uint8)
        return rng.normal(size=(count, 5 + more)).astype(np.float32)

    def dataset(self, more: int = 0) -> Any:
        """Sixty steps in three episodes, with some more features and actions."""
        rng, ends = np.random.default_rng(1), np.zeros(60)
        ends[19::20] = 1
        actions = (
            rng.integers(0, 3 + more, (60, 1))
            if self.discrete
            else rng.uniform(-1, 1, (60, 2 + more)).astype(np.float32)
        )
        rewards = rng.normal(size=60).astype(np.float32)
        kind, size = ("DISCRETE", 3 + more) if self.discrete else ("CONTINUOUS", 2 + more)
        return d3rlpy.dataset.MDPDataset(
            self.observations(60, more), actions, rewards, ends,
            action_space=d3rlpy.ActionSpace[kind], action_size=size,
        )  # fmt: skip

    def train(self, path: Path) -> None:
        """Save an algorithm after a few updates."""
        d3rlpy.seed(0)
        torch.manual_seed(0)
        algorithm = self.config().create(device="cpu:0")
        self.learn(algorithm)
        algorithm.save(str(path))

    def learn(self, algorithm: Any, more: int = 0) -> None:
        """A few updates more, on data with some more features and actions."""
        algorithm.fit(
            self.dataset(more), n_steps=4, n_steps_per_epoch=4, show_progress=False,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        )  # fmt: skip


def _config(name: str, **settings: object) -> Callable[[], Any]:
    return lambda: getattr(d3rlpy.algos, f"{name}Config")(batch_size=8, **settings)


def _both(factory: Any, critic: Any = None) -> dict[str, Any]:
    return {"actor_encoder_factory": factory, "critic_encoder_factory": critic or factory}


_SMALL = VectorEncoderFactory([6, 5])
_NORMED = VectorEncoderFactory([6, 5], activation="tanh", use_layer_norm=True, exclude_last_activation=True)
_BATCHED = VectorEncoderFactory(
    [6, 5], "swish", use_batch_norm=True, dropout_rate=0.1, last_activation="gelu"
)
_SIMBA = SimBaEncoderFactory(feature_size=6, hidden_size=8, n_blocks=2)
_PIXEL = PixelEncoderFactory(filters=[[3, 4, 2], [4, 3, 1]], feature_size=7)

ROWS: Mapping[str, Row] = {
    "dqn": Row(_config("DQN", encoder_factory=_SMALL)),
    "dqn default": Row(_config("DQN", observation_scaler=StandardObservationScaler())),
    "dqn image": Row(
        _config("DQN", encoder_factory=_PIXEL, observation_scaler=PixelObservationScaler()), image=True
    ),
    "dqn ensemble": Row(
        _config("DQN", encoder_factory=_SMALL, n_critics=3, q_func_factory=MeanQFunctionFactory(share_encoder=True))
    ),
    "double dqn quantiles": Row(
        _config("DoubleDQN", encoder_factory=_SMALL, q_func_factory=QRQFunctionFactory(n_quantiles=7))
    ),
    "dqn implicit": Row(
        _config("DQN", encoder_factory=_SMALL, q_func_factory=IQNQFunctionFactory(n_greedy_quantiles=4, embed_size=8))
    ),
    "nfq": Row(_config("NFQ", encoder_factory=_SMALL, optim_factory=RMSpropFactory())),
    "discrete cql": Row(_config("DiscreteCQL", encoder_factory=_BATCHED)),
    "discrete sac": Row(_config("DiscreteSAC", **_both(_SMALL))),
    "discrete bc": Row(_config("DiscreteBC", encoder_factory=_NORMED)),
    "cql": Row(_config("CQL", **_both(_SMALL)), discrete=False),
    "cal ql": Row(_config("CalQL", **_both(_SMALL)), discrete=False),
    "sac": Row(
        _config("SAC", **_both(_SMALL, _NORMED), observation_scaler=MinMaxObservationScaler(),
                action_scaler=MinMaxActionScaler(minimum=[-2.0, -3.0], maximum=[2.0, 3.0])), discrete=False
    ),
    "sac image": Row(
        _config("SAC", **_both(_PIXEL), observation_scaler=PixelObservationScaler()), discrete=False, image=True
    ),
    "td3": Row(_config("TD3", **_both(_SMALL)), discrete=False),
    "td3 simba": Row(_config("TD3", **_both(_SIMBA)), discrete=False),
    "ddpg": Row(_config("DDPG", **_both(_SMALL)), discrete=False),
    "td3 and bc": Row(_config("TD3PlusBC", **_both(_SMALL)), discrete=False),
    "td3 quantiles": Row(
        _config("TD3", **_both(_SMALL), q_func_factory=QRQFunctionFactory(n_quantiles=5)), discrete=False
    ),
    "iql": Row(_config("IQL", **_both(_SMALL), value_encoder_factory=VectorEncoderFactory([4])), discrete=False),
    "prdc": Row(_config("PRDC", **_both(_SMALL)), discrete=False),
    "rebrac": Row(_config("ReBRAC", **_both(_NORMED)), discrete=False),
    "crr": Row(_config("CRR", **_both(_SMALL)), discrete=False),
    "awac": Row(_config("AWAC", **_both(_SMALL)), discrete=False),
    "bc": Row(_config("BC", encoder_factory=_SMALL), discrete=False),
    "bc scheduled": Row(
        _config("BC", encoder_factory=_SMALL, policy_type="stochastic", optim_factory=d3rlpy.optimizers.AdamFactory(
            lr_scheduler_factory=CosineAnnealingLRFactory(T_max=100))), discrete=False
    ),
}  # fmt: skip


def load(path: Path) -> Any:
    """The algorithm in a file."""
    return d3rlpy.load_learnable(str(path), device="cpu:0")


def parameters(algorithm: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Every parameter, under our names for them."""
    for module, network in algorithm.impl.modules.get_torch_modules().items():
        for name, parameter in network.named_parameters():
            yield f"{module}.{name}", parameter


def optimizers(algorithm: Any) -> Iterator[torch.optim.Optimizer]:
    """The framework's own optimizers."""
    for field in dataclasses.fields(algorithm.impl.modules):
        found = getattr(algorithm.impl.modules, field.name)
        if field.name.endswith("optim") and found is not None:
            yield found.optim


def scaled(algorithm: Any, arrays: Arrays) -> dict[str, np.ndarray]:
    """Observations as our graph takes them: normalised where the framework does it, images as they are."""
    scaler, x = algorithm.config.observation_scaler, arrays["observation"].astype(np.float32)
    if scaler is not None and scaler.get_type() != "pixel":
        x = scaler.transform(torch.as_tensor(x)).numpy().astype(np.float32)
    return {**arrays, "observation": x}


@torch.no_grad()
def answers(algorithm: Any, arrays: Arrays) -> dict[str, np.ndarray]:
    """What the framework's own networks compute, under the names of our outputs."""
    modules = algorithm.impl.modules
    modules.set_eval()
    x = torch.as_tensor(arrays["observation"].astype(np.float32))
    if algorithm.config.observation_scaler is not None:
        x = algorithm.config.observation_scaler.transform(x)
    action = torch.as_tensor(arrays["critic_action"]) if "critic_action" in arrays else None
    found: dict[str, torch.Tensor] = {}
    for name, module in modules.get_torch_modules().items():
        suffix = "_target" if name.startswith("targ_") else ""
        if name in ("policy", "targ_policy", "imitator"):
            found |= _policy(module(x), suffix)
        elif name.endswith("q_funcs"):
            seen = (x,) if action is None else (x, action)
            members = [member(*seen) for member in module]
            for k, member in enumerate(members if members[0].quantiles is not None else ()):
                if algorithm.config.q_func_factory.get_type() == "qr":
                    cube = member.quantiles.reshape(len(x), -1, member.quantiles.shape[-1])
                    found[f"qf{k}_quantiles{suffix}"] = cube
            found |= _critics([m.q_value for m in members], suffix, algorithm.config.get_type())
        elif name == "value_func":
            found["value"] = module(x)
    return {name: value.numpy() for name, value in found.items()}


def _policy(output: Any, suffix: str) -> dict[str, torch.Tensor]:
    if isinstance(output, torch.distributions.Categorical):
        return {"logits": output.logits}
    found = {f"action{suffix}": output.squashed_mu}
    if output.logstd is not None:
        deviation = output.logstd.expand_as(output.mu)
        found |= {f"mean{suffix}": output.mu, f"action_log_std{suffix}": deviation}
    return found


def _critics(values: list[torch.Tensor], suffix: str, algorithm: str) -> dict[str, torch.Tensor]:
    if values[0].shape[1] > 1 and algorithm != "discrete_sac":
        return {f"q_values{suffix}": torch.stack(values).mean(dim=0)}
    return {f"qf{k}{suffix}": value for k, value in enumerate(values)}
