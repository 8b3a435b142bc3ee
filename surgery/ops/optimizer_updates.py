"""One update of each optimizer in numpy, as PyTorch computes it: what a first step would be, measured without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from surgery.arrays import Array
from surgery.ops.optimizer_moments import ADAMS, Count, Hyper, Slots, betas, collected, number, root


def update(kind: str, hyper: Hyper, slots: Slots, count: Count, gradient: Array) -> Array:
    """The change of the weights by one update, weight decay aside.

    Args:
      kind: "sgd", "adam", "adamw" or "rmsprop". hyper: its settings.
      slots: before the update, float64; empty for a tensor that was never updated.
      count: updates so far.
      gradient: of the loss, in the tensor's shape.

    References:
      torch/optim/adam.py, rmsprop.py, sgd.py; ε inside the root and steps in the buffer: TensorFlow's RMSProp.
    """
    return _UPDATES[kind](hyper, slots, count, gradient)


def _adam(hyper: Hyper, slots: Slots, count: Count, g: Array) -> Array:
    first, second = betas(hyper)
    zero, t = np.zeros_like(g), np.asarray(count) + 1
    mean = first * slots.get("exp_avg", zero) + (1 - first) * g
    square = second * slots.get("exp_avg_sq", zero) + (1 - second) * g * g
    new = {"exp_avg_sq": square}
    if hyper.get("amsgrad"):
        new["max_exp_avg_sq"] = np.maximum(slots.get("max_exp_avg_sq", zero), square)
    return _quotient(-number(hyper, "lr") * mean / collected(first, t), root("adam", hyper, new, t))


def _rmsprop(hyper: Hyper, slots: Slots, count: Count, g: Array) -> Array:
    alpha, mu, lr = number(hyper, "alpha", 0.99), number(hyper, "momentum"), number(hyper, "lr")
    zero, t = np.zeros_like(g), np.asarray(count) + 1
    begun = np.ones_like(g) if hyper.get("starts_at_one") else zero
    new = {"square_avg": alpha * slots.get("square_avg", begun) + (1 - alpha) * g * g}
    if hyper.get("centered"):
        new["grad_avg"] = alpha * slots.get("grad_avg", zero) + (1 - alpha) * g
    step = _quotient(g, root("rmsprop", hyper, new, t))
    if not mu:
        return -lr * step
    buffer = slots.get("momentum_buffer", zero)
    return -(mu * buffer + lr * step) if hyper.get("buffer_holds_lr") else -lr * (mu * buffer + step)


def _sgd(hyper: Hyper, slots: Slots, count: Count, g: Array) -> Array:
    mu = number(hyper, "momentum")
    if mu:
        old = slots.get("momentum_buffer")
        buffer = g if old is None else mu * old + (1 - number(hyper, "dampening")) * g
        g = g + mu * buffer if hyper.get("nesterov") else buffer
    return -number(hyper, "lr") * g


def _quotient(step: Array, divisor: Array | float) -> Array:
    """0 / 0 is a weight that never had a gradient, under ε = 0: it does not move."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(step == 0, 0.0, step / divisor)


_UPDATES: Mapping[str, Callable[[Hyper, Slots, Count, Array], Array]] = {
    **dict.fromkeys(ADAMS, _adam),
    "rmsprop": _rmsprop,
    "sgd": _sgd,
}
