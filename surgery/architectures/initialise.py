"""How the weights of an untrained network start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgery.architectures.library import Initialisation
from surgery.arrays import Array
from surgery.edits.arithmetic import tensor_rng


@dataclass(frozen=True)
class Initialiser:
    """Draws the weights of layers; each has a generator of its own, so that the order does not matter.

    uniform     weights and biases in ± 1/√fan-in (PyTorch's layers)
    xavier      ± √(6/(fan-in + fan-out)), biases 0 (Glorot and Bengio, 2010; Dopamine's networks)
    orthogonal  orthonormal rows or columns times a gain, biases 0 (Saxe et al., 2014; PPO code)
    """

    kind: Initialisation
    seed: int

    def weight(self, name: str, shape: Sequence[int], *, gain: float = math.sqrt(2)) -> Array:
        """Weights of shape (out, in, *kernel); the gain is for the orthogonal kind."""
        fan_in, out = math.prod(shape[1:]), shape[0]
        generator = tensor_rng(self.seed, name)
        if self.kind == "orthogonal":
            return _orthogonal(generator, out, fan_in, gain).reshape(shape)
        taps = math.prod(shape[2:])
        bound = 1 / math.sqrt(fan_in) if self.kind == "uniform" else math.sqrt(6 / (fan_in + out * taps))
        return _uniform(generator, bound, shape)

    def bias(self, name: str, size: int, fan_in: int) -> Array:
        """Biases of shape (size,) of a layer that reads `fan_in` numbers."""
        if self.kind != "uniform":
            return np.zeros(size, np.float32)
        return _uniform(tensor_rng(self.seed, name), 1 / math.sqrt(fan_in), (size,))

    def recurrent(self, name: str, shape: Sequence[int], width: int) -> Array:
        """Weights of a recurrent layer of `width` units: shape (gates · width, in)."""
        generator = tensor_rng(self.seed, name)
        if self.kind != "orthogonal":
            return _uniform(generator, 1 / math.sqrt(width), shape)
        gates = [_orthogonal(generator, width, shape[1], 1.0) for _ in range(shape[0] // width)]
        return np.concatenate(gates)


def _uniform(generator: np.random.Generator, bound: float, shape: Sequence[int]) -> Array:
    return generator.uniform(-bound, bound, tuple(shape)).astype(np.float32)


def _orthogonal(generator: np.random.Generator, rows: int, columns: int, gain: float) -> Array:
    """Uniformly distributed: the signs of R's diagonal go into Q (Mezzadri, 2007)."""
    tall = generator.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q *= np.sign(np.diag(r))
    return (gain * (q if rows >= columns else q.T)).astype(np.float32)
