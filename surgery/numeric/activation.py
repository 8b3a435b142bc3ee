"""Activation functions and the softmax family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel
from surgery.numeric.dual import Unary
from surgery.numeric.elementwise import unary

# α and γ of Klambauer et al., 2017, as the float32 numbers that the standard states
SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def _erf(x: Array) -> Array:
    flat = np.ravel(x).astype(np.float64)
    return np.fromiter(map(math.erf, flat.tolist()), np.float64, flat.size).reshape(x.shape).astype(x.dtype)


erf = dual.lift(_erf, lambda x, y: 2 / math.sqrt(math.pi) * np.exp(-x * x))


def affine(alpha: float, beta: float) -> Unary:
    """α·x + β."""
    return lambda x: np.asarray(alpha * x + beta)


def leaky_relu(alpha: float) -> Unary:
    """x where positive, α·x elsewhere."""
    return lambda x: np.where(x.real >= 0, x, alpha * x)


def thresholded_relu(alpha: float) -> Unary:
    """x where it is above α, 0 elsewhere."""
    return lambda x: np.where((x.real > alpha) | np.isnan(x.real), x, np.zeros((), x.dtype))


def scaled_tanh(alpha: float, beta: float) -> Unary:
    """α·tanh(β·x)."""
    return lambda x: np.asarray(alpha * dual.tanh(beta * x))


def hard_sigmoid(alpha: float, beta: float) -> Unary:
    """α·x + β, held in [0, 1]."""
    zero, one = np.zeros(()), np.ones(())
    return lambda x: dual.minimum(
        dual.maximum(np.asarray(alpha * x + beta), zero.astype(x.real.dtype)), one.astype(x.real.dtype)
    )


def elu(alpha: float) -> Unary:
    """x where positive, α·(exp(x) - 1) elsewhere."""
    return selu(alpha, 1.0)


def selu(alpha: float, gamma: float) -> Unary:
    """γ·x where positive, γ·α·(exp(x) - 1) elsewhere."""
    return dual.lift(
        lambda x: np.where(x > 0, gamma * x, gamma * alpha * np.expm1(np.minimum(x, 0))),
        lambda x, y: np.where(x > 0, gamma, gamma * alpha * np.exp(np.minimum(x, 0))),
    )


def celu(alpha: float) -> Unary:
    """max(0, x) + min(0, α·(exp(x/α) - 1))."""
    return dual.lift(
        lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha)),
        lambda x, y: np.where(x > 0, 1.0, np.exp(np.minimum(x, 0) / alpha)),
    )


def softsign(x: Array) -> Array:
    """x / (1 + |x|)."""
    return dual.divide(x, np.asarray(1 + dual.absolute(x)))


# The activations that a recurrent operator can be told to use, from (α, β); α and β default as below.
RECURRENT: Mapping[str, Callable[[float, float], Unary]] = {
    "affine": affine,
    "relu": lambda alpha, beta: dual.relu,
    "leakyrelu": lambda alpha, beta: leaky_relu(alpha),
    "thresholdedrelu": lambda alpha, beta: thresholded_relu(alpha),
    "tanh": lambda alpha, beta: dual.tanh,
    "scaledtanh": scaled_tanh,
    "sigmoid": lambda alpha, beta: dual.sigmoid,
    "hardsigmoid": hard_sigmoid,
    "elu": lambda alpha, beta: elu(alpha),
    "softsign": lambda alpha, beta: softsign,
    "softplus": lambda alpha, beta: dual.softplus,
}
# name -> (default α, default β) for those that take any, in the order in which they take them
RECURRENT_DEFAULTS: Mapping[str, tuple[float, ...]] = {
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01,),
    "thresholdedrelu": (1.0,),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0,),
}


def prelu(call: Call) -> Array:
    """x where positive, slope·x elsewhere; the slope broadcasts."""
    x = call[0]
    return np.where(x.real >= 0, x, dual.multiply(call[1], x))


def gelu(call: Call) -> Array:
    """x·Φ(x), or its tanh approximation (Hendrycks and Gimpel, 2016)."""
    x = call[0]
    if call.text("approximate", "none") == "tanh":
        cubic = x + 0.044715 * dual.multiply(x, dual.square(x))
        return dual.multiply(0.5 * x, 1 + dual.tanh(math.sqrt(2 / math.pi) * cubic))
    return dual.multiply(0.5 * x, 1 + erf(x * math.sqrt(0.5)))


def softmax(x: Array, axes: tuple[int, ...]) -> Array:
    """exp(x) over its sum along `axes`."""
    weights = dual.exp(x - np.max(x.real, axis=axes, keepdims=True))
    return dual.divide(weights, np.asarray(weights.sum(axis=axes, keepdims=True)))


def log_softmax(x: Array, axes: tuple[int, ...]) -> Array:
    """log of `softmax`, without forming it."""
    shifted = x - np.max(x.real, axis=axes, keepdims=True)
    return np.asarray(shifted - dual.log(np.asarray(dual.exp(shifted).sum(axis=axes, keepdims=True))))


def hardmax(x: Array, axes: tuple[int, ...]) -> Array:
    """One at the first largest along `axes`, zero elsewhere."""
    shape = (*x.shape[: axes[0]], -1, *x.shape[axes[-1] + 1 :])
    flat = x.real.reshape(shape)
    out = np.zeros(flat.shape, x.real.dtype)
    np.put_along_axis(out, np.argmax(flat, axis=axes[0], keepdims=True), 1, axis=axes[0])
    return out.reshape(x.shape)


def over_axis(function: Callable[[Array, tuple[int, ...]], Array]) -> Kernel:
    """Along one axis; before opset 13 along that one and all after it, flattened."""

    def kernel(call: Call) -> Array:
        x, flattening = call[0], call.version < 13
        axis = call.axis(1 if flattening else -1, x.ndim)
        if x.size == 0:
            return x
        return function(x, tuple(range(axis, x.ndim)) if flattening and axis < x.ndim else (axis,))

    return kernel


KERNELS: dict[str, Kernel] = {
    "Relu": unary(dual.relu),
    "LeakyRelu": lambda call: leaky_relu(call.number("alpha", 0.01))(call[0]),
    "PRelu": prelu,
    "ThresholdedRelu": lambda call: thresholded_relu(call.number("alpha", 1.0))(call[0]),
    "Elu": lambda call: elu(call.number("alpha", 1.0))(call[0]),
    "Selu": lambda call: selu(call.number("alpha", SELU[0]), call.number("gamma", SELU[1]))(call[0]),
    "Celu": lambda call: celu(call.number("alpha", 1.0))(call[0]),
    "Gelu": gelu,
    "Swish": lambda call: dual.multiply(call[0], dual.sigmoid(call.number("alpha", 1.0) * call[0])),
    "HardSwish": lambda call: dual.multiply(call[0], hard_sigmoid(1 / 6, 0.5)(call[0])),
    "HardSigmoid": lambda call: hard_sigmoid(call.number("alpha", 0.2), call.number("beta", 0.5))(call[0]),
    "Mish": lambda call: dual.multiply(call[0], dual.tanh(dual.softplus(call[0]))),
    "Softplus": unary(dual.softplus),
    "Softsign": unary(softsign),
    "Sigmoid": unary(dual.sigmoid),
    "Tanh": unary(dual.tanh),
    "Erf": unary(erf),
    "Softmax": over_axis(softmax),
    "LogSoftmax": over_axis(log_softmax),
    "Hardmax": over_axis(hardmax),
}
