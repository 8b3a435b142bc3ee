"""The verifier is verified: a plan that was tampered with gives no result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery import architectures
from surgery.edits.arithmetic import SpaceEdit
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, shrink
from surgery.errors import ArgumentError, ClaimFailed, PlanMismatch, ProofFailed
from surgery.graph.layout import Layout, Role, Sum, Units
from surgery.numeric import run
from surgery.ops.widen import Init
from surgery.verify.outputs import difference, policy_checks
from tests import zoo
from tests.originals import FLOAT64, ODD, grown, original, refusal, relative

Change = Callable[[Layout], Layout]
Shares = Callable[[SpaceEdit], Iterable[float]]

CAUGHT = (ProofFailed, ClaimFailed, PlanMismatch)


def _relabelled(plan: Plan, change: Change) -> Plan:
    """The plan with a function applied to every axis layout."""
    tensors = (dataclasses.replace(t, axes=tuple(change(axis) for axis in t.axes)) for t in plan.tensors)
    return dataclasses.replace(plan, tensors=tuple(tensors))


def _with_role(old: Role, new: Role) -> Change:
    def change(axis: Layout) -> Layout:
        return tuple(
            dataclasses.replace(f, role=new) if isinstance(f, Units) and f.role == old
            else Sum(tuple(change(part) for part in f.parts)) if isinstance(f, Sum)
            else f
            for f in axis
        )  # fmt: skip

    return change


def _with_shares(plan: Plan, shares: Shares) -> Plan:
    spaces = (dataclasses.replace(e, shares=tuple(shares(e))) for e in plan.spaces)
    return dataclasses.replace(plan, spaces=tuple(spaces))


def _refused(plan: Plan, checkpoint: surgery.Checkpoint) -> str:
    with pytest.raises(CAUGHT) as caught:
        surgery.apply(plan, checkpoint)
    return f"{caught.value.message} {caught.value.where}"


TAMPERED = ("conv_scalars", "nature_nhwc", "densenet", "crelu", "batchnorm_resnet", "d2rl", "space_to_depth")
"""Concatenations, both flatten orders, residual sums, residual concatenations."""


@pytest.mark.parametrize("name", TAMPERED)
@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_the_plan_itself_passes(name: str, init: Init) -> None:
    checkpoint = original(name, "dynamo").checkpoint
    result = surgery.apply(surgery.widen(checkpoint, factor=ODD, init=init), checkpoint)
    assert result.report is not None and result.report.ok and result.report.exact


@pytest.mark.parametrize("name", TAMPERED)
@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_consumers_that_are_not_zeroed_or_shared_are_caught(name: str, init: Init) -> None:
    """One space at a time: the wrong role in one place must be enough."""
    before = original(name, "dynamo")
    for space in before.analysis.spaces:
        if refusal(space, init) is None and any(ref.role == "in" for ref in space.axes):
            plan = surgery.widen(before.checkpoint, widths=grown(before.analysis, space, init), init=init)
            _refused(_relabelled(plan, _with_role("in", "out")), before.checkpoint)


@pytest.mark.parametrize("name", TAMPERED)
def test_producers_that_are_shared_out_are_caught(name: str) -> None:
    checkpoint = original(name, "dynamo").checkpoint
    plan = surgery.widen(checkpoint, factor=2, init="net2net")
    assert "float64" in _refused(_relabelled(plan, _with_role("out", "in")), checkpoint)


@pytest.mark.parametrize("name", ["conv_scalars", "nature_nhwc", "d2rl", "frame_slices"])
@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_units_inserted_in_the_wrong_order_are_caught(name: str, init: Init) -> None:
    """Factors of a flattened image the other way round: NCHW for NHWC; segments of a concatenation swapped."""

    def backwards(axis: Layout) -> Layout:
        return tuple(Sum(f.parts[::-1]) if isinstance(f, Sum) else f for f in axis[::-1])

    checkpoint = original(name, "dynamo").checkpoint
    plan = surgery.widen(checkpoint, factor=2, init=init)
    tampered = _relabelled(plan, backwards)
    assert tampered.tensors != plan.tensors
    assert "float64" in _refused(tampered, checkpoint)


@pytest.mark.parametrize("name", TAMPERED)
@pytest.mark.parametrize(
    "shares",
    [
        lambda edit: [1.0] * edit.after,
        lambda edit: edit.share * (1 + 1e-9),
        lambda edit: edit.share[::-1],
        lambda edit: np.where(np.arange(edit.after) == 0, 0.0, edit.share),
        lambda edit: np.where(np.arange(edit.after) == 0, math.nan, edit.share),
        lambda edit: np.where(np.arange(edit.after) == 0, math.inf, edit.share),
    ],
    ids=["not divided", "1e-9 off", "of other units", "one missing", "nan", "inf"],
)
def test_shares_that_do_not_sum_to_one_are_caught(name: str, shares: Shares) -> None:
    checkpoint = original(name, "dynamo").checkpoint
    plan = surgery.widen(checkpoint, factor=ODD, init="net2net", shares="unequal")
    _refused(_with_shares(plan, shares), checkpoint)


@pytest.mark.parametrize("name", TAMPERED)
def test_copies_of_other_units_are_caught(name: str) -> None:
    """Shares that fit one map of copies, used with another; and no copies declared fresh."""
    checkpoint = original(name, "dynamo").checkpoint
    plan = surgery.widen(checkpoint, factor=2, init="net2net")

    def moved(edit: SpaceEdit) -> SpaceEdit:
        source = (*edit.source[1 : edit.before], edit.source[0], *edit.source[edit.before :])
        return dataclasses.replace(edit, source=source)

    first, *others = plan.spaces
    assert surgery.apply(dataclasses.replace(plan, spaces=(moved(first), *others)), checkpoint).report
    half = dataclasses.replace(first, source=(0,) * first.after)
    _refused(dataclasses.replace(plan, spaces=(half, *others)), checkpoint)


@pytest.mark.parametrize("name", zoo.NETS)
def test_every_forgotten_number_is_caught(name: str) -> None:
    """A plan without one of its operand edits gives nothing, or (where the number said the same) the same function."""
    before = original(name, "dynamo")
    if not any(space.widenable for space in before.analysis.spaces):
        return
    plan = surgery.widen(before.checkpoint, factor=2)
    for k in range(min(len(plan.operands), 3)):
        fewer = dataclasses.replace(plan, operands=plan.operands[:k] + plan.operands[k + 1 :])
        try:
            surgery.apply(fewer, before.checkpoint)
        except CAUGHT:
            continue
        after = execute(fewer, before.checkpoint, double=True)
        outputs = run(after.model, grow(fewer, before.batches[0]))
        assert relative(before.exact, shrink(fewer, outputs)) <= FLOAT64


@pytest.mark.parametrize("name", TAMPERED)
def test_a_forgotten_tensor_is_caught(name: str) -> None:
    checkpoint = original(name, "dynamo").checkpoint
    plan = surgery.widen(checkpoint, factor=2)
    for k in range(len(plan.tensors)):
        fewer = plan.tensors[:k] + plan.tensors[k + 1 :]
        _refused(dataclasses.replace(plan, tensors=fewer), checkpoint)


@pytest.mark.parametrize("change", ["role", "dropped"])
def test_of_a_plan_that_was_read_the_proof_fails_for_its_editor(change: str) -> None:
    """Whether its result is wrong or does not run; the plan that was made here would be a bug of ours."""
    checkpoint = original("conv_scalars", "dynamo").checkpoint
    plan = surgery.widen(checkpoint, factor=2, init="net2net")
    if change == "role":
        edited = _relabelled(plan, _with_role("in", "out"))
    else:
        edited = dataclasses.replace(plan, tensors=tuple(t for t in plan.tensors if t.name != "conv.bias"))
    with pytest.raises(ProofFailed, match="the proof of 'widen' fails") as ours:
        surgery.apply(edited, checkpoint)
    with pytest.raises(PlanMismatch, match="the plan does not do what it claims here") as theirs:
        surgery.apply(Plan.from_json(edited.to_json()), checkpoint)
    assert "bug of ours" in str(ours.value.hint) and "make a new plan 'widen'" in str(theirs.value.hint)
    assert theirs.value.where == ours.value.where and "outputs, float32" in theirs.value.where


def test_what_undoes_a_plan_that_was_read_is_no_plan_of_ours_either() -> None:
    checkpoint = original("conv_scalars", "dynamo").checkpoint
    plan = surgery.widen(checkpoint, factor=2, init="net2net")
    after = surgery.apply(plan, checkpoint).checkpoint
    assert surgery.invert(Plan.from_json(plan.to_json()), after).read
    assert not surgery.invert(plan, after).read


def test_without_verification_the_same_plan_goes_through() -> None:
    """So it is the verifier that catches it, and `--no-verify` is what it says."""
    checkpoint = original("conv_scalars", "dynamo").checkpoint
    plan = _relabelled(surgery.widen(checkpoint, factor=2, init="net2net"), _with_role("in", "out"))
    result = surgery.apply(plan, checkpoint, verify=False)
    assert result.report is None
    assert not surgery.verify(checkpoint, result.checkpoint).ok


def test_noise_is_measured_not_claimed_away() -> None:
    checkpoint = original("conv_scalars", "dynamo").checkpoint
    plan = surgery.widen(checkpoint, factor=2, init="net2net", noise=0.05)
    assert plan.claim == "changed"
    report = surgery.apply(plan, checkpoint).report
    assert report is not None and report.ok and not report.exact and report.max_rel_error > 1e-4
    with pytest.raises((ProofFailed, ClaimFailed)):
        surgery.apply(dataclasses.replace(plan, claim="equivalent"), checkpoint)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_difference_sees_nan_and_infinity(bad: float) -> None:
    """In Python max([0.0, nan]) is 0.0."""
    good, damaged = {"y": np.array([0.0, 1.0])}, {"y": np.array([0.0, bad])}
    for old, new in ((good, damaged), (damaged, good)):
        absolute, error, name = difference(old, new)
        assert (absolute, error, name) == (math.inf, math.inf, "y") and not relative(old, new) <= FLOAT64
    assert difference(damaged, damaged)[:2] == (0.0, 0.0)
    one, other = np.array([0.0]), np.array([1.0])
    assert difference({"x": other, "y": one}, {"x": other + 1, "y": one}) == (1.0, 1.0, "x")
    both = {"x": np.array([0.0]), "y": np.array([bad])}
    assert difference({"x": np.array([5.0]), "y": np.array([0.0])}, both)[1] == math.inf


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_the_policy_is_compared_by_its_largest_divergence_whatever_is_added_to_all_logits(
    shift: float,
) -> None:
    checkpoint = architectures.new("mlp-8", observation=(4,), actions=3, head="actor-critic")
    old, new = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, -1.0]]), np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (old, new))
    flips, divergence = policy_checks(checkpoint, {"logits": old + shift}, {"logits": new + shift}, 1e-8)
    assert (flips.value, flips.ok, divergence.ok) == (0, True, False)
    assert divergence.value == pytest.approx((p * np.log(p / q)).sum(-1).max(), rel=1e-9)
    flips, _ = policy_checks(checkpoint, {"logits": old + shift}, {"logits": -new + shift}, 1e-8)
    assert flips.value == 2


def test_a_plan_that_makes_nan_returns_nothing() -> None:
    checkpoint = original("mlp_gelu", "dynamo").checkpoint
    tensors = {**checkpoint.tensors}
    name = next(key for key, tensor in tensors.items() if len(tensor.shape) == 2)
    model = checkpoint.model.clone()
    array = tensors[name].numpy().copy()
    array[0, 0] = math.nan
    model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    damaged = checkpoint.replace(model=model)
    with pytest.raises(surgery.SurgeryError, match="NaN"):
        surgery.apply(surgery.widen(damaged, factor=2), damaged)


@pytest.mark.parametrize(
    ("change", "says"), [({"actions": 4}, "different outputs"), ({"observation": (5,)}, "different inputs")]
)
@pytest.mark.parametrize("name", ["mlp-8", "lstm-8"])
def test_files_of_other_interfaces_are_not_compared(name: str, change: dict[str, Any], says: str) -> None:
    one = architectures.new(name, observation=(4,), actions=3)
    other = architectures.new(name, **{"observation": (4,), "actions": 3, **change})
    with pytest.raises(ArgumentError, match=says):
        surgery.verify(one, other)


@pytest.mark.parametrize("to", ["lstm-8", "gru-8", "nature-lstm-16"])
def test_recurrent_files_of_other_sizes_are_compared_step_by_step(to: str):
    """From states at rest: what only acts on a state is told from the second step on."""
    shape = (4,) if to != "nature-lstm-16" else (1, 84, 84)
    before = architectures.new(to, observation=shape, actions=3, seed=1)
    wide = surgery.apply(surgery.widen(before, factor=1.5, init="net2net"), before).checkpoint
    assert [p.name for p in wide.interface.inputs] == [p.name for p in before.interface.inputs]
    assert surgery.verify(before, wide).ok
    model = wide.model.clone()
    node = next(node for node in model.graph if node.op_type in ("LSTM", "GRU"))
    recurrence = node.inputs[2]
    assert recurrence is not None
    recurrence.const_value = ir.tensor(recurrence.const_value.numpy() * np.float32(1.01))
    found = surgery.verify(before, wide.replace(model=model))
    assert [check.name for check in found.failed][:2] == ["outputs, float32", "outputs, float64"]
