"""One action, one observation, one channel: an axis of size 1 is units where nothing repeats it or reads its length."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import surgery
from surgery import NewAction, NewObservation
from surgery.edits.execute import execute
from surgery.edits.ports import grow, shrink
from surgery.errors import Refused
from surgery.interface import PortPatch
from surgery.numeric import run
from surgery.port_kinds import infer
from surgery.verify.outputs import difference
from tests import fuzzing
from tests.fuzzing_cases import draw
from tests.fuzzing_judge import Tally, judge
from tests.fuzzing_shrink import text

Shapes = Mapping[str, tuple[int, ...]]
Request = NewObservation | NewAction | dict[str, int]

HEAD = "y = Gemm <transB = 1> (x, w, b)"


def made(inputs: str, outputs: str, body: str, **shapes: tuple[int, ...]) -> surgery.Checkpoint:
    """A graph in ONNX's own notation with random weights of these shapes."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    model.graph.initializer.extend(
        numpy_helper.from_array(rng.normal(size=shape).astype("f4"), name) for name, shape in shapes.items()
    )
    return surgery.Checkpoint(ir.from_proto(model), infer(ir.from_proto(model)))


def asked(checkpoint: surgery.Checkpoint, request: Request) -> surgery.Plan:
    """The plan of a request: an observation, an action, or widths."""
    if isinstance(request, dict):
        return surgery.widen(checkpoint, widths=request)
    if isinstance(request, NewAction):
        return surgery.extend(checkpoint, actions=[request])
    return surgery.extend(checkpoint, [request])


ACTION, SIGHT = NewAction("y", 2, "zero"), NewObservation("x", 3, 0)
ONE = {"w": (1, 3), "b": (1,)}
FOLLOWED: Mapping[str, tuple[str, str, str, Shapes, Request, set[str]]] = {
    "action": ("float[n, 3] x", "float[n, 1] y", HEAD, ONE, ACTION, {"w", "b"}),
    "action of a product and a bias": (
        "float[n, 3] x", "float[n, 1] y", "h = MatMul(x, w) y = Add(h, b)", {"w": (3, 1), "b": (1,)}, ACTION,
        {"w", "b"},
    ),
    "action that is squashed and scaled": (
        "float[n, 3] x", "float[n, 1] y", f"{HEAD.replace('y', 'h', 1)} t = Tanh(h) y = Mul(t, scale)",
        {**ONE, "scale": (1,)}, ACTION, {"w", "b", "scale"},
    ),
    "action that is read as a column": (
        "float[n, 3] x", "float[n, 1] y",
        f"{HEAD.replace('y', 'h', 1)} to = Constant <value_ints = [-1, 1]> () y = Reshape(h, to)",
        ONE, ACTION, {"w", "b"},
    ),
    "action of a batch of one": (
        "float[1, 3] x", "float[1, 1] y", "h = MatMul(x, w) y = Add(h, b)", {"w": (3, 1), "b": (1, 1)}, ACTION,
        {"w", "b"},
    ),
    "deviation": (
        "float[n, 3] x", "float[n, 1] mean, float[n, 1] std",
        f"{HEAD.replace('y', 'mean', 1)} s = Shape <end = 1> (x) one = Constant <value_ints = [1]> ()"
        "to = Concat <axis = 0> (s, one) wide = Expand(logs, to) std = Exp(wide)",
        {**ONE, "logs": (1, 1)}, NewAction("mean", 2, "zero"), {"w", "b", "logs"},
    ),
    "deviation that is known": (
        "float[n, 3] x", "float[n, 1] y", f"{HEAD.replace('y', 'h', 1)} s = Exp(logs) y = Mul(h, s)",
        {**ONE, "logs": (1,)}, ACTION, {"w", "b", "logs"},
    ),
    "observation": ("float[n, 1] x", "float[n, 3] y", HEAD, {"w": (3, 1), "b": (3,)}, SIGHT, {"w"}),
    "observation that is normalised": (
        "float[n, 1] x", "float[n, 3] y",
        "c = Sub(x, mean) v = Add(var, eps) s = Sqrt(v) z = Div(c, s) y = MatMul(z, w)",
        {"w": (1, 3), "mean": (1,), "var": (1,), "eps": ()}, SIGHT, {"w", "mean", "var"},
    ),
    "action that a critic reads": (
        "float[n, 2] o, float[n, 1] x", "float[n, 1] q",
        "h = Concat <axis = 1> (o, x) z = MatMul(h, w) r = Relu(z) q = MatMul(r, v)",
        {"w": (3, 5), "v": (5, 1)}, SIGHT, {"w"},
    ),
    "channel": (
        "float[n, 1, 4, 4] x", "float[n, 8] y", "h = Conv(x, w, b) r = Relu(h) y = Flatten(r)",
        {"w": (2, 1, 3, 3), "b": (2,)}, SIGHT, {"w"},
    ),
    "channel behind rows and columns": (
        "float[n, 4, 4, 1] x", "float[n, 8] y",
        "t = Transpose <perm = [0, 3, 1, 2]> (x) h = Conv(t, w, b) y = Flatten(h)",
        {"w": (2, 1, 3, 3), "b": (2,)}, SIGHT, {"w"},
    ),
    "layer of one unit": (
        "float[n, 3] x", "float[n, 2] y", "h = MatMul(x, w) a = Add(h, b) t = Tanh(a) y = MatMul(t, v)",
        {"w": (3, 1), "b": (1,), "v": (1, 2)}, {"w": 4}, {"w", "b", "v"},
    ),
    "layer of one channel": (
        "float[n, 2, 4, 4] x", "float[n, 2, 2, 2] y", "h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)",
        {"w": (1, 2, 2, 2), "b": (1,), "v": (2, 1, 2, 2)}, {"w": 3}, {"w", "b", "v"},
    ),
}  # fmt: skip
"""Where one unit stands: inputs, outputs, graph, weights; what is asked for, and the weights that grow with it."""


