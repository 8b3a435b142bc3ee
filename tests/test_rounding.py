"""Shares are rounded such that what is stored still adds up: in every precision that a checkpoint may have."""

from __future__ import annotations

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import surgery
from surgery.edits.arithmetic import SpaceEdit, axis_maps, edit_weight
from surgery.edits.execute import execute
from surgery.graph.layout import Sum, Units
from tests import zoo
from tests.steady import STEADY

PRECISIONS = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
UNITS = 7
CONSUMER = ((Units("s", UNITS, "in"),),)


def _edit(copies: int, shares: tuple[float, ...] | None = None) -> Mapping[str, SpaceEdit]:
    """Every unit `copies` times, round by round."""
    return {"s": SpaceEdit("s", UNITS, tuple(range(UNITS)) * copies, shares=shares)}


def _unequal(copies: int, rng: np.random.Generator) -> tuple[float, ...]:
    parts = rng.uniform(0.5, 1.5, (copies, UNITS))
    return tuple((parts / parts.sum(0)).reshape(-1))


def _widened(old: np.ndarray, edits: Mapping[str, SpaceEdit]) -> np.ndarray:
    new = edit_weight(old, axis_maps(CONSUMER, edits), "random", np.random.default_rng(0))
    assert new.dtype == old.dtype
    return new


def _error(old: np.ndarray, new: np.ndarray, copies: int) -> np.ndarray:
    """|sum of the stored copies - original|, added without rounding."""
    columns = np.vstack([new.reshape(copies, -1).astype(np.float64), -old.astype(np.float64)]).T
    return np.abs([math.fsum(column) for column in columns])


def _ulp(x: np.ndarray) -> np.ndarray:
    return np.abs(np.nextafter(x, x.dtype.type(np.inf)).astype(np.float64) - x.astype(np.float64))


def _weights(dtype: np.dtype, seed: int) -> np.ndarray:
    """Of magnitude 0.01 to 100: an eighth of them is still a normal number in float16."""
    rng = np.random.default_rng(seed)
    return (rng.choice([-1.0, 1.0], UNITS) * 10.0 ** rng.uniform(-2, 2, UNITS)).astype(dtype)


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("copies", [2, 4, 8])
def test_a_power_of_two_of_equal_copies_sums_to_the_stored_original_exactly(name: str, copies: int) -> None:
    for seed in range(50):
        old = _weights(np.dtype(PRECISIONS[name]), seed)
        new = _widened(old, _edit(copies))
        assert (_error(old, new, copies) == 0).all()
        assert len(np.unique(new.reshape(copies, UNITS).astype(np.float64), axis=0)) == 1


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("copies", [3, 5, 6, 7])
@pytest.mark.parametrize("equal", [True, False])
def test_the_last_copy_is_what_the_others_leave(name: str, copies: int, equal: bool) -> None:
    """The sum of what is stored misses the original by the rounding of one copy, half a unit of its last place."""
    for seed in range(50):
        old = _weights(np.dtype(PRECISIONS[name]), seed)
        shares = None if equal else _unequal(copies, np.random.default_rng(seed))
        new = _widened(old, _edit(copies, shares))
        last = new.reshape(copies, UNITS)[-1]
        assert (_error(old, new, copies) <= _ulp(np.abs(last)) / 2).all()
        assert (_error(old, new, copies) <= _ulp(np.abs(old))).all()


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_rounding_every_copy_by_itself_would_be_worse(name: str) -> None:
    """So the rule does something: the sum of plainly rounded thirds misses more often, and by more."""
    old = np.concatenate([_weights(np.dtype(PRECISIONS[name]), seed) for seed in range(200)])
    plain = (old.astype(np.float64) / 3).astype(old.dtype).astype(np.float64) * 3
    ours = np.concatenate(
        [_error(part, _widened(part, _edit(3)), 3) for part in np.split(old, 200)]
    )  # fmt: skip
    naive = np.abs(plain - old.astype(np.float64))
    assert ours.mean() < naive.mean() and (ours == 0).mean() > (naive == 0).mean()


