"""Hand-written graphs: subgraphs, functions, and weights that are used more than once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import surgery
from surgery.numeric import run
from surgery.verify.outputs import runtime
from tests.test_exporters import agreement, check_growth, free, frozen

HEADER = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'

BRANCH = """
agent (float[N, 4] x, bool flag) => (float[N, 3] q) {
    a = Gemm(x, first_weight, first_bias)
    h = Relu(a)
    i = If(flag) <
        then_branch = yes () => (float[N, 6] t) { t = MatMul(h, left_weight) },
        else_branch = no () => (float[N, 6] e) { s = MatMul(h, right_weight)  e = Tanh(s) }
    >
    b = Gemm(i, second_weight, second_bias)
    c = Relu(b)
    q = MatMul(c, head_weight)
}"""

LOOP = """
agent (float[N, 4] x) => (float[N, 3] q) {
    a = MatMul(x, first_weight)
    h = Tanh(a)
    count = Constant<value = int64 {3}>()
    go = Constant<value = bool {1}>()
    i = Loop(count, go, h) <
        body = step (int64 k, bool on, float[N, 5] s) => (bool next, float[N, 5] n) {
            next = Identity(on)
            m = MatMul(s, again_weight)
            n = Tanh(m)
        }
    >
    b = MatMul(i, second_weight)
    c = Relu(b)
    q = MatMul(c, head_weight)
}"""

SCAN = """
agent (float[7, N, 4] x) => (float[7, N, 3] q) {
    z = Constant<value = int64 {0}>()
    row = Gather(x, z)
    h = MatMul(row, first_weight)
    last, every = Scan<num_scan_inputs = 1,
        body = step (float[N, 5] s, float[N, 4] r) => (float[N, 5] n, float[N, 5] y) {
            m = MatMul(s, again_weight)
            u = MatMul(r, input_weight)
            v = Add(m, u)
            n = Tanh(v)
            y = Identity(n)
        }
    >(h, x)
    b = MatMul(every, second_weight)
    c = Relu(b)
    q = MatMul(c, head_weight)
}"""

FUNCTIONS = """
agent (float[N, 4] x) => (float[N, 3] q) {
    h = own.Layer<slope = 0.1>(x, first_weight, first_bias)
    i = own.Block(h, second_weight, second_bias)
    q = MatMul(i, head_weight)
}
<domain: "own", opset_import: ["" : 17]>
Layer <slope> (x, w, b) => (y) {
    p = MatMul(x, w)
    s = Add(p, b)
    y = LeakyRelu<alpha: float = @slope>(s)
}
<domain: "own", opset_import: ["" : 17, "own" : 1]>
Block (x, w, b) => (y) {
    h = own.Layer<slope = 0.3>(x, w, b)
    y = own.Layer<slope = 0.2>(h, w, b)
}"""

AGAIN = """
agent (float[N, 4] x) => (float[N, 3] q) {
    a = MatMul(x, first_weight)
    h = Relu(a)
    d = Add(h, h)
    m = Mul(d, h)
    e = Concat<axis = 1>(m, h, m)
    b = MatMul(e, wide_weight)
    c = Relu(b)
    f = MatMul(c, head_weight)
    g = MatMul(d, other_weight)
    k = Relu(g)
    l = MatMul(k, head_weight)
    q = Sub(f, l)
}"""

SHAPES = {
    "first_weight": (4, 5), "first_bias": (5,), "left_weight": (5, 6), "right_weight": (5, 6), "again_weight": (5, 5),
    "input_weight": (4, 5), "second_weight": (5, 7), "second_bias": (7,), "head_weight": (7, 3),
    "wide_weight": (15, 7), "other_weight": (5, 7), "narrow_weight": (5, 3),
}  # fmt: skip

CASES = {
    "branch": (BRANCH, [7], "no rule for operator If", {"second_weight": (6, 7)}),
    "loop": (LOOP, [7], "no rule for operator Loop", {}),
    "scan": (SCAN, [7], "no rule for operator Scan", {}),
    "functions": (
        FUNCTIONS,
        [5],
        None,
        {"second_weight": (5, 5), "second_bias": (5,), "head_weight": (5, 3)},
    ),
    "again": (AGAIN, [5, 7], None, {}),
}
"""Graph, what can grow, why the rest cannot, and shapes that differ from `SHAPES`."""


SETTLED = {
    "a constant condition, both branches with the same names": """
