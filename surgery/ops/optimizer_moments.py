"""What an optimizer's state says about the gradients of one tensor, and the state another optimizer would hold.

Every slot is a mean over past gradients g, from which the two moments E[g] and E[g²] are read, and into which they are
written. With t updates, and c(β) = 1 − βᵗ the weight that a mean with decay β has collected since it started at zero:

    optimizer         E[g]                                 E[g²]
    Adam, AdamW       exp_avg / c(β₁)                      exp_avg_sq / c(β₂)
    RMSProp           grad_avg / c(α) if centered          (square_avg − αᵗ if it started at one) / c(α)
                      (1 − μ) · buffer · root / c(μ)
    SGD, momentum     (1 − μ) / (1 − damping) · buffer     –

RMSProp's buffer sums g / root: what it says of E[g] is approximate, everything else in the table is exact in the
stationary case. Bias correction: Kingma, Ba, *Adam*, ICLR 2015, section 3. RMSProp: Tieleman, Hinton, 2012; centered:
Graves, 2013 (arXiv:1308.0850), equations 38 to 45.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from surgery.arrays import Array
from surgery.errors import Refused
from surgery.json_values import Json

Count: TypeAlias = "float | Array"
"""Updates so far, of the whole tensor or of each element; infinite where nobody counted."""
Slots: TypeAlias = Mapping[str, Array]
Hyper: TypeAlias = Mapping[str, Json]

ADAMS = frozenset({"adam", "adamw"})
MOST_CENTRED = 0.75
"""Largest part of E[g²] that a centered RMSProp made of other state may take for E[g]²."""
_STEADY = 1e-12


@dataclass(frozen=True)
class Moments:
    """Gradient statistics of one tensor; arrays in its shape, float64.

    Attributes:
      count: updates so far.
      mean: E[g]; None where the optimizer keeps none.
      square: E[g²]; None where it keeps none.
      largest: the largest E[g²] so far (AMSGrad); None where it is not kept.
      newest: the weight that the next gradient would get in `square`; the smaller, the longer the memory.
    """

    count: Count
    mean: Array | None = None
    square: Array | None = None
    largest: Array | None = None
    newest: Count | None = None


def number(hyper: Hyper, name: str, default: float = 0.0) -> float:
    """A setting that is a number."""
    value = hyper.get(name)
    return float(value) if isinstance(value, int | float) else default


def betas(hyper: Hyper) -> tuple[float, float]:
    """The two decays of an Adam."""
    value = hyper.get("betas")
    first, second = value if isinstance(value, list | tuple) and len(value) == 2 else (0.9, 0.999)
    return float(first), float(second)  # type: ignore[arg-type]


def collected(decay: float, count: Count) -> Any:  # noqa: ANN401
    """1 − decayᵗ, the weight that a mean has collected; 1 for t = ∞, and for t = 0, where the mean itself is 0."""
    if decay == 0:
        return np.ones(np.shape(count))
    weight = -np.expm1(np.asarray(count, np.float64) * math.log(decay))
    return np.where(weight > 0, weight, 1.0)


def root(kind: str, hyper: Hyper, slots: Slots, count: Count) -> Array | float:
    """What a gradient is divided by: √v + ε, or √(v + ε) with ε inside the root; 1 for SGD.

    Shapes: as the slots.
    """
    if kind == "sgd":
        return 1.0
    if kind in ADAMS:
        squares = slots.get("max_exp_avg_sq", slots["exp_avg_sq"]) / collected(betas(hyper)[1], count)
    elif hyper.get("centered"):
        squares = np.maximum(slots["square_avg"] - np.square(slots["grad_avg"]), 0.0)
    else:
        squares = slots["square_avg"]
    eps = number(hyper, "eps")
    divisor: Array = np.sqrt(squares + eps) if hyper.get("eps_inside_root") else np.sqrt(squares) + eps
    return divisor


def gain(kind: str, hyper: Hyper, slots: Slots, count: Count) -> Array | float:
    """How far one gradient of size 1 moves a weight in the end, through this update and the later ones.

    Adam's momentum spreads a gradient over many updates and does not change their sum; a buffer that adds up without
    (1 − μ) multiplies it by 1 / (1 − μ).
    """
    summed = 1.0 if kind in ADAMS else 1.0 / (1.0 - number(hyper, "momentum"))
    damping = 1.0 - number(hyper, "dampening") if kind == "sgd" and number(hyper, "momentum") else 1.0
    return number(hyper, "lr") * summed * damping / root(kind, hyper, slots, count)


def read(kind: str, hyper: Hyper, slots: Slots, count: Count) -> Moments:
    """The moments that a state tells of.

    Args:
      kind: "sgd", "adam", "adamw" or "rmsprop".
      hyper: its settings; `starts_at_one` says that `square_avg` began at one, as TensorFlow's does.
      slots: of one tensor; float64. Empty if it was never updated.
      count: updates so far.

    Raises:
      Refused: a slot that the kind keeps is missing.
    """
    if not slots:
        return Moments(count if kind == "sgd" else 0.0)
    if kind == "sgd":
        mu, damping = number(hyper, "momentum"), number(hyper, "dampening")
        buffer = _slot(slots, "momentum_buffer", kind)
        return Moments(count, mean=buffer * ((1 - mu) / max(1 - damping, _STEADY)))
    if kind in ADAMS:
        first, second = betas(hyper)
        c1, c2 = collected(first, count), collected(second, count)
        largest = slots.get("max_exp_avg_sq")
        return Moments(
            count, _slot(slots, "exp_avg", kind) / c1, _slot(slots, "exp_avg_sq", kind) / c2,
            None if largest is None else largest / c2, _newest(second, count),
        )  # fmt: skip
    return _read_rmsprop(hyper, slots, count)


def _read_rmsprop(hyper: Hyper, slots: Slots, count: Count) -> Moments:
    alpha, mu = number(hyper, "alpha", 0.99), number(hyper, "momentum")
    c, squares = collected(alpha, count), _slot(slots, "square_avg", "rmsprop")
    begun = 1.0 - c if hyper.get("starts_at_one") else 0.0
    mean = None
    if hyper.get("centered"):
        mean = _slot(slots, "grad_avg", "rmsprop") / c
    elif mu:
        step = number(hyper, "lr") if hyper.get("buffer_holds_lr") else 1.0
        buffer = _slot(slots, "momentum_buffer", "rmsprop") / step
        mean = (1 - mu) * buffer * root("rmsprop", hyper, slots, count) / collected(mu, count)
    return Moments(count, mean, np.maximum(squares - begun, 0.0) / c, newest=_newest(alpha, count))


def _newest(decay: float, count: Count) -> Count:
    weight: Count = (1 - decay) / collected(decay, np.asarray(count) + 1)
    return weight


def window_matched(newest: Count, decay: float, count: Count) -> Count:
    """The step count at which a mean with another decay gives the next gradient the same weight.

    (1 − β) / (1 − β^(s+1)) = w, solved for s; never more than the updates that there were, and these exactly if both
    decays are equal. From the old window the new one then grows smoothly to its own.
    """
    rest = 1 - (1 - decay) / np.asarray(newest, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(rest > 0, np.log(np.maximum(rest, 1e-300)) / math.log(decay) - 1, np.inf)
    # ten decimals behind the comma: equal decays must give the very count, whatever the logarithm rounds
    found = np.minimum(np.round(np.maximum(steps, 1.0)), np.asarray(count, np.float64))
    found = np.where(np.isfinite(found), found, _steady(decay))
    return float(found) if found.ndim == 0 else found


def _steady(decay: float) -> float:
    """A count after which a mean has forgotten its start."""
    return float(math.ceil(math.log(_STEADY) / math.log(decay))) if 0 < decay < 1 else 1.0


def write(kind: str, hyper: Hyper, moments: Moments) -> tuple[dict[str, Array], Count | None]:
    """The state that an optimizer of this kind holds when the gradients have these moments.

    Args:
      kind: "sgd", "adam", "adamw" or "rmsprop". hyper: its settings.
      moments: of one tensor.

    Returns:
      The slots, and the step count (None if the kind does not count). No slots if the moments do not suffice: the
      tensor then starts as a fresh one does.
    """
    if kind == "sgd":
        return _write_sgd(hyper, moments), None
    if moments.square is None or not np.any(np.asarray(moments.count) > 0):
        return {}, 0.0
    return _write_adam(hyper, moments) if kind in ADAMS else _write_rmsprop(hyper, moments)


def _write_sgd(hyper: Hyper, moments: Moments) -> dict[str, Array]:
    mu = number(hyper, "momentum")
    if not mu or moments.mean is None:
        return {}
    return {"momentum_buffer": moments.mean * ((1 - number(hyper, "dampening")) / (1 - mu))}


def _write_adam(hyper: Hyper, moments: Moments) -> tuple[dict[str, Array], Count]:
    first, second = betas(hyper)
    assert moments.square is not None
    assert moments.newest is not None
    steps = window_matched(moments.newest, second, moments.count)
    c1, c2 = collected(first, steps), collected(second, steps)
    mean = np.zeros_like(moments.square) if moments.mean is None else moments.mean * c1
    slots = {"exp_avg": mean, "exp_avg_sq": moments.square * c2}
    if hyper.get("amsgrad"):
        largest = moments.square if moments.largest is None else np.maximum(moments.largest, moments.square)
        slots["max_exp_avg_sq"] = largest * c2
    return slots, steps


def _write_rmsprop(hyper: Hyper, moments: Moments) -> tuple[dict[str, Array], Count]:
    alpha, mu = number(hyper, "alpha", 0.99), number(hyper, "momentum")
    assert moments.square is not None
    count = moments.count if np.all(np.isfinite(moments.count)) else _steady(alpha)
    c = collected(alpha, count)
    square = moments.square * c + (1.0 - c if hyper.get("starts_at_one") else 0.0)
    mean = np.zeros_like(square) if moments.mean is None else moments.mean
    slots = {"square_avg": square}
    if hyper.get("centered"):
        # two means of different windows need not keep E[g]² ≤ E[g²], and their difference stands under a root
        limit = np.sqrt(MOST_CENTRED * square)
        slots["grad_avg"] = np.clip(mean * c, -limit, limit)
    if mu:
        step = number(hyper, "lr") if hyper.get("buffer_holds_lr") else 1.0
        divisor = root("rmsprop", hyper, slots, count)
        buffer = mean * collected(mu, count) / ((1 - mu) * divisor)
        slots["momentum_buffer"] = np.where(np.isfinite(buffer), buffer, 0.0) * step
    return slots, count


def _slot(slots: Slots, name: str, kind: str) -> Array:
    if name not in slots:
        raise Refused(
            f"the state of the optimizer '{kind}' has no '{name}'",
            hint="it was saved incompletely, or by another optimizer: load the model without its state",
        )
    return slots[name]
