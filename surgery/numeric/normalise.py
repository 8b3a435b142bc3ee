"""Normalisers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel


def _constant(number: float, like: Array) -> Array:
    return np.asarray(number, like.real.dtype)


def _mean(x: Array, axes: Sequence[int]) -> Array:
    return np.asarray(x.mean(axis=tuple(axes), keepdims=True))


def moments(x: Array, axes: Sequence[int]) -> tuple[Array, Array]:
    """Mean and variance (of the population) over `axes`, kept as axes of size 1."""
    mean = _mean(x, axes)
    return mean, _mean(dual.square(np.asarray(x - mean)), axes)


def inverse_deviation(variance: Array, epsilon: float) -> Array:
    """1 / √(variance + ε)."""
    return dual.reciprocal(dual.sqrt(np.asarray(variance + _constant(epsilon, variance))))


def standardise(x: Array, axes: Sequence[int], epsilon: float) -> Array:
    """(x - mean) / √(variance + ε) over `axes`."""
    mean, variance = moments(x, axes)
    return dual.multiply(np.asarray(x - mean), inverse_deviation(variance, epsilon))


def _per_channel(x: Array, rank: int) -> Array:
    return x.reshape(-1, *(1,) * (rank - 2))


def batch_normalization(call: Call) -> tuple[Array, ...]:
    """By stored statistics; in training by those of the batch, with the running ones updated.

    Before opset 14 more than one output means training, and the batch statistics are outputs 3 and 4.
    """
    x, scale, bias, mean, variance = (call[index] for index in range(5))
    epsilon, momentum = call.number("epsilon", 1e-5), _constant(call.number("momentum", 0.9), x)
    running: tuple[Array, ...] = (mean, variance)
    if call.integer("training_mode") or (call.version < 14 and len(call.node.outputs) > 1):
        axes = (0, *range(2, x.ndim))
        batch_mean, batch_variance = (moment.reshape(-1) for moment in moments(x, axes))
        running = (
            np.asarray(mean * momentum + batch_mean * (1 - momentum)),
            np.asarray(variance * momentum + batch_variance * (1 - momentum)),
            batch_mean,
            batch_variance,
        )
        mean, variance = batch_mean, batch_variance
    factor = _per_channel(dual.multiply(scale, inverse_deviation(variance, epsilon)), x.ndim)
    centred = np.asarray(x - _per_channel(mean, x.ndim))
    return (np.asarray(dual.multiply(centred, factor) + _per_channel(bias, x.ndim)), *running)


def instance_normalization(call: Call) -> Array:
    """Each channel of each sample over its spatial axes."""
    x = call[0]
    y = standardise(x, range(2, x.ndim), call.number("epsilon", 1e-5))
    return np.asarray(dual.multiply(y, _per_channel(call[1], x.ndim)) + _per_channel(call[2], x.ndim))


def group_normalization(call: Call) -> Array:
    """Each group of channels of each sample; scale and bias per group in opset 18, per channel later."""
    x, groups = call[0], call.integer("num_groups", 1)
    grouped = x.reshape(x.shape[0], groups, -1)
    y = standardise(grouped, (2,), call.number("epsilon", 1e-5)).reshape(x.shape)
    scale, bias = call[1], call[2]
    if call.version < 21 and scale.size == groups:
        scale, bias = (np.repeat(part, x.shape[1] // groups) for part in (scale, bias))
    return np.asarray(dual.multiply(y, _per_channel(scale, x.ndim)) + _per_channel(bias, x.ndim))


def layer_normalization(call: Call) -> tuple[Array, ...]:
    """Over all axes from `axis` on; then the mean and the inverse deviation."""
    x = call[0]
    mean, variance = moments(x, range(call.axis(-1, x.ndim), x.ndim))
    inverse = inverse_deviation(variance, call.number("epsilon", 1e-5))
    y = dual.multiply(dual.multiply(np.asarray(x - mean), inverse), call[1])
    bias = call.get(2)
    return (y if bias is None else np.asarray(y + bias)), mean, inverse


def rms_normalization(call: Call) -> Array:
    """x / √(mean x² + ε) over all axes from `axis` on, times the scale."""
    x = call[0]
    power = _mean(dual.square(x), range(call.axis(-1, x.ndim), x.ndim))
    return dual.multiply(dual.multiply(x, inverse_deviation(power, call.number("epsilon", 1e-5))), call[1])


def local_response(call: Call) -> Array:
    """x / (bias + α/size · Σ x² over `size` neighbouring channels)^β."""
    x, size = call[0], call.integer("size", 1)
    squares = dual.square(x)
    summed = np.zeros_like(squares)
    channels = x.shape[1]
    for offset in range(-((size - 1) // 2), size // 2 + 1):
        low, high = max(-offset, 0), min(channels, channels - offset)
        if low < high:
            summed[:, low:high] += squares[:, low + offset : high + offset]
    alpha, beta = call.number("alpha", 1e-4), call.number("beta", 0.75)
    base = np.asarray(_constant(call.number("bias", 1.0), x) + _constant(alpha / size, x) * summed)
    return dual.divide(x, dual.power(base, _constant(beta, x)))


def lp_normalization(call: Call) -> Array:
    """x over its p-norm along `axis`; a vector of norm zero stays zero."""
    x = call[0]
    axis = call.axis(-1, x.ndim)
    if call.integer("p", 2) == 1:
        norm = np.asarray(dual.absolute(x).sum(axis=axis, keepdims=True))
    else:
        norm = dual.sqrt(np.asarray(dual.square(x).sum(axis=axis, keepdims=True)))
    return np.where(norm.real == 0, np.zeros((), x.dtype), dual.divide(x, norm))


def mean_variance_normalization(call: Call) -> Array:
    """(x - mean) / (deviation + 1e-9) over `axes`."""
    x = call[0]
    mean, variance = moments(x, call.integers("axes", (0, 2, 3)))
    return dual.divide(np.asarray(x - mean), np.asarray(dual.sqrt(variance) + _constant(1e-9, x)))


KERNELS: dict[str, Kernel] = {
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "LRN": local_response,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
}