agent (float[N, 4] x) => (float[N, 3] q) {
    h = MatMul(x, first_weight)
    yes = Constant<value = bool {1}>()
    i = If(yes) <
        then_branch = a () => (float[N, 5] t) { s = MatMul(h, again_weight)  t = Relu(s) },
        else_branch = b () => (float[N, 5] t) { s = Neg(h)  t = Tanh(s) }
    >
    q = MatMul(i, narrow_weight)
}""",
    "a rank that is squeezed where it is 1, as torch writes it": """
agent (float[N, 1, 4] x) => (float[N, 3] q) {
    one = Constant<value = int64 {1}>()
    size = Shape<start = 1, end = 2>(x)
    same = Equal(size, one)
    axis = Constant<value = int64[1] {1}>()
    s = If(same) <
        then_branch = a () => (float[N, 4] t) { t = Squeeze(x, axis) },
        else_branch = b () => (float[N, 1, 4] e) { e = Identity(x) }
    >
    h = MatMul(s, first_weight)
    g = Relu(h)
    i = MatMul(g, again_weight)
    q = MatMul(i, narrow_weight)
}""",
    "the size of a layer, which may grow": """
agent (float[N, 4] x) => (float[N, 3] q) {
    h = MatMul(x, first_weight)
    five = Constant<value = int64 {5}>()
    size = Shape<start = 1>(h)
    same = Equal(size, five)
    i = If(same) <
        then_branch = a () => (float[N, 5] t) { s = MatMul(h, again_weight)  t = Relu(s) },
        else_branch = b () => (float[N, 5] e) { e = Tanh(h) }
    >
    q = MatMul(i, narrow_weight)
}""",
    "one in another, and as the result": """
agent (float[N, 4] x) => (float[N, 3] q) {
    no = Constant<value = bool {0}>()
    yes = Not(no)
    h = MatMul(x, first_weight)
    q = If(yes) <
        then_branch = a () => (float[N, 3] t) {
            g = If(no) <
                then_branch = c () => (float[N, 5] u) { u = Neg(h) },
                else_branch = d () => (float[N, 5] v) { w = MatMul(h, again_weight)  v = Relu(w) }
            >
            t = MatMul(g, narrow_weight)
        },
        else_branch = b () => (float[N, 3] e) { e = MatMul(h, narrow_weight) }
    >
}""",
}
"""Graphs in which every If always takes the same branch."""

MOVING = """
agent (float[N, 4] x) => (float[N, 3] q) {
    h = MatMul(x, first_weight)
    two = Constant<value = int64 {2}>()
    size = Shape<start = 0, end = 1>(h)
    same = Greater(size, two)
    i = If(same) <
        then_branch = a () => (float[N, 5] t) { s = MatMul(h, again_weight)  t = Relu(s) },
        else_branch = b () => (float[N, 5] e) { e = Tanh(h) }
    >
    q = MatMul(i, narrow_weight)
}"""


def model(text: str, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(HEADER + text)
    rng = np.random.default_rng(0)
    for name, shape in {**SHAPES, **shapes}.items():
        if name in text:
            array = rng.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(array, name.replace("_", ".")))
    for graph in [proto.graph, *subgraphs(proto.graph)]:
        for node in graph.node:
            node.input[:] = [name.replace("_", ".") if name in SHAPES else name for name in node.input]
    return proto


def subgraphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*inner, *(deeper for sub in inner for deeper in subgraphs(sub))]


@pytest.mark.parametrize("case", CASES)
def test_what_a_subgraph_touches_is_frozen_and_the_rest_grows(case: str, tmp_path: Path) -> None:
    text, sizes, reason, shapes = CASES[case]
    onnx.save(model(text, shapes), tmp_path / "agent.onnx")
    checkpoint, rng = surgery.load(tmp_path / "agent.onnx"), np.random.default_rng(1)
    inputs = {
        "x": rng.standard_normal((7, 2, 4) if case == "scan" else (2, 4)).astype(np.float32),
        "flag": np.array(True),
    }
    inputs = {value.name: inputs[value.name] for value in checkpoint.model.graph.inputs}
    assert (
        agreement(run(checkpoint.model, inputs, dtype=np.float32), runtime(checkpoint.model)(inputs)) <= 1e-5
    )
    analysis = surgery.analyse(checkpoint.model)
    assert free(analysis) == sizes, frozen(analysis)
    assert all(reason in str(why) for why in frozen(analysis).values()) if reason else not frozen(analysis)
    check_growth(checkpoint, inputs, 1e-5)


def test_a_weight_that_a_subgraph_reads_is_frozen_outside_as_well(tmp_path: Path) -> None:
    text = BRANCH.replace("head_weight", "left_weight").replace("float[N, 3] q", "float[N, 6] q")
    onnx.save(
        model(text, {"second_weight": (6, 5), "second_bias": (5,), "left_weight": (5, 6)}),
        tmp_path / "a.onnx",
    )
    analysis = surgery.analyse(surgery.load(tmp_path / "a.onnx").model)
    assert free(analysis) == []
    assert all("If" in str(why) for why in frozen(analysis).values())


@pytest.mark.parametrize("case", SETTLED)
def test_a_branch_that_is_always_taken_takes_the_place_of_its_if(case: str, tmp_path: Path) -> None:
    onnx.save(model(SETTLED[case], {}), tmp_path / "agent.onnx")
    checkpoint, rng = surgery.load(tmp_path / "agent.onnx"), np.random.default_rng(1)
    shape = [n if isinstance(n, int) else 3 for n in checkpoint.model.graph.inputs[0].shape or ()]
    inputs = {"x": rng.standard_normal(shape).astype(np.float32)}
    analysis = surgery.analyse(checkpoint.model)
    assert free(analysis) == [5, 5], frozen(analysis)
    assert all(node.op_type != "If" for node in analysis.model.graph)
    assert any(node.op_type == "If" for node in checkpoint.model.graph)
    settled, before = analysis.model, runtime(checkpoint.model)(inputs)
    assert [v.name for v in settled.graph.outputs] == ["q"]
    onnx.checker.check_model(ir.to_proto(settled), full_check=True)
    assert agreement(runtime(settled)(inputs), before) == 0
    check_growth(checkpoint, inputs, 1e-5)


def test_a_branch_that_depends_on_the_batch_is_not_settled() -> None:
    analysis = surgery.analyse(ir.from_proto(model(MOVING, {})))
    assert free(analysis) == []
    assert any(node.op_type == "If" for node in analysis.model.graph)


SEQUENCES = {
    "read by another operator": """