@STEADY
@given(
    old=arrays(np.float32, UNITS, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    copies=st.integers(2, 9),
)
def test_any_weight_misses_by_at_most_one_ulp_and_two_copies_by_nothing(old: np.ndarray, copies: int) -> None:
    """Down to the smallest subnormal, whose half is not representable: one copy takes it whole."""
    error = _error(old, _widened(old, _edit(copies)), copies)
    assert (error <= (0 if copies == 2 else _ulp(np.abs(old)))).all()


def test_segments_of_a_concatenation_are_shared_out_one_by_one() -> None:
    """The same space twice in one axis: shares sum to one within each segment, not over both."""
    part = (Units("s", UNITS, "in"),)
    old = np.random.default_rng(0).standard_normal((4, 2 * UNITS + 3)).astype(np.float32)
    maps = axis_maps(((4,), (Sum((part, (3,), part)),)), _edit(3))
    new = edit_weight(old, maps, "random", np.random.default_rng(0))
    assert new.shape == (4, 6 * UNITS + 3)
    for start, before in ((0, 0), (3 * UNITS + 3, UNITS + 3)):
        segment = new[:, start : start + 3 * UNITS].reshape(4, 3, UNITS).astype(np.float64).sum(1)
        wanted = old[:, before : before + UNITS]
        assert (np.abs(segment - wanted) <= _ulp(np.abs(wanted))).all()
    assert (new[:, 3 * UNITS : 3 * UNITS + 3] == old[:, UNITS : UNITS + 3]).all()


def test_two_shared_axes_sum_to_the_original_over_both() -> None:
    a, b = (Units("s", UNITS, "in"),), (Units("t", 5, "in"),)
    old = np.random.default_rng(0).standard_normal((UNITS, 5)).astype(np.float32)
    edits = {**_edit(3), "t": SpaceEdit("t", 5, (0, 1, 2, 3, 4, 0, 1, 2, 0))}
    new = edit_weight(old, axis_maps((a, b), edits), "random", np.random.default_rng(0)).astype(np.float64)
    total = np.zeros(old.shape)
    np.add.at(total, np.ix_(edits["s"].source, edits["t"].source), new)
    assert (np.abs(total - old) <= 4 * _ulp(np.abs(old))).all()


def test_integers_and_untouched_units_keep_their_bits() -> None:
    """A unit that is copied once has share 1; its column is the stored one, whatever happens to the others."""
    edit = {"s": SpaceEdit("s", UNITS, (*range(UNITS), 2, 2, 5))}
    old = _weights(np.dtype(np.float32), 0)
    new = _widened(old, edit)
    assert (new[[0, 1, 3, 4, 6]] == old[[0, 1, 3, 4, 6]]).all()


def _cast(checkpoint: surgery.Checkpoint, dtype: np.dtype) -> surgery.Checkpoint:
    """The weights rounded to a precision."""
    model = checkpoint.model.clone()
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        if value.const_value.dtype == ir.DataType.FLOAT:
            array = value.const_value.numpy().astype(dtype)
            value.const_value = ir.Tensor(array, name=name)
            value.type = ir.TensorType(value.const_value.dtype)
    return checkpoint.replace(model=model)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_half_precision_weights_stay_half_and_sum_up(name: str, init: str) -> None:
    """Not only arrays: a whole checkpoint, its fresh units and copies in the stored precision."""
    checkpoint = _cast(surgery.load(zoo.export("actor_critic", "dynamo")), np.dtype(PRECISIONS[name]))
    plan = surgery.widen(checkpoint, factor=3, init=init)  # type: ignore[arg-type]
    after = execute(plan, checkpoint)
    before = checkpoint.tensors
    for edit in plan.tensors:
        old, new = before[edit.name], after.tensors[edit.name]
        assert new.dtype == old.dtype and np.isfinite(new.numpy().astype(np.float64)).all()
        if init == "net2net" and len(old.shape) == 2:
            maps = axis_maps(edit.axes, plan.edits)
            columns = maps[1]
            if columns is None or not columns.shared:
                continue
            rows = np.unique(maps[0].source, return_index=True)[1] if maps[0] is not None else slice(None)
            total = np.zeros(old.shape)
            np.add.at(total, (slice(None), columns.source), new.numpy().astype(np.float64)[rows])
            assert (np.abs(total - old.numpy().astype(np.float64)) <= _ulp(np.abs(old.numpy()))).all()