@pytest.mark.parametrize("name", FOLLOWED)
def test_one_unit_gets_company_exactly(name: str) -> None:
    inputs, outputs, body, shapes, request, grows = FOLLOWED[name]
    checkpoint = made(inputs, outputs, body, **shapes)
    plan = asked(checkpoint, request)
    assert {change.name for change in plan.tensors} == grows
    result = surgery.apply(plan, checkpoint)
    assert result.report is not None and result.report.ok
    rng = np.random.default_rng(1)
    feeds = {
        str(value.name): rng.normal(size=[n if isinstance(n, int) else 5 for n in value.shape])
        for value in checkpoint.model.graph.inputs
    }
    exact = execute(plan, checkpoint, double=True)
    for seed in (2, 3):
        after = run(exact.model, grow(plan, feeds, np.random.default_rng(seed)))
        assert difference(run(checkpoint.model, feeds), shrink(plan, after))[1] <= 1e-13
    for change in grows:
        assert tuple(exact.tensors[change].shape) != shapes[change]


V = {"v": (3, 1), "w": (3, 4)}
FIXED: Mapping[str, tuple[str, str, str, Shapes, Request, str]] = {
    "value that is flattened": (
        "float[n, 3] x", "float[n] y", "v = MatMul(x, w) to = Constant <value_ints = [-1]> () y = Reshape(v, to)",
        {"w": (3, 1)}, ACTION, r"'y' is one number, and stays so: it is regrouped by node .*Reshape",
    ),
    "value that is squeezed": (
        "float[n, 3] x", "float[n] y", "v = MatMul(x, w) at = Constant <value_ints = [1]> () y = Squeeze(v, at)",
        {"w": (3, 1)}, ACTION, "it is taken away by node .*Squeeze",
    ),
    "value that is summed": (
        "float[n, 3] x", "float[n, 1] y",
        "v = MatMul(x, w) at = Constant <value_ints = [1]> () y = ReduceSum <keepdims = 1> (v, at)",
        {"w": (3, 1)}, ACTION, "its length of 1 is read by node .*ReduceSum",
    ),
    "action whose length makes a number": (
        "float[1, 3] x", "float[1, 1] y", "v = MatMul(x, w) s = Shape(v) k = ConstantOfShape(s) y = Add(k, v)",
        {"w": (3, 1)}, ACTION, "its length of 1 is read by node .*ConstantOfShape",
    ),
    "value beside a value that cannot grow": (
        "float[n, 3] x, float[n, 2] z", "float[n, 1] y",
        "at = Constant <value_ints = [1]> () s = ReduceSum <keepdims = 1> (z, at) y = Add(s, b)",
        {"b": (1,)}, ACTION, "it meets an axis that cannot grow by node .*Add",
    ),
    "observation of a recurrent layer": (
        "float[t, n, 1] x", "float[t, 1, n, 2] y", "y = LSTM <hidden_size = 2> (x, w, r)",
        {"w": (1, 8, 1), "r": (1, 8, 2)}, NewObservation("x", 1),
        "'x' is one feature, and stays so: its length of 1 is read by node .*LSTM",
    ),
    "observation that is repeated": (
        "float[n, 1] x", "float[n, 3] y", "y = Mul(x, w)", {"w": (3,)}, NewObservation("x", 1),
        "it is repeated along another axis by node .*Mul",
    ),
    "channel of an image that is flattened": (
        "float[n, 1, 2, 2] x", "float[n, 3] y", "f = Flatten(x) y = MatMul(f, w)", {"w": (4, 3)},
        NewObservation("x[1]", 1), r"'x\[1\]' is one feature, and stays so: it is read as a part of a longer axis",
    ),
}  # fmt: skip
"""Where one unit cannot get company: inputs, outputs, graph, weights; what is asked for, and what is said."""