agent (float[N, 4] x) => (float[N, 3] q) {
    h = MatMul(x, first_weight)
    size = Constant<value = int64 {1}>()
    s = SplitToSequence<axis = 1>(h, size)
    c = ConcatFromSequence<axis = 1>(s)
    q = MatMul(c, narrow_weight)
}""",
    "a result of the graph": """
agent (float[N, 4] x) => (seq(float[N, 1]) s) {
    h = MatMul(x, first_weight)
    size = Constant<value = int64 {1}>()
    s = SplitToSequence<axis = 1>(h, size)
}""",
    "read outside of it": """
agent (float[N, 4] x) => (float[N, 1] q) {
    h = MatMul(x, first_weight)
    size = Constant<value = int64 {1}>()
    s = SplitToSequence<axis = 1>(h, size)
    place = Constant<value = int64 {9}>()
    q = SequenceAt(s, place)
}""",
}


@pytest.mark.parametrize("case", SEQUENCES)
def test_what_a_sequence_holds_is_frozen_where_its_reader_is_not_known(case: str) -> None:
    analysis = surgery.analyse(ir.from_proto(model(SEQUENCES[case], {})))
    assert free(analysis) == []


def test_what_only_computed_a_shape_is_dropped_once_however_often_it_is_read(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]>
    g (float[1,1,2] x, float[1,1,2] small) => (float[a,b,c] y)
    <float[2,1,3] weight = {1.6, 0.65, 0.44, -0.13, -0.05, 0.05}>
    { made = Conv <pads = [1, 1]> (x, weight)
      asked = GreaterOrEqual (made, x)
      twice = Or (asked, asked)
      shape = Shape (twice)
      y = Expand (small, shape) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "shape.onnx")
    checkpoint = surgery.load(tmp_path / "shape.onnx")
    plan = surgery.widen(checkpoint, widths={"weight": 5})
    assert surgery.apply(plan, checkpoint).report.ok
