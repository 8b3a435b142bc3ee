"""The slot rule, checked: the edit applied to the old gradient is the gradient of the new model.

Let E be the edit of a gradient, and J_old, J_new the derivatives of the outputs by the parameters. E is right exactly
if J_new v = J_old Eᵀv for every direction v of the new parameters. Both sides are directional derivatives, which one
evaluation in complex arithmetic gives to machine precision (the complex step: Squire, Trapp, 1998); no autograd is
needed. Directions avoid the entries whose history no state records.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array, Arrays
from surgery.checkpoint import Checkpoint
from surgery.edits.arithmetic import AxisMap, axis_maps, tensor_rng, unknown_history
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, kept, shrink
from surgery.numeric import Unsupported, run
from surgery.tensors import shape_of
from surgery.verify.outputs import magnitude
from surgery.verify.report import Check, measured

STEP = 1e-30
LIMIT = 1e-12
"""Relative, in float64."""
LARGE = 1 << 20
"""Elements from which a direction is a product of vectors: drawing each for itself takes longer than all the rest."""


def check_slots(
    plan: Plan, before: Checkpoint, exact: Checkpoint, inputs: Arrays, seed: int, apart: Collection[str] = ()
) -> list[Check]:
    """Compare the derivatives of two models along one random direction.

    What starts at the mean of old units shares their gradient with them from then on, and what makes the units of
    `inexact_slots` has another gradient: no direction moves either.

    Args:
      plan: from `before` to `exact`.
      exact: the edited checkpoint in float64, before rounding.
      inputs: a few rows.
      seed: of the direction.
      apart: outputs that are not compared.

    Returns:
      One check; its value is relative to the largest derivative or output, whichever is larger; numbers that stand
      for -inf do not count.
    """
    trained = set(before.optimizer.parameters) if before.optimizer else set()
    edited = {tensor.name: (axis_maps(tensor.axes, plan.edits), tensor.scale) for tensor in plan.tensors}
    shared = sorted(
        tensor.name for tensor in plan.tensors if tensor.name in trained and tensor.starts_at_mean(plan.edits)
    )
    changed = sorted(t.name for t in plan.tensors if t.name in trained and t.makes(plan.inexact_slots))
    trained.difference_update(shared, changed, plan.rewiring.apart)
    names = {new: old for old, new in plan.rewiring.renames.items()}
    try:
        moved = _moved(exact.tensors, trained, edited, seed, names, back=False)
        grown = grow(plan, inputs, np.random.default_rng(seed))
        new = shrink(plan, run(exact.model, grown, dtype=np.complex128, parameters=moved), weighted=True)
        moved = _moved(before.tensors, trained, edited, seed, {}, back=True)
        old = kept(plan, run(before.model, inputs, dtype=np.complex128, parameters=moved))
    except Unsupported as reason:
        return [Check("optimizer slots", True, 0.0, None, f"not evaluated: {reason}")]
    gap = scale = 0.0
    for name, value in old.items():
        if name not in apart and np.iscomplexobj(value):
            slope, other = value.imag / STEP, np.asarray(new[name]).imag / STEP
            known = np.isfinite(slope)  # elsewhere the old function has a kink or a pole of its own
            with np.errstate(invalid="ignore"):
                error = np.where(known, np.abs(slope - other), 0.0)
            gap = max(gap, float(np.where(np.isnan(error), np.inf, error).max(initial=0.0)))
            # where slopes cancel to nothing, only rounding is left: it is judged by the size of the outputs
            largest = float(np.abs(slope[known]).max(initial=0.0))
            scale = max(scale, largest, magnitude(value.real[known]))
    if not gap:
        return [Check("optimizer slots", True, 0.0, LIMIT, "equal, or no output has a slope")]
    relative = gap / scale if scale else float("inf")
    detail = "edited old gradient against the new model's, float64"
    if changed:
        detail += f"; those of {', '.join(changed)} change"
    if shared:
        detail += f"; those of {', '.join(shared)} are shared with new units"
    return [measured("optimizer slots", relative, LIMIT, detail)]


def _moved(
    tensors: Mapping[str, ir.TensorProtocol],
    trained: set[str],
    edited: Mapping[str, tuple[Sequence[AxisMap | None], float]],
    seed: int,
    names: Mapping[str, str],
    *,
    back: bool,
) -> dict[str, ir.LazyTensor]:
    """The trained parameters (by their old names) with i·h·direction added, computed as they are read."""
    moved = {}
    for found, tensor in tensors.items():
        name = names.get(found, found)
        if name in trained and tensor.dtype.is_floating_point():
            moved[found] = _lazy(tensor, name, edited.get(name), seed, back)
    return moved


def _lazy(
    tensor: ir.TensorProtocol,
    name: str,
    edit: tuple[Sequence[AxisMap | None], float] | None,
    seed: int,
    back: bool,
) -> ir.LazyTensor:
    maps, scale = edit or ([None] * len(shape_of(tensor)), 1.0)

    def compute() -> ir.TensorProtocol:
        weight = tensor.numpy()
        rng = tensor_rng(seed, f"direction {name}")
        moved = np.empty(weight.shape, np.complex128)
        moved.real = weight
        step = STEP / scale if back else STEP
        large = (
            math.prod(_after(weight.shape, maps) if back else weight.shape) > LARGE
        )  # as the new tensor is
        if large and not any(axis is not None and axis.started.any() for axis in maps):
            _product(moved.imag, rng, maps, step, back)
        else:
            moved.imag = step * _direction(weight.shape, rng, maps, back)
        return ir.Tensor(moved, name=name)

    return ir.LazyTensor(compute, dtype=ir.DataType.COMPLEX128, shape=ir.Shape(shape_of(tensor)), name=name)


def _after(shape: Sequence[int], maps: Sequence[AxisMap | None]) -> tuple[int, ...]:
    return tuple(n if axis is None else len(axis.source) for n, axis in zip(shape, maps, strict=True))


def _direction(
    shape: Sequence[int], rng: np.random.Generator, maps: Sequence[AxisMap | None], back: bool
) -> Array:
    """A direction of the new tensor, every entry drawn for itself; `back`: Eᵀ of it."""
    direction = rng.standard_normal(_after(shape, maps) if back else shape)
    direction = np.where(unknown_history(maps), 0.0, direction)
    return adjoint(direction, maps) if back else direction


def _product(
    out: Array,
    rng: np.random.Generator,
    maps: Sequence[AxisMap | None],
    step: float,
    back: bool,
) -> None:
    """The same of a large tensor, times the step, in place: the product of one vector per axis.

    An edit that is wrong somewhere shows in such a direction, too: what is linear in the direction and zero for all
    products of vectors is zero. Eᵀ works axis by axis, and leaves out what reads fresh units by itself.
    """
    sizes = _after(out.shape, maps) if back else out.shape
    vectors = [rng.standard_normal(size) for size in sizes]
    if back:
        vectors = [v if axis is None else adjoint(v, [axis]) for v, axis in zip(vectors, maps, strict=True)]
    vectors[0] = vectors[0] * step
    along = [v.reshape((-1,) + (1,) * (out.ndim - k - 1)) for k, v in enumerate(vectors)]
    np.multiply(reduce(np.multiply, along[:-1], np.ones(())), along[-1], out=out)
    if not back:
        np.copyto(out, 0.0, where=unknown_history(maps))


def adjoint(direction: Array, maps: Sequence[AxisMap | None]) -> Array:
    """Eᵀ: every old entry collects its copies, each with its gradient factor; fresh entries give nothing."""
    out = direction
    for k, axis in enumerate(maps):
        if axis is None:
            continue
        moved = np.moveaxis(out, k, 0)
        factor = np.where(axis.fresh_in | axis.fresh_out, 0.0, axis.grad)
        total = np.zeros((axis.before, *moved.shape[1:]))
        np.add.at(total, axis.source, moved * factor.reshape((-1,) + (1,) * (moved.ndim - 1)))
        np.add.at(total, axis.more_grad[1], moved[axis.more_grad[0]])
        out = np.moveaxis(total, 0, k)
    return out