@pytest.mark.parametrize("name", FIXED)
def test_where_one_unit_is_repeated_or_its_length_is_read_the_node_is_named(name: str) -> None:
    inputs, outputs, body, shapes, request, said = FIXED[name]
    with pytest.raises(Refused) as refused:
        asked(made(inputs, outputs, body, **shapes), request)
    assert re.search(said, refused.value.message, re.DOTALL)


REPEATED: Mapping[str, tuple[str, str, str, Shapes]] = {
    "value beside advantages": (
        "float[n, 3] x", "float[n, 4] y", "s = MatMul(x, v) a = MatMul(x, w) y = Add(s, a)", V,
    ),
    "gate": ("float[n, 3] x", "float[n, 4] y", "s = MatMul(x, v) g = Sigmoid(s) a = MatMul(x, w) y = Mul(g, a)", V),
    "bias of one": ("float[n, 3] x", "float[n, 4] y", "y = Gemm(x, w, b)", {"w": (3, 4), "b": (1,)}),
    "filter of each channel": (
        "float[n, 2, 4, 4] x", "float[n, 2, 4, 4] y", "y = Conv <group = 2> (x, w)", {"w": (2, 1, 1, 1)},
    ),
    "known square that is summed": (
        "float[n, 3] x", "float[n, 3] y",
        "d = Mul(v, v) at = Constant <value_ints = [1]> () s = ReduceSum <keepdims = 1> (d, at) z = Mul(x, s)"
        "y = MatMul(z, w)", {"v": (1, 1), "w": (3, 3)},
    ),
    "parameter that is reshaped to its own size": (
        "float[1, 1, 1] x", "float[1, 1, 1] y",
        "v = MatMul(x, w) s = Shape(u) r = Reshape(u, s) y = MatMul(v, r)", {"w": (1, 1), "u": (1, 1)},
    ),
    "directions of a recurrent layer": (
        "float[t, n, 2] x", "float[t, 1, n, 1] y", "y = LSTM <hidden_size = 1> (x, w, r)",
        {"w": (1, 4, 2), "r": (1, 4, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPEATED)
def test_what_is_repeated_is_no_space(name: str) -> None:
    inputs, outputs, body, shapes = REPEATED[name]
    spaces = made(inputs, outputs, body, **shapes).analysis.spaces
    assert not [space.name for space in spaces if space.size == 1 and space.hidden]


def test_one_unit_takes_neither_the_name_nor_the_place_of_several() -> None:
    checkpoint = made(
        "float[n, 1, 3] x", "float[n, 1, 2] y, float[n, 1, 1] v",
        'h = Add(x, shift) y = MatMul(h, "net.weight") v = MatMul(h, "net.value")',
        **{"shift": (1, 3), "net.weight": (3, 2), "net.value": (3, 1)},
    )  # fmt: skip
    assert {space.name: space.size for space in checkpoint.analysis.spaces} == {
        "x[1]": 1, "x[2]": 3, "net": 2, "net[1]": 1,
    }  # fmt: skip
    assert [edit.space for edit in surgery.extend(checkpoint, [NewObservation("x", 1)]).spaces] == ["x[2]"]
    assert [edit.space for edit in surgery.extend(checkpoint, actions=[NewAction("y", 1)]).spaces] == ["net"]


def test_a_bias_that_an_exporter_has_merged_is_taken_apart() -> None:
    checkpoint = made(
        "float[n, 3] x", "float[n, 1] y, float[n, 1] value",
        "y = Gemm(x, w, b) value = Gemm(x, v, b)", w=(3, 1), v=(3, 1), b=(1,),
    )  # fmt: skip
    plan = surgery.extend(checkpoint, actions=[NewAction("y", 1, "zero")])
    new = surgery.apply(plan, checkpoint).checkpoint
    assert [list(value.shape)[1] for value in new.model.graph.outputs] == [2, 1]


def test_an_extension_of_one_unit_is_undone() -> None:
    checkpoint = made("float[n, 3] x", "float[n, 1] y", HEAD, **ONE)
    checkpoint = surgery.annotate(checkpoint, outputs={"y": PortPatch(kind="mean")})
    plan = surgery.extend(checkpoint, actions=[NewAction("y", 1)])
    wide = surgery.apply(plan, checkpoint).checkpoint
    back = surgery.apply(surgery.invert(plan, wide), wide).checkpoint
    assert all(np.array_equal(back.tensors[n].numpy(), t.numpy()) for n, t in checkpoint.tensors.items())


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(3))
def test_no_edit_of_a_random_graph_with_layers_of_one_unit_changes_its_function(seed, monkeypatch) -> None:
    width = fuzzing.Sketch.width
    monkeypatch.setattr(fuzzing.Sketch, "width", lambda s: 1 if s.chance(0.35) else width(s))
    tally = Tally()
    for number in range(8):
        case = draw(seed, number)
        if case is not None:
            judge(case, tally, single=number == 0)
    assert not [text(*found) for found in tally.wrong]
