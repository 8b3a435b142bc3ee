"""Observations, actions and units come and go: every operation on every network, head and exporter, slots included."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import surgery
from surgery import NewAction, NewObservation, Retired
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, kept, settled, shrink
from surgery.errors import Refused
from surgery.graph.layout import units
from surgery.numeric import run
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.port_kinds import infer
from surgery.verify.outputs import difference
from surgery.verify.slots import LIMIT, check_slots
from tests import zoo


def exports(operation: int) -> list[pytest.param]:
    """Every network in one of its export styles, another one for each operation; SURGERY_ALL_STYLES=1 takes all."""
    rows = []
    for k, (name, net) in enumerate(zoo.NETS.items()):
        styles = [style for style in zoo.STYLES if style not in net.impossible]
        chosen = styles if os.environ.get("SURGERY_ALL_STYLES") else [styles[(k + operation) % len(styles)]]
        rows += [pytest.param(name, style, id=f"{name}-{style}") for style in chosen]
    return rows


FLOAT64 = 1e-13


def with_state(checkpoint: surgery.Checkpoint, seed: int = 0) -> surgery.Checkpoint:
    """The checkpoint with an Adam state of random numbers."""
    rng = np.random.default_rng(seed)
    names = tuple(n for n, t in checkpoint.tensors.items() if t.dtype.is_floating_point() and len(t.shape))
    slots = {
        slot: {n: ir.tensor(rng.random(tuple(checkpoint.tensors[n].shape), np.float32)) for n in names}
        for slot in ("exp_avg", "exp_avg_sq")
    }
    groups = (ParamGroup(names, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0}),)
    return checkpoint.replace(optimizer=OptimizerState("adam", slots, dict.fromkeys(names, 10.0), groups))


def axes(checkpoint: surgery.Checkpoint, side: str) -> list[tuple[str, int]]:
    """Spaces that only being an input (or an output) keeps from growing, with their sizes."""
    analysis = checkpoint.analysis
    return [(s.name, s.size) for s in analysis.spaces if set(s.kinds) == {side} and s.size > 1]


def exact(plan: Plan, checkpoint: surgery.Checkpoint, inputs: dict[str, np.ndarray]) -> float:
    """The largest relative difference of outputs in float64, once the slot rule has been checked."""
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    double, given = execute(plan, checkpoint, double=True), settled(plan, inputs)
    for check in check_slots(plan, checkpoint, double, given, 0):
        assert check.ok and (check.limit == LIMIT or "not evaluated" in check.detail), check
    filled = grow(plan, given, np.random.default_rng(1))
    return difference(kept(plan, run(checkpoint.model, given)), shrink(plan, run(double.model, filled)))[1]


def changes_of_observations(checkpoint: surgery.Checkpoint) -> Iterator[Callable[[], Plan]]:
    for axis, size in axes(checkpoint, "input"):
        yield partial(surgery.reorder, checkpoint, {axis: [*range(1, size), 0]})
        yield partial(surgery.retire, checkpoint, [Retired(axis, 0, 0.25)])
        yield partial(surgery.retire, checkpoint, [Retired(axis, size - 1, 0.0)])


@pytest.mark.parametrize(("name", "style"), exports(0))
def test_observations_are_reordered_and_retired_exactly(name: str, style: str) -> None:
    checkpoint = with_state(surgery.load(zoo.export(name, style)))
    inputs = zoo.sample(name, 1, np.random.default_rng(0))
    for make in changes_of_observations(checkpoint):
        try:
            plan = make()
        except Refused as refusal:
            assert re.search(
                "cannot change exactly|no bias|contribute differently|bias of several", refusal.message
            )
            continue
        assert exact(plan, checkpoint, inputs) <= FLOAT64, plan.describe()


def test_a_constant_beside_an_embedding_goes_into_a_bias_that_is_cut_at_a_computed_size() -> None:
    """A table bounds what is read from it; a bias cut out of a longer one, as exporters cut gates, is a bias."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[batch, 3] x, int64[batch] i, float[5, 2] table, float[5, 4] w, float[8] b) => (float[batch, 4] y)
        <int64[1] zero = {0}> {
            e = Gather(table, i)
            c = Concat<axis = 1>(x, e)
            a = MatMul(c, w)
            n = Shape<start = 1, end = 2>(a)
            h = Slice(b, zero, n, zero)
            y = Add(a, h)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"table": (5, 2), "w": (5, 4), "b": (8,)}.items():
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype("f4"), name)
        )
    del model.graph.input[2:]
    checkpoint = surgery.Checkpoint(ir.from_proto(model), infer(ir.from_proto(model)))
    plan = surgery.retire(checkpoint, [Retired("x", 1, 0.5)])
    inputs = {"x": rng.normal(size=(6, 3)).astype("f4"), "i": rng.integers(0, 5, 6)}
    assert exact(plan, checkpoint, inputs) <= FLOAT64


