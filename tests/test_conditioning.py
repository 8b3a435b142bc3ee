"""A model that its own last bits move is judged by that; any other by the strict limit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import surgery
from surgery.port_kinds import infer
from surgery.verify.outputs import FLOAT64_LIMIT, compare_double, float64_outputs, float64_rounding


def _cancelling(gap: float) -> surgery.Checkpoint:
    """q = v(1 + gap) − v for a hidden layer v: the smaller the gap, the more its last bits count."""
    rng = np.random.default_rng(0)
    weights = {
        "fc.weight": rng.standard_normal((5, 4)),
        "one.weight": (first := rng.standard_normal((2, 5))),
        "two.weight": first * (1 + gap),
    }
    nodes = [
        helper.make_node("Gemm", ["observation", "fc.weight"], ["fc"], transB=1),
        helper.make_node("Relu", ["fc"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "one.weight"], ["one"], transB=1),
        helper.make_node("Gemm", ["hidden", "two.weight"], ["two"], transB=1),
        helper.make_node("Sub", ["two", "one"], ["q_values"]),
    ]
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.DOUBLE, ["batch", 4])],
        [helper.make_tensor_value_info("q_values", TensorProto.DOUBLE, ["batch", 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    read = ir.serde.deserialize_model(model)
    return surgery.Checkpoint(read, infer(read))


@pytest.mark.parametrize("gap", [1e-2, 1e-9])
def test_the_rounding_of_a_model_is_that_of_its_last_bits(gap: float) -> None:
    checkpoint = _cancelling(gap)
    inputs = {"observation": np.random.default_rng(1).standard_normal((16, 4))}
    found = float64_rounding(checkpoint.model, inputs, float64_outputs(checkpoint.model, inputs))
    assert 1e-17 < found * gap < 1e-14


def test_a_model_that_cancels_can_be_widened_and_proved() -> None:
    checkpoint = _cancelling(1e-9)
    plan = surgery.widen(checkpoint, factor=1.8, init="net2net", shares="unequal")
    report = surgery.apply(plan, checkpoint).report
    check = report.check("outputs, float64")
    assert check.ok and check.value > FLOAT64_LIMIT


def test_a_wrong_result_stays_wrong_however_the_model_cancels() -> None:
    checkpoint = _cancelling(1e-9)
    inputs = {"observation": np.random.default_rng(1).standard_normal((16, 4))}
    other = _cancelling(1e-9 * (1 + 1e-3))
    old = float64_outputs(checkpoint.model, inputs)
    (check,) = compare_double(checkpoint.model, other.model, inputs, (dict, dict, dict), FLOAT64_LIMIT, old)
    assert not check.ok
