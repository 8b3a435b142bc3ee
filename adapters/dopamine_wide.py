"""Dopamine's Nature networks in any width, for agents that go on from a widened checkpoint.

The widths of `dopamine.jax.networks` stand in its code. These have the same layers under the same names, and widths as
attributes, so that `gin` can bind them. This module needs Dopamine, and nothing else of ours.

    JaxDQNAgent.network = @wide.NatureDQN
    wide.NatureDQN.convolutions = (64, 128, 128)
    wide.NatureDQN.dense = 1024
"""

# mypy: disallow-untyped-decorators=False
from __future__ import annotations

import gin
import jax
import jax.numpy as jnp
from dopamine.discrete_domains import atari_lib
from dopamine.jax import networks
from flax import linen as nn

Widths = tuple[int, int, int]
_NATURE = ((8, 4), (4, 2), (3, 1))


def _trunk(x: jax.Array, widths: Widths, initializer: object, preprocessed: bool) -> jax.Array:
    """The three convolutions, flattened: (height, width, frames) -> (features,)."""
    if not preprocessed:
        x = networks.preprocess_atari_inputs(x)
    for width, (size, stride) in zip(widths, _NATURE, strict=True):
        x = nn.relu(nn.Conv(width, (size, size), (stride, stride), kernel_init=initializer)(x))
    return x.reshape(-1)


def _uniform() -> object:
    """How Dopamine starts the weights of its distributional networks."""
    return nn.initializers.variance_scaling(1.0 / jnp.sqrt(3.0), "fan_in", "uniform")


def _distributions(x: jax.Array, net: Rainbow | Quantile) -> jax.Array:
    """Nature's network with numbers for every action: (height, width, frames) -> (actions, atoms)."""
    start = _uniform()
    x = _trunk(x, net.convolutions, start, net.inputs_preprocessed)
    x = nn.relu(nn.Dense(net.dense, kernel_init=start)(x))
    x = nn.Dense(net.num_actions * net.num_atoms, kernel_init=start)(x)
    return x.reshape((net.num_actions, net.num_atoms))


@gin.configurable(module="wide")
class NatureDQN(nn.Module):  # type: ignore[misc]
    """`NatureDQNNetwork`."""

    num_actions: int
    inputs_preprocessed: bool = False
    convolutions: Widths = (32, 64, 64)
    dense: int = 512

    @nn.compact
    def __call__(self, x: jax.Array) -> atari_lib.DQNNetworkType:
        start = nn.initializers.xavier_uniform()
        x = _trunk(x, self.convolutions, start, self.inputs_preprocessed)
        x = nn.relu(nn.Dense(self.dense, kernel_init=start)(x))
        return atari_lib.DQNNetworkType(nn.Dense(self.num_actions, kernel_init=start)(x))


@gin.configurable(module="wide")
class Rainbow(nn.Module):  # type: ignore[misc]
    """`RainbowNetwork`: C51."""

    num_actions: int
    num_atoms: int
    inputs_preprocessed: bool = False
    convolutions: Widths = (32, 64, 64)
    dense: int = 512

    @nn.compact
    def __call__(self, x: jax.Array, support: jax.Array) -> atari_lib.RainbowNetworkType:
        logits = _distributions(x, self)
        probabilities = nn.softmax(logits)
        return atari_lib.RainbowNetworkType(jnp.sum(support * probabilities, axis=1), logits, probabilities)


@gin.configurable(module="wide")
class Quantile(nn.Module):  # type: ignore[misc]
    """`QuantileNetwork`: QR-DQN."""

    num_actions: int
    num_atoms: int
    inputs_preprocessed: bool = False
    convolutions: Widths = (32, 64, 64)
    dense: int = 512

    @nn.compact
    def __call__(self, x: jax.Array) -> atari_lib.RainbowNetworkType:
        logits = _distributions(x, self)
        return atari_lib.RainbowNetworkType(jnp.mean(logits, axis=1), logits, nn.softmax(logits))


@gin.configurable(module="wide")
class ImplicitQuantile(nn.Module):  # type: ignore[misc]
    """`ImplicitQuantileNetwork`."""

    num_actions: int
    quantile_embedding_dim: int
    inputs_preprocessed: bool = False
    convolutions: Widths = (32, 64, 64)
    dense: int = 512

    @nn.compact
    def __call__(
        self, x: jax.Array, num_quantiles: int, rng: jax.Array
    ) -> atari_lib.ImplicitQuantileNetworkType:
        start = _uniform()
        x = _trunk(x, self.convolutions, start, self.inputs_preprocessed)
        quantiles = jax.random.uniform(rng, (num_quantiles, 1))
        waves = jnp.cos(jnp.pi * jnp.arange(1, self.quantile_embedding_dim + 1) * quantiles)
        x = x[None] * nn.relu(nn.Dense(x.shape[-1], kernel_init=start)(waves))
        x = nn.relu(nn.Dense(self.dense, kernel_init=start)(x))
        return atari_lib.ImplicitQuantileNetworkType(
            nn.Dense(self.num_actions, kernel_init=start)(x), quantiles
        )


@gin.configurable(module="wide")
class FullRainbow(nn.Module):  # type: ignore[misc]
    """`FullRainbowNetwork` with a distribution: noisy and dueling, or not."""

    num_actions: int
    num_atoms: int
    noisy: bool = True
    dueling: bool = True
    distributional: bool = True
    inputs_preprocessed: bool = False
    convolutions: Widths = (32, 64, 64)
    dense: int = 512

    @nn.compact
    def __call__(
        self, x: jax.Array, support: jax.Array, eval_mode: bool = False, key: jax.Array | None = None
    ) -> atari_lib.RainbowNetworkType:
        x = _trunk(x, self.convolutions, nn.initializers.xavier_uniform(), self.inputs_preprocessed)
        key = jax.random.PRNGKey(0) if key is None else key  # the weights do not depend on it
        layer = networks.feature_layer(key, self.noisy, eval_mode=eval_mode)
        x = nn.relu(layer(x, features=self.dense))
        logits = layer(x, features=self.num_actions * self.num_atoms).reshape(
            (self.num_actions, self.num_atoms)
        )
        if self.dueling:
            value = layer(x, features=self.num_atoms).reshape((1, self.num_atoms))
            logits = value + logits - jnp.mean(logits, axis=0, keepdims=True)
        probabilities = nn.softmax(logits)
        return atari_lib.RainbowNetworkType(jnp.sum(support * probabilities, axis=1), logits, probabilities)
