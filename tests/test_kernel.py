"""Kernels grow without changing the function: every convolution, by odd and even numbers of taps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, ClaimFailed, ProofFailed, Refused, UnknownName
from surgery.graph.layers import CONVOLUTIONS, layers
from surgery.numeric import run
from surgery.port_kinds import infer
from surgery.probes import probes
from surgery.verify.outputs import difference, runtime
from tests import zoo
from tests.originals import FLOAT64, Original, original, relative
from tests.test_deepen import FIXTURES, with_adam

CONVOLUTIONAL = [
    pytest.param(name, style, id=f"{name}-{style}")
    for name in ("nature_nhwc", "impala", "decoder", "mobilenet", "temporal_conv", "shufflenet")
    for style in zoo.STYLES
    if style not in zoo.NETS[name].impossible
]


def kernels(analysis: surgery.graph.spaces.Analysis) -> Iterator[tuple[str, tuple[int, ...]]]:  # type: ignore[name-defined]
    for layer in layers(analysis):
        if layer.node.op_type in CONVOLUTIONS:
            yield layer.module, analysis.trace.facts.shapes[layer.node.inputs[1]][2:]


@pytest.mark.parametrize(("name", "style"), CONVOLUTIONAL)
def test_larger_kernels_change_no_output(name: str, style: str) -> None:
    before = original(name, style)
    for k, (module, size) in enumerate(kernels(before.analysis)):
        more = (1, 2, 3)[k % 3]
        _check(before, surgery.grow_kernel(before.checkpoint, {module: [n + more for n in size]}))


def _check(before: Original, plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    exact = run(execute(plan, before.checkpoint, double=True).model, before.batches[0])
    assert relative(before.exact, exact) <= FLOAT64
    session = runtime(execute(plan, before.checkpoint).model)
    assert relative(before.stored[0], session(dict(before.batches[0]))) <= before.limit


@pytest.mark.parametrize(
    "path",
    [path for path in FIXTURES if b"kernel_shape" in path.read_bytes()],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_kernels_of_other_frameworks_grow(path: Path) -> None:
    """With their automatic padding, too."""
    checkpoint = surgery.load(path)
    inputs = probes(checkpoint, 2, 0)
    sizes = dict(kernels(checkpoint.analysis))
    assert sizes
    old = run(checkpoint.model, inputs)
    for more in (1, 2, 3):
        plan = surgery.grow_kernel(checkpoint, {m: [n + more for n in size] for m, size in sizes.items()})
        assert difference(old, run(execute(plan, checkpoint, double=True).model, inputs))[1] <= FLOAT64


def _through(steps: Mapping[str, dict[str, object]]) -> surgery.Checkpoint:
    """A depthwise convolution (four channels, two of each) whose kernel, 3×3×4×2, stands as in Keras."""
    rng, graph = np.random.default_rng(0), GraphBuilder("net")
    value = graph.parameter("depthwise.kernel", rng.standard_normal((3, 3, 4, 2)).astype(np.float32))
    for kind, how in steps.items():
        sizes = [graph.constant(how.pop("sizes"))] if "sizes" in how else []
        value = graph.op(kind.rstrip("2"), value, *sizes, **how)
    x = graph.op(
        "Conv", graph.input("observation", (4, 8, 8)), value, group=4, kernel_shape=[3, 3], pads=[1] * 4
    )
    graph.output(graph.op("ReduceMean", x, graph.constant([2, 3]), keepdims=0), "q_values", (8,))
    model = graph.model()
    return surgery.Checkpoint(model, infer(model))


def test_a_kernel_that_is_reshaped_on_its_way_grows() -> None:
    before = _through({"Transpose": {"perm": [2, 3, 0, 1]}, "Reshape": {"sizes": [8, 1, 3, 3]}})
    after = surgery.apply(surgery.grow_kernel(before, {"depthwise": (5, 4)}), before)
    assert after.report.ok and tuple(after.checkpoint.tensors["depthwise.kernel"].shape) == (5, 4, 4, 2)
    turned = _through({"Reshape": {"sizes": [3, 3, 8, 1]}, "Transpose": {"perm": [2, 3, 0, 1]}})
    with pytest.raises(Refused, match="cannot be followed"):
        surgery.grow_kernel(turned, {"depthwise": 5})


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("length", [9, 10])
def test_automatic_padding_is_followed(stride: int, mode: str, length: int) -> None:
    checkpoint, rng = _convolution(length, auto_pad=mode, strides=[stride]), np.random.default_rng(0)
    inputs = {"observation": rng.standard_normal((2, 3, length)).astype(np.float32)}
    old = run(checkpoint.model, inputs)
    for more in (1, 2, 3):
        plan = surgery.grow_kernel(checkpoint, {"conv": 2 + more})
        new = execute(plan, checkpoint)
        assert difference(old, run(new.model, inputs))[1] <= FLOAT64, more
        assert difference(old, runtime(new.model)(inputs))[1] <= 1e-6, more


def _convolution(length: int | str, **attributes: object) -> surgery.Checkpoint:
    rng, graph = np.random.default_rng(0), GraphBuilder("convolution")
    x = graph.input("observation", (3, length))
    weight = graph.parameter("conv.weight", rng.standard_normal((4, 3, 2)).astype(np.float32))
    graph.output(graph.op("Conv", x, weight, **attributes), "y", (4, "n"))  # type: ignore[arg-type]
    model = graph.model()
    return surgery.Checkpoint(model, infer(model))


def test_a_length_that_is_not_known_is_refused_where_padding_follows_from_it() -> None:
    with pytest.raises(Refused, match="not known"):
        surgery.grow_kernel(_convolution("time", auto_pad="SAME_UPPER", strides=[2]), {"conv": 3})
    surgery.grow_kernel(_convolution("time", auto_pad="SAME_UPPER"), {"conv": 3})
    surgery.grow_kernel(_convolution("time", strides=[2]), {"conv": 3})


def test_slots_follow_and_new_taps_have_no_history() -> None:
    before = with_adam(original("impala", "dynamo").checkpoint)
    result = surgery.apply(surgery.grow_kernel(before, {"stacks.0.0": 5}), before)
    assert result.report is not None and result.report.ok and result.checkpoint.optimizer is not None
    assert result.report.check("optimizer slots").limit is not None
    name = "stacks.0.0.weight"
    for slot, held in result.checkpoint.optimizer.slots.items():
        old, new = before.optimizer.slots[slot][name].numpy(), held[name].numpy()
        np.testing.assert_array_equal(new[:, :, 1:4, 1:4], old)
        assert new.sum() == pytest.approx(old.sum())
    weight = result.checkpoint.tensors[name].numpy()
    np.testing.assert_array_equal(weight[:, :, 1:4, 1:4], before.tensors[name].numpy())
    assert np.count_nonzero(weight) == np.count_nonzero(before.tensors[name].numpy())


def test_padding_that_does_not_follow_is_caught() -> None:
    checkpoint = original("impala", "dynamo").checkpoint
    plan = surgery.grow_kernel(checkpoint, {"stacks.0.0": 4})
    operands = tuple(
        dataclasses.replace(o, value=(2, 2, 1, 1)) if o.where == "pads" else o for o in plan.operands
    )
    assert operands != plan.operands
    with pytest.raises((ClaimFailed, ProofFailed)):
        surgery.apply(dataclasses.replace(plan, operands=operands), checkpoint)


def test_a_grown_model_grows_again_and_widens(tmp_path) -> None:
    before = original("nature_dqn", "dynamo").checkpoint
    result = surgery.apply(surgery.grow_kernel(before, {"conv3": (5, 3)}), before)
    result.save(tmp_path / "x.onnx")
    again = surgery.load(tmp_path / "x.onnx")
    assert isinstance(again.model, ir.Model)
    wide = surgery.apply(surgery.widen(again, widths={"conv3": 70}), again)
    assert surgery.apply(surgery.grow_kernel(wide.checkpoint, {"conv3": 5}), wide.checkpoint).report.ok


@pytest.mark.parametrize(
    ("sizes", "error", "says"),
    [
        ({}, ArgumentError, "no kernel to grow"),
        ({"conv1": 8}, ArgumentError, "8×8 already"),
        ({"conv1": 7}, ArgumentError, "it is 8×8"),
        ({"conv1": (9, 9, 9)}, ArgumentError, "2 axes, not 3"),
        ({"conv1": 100_000}, ArgumentError, "the limit is"),
        ({"fc": 5}, ArgumentError, "has no kernel"),
        ({"conv9": 5}, UnknownName, "unknown layer 'conv9'"),
        ({"conv1": 9, "conv1.weight": 9}, ArgumentError, "given twice"),
    ],
)
def test_a_wrong_request_is_refused_in_words(
    sizes: Mapping[str, int], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        surgery.grow_kernel(original("nature_dqn", "dynamo").checkpoint, sizes)
