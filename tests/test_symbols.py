"""Symbolic sizes that no one named, or that have several names, are what the graph needs them to be."""

from __future__ import annotations

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

import surgery
from surgery.graph.symbols import bound
from surgery.graph.walk import lengths
from surgery.port_kinds import infer
from surgery.probes import probes

SIDES = "p = MatMul(x, a)\nq = MatMul(y, b)\n"
SCORES = """q = MatMul(x, a)
k = MatMul(x, g)
t = Transpose<perm=[0,2,1]>(k)
s = MatMul(q, t)
n = Add(s, {mask})
w = Softmax<axis=-1>(n)
o = MatMul(w, q)
z = MatMul(o, c)"""

ROWS = {
    # name: inputs, nodes, what the sizes of symbolic dimensions come to
    "one length under two names": ("x[N,T,4] y[M,S,5]", SIDES + "h = Add(p, q)\nz = MatMul(h, c)", {"S": 3, "M": 2}),
    "two lengths without a name": ("x[?,?,4] y[?,?,5]", SIDES + "h = Add(p, q)\nz = MatMul(h, c)", {"y[1]": 3}),
    "joined along the units": (
        "x[?,?,4] y[?,?,5]", SIDES + "j = Concat<axis=2>(p, q)\nr = Relu(j)\nz = MatMul(r, d)", {"y[1]": 3},
    ),
    "joined along the length": (
        "x[?,?,4] y[?,?,5] u[?,?,1]", SIDES + "j = Concat<axis=1>(p, q)\nh = Mul(j, u)\nz = MatMul(h, c)", {"u[1]": 6},
    ),
    "a mask over queries and keys": ("x[?,?,4] y[?,?,?]", SCORES.format(mask="y"), {"y[1]": 3, "y[2]": 3}),
    "images": (
        "x[?,4,?,?] y[?,5,?,?]",
        "p = Conv(x, e)\nq = Conv(y, f)\nh = Add(p, q)\nu = GlobalAveragePool(h)\nv = Flatten(u)\nz = MatMul(v, c)",
        {"y[2]": 3, "y[3]": 3},
    ),
    "positions of one length": (
        "x[?,?,4] y[?,?,5]", SIDES + "h = Sum(p, q, l)\nz = MatMul(h, c)", {"x[1]": 6, "y[1]": 6},
    ),
    "a number of features": ("x[?,?]", "p = Gemm(x, a)\nz = MatMul(p, c)", {"x[1]": 4}),
}  # fmt: skip
TENSORS = {
    "a": (4, 7),
    "b": (5, 7),
    "c": (7, 3),
    "d": (14, 3),
    "e": (7, 4, 1, 1),
    "f": (7, 5, 1, 1),
    "g": (4, 7),
    "l": (6, 7),
}


def model_of(inputs: str, nodes: str) -> ir.Model:
    """A graph with an output z; a ? is a dimension without a name."""
    declared = ", ".join(f"float{port[1:]} {port[0]}" for port in inputs.split(" "))
    result = "[?,?,3]" if "[?,?," in inputs or "[N" in inputs else "[?,3]"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>\ngraph ({declared}) => (float{result} z) {{ {nodes} }}"""
    )
    rng = np.random.default_rng(0)
    used = {name for node in proto.graph.node for name in node.input}
    for name in sorted(used & set(TENSORS)):
        array = rng.standard_normal(TENSORS[name]).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.serde.deserialize_model(proto)


@pytest.mark.parametrize("row", ROWS)
def test_sizes_that_must_be_equal_are(row: str) -> None:
    inputs, nodes, sizes = ROWS[row]
    model = model_of(inputs, nodes)
    analysis = surgery.analyse(model)
    assert not analysis.trace.opaque
    assert {space.size for space in analysis.spaces if space.hidden and space.widenable} == {7}
    wanted = {name: 2 if name in ("batch", "N") else 3 for name in analysis.trace.facts.symbols}
    assert lengths(model, infer(model), wanted) == wanted | sizes


@pytest.mark.parametrize("row", ROWS)
def test_graphs_with_such_sizes_are_widened_with_proof(row: str) -> None:
    inputs, nodes, _ = ROWS[row]
    model = model_of(inputs, nodes)
    checkpoint = surgery.Checkpoint(model, infer(model))
    result = surgery.apply(surgery.widen(checkpoint, factor=1.5), checkpoint)
    assert result.report.ok
    declared = [[str(size) for size in value.shape or ()] for value in model.graph.inputs]
    assert declared == [[str(size) for size in v.shape or ()] for v in result.checkpoint.model.graph.inputs]


def test_lengths_that_differ_stay_apart() -> None:
    model = model_of("x[?,?,4] y[?,?,5]", f"{SIDES}j = Concat<axis=1>(p, q)\nz = MatMul(j, c)")
    assert not surgery.analyse(model).trace.facts.sizes


def test_a_shape_that_does_not_follow_is_explained_by_the_node_that_left_it_open() -> None:
    nodes = f"{SIDES}s = Shape<start=1, end=2>(y)\nt = Concat<axis=0>(m, s, n)\nr = Reshape(p, t)\nh = Add(r, q)\n"
    model = model_of("x[?,4] y[?,?,5]", f"m = Constant<value_ints=[-1]>()\nn = Constant<value_ints=[7]>()\n{nodes}"
                     "z = MatMul(h, c)")  # fmt: skip
    wanted = "node 'r' (Reshape) of 'p' [batch, 7] and 't' = [-1, y[1], 7] leaves it open"
    assert any(wanted in reason for space in surgery.analyse(model).spaces for reason in space.reasons)


def test_recorded_lengths_are_those_of_all_inputs() -> None:
    model = model_of(*ROWS["two lengths without a name"][:2])
    recorded = {"x": np.ones((4, 6, 4), np.float32)}
    inputs = probes(surgery.Checkpoint(model, infer(model)), 2, 0, recorded)
    assert {name: array.shape for name, array in inputs.items()} == {"x": (2, 6, 4), "y": (2, 6, 5)}


def test_a_symbol_is_bound_to_what_it_must_be() -> None:
    sizes = {"batch": 1009, "T": 1013, "S": 1019}
    assert bound(sizes, {}, [(1013, 1019)]) == {"S": 1013}
    assert bound({**sizes, "S": 1013}, {"S": 1013}, [(1013, 8)]) == {"S": 8, "T": 8}
    assert bound(sizes, {}, [(1013, 1019), (8, 1013)]) == {"T": 8}
    assert bound(sizes, {}, [(4 * 1019, 4 * (1009 + 1013))]) == {"S": 2022}
    assert not bound(sizes, {}, [(7, 8), (1009 + 1, 12)])