@pytest.mark.parametrize(("name", "style"), exports(1))
def test_copies_are_merged_into_the_same_bytes(name: str, style: str) -> None:
    """Widened by equal copies and narrowed again: all tensors and all slots are what they were, bit by bit."""
    checkpoint = with_state(surgery.load(zoo.export(name, style)))
    try:
        plan = surgery.widen(checkpoint, factor=2, init="net2net")
    except Refused:
        return
    wide = execute(plan, checkpoint)
    again = surgery.narrow(wide)
    assert again.claim == "equivalent"
    assert {e.space: e.after for e in again.spaces} == {e.space: e.before for e in plan.spaces}
    same_bytes(checkpoint, execute(again, wide))


@pytest.mark.parametrize(("name", "style"), exports(1))
def test_units_that_nothing_reads_yet_are_found_and_go(name: str, style: str) -> None:
    """Widened with a zero start and narrowed again: all tensors and all slots are what they were, bit by bit."""
    checkpoint = with_state(surgery.load(zoo.export(name, style)))
    try:
        plan = surgery.widen(checkpoint, factor=1.5)
    except Refused:
        return
    wide = execute(plan, checkpoint)
    spaces = [wide.analysis.by_name[e.space] for e in plan.spaces]
    padded = {
        p.space for t in plan.tensors for axis in t.axes for p in units(axis) if p.role in ("mean", "zero")
    }
    if any(s.name in padded or s.whole or s.no_zero for s in spaces):
        return  # fresh units there are counted by others, and read what is fresh elsewhere
    again = surgery.narrow(wide)
    assert again.claim == "equivalent"
    assert {e.space: e.after for e in again.spaces} == {e.space: e.before for e in plan.spaces}
    same_bytes(checkpoint, execute(again, wide))


@pytest.mark.parametrize(("name", "style"), exports(2))
def test_a_plan_is_undone_to_the_same_bytes(name: str, style: str) -> None:
    checkpoint = with_state(surgery.load(zoo.export(name, style)))
    for plan in growths(checkpoint):
        result = execute(plan, checkpoint)
        back = surgery.invert(plan, result)
        assert Plan.from_json(json.loads(json.dumps(back.to_json()))) == back
        restored = execute(back, result)
        same_bytes(checkpoint, restored, {t.name for t in plan.tensors if t.scale != 1})
        assert restored.interface == checkpoint.interface
        assert restored.environment == checkpoint.environment


def growths(checkpoint: surgery.Checkpoint) -> Iterator[Plan]:
    with_refusals = [
        lambda: surgery.widen(checkpoint, factor=1.5),
        *(
            partial(surgery.extend, checkpoint, [NewObservation(axis, 2, 1)])
            for axis, _ in axes(checkpoint, "input")
        ),
        *(
            partial(surgery.extend, checkpoint, actions=[NewAction(a, 2)])
            for a, _ in axes(checkpoint, "output")
        ),
    ]
    for make in with_refusals:
        try:
            yield make()
        except Refused:
            continue


def same_bytes(before: surgery.Checkpoint, after: surgery.Checkpoint, scaled: Collection[str] = ()) -> None:
    """All tensors are the same bits, all slots too but for rounding; what was scaled and back is, too."""
    assert before.optimizer is not None and after.optimizer is not None
    for name, tensor in before.tensors.items():
        if name in scaled:
            np.testing.assert_array_max_ulp(after.tensors[name].numpy(), tensor.numpy(), 1)
        elif name in after.tensors:
            assert after.tensors[name].tobytes() == tensor.tobytes(), name
    for slot, members in before.optimizer.slots.items():
        for name, tensor in members.items():
            np.testing.assert_array_max_ulp(after.optimizer.slots[slot][name].numpy(), tensor.numpy(), 1)


@pytest.mark.parametrize(("name", "style"), exports(3))
def test_a_split_action_shares_its_probability_and_leaves_the_others(name: str, style: str) -> None:
    checkpoint = surgery.load(zoo.export(name, style))
    inputs = zoo.sample(name, 3, np.random.default_rng(0))
    for port in checkpoint.interface.outputs:
        if port.kind != "logits":
            continue
        try:
            plan = surgery.extend(checkpoint, actions=[NewAction(port.name, 2, "split", of=1)])
        except Refused:
            continue
        assert exact(plan, with_state(checkpoint), inputs) <= FLOAT64
        old = run(checkpoint.model, inputs)[port.name]
        new = run(execute(plan, checkpoint, double=True).model, inputs)[port.name]
        before, after = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (old, new))
        np.testing.assert_allclose(after[..., [1, -2, -1]], before[..., [1, 1, 1]] / 3, rtol=1e-12)
        rest = [k for k in range(old.shape[-1]) if k != 1]
        np.testing.assert_allclose(after[..., rest], before[..., rest], rtol=1e-12)
        assert (new.argmax(-1) == old.argmax(-1)).all()
