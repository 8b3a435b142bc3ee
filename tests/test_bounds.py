"""Bounds of single operators: no value of any input in its range lies outside, and what is constant is that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from surgery.builder import GraphBuilder
from surgery.numeric import run
from surgery.numeric.bounds import Bounds, bounds

INF = np.inf
INT64, INT32, UINT8, BOOL = (int(ir.DataType[name]) for name in ("INT64", "INT32", "UINT8", "BOOL"))
ROWS = {
    "whole numbers of anything": ("Cast", {"to": INT64}, (-INF, INF), False),
    "whole numbers that fit": ("Cast", {"to": INT32}, (-5.5, 7.5), False),
    "whole numbers that wrap around": ("Cast", {"to": INT32}, (-5.5, 3e9), False),
    "bytes that wrap around": ("Cast", {"to": UINT8}, (-5.0, 300.0), False),
    "truth of what may be zero": ("Cast", {"to": BOOL}, (-1.0, 1.0), False),
    "truth of what is not zero": ("Cast", {"to": BOOL}, (0.5, 1.0), True),
    "sign of what may be zero": ("Sign", {}, (-1.0, 1.0), False),
    "a falling branch": ("LeakyRelu", {"alpha": -0.5}, (-1.0, 1.0), False),
    "a falling threshold": ("ThresholdedRelu", {"alpha": -0.5}, (-1.0, 1.0), False),
    "dead": ("Relu", {}, (-2.0, -1.0), True),
    "a root of what may be negative": ("Sqrt", {}, (-1.0, 4.0), False),
}


@pytest.mark.parametrize(("kind", "attributes", "ends", "constant"), ROWS.values(), ids=ROWS)
def test_no_value_lies_outside(
    kind: str, attributes: dict[str, int | float], ends: tuple[float, float], constant: bool
) -> None:
    graph = GraphBuilder("one")
    result = graph.op(kind, graph.input("x", (3,)), **attributes)
    to = attributes.get("to")
    graph.output(result, "y", (3,), "float32" if to is None else ir.DataType(int(to)).numpy().name)
    model = graph.model()
    low, high = (np.full((2, 3), end) for end in ends)
    found = bounds(model, {"x": Bounds(low, high)}, ["y"])["y"]
    assert found is not None and bool(found.constant.all()) == constant
    rng = np.random.default_rng(0)
    for _ in range(20):
        given = rng.uniform(*np.clip(ends, -1e4, 1e4), (2, 3))
        given[rng.random((2, 3)) < 0.2] = np.clip(0.0, *ends)
        value = run(model, {"x": given})["y"]
        inside = (value >= found.low) & (value <= found.high)
        assert (inside | np.isnan(value)).all()


def test_a_number_without_end_is_not_replaced_by_one() -> None:
    """A mask of −∞ over scores of which some are known."""
    graph = GraphBuilder("mask")
    mask = graph.op("Constant", value=ir.Tensor(np.array([True, False, False])))
    result = graph.op("Where", mask, graph.input("x", (3,)), graph.constant(-INF, "float32"))
    graph.output(result, "y", (3,))
    low, high = np.array([[0.0, 0.0, 0.0]]), np.array([[1.0, 0.0, 2.0]])
    found = bounds(graph.model(), {"x": Bounds(low, high)}, ["y"])["y"]
    assert found is not None and (found.low[0, 1:] == -INF).all()
