"""Activation functions and the softmax family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.numeric.activation import SELU
from surgery.torch.call import Call, Results, Translation
from surgery.torch.operators.elementwise import unary


def with_alpha(function: Callable[..., Any], default: float) -> Translation:
    """A function of a tensor and the attribute `alpha`."""
    return lambda call: call.emit(function, call[0], call.number("alpha", default))


def prelu(call: Call) -> Results:
    """x where positive, slope·x elsewhere; a slope per channel is PyTorch's own."""
    rank, slope = call.rank(0), call.shape(1)
    if slope == [1] or (slope is not None and rank > 1 and slope[1:] == [1] * (rank - 2) == slope[1:]):
        flat = call[1] if slope == [1] or len(slope) == 1 else call.emit(torch.flatten, call[1])
        if slope == [1] or len(slope) == rank - 1:
            return call.emit(F.prelu, call[0], flat)
    return call.emit(sloped, call[0], call[1])


def sloped(x: Tensor, slope: Tensor) -> Tensor:
    """x where positive, slope·x elsewhere; the slope broadcasts."""
    return torch.where(x >= 0, x, slope * x)


def selu(call: Call) -> Results:
    """γ·x where positive, γ·α·(exp(x) - 1) elsewhere."""
    alpha, gamma = call.number("alpha", SELU[0]), call.number("gamma", SELU[1])
    if (alpha, gamma) == SELU:
        return call.emit(F.selu, call[0])
    return call.infix(gamma, "*", call.emit(F.elu, call[0], alpha))


def gelu(call: Call) -> Results:
    """x·Φ(x), or its tanh approximation."""
    approximate = call.text("approximate", "none")
    return call.emit(F.gelu, call[0], **({} if approximate == "none" else {"approximate": approximate}))


def swish(call: Call) -> Results:
    """x·sigmoid(α·x)."""
    alpha = call.number("alpha", 1.0)
    if alpha == 1:
        return call.emit(F.silu, call[0])
    return call.infix(call[0], "*", call.emit(torch.sigmoid, call.infix(alpha, "*", call[0])))


def bent(x: Tensor, alpha: float, beta: float) -> Tensor:
    """α·x + β, held in [0, 1]."""
    return torch.clamp(alpha * x + beta, 0, 1)


def hard_sigmoid(call: Call) -> Results:
    """α·x + β, held in [0, 1]."""
    return call.emit(bent, call[0], call.number("alpha", 0.2), call.number("beta", 0.5))


def thresholded_relu(call: Call) -> Results:
    """x where it is above α, 0 elsewhere."""
    return call.emit(F.threshold, call[0], call.number("alpha", 1.0), 0.0)


def hard_max(x: Tensor, axis: int) -> Tensor:
    """One at the first largest along an axis, zero elsewhere."""
    index = torch.argmax(x, dim=axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, index, 1.0)


def flattened(x: Tensor, axis: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function along the axes from `axis` on taken as one."""
    return function(x.flatten(axis)).reshape(x.shape) if axis < x.dim() else function(x.unsqueeze(-1))[..., 0]


def flat_softmax(x: Tensor, axis: int) -> Tensor:
    """Softmax over all axes from `axis` on."""
    return flattened(x, axis, lambda rows: torch.softmax(rows, -1))


def flat_log_softmax(x: Tensor, axis: int) -> Tensor:
    """Logarithm of softmax over all axes from `axis` on."""
    return flattened(x, axis, lambda rows: torch.log_softmax(rows, -1))


def flat_hard_max(x: Tensor, axis: int) -> Tensor:
    """`hard_max` over all axes from `axis` on."""
    return flattened(x, axis, lambda rows: hard_max(rows, -1))


def over_axis(function: Callable[..., Any], flat: Callable[..., Any]) -> Translation:
    """Along one axis; before opset 13 along that one and all after it, flattened."""

    def translate(call: Call) -> Results:
        if call.version >= 13:
            return call.emit(function, call[0], call.integer("axis", -1))
        rank = call.rank(0)
        axis = call.integer("axis", 1) % rank
        return call.emit(*((function, call[0], -1) if axis == rank - 1 else (flat, call[0], axis)))

    return translate


TRANSLATIONS: dict[str, Translation] = {
    "Relu": unary(torch.relu),
    "LeakyRelu": with_alpha(F.leaky_relu, 0.01),
    "PRelu": prelu,
    "ThresholdedRelu": thresholded_relu,
    "Elu": with_alpha(F.elu, 1.0),
    "Selu": selu,
    "Celu": with_alpha(F.celu, 1.0),
    "Gelu": gelu,
    "Swish": swish,
    "HardSwish": unary(F.hardswish),
    "HardSigmoid": hard_sigmoid,
    "Mish": unary(F.mish),
    "Softplus": unary(F.softplus),
    "Softsign": unary(F.softsign),
    "Sigmoid": unary(torch.sigmoid),
    "Tanh": unary(torch.tanh),
    "Softmax": over_axis(torch.softmax, flat_softmax),
    "LogSoftmax": over_axis(torch.log_softmax, flat_log_softmax),
    "Hardmax": over_axis(hard_max, flat_hard_max),
}
