"""The swap of the optimizer, for one tensor: its new state, how far a gradient moves it, and its first update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.errors import SurgeryError
from surgery.json_values import Json
from surgery.ops.optimizer_moments import Count, Hyper, Moments, Slots, gain, number, read, write
from surgery.ops.optimizer_updates import update
from surgery.tensors import shape_of

DRAWS = 4
"""Gradients that are drawn from the state's own statistics where no real ones are given."""


@dataclass(frozen=True, slots=True)
class TensorSwap:
    """What the swap means for one tensor.

    Attributes:
      name: of the parameter.
      lr: its learning rate from now on.
      carried: whether state is carried over; false for one that starts afresh.
      gain: how far a gradient moves it in the end, new over old, at the new learning rate. direction: cosine of the
        angle between the two. None if unknown.
      step: norm of the first update, new over old. cosine: of the angle between the two. None if unknown.
    """

    name: str
    lr: float
    carried: bool
    gain: float | None = None
    direction: float | None = None
    step: float | None = None
    cosine: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name,
            "lr": self.lr,
            "carried": self.carried,
            "reach": {"norm_ratio": self.gain, "cosine": self.direction},
            "first_step": {"norm_ratio": self.step, "cosine": self.cosine},
        }


@dataclass(frozen=True)
class Member:
    """One parameter and the settings of both its optimizers; arrays are read when they are needed, as float64.

    Attributes:
      name: of the parameter. weight: its value; None if it is not known.
      kinds: old and new. old, new: their settings.
      slots: of the old optimizer. count: its updates so far.
      gradients: of real batches, shape (batches, *shape); None if there are none.
      seed: of the gradients that are drawn instead.
    """

    name: str
    weight: ir.TensorProtocol | None
    kinds: tuple[str, str]
    old: Hyper
    new: Hyper
    slots: Mapping[str, ir.TensorProtocol]
    count: Count
    gradients: Array | None
    seed: int

    def arrays(self) -> Slots:
        """The old slots."""
        return {slot: np.asarray(tensor.numpy(), np.float64) for slot, tensor in self.slots.items()}

    def moments(self, slots: Slots) -> Moments:
        """What is known of the gradients: from the state, and where it is silent from real ones."""
        try:
            found = read(self.kinds[0], self.old, slots, self.count)
        except SurgeryError as error:
            raise error.within(parameter=self.name) from None
        if found.square is None and self.gradients is not None:
            batches = len(self.gradients)
            mean = self.gradients.mean(axis=0) if found.mean is None else found.mean
            squares = np.square(self.gradients).mean(axis=0)
            return Moments(float("inf"), mean, squares, newest=1 / (batches + 1))
        return found

    def written(self, slots: Slots, hyper: Hyper) -> tuple[dict[str, Array], Count | None]:
        """The new slots and the step count."""
        return write(self.kinds[1], hyper, self.moments(slots))

    def reach(self, slots: Slots, hyper: Hyper) -> tuple[float, float, float] | None:
        """How far gradients move this tensor in the end: mean squares by the old optimizer and by the new one, and the
        mean product.

        None where nothing is known of the gradients, or of the new optimizer's divisor. SGD against SGD needs no
        squares: every gradient is stretched alike.
        """
        moments = self.moments(slots)
        squares = np.ones(()) if self.kinds == ("sgd", "sgd") else moments.square
        new, count = write(self.kinds[1], hyper, moments)
        if squares is None or not (slots or self.kinds[0] == "sgd") or not (new or self.kinds[1] == "sgd"):
            return None
        before = gain(self.kinds[0], self.old, slots, self.count)
        after = gain(self.kinds[1], hyper, new, 0.0 if count is None else count)
        old_old, new_new, old_new = (
            float(np.sum(product * squares)) for product in (before * before, after * after, before * after)
        )
        return old_old, new_new, old_new

    def row(self, hyper: Hyper) -> TensorSwap:
        """What the swap means at the given settings."""
        slots = self.arrays()
        new, count = self.written(slots, hyper)
        row = TensorSwap(self.name, number(hyper, "lr"), bool(new))
        reach = self.reach(slots, hyper)
        if reach is not None and min(reach) > 0:
            ratio, cosine = np.sqrt(reach[1] / reach[0]), reach[2] / np.sqrt(reach[0] * reach[1])
            row = replace(row, gain=float(ratio), direction=float(cosine))
        gradients = self._gradients(slots, hyper)
        if gradients is None:
            return row
        dots = np.zeros(3)
        for g_old, g_new in gradients:
            first = update(self.kinds[0], self.old, slots, self.count, g_old).ravel()
            second = update(self.kinds[1], hyper, new, 0.0 if count is None else count, g_new).ravel()
            dots += (first @ first, first @ second, second @ second)
        if dots[0] > 0 and dots[2] > 0:
            cosine = float(np.clip(dots[1] / np.sqrt(dots[0] * dots[2]), -1, 1))
            row = replace(row, step=float(np.sqrt(dots[2] / dots[0])), cosine=cosine)
        return row

    def _gradients(self, slots: Slots, hyper: Hyper) -> list[tuple[Array, Array]] | None:
        """Gradients as each optimizer sees them, L2 decay added; drawn ones have it in their statistics already."""
        if self.gradients is not None:
            return [
                (g + self._decay(self.kinds[0], self.old), g + self._decay(self.kinds[1], hyper))
                for g in self.gradients
            ]
        moments = self.moments(slots)
        if moments.square is None or not slots:
            return None
        rng, mean = np.random.default_rng(self.seed), 0.0 if moments.mean is None else moments.mean
        spread = np.sqrt(np.maximum(moments.square - np.square(mean), 0.0))
        drawn = [mean + spread * rng.standard_normal(spread.shape) for _ in range(DRAWS)]
        return [(g, g) for g in drawn]

    def _decay(self, kind: str, hyper: Mapping[str, Json]) -> Array | float:
        amount = number(hyper, "weight_decay")
        if not amount or kind == "adamw" or hyper.get("decoupled_weight_decay") or self.weight is None:
            return 0.0
        return amount * np.asarray(self.weight.numpy(), np.float64)

    def lazy(self, slot: str, hyper: Hyper) -> ir.TensorProtocol:
        """A new slot, computed when it is read."""
        like = next(iter(self.slots.values()), self.weight)
        assert like is not None
        shape = shape_of(like)

        def compute() -> ir.TensorProtocol:
            slots, count = self.written(self.arrays(), hyper)
            array = np.broadcast_to(np.asarray(count), shape) if slot == "step" else slots[slot]
            return ir.Tensor(
                np.ascontiguousarray(array.astype(like.dtype.numpy())), dtype=like.dtype, name=slot
            )

        return ir.LazyTensor(compute, dtype=like.dtype, shape=ir.Shape(shape), name=slot)
