"""Widening is exact: every network, export style, initialisation and space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import surgery
from surgery.builder import GraphBuilder
from surgery.edits.axis_maps import axis_maps
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, shrink
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph import layout
from surgery.numeric import run
from surgery.port_kinds import infer
from surgery.torch import to_module
from surgery.verify.outputs import runtime
from surgery.verify.structure import check_structure
from tests import zoo
from tests.originals import EXPORTS, FLOAT64, FORMS, Original, original, refusal, relative, single, together


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_widening_one_space_changes_no_output(name: str, style: str) -> None:
    """In float64 by at most 1e-13; stored and run by onnxruntime no more than float32 allows.

    Every network has some that can grow. Unequal shares, which no exporter has a say in, are tried in one style alone.
    """
    before, wrong, tried = original(name, style), list[str](), 0
    for label, plan in single(before, FORMS if style == "dynamo" else FORMS[:2]):
        tried += 1
        # equal copies are rounded together with the others, when all spaces grow
        after = None if label.endswith("net2net equal") else execute(plan, before.checkpoint)
        wrong += [f"{label}: {text}" for text in _errors(before, plan, after, batches=1)]
    assert tried
    assert not wrong


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_widening_all_spaces_changes_no_output(name: str, style: str) -> None:
    """Nor does it fix a symbolic size, damage the model, or touch a tensor that the plan does not name."""
    before = original(name, style)
    for label, plan in together(before):
        after = execute(plan, before.checkpoint)
        assert not list(_errors(before, plan, after, batches=2)), label
        onnx.checker.check_model(ir.serde.serialize_model(after.model), full_check=True)
        ports = {port.name for port in plan.ports}
        assert _interface(after.model, ports) == _interface(before.checkpoint.model, ports)
        _check_tensors(before.checkpoint, after, plan)


@pytest.mark.parametrize(
    "name", ["elman_step", "mamba_step", "gru_step", "lstm_policy", "drqn", "efficientzero"]
)
def test_a_state_that_comes_out_goes_in_again(name: str) -> None:
    """Step after step, as in a game: nobody maps states in between."""
    before = original(name, "dynamo")
    states = before.checkpoint.interface.states()
    assert states
    for label, plan in together(before):
        after = execute(plan, before.checkpoint, double=True)
        old, new = dict(before.batches[0]), dict(grow(plan, before.batches[0]))
        for _ in range(4):
            small, large = run(before.checkpoint.model, old), run(after.model, new)
            assert relative(small, shrink(plan, large)) <= FLOAT64, label
            old |= {given: small[result] for given, result in states.items()}
            new |= {given: large[result] for given, result in states.items()}


def _errors(before: Original, plan: Plan, after: surgery.Checkpoint | None, *, batches: int) -> Iterator[str]:
    """What is wrong; recurrent state that grew is mapped there and back."""
    exact = execute(plan, before.checkpoint, double=True)
    error = relative(before.exact, shrink(plan, run(exact.model, grow(plan, before.batches[0]))))
    if not error <= FLOAT64:
        yield f"float64 {error:.2g}"
    if after is None:
        return
    session = runtime(after.model)
    for inputs, outputs in list(zip(before.batches, before.stored, strict=True))[:batches]:
        error = relative(outputs, shrink(plan, session(grow(plan, inputs))))
        if not error <= before.limit:
            yield f"float32 {error:.2g}"


def _check_tensors(before: surgery.Checkpoint, after: surgery.Checkpoint, plan: Plan) -> None:
    new, edited = after.tensors, {edit.name: edit for edit in plan.tensors}
    for key, tensor in before.tensors.items():
        if key in edited:
            wanted = edited[key].after(plan.sizes)
            assert tuple(new[key].shape) == new[key].numpy().shape == wanted != tuple(tensor.shape)
        elif key in new:
            assert new[key].tobytes() == tensor.tobytes(), key
        else:
            assert tensor.dtype == ir.DataType.INT64 or tensor.size == 1, f"'{key}' is gone"


def _interface(model: ir.Model, grown: set[str]) -> list[tuple[object, ...]]:
    """Names, types and dimensions; of a port that grew only which dimensions are symbolic."""
    return [
        (v.name, v.dtype, *("n" if v.name in grown and isinstance(d, int) else str(d) for d in v.shape or ()))
        for v in (*model.graph.inputs, *model.graph.outputs)
    ]


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize("name", ["transformer", "spatial_attention", "multihead_pool"])
def test_new_units_of_attention_learn(name: str, style: str) -> None:
    """No new row of a weight is zero and stays so: not all of queries, keys and values in one tensor start at zero."""
    before, tried = original(name, style).checkpoint, 0
    given = zoo.sample(name, 4, np.random.default_rng(0))
    for space in (s for s in before.analysis.spaces if "att" in s.name and s.widenable):
        tried += 1
        plan = surgery.widen(before, widths={space.name: space.size + 1}, init="zero")
        after = execute(plan, before)
        module = to_module(after, dtype=torch.float64)
        module(
            *(torch.from_numpy(given[port.name]).double() for port in after.interface.inputs)
        ).sin().sum().backward()
        for tensor in plan.tensors:
            weight = module.get_parameter(tensor.name)
            for k, axis in enumerate(axis_maps(tensor.axes, plan.edits)):
                if axis is not None and weight.ndim > 1:
                    fresh = np.flatnonzero(axis.fresh_in | axis.fresh_out)
                    rows = torch.stack([weight.detach(), weight.grad]).movedim(k + 1, 0)[fresh]
                    assert rows.flatten(1).any(1).all(), f"{space.name}: {tensor.name}"
    assert tried > 1


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_what_cannot_grow_says_why(name: str, style: str) -> None:
    before = original(name, style)
    for space in before.analysis.spaces:
        for init in ("auto", "zero", "net2net") if style == "dynamo" else ("auto",):
            reason = refusal(space, init)
            if reason is None:
                continue
            assert len(reason) > 10
            with pytest.raises(Refused) as caught:
                surgery.widen(before.checkpoint, widths={space.name: 3 * space.size}, init=init)
            assert space.name in caught.value.message and reason in caught.value.message


def test_what_is_averaged_grows_by_whole_multiples_only() -> None:
    before = original("spatial_attention", "dynamo")
    space = next(space for space in before.analysis.spaces if space.whole)
    with pytest.raises(Refused, match="whole multiples"):
        surgery.widen(before.checkpoint, widths={space.name: space.size + 1})
    with pytest.raises(Refused, match="equal shares"):
        widths = {space.name: 2 * space.size}
        surgery.widen(before.checkpoint, widths=widths, init="net2net", shares="unequal")


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize(("name", "widths"), [("efficientzero", (6, 7, 10, 13)), ("maxout", (3, 4, 5))])
def test_a_maximum_over_units_grows_by_any_copies_and_by_nothing_else(
    name: str, style: str, widths: tuple[int, ...]
) -> None:
    """And what it has become goes back to what it was; of the trajectory afterwards, nothing is promised."""
    before = original(name, style).checkpoint
    (space,) = (space for space in before.analysis.spaces if space.extreme)
    with pytest.raises(Refused, match=r"largest or smallest unit is taken by .*no copy could become it"):
        surgery.widen(before, widths={space.name: 2 * space.size}, init="zero")
    for width, shares in itertools.product(widths, ("equal", "unequal")):
        plan = surgery.widen(before, widths={space.name: width}, init="net2net", shares=shares)  # type: ignore[arg-type]
        assert plan.inexact_slots == (space.name,) and "the trajectory of training is not" in plan.describe()
        result = surgery.apply(plan, before)
        assert result.report is not None and result.report.ok
        again = surgery.narrow(result.checkpoint, widths={space.name: space.size})
        assert again.claim == "equivalent"
        assert (
            surgery.apply(again, result.checkpoint).checkpoint.analysis.space(space.name).size == space.size
        )


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_a_factor_widens_all_that_can_grow_and_lists_the_rest(name: str, style: str) -> None:
    before = original(name, style)
    reasons = {s.name: refusal(s, "auto", factor=1.5) or s.table for s in before.analysis.spaces}
    if all(reason is not None for reason in reasons.values()):
        with pytest.raises(Refused, match="can grow by a factor of") as caught:
            surgery.widen(before.checkpoint, factor=1.5)
        doubles = any(refusal(s, "auto", factor=2) is None for s in before.analysis.spaces)
        assert (caught.value.hint == "a factor of 2 fits") == doubles
        return
    plan = surgery.widen(before.checkpoint, factor=1.5)
    sizes = {s.name: math.ceil(1.5 * s.size) for s in before.analysis.spaces}
    assert plan.sizes == {name: sizes[name] for name, reason in reasons.items() if reason is None}
    hidden = {s.name for s in before.analysis.spaces if s.hidden}
    frozen = {name: reason for name, reason in reasons.items() if reason is not None and name in hidden}
    assert dict(plan.frozen).keys() == frozen.keys()
    assert all(reason in dict(plan.frozen)[name] for name, reason in frozen.items())
    for edit in plan.spaces:
        space = before.analysis.space(edit.space)
        padded = space.padding is not None and edit.after % edit.before != 0
        assert bool(edit.fresh) == (space.no_zero is None or padded)


def test_a_factor_leaves_what_constants_make_and_a_width_does_not() -> None:
    """The last action as one of five (1, 0, 0, 0, 0), as PyTorch's exporter writes it, beside the observation."""
    rng, graph = np.random.default_rng(0), GraphBuilder("one-hot")
    last = graph.input("action", (1,), "int64")
    one = graph.op("Cast", graph.op("Equal", last, graph.parameter("arange", np.arange(5))), to=1)
    x = graph.op("Concat", graph.input("observation", (4,)), one, axis=-1)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 9), (6,), (3, 6), (3,))]
    x = graph.linear(graph.op("Relu", graph.linear(x, "body", *weights[:2])), "head", *weights[2:])
    graph.output(x, "q_values", (3,))
    model = graph.model()
    before = surgery.Checkpoint(model, infer(model))
    plan = surgery.widen(before, factor=2)
    assert plan.sizes == {"body": 12} and "constant 'arange' alone" in dict(plan.frozen)["arange"]
    assert surgery.apply(surgery.widen(before, widths={"arange": 7}), before).report.ok


def test_layers_that_an_exporter_gave_one_zero_bias_are_widened_one_after_the_other() -> None:
    rng, graph = np.random.default_rng(0), GraphBuilder("fresh")
    x, zero = graph.input("observation", (4,)), graph.parameter("zero", np.zeros(5, np.float32))
    for name, inputs in (("one", 4), ("two", 5), ("three", 5), ("four", 5)):
        weight = graph.parameter(f"{name}.weight", rng.standard_normal((inputs, 5)).astype(np.float32))
        x = graph.op("Relu", graph.op("Gemm", x, weight, zero))
    graph.output(graph.linear(x, "head", rng.standard_normal((3, 5)).astype(np.float32)), "q_values", (3,))
    model = graph.model()
    checkpoint = surgery.Checkpoint(model, infer(model))
    for name, width in (("two", 7), ("three", 9), ("one", 6), ("two", 8)):
        plan = surgery.widen(checkpoint, widths={name: width})
        result = surgery.apply(plan, checkpoint)
        assert result.report.ok
        assert surgery.apply(surgery.invert(plan, result.checkpoint), result.checkpoint).report.ok
        checkpoint = result.checkpoint
    sizes = {name: checkpoint.analysis.space(name).size for name in ("one", "two", "three", "four")}
    assert sizes == {"one": 6, "two": 8, "three": 9, "four": 5}


# ---- arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"widths": {"conv": 5}}, ArgumentError, "5 wide already"),
        ({"widths": {"conv": 4}}, ArgumentError, "it is 5 wide"),
        ({"widths": {"cnov": 9}}, UnknownName, "unknown space 'cnov'"),
        ({"widths": {"q": 9}}, Refused, "output 'q'"),
        ({}, ArgumentError, "nothing to widen to"),
        ({"widths": {"conv": 9}, "factor": 2}, ArgumentError, "at once"),
        ({"factor": 1}, ArgumentError, "not a growth"),
        ({"factor": math.nan}, ArgumentError, "not a growth"),
        ({"factor": math.inf}, ArgumentError, "not a growth"),
        ({"factor": 2, "init": "xavier"}, ArgumentError, "unknown initialisation"),
        ({"factor": 2, "shares": "half"}, ArgumentError, "unknown shares"),
        ({"factor": 2, "noise": -1.0}, ArgumentError, "noise"),
        ({"factor": 2, "noise": 0.1}, ArgumentError, "for copies"),
        ({"factor": 2, "shares": "unequal"}, ArgumentError, "for copies"),
    ],
)
def test_a_wrong_request_is_refused_in_words(
    how: Mapping[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        surgery.widen(original("conv_scalars", "dynamo").checkpoint, **how)  # type: ignore[arg-type]


def test_units_that_several_layers_make_are_known_by_each_and_given_once() -> None:
    """A residual stream has the name of the layer before the blocks; a message says what was widened."""
    checkpoint = original("residual_layernorm", "dynamo").checkpoint
    wide = 2 * checkpoint.analysis.space("embed").size
    plan = surgery.widen(checkpoint, widths={"down.1": wide}, init="net2net")
    assert [change.space for change in plan.changes] == ["embed"]
    for verb, given in ((surgery.widen, wide), (surgery.narrow, 2)):
        with pytest.raises(ArgumentError, match=r"'embed' is given twice, once as 'down\.1'"):
            verb(checkpoint, widths={"embed": given, "down.1": given})


@pytest.mark.parametrize("name", zoo.NETS)
def test_the_layout_of_every_axis_agrees_with_its_tensor(name: str) -> None:
    before = original(name, "dynamo")
    for tensor, axes in before.analysis.tensors.items():
        if tensor in before.checkpoint.tensors:
            shape = tuple(before.checkpoint.tensors[tensor].shape)
            assert tuple(layout.size(axis) for axis in axes) == shape


def test_a_recurrent_state_that_nobody_declared_is_asked_for() -> None:
    rng, graph = np.random.default_rng(0), GraphBuilder("net")
    seen = graph.linear(graph.input("observation", (4,)), "cell", *_random(rng, 5, 4))
    new = graph.op("Tanh", graph.op("Add", seen, graph.input("before", (5,))))
    graph.output(graph.linear(new, "head", *_random(rng, 3, 5)), "q", (3,))
    graph.output(new, "after", (5,))
    checkpoint = surgery.Checkpoint(graph.model(), infer(graph.model()))
    for how in ({"factor": 2}, {"widths": {"before[1]": 7}}):
        with pytest.raises(Refused) as caught:
            surgery.widen(checkpoint, **how)
        assert "--input before:state --output after:state" in str(caught.value.hint)
    state = surgery.interface.PortPatch(kind="state")
    declared = surgery.annotate(checkpoint, inputs={"before": state}, outputs={"after": state})
    assert surgery.widen(declared, factor=2).sizes == {"cell": 10}


def test_an_output_whose_shape_depends_on_values_keeps_what_was_declared() -> None:
    rng, graph = np.random.default_rng(0), GraphBuilder("net")
    x = graph.linear(graph.input("observation", (4,)), "0", *_random(rng, 5, 4))
    y = graph.linear(graph.op("Relu", x), "1", *_random(rng, 3, 5))
    places = graph.op("NonZero", graph.op("Greater", y, graph.constant(0.0, "float32")))
    graph.output(places, "places", ("count",), "int64")
    model = graph.model()
    before = surgery.Checkpoint(model, infer(model))
    plan = surgery.widen(before, widths={"0": 8})
    after = surgery.apply(plan, before, verify=False).checkpoint.model
    assert check_structure(after).ok
    x = {"observation": rng.standard_normal((6, 4)).astype(np.float32)}
    assert (runtime(after)(x)["places"] == runtime(model)(x)["places"]).all()


def test_states_whose_shape_is_declared_wrongly_grow() -> None:
    """PyTorch up to 2.11 declares the last states of a recurrent layer with one axis too many."""
    model = original("lstm_policy", "dynamo").checkpoint.model.clone()
    for value in model.graph.outputs[2:]:
        assert value.shape is not None
        value.shape = ir.Shape([1, *value.shape])
    before = surgery.Checkpoint(model, infer(model))
    after = surgery.apply(surgery.widen(before, widths={"lstm": 17}), before).checkpoint
    batch = model.graph.inputs[0].shape[0]
    assert [list(value.shape) for value in after.model.graph.outputs[2:]] == [[1, batch, 17]] * 2


def _random(rng: np.random.Generator, out: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((out, inputs)).astype(np.float32), rng.standard_normal(out).astype(np.float32)


ROTATED = """<ir_version: 9, opset_import: ["" : 20]>
agent (float[4, 3] x) => (float[4, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] speeds = {1, 0.1}> {
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    four = Constant <value = int64 {4}> ()
    last = Constant <value = int64[1] {1}> ()
    range = Range (zero, four, one)
    column = Unsqueeze (range, last)
    time = Cast <to = 1> (column)
    same = Identity (speeds)
    angles = Mul (time, same)
    h = MatMul (x, w)
    y = Add (h, angles)
}"""


def test_what_shape_inference_gets_wrong_in_the_original_is_not_held_against_the_result() -> None:
    """It takes a column of numbers for a row, and cannot multiply it."""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(ROTATED))
    assert not check_structure(model).ok
    assert check_structure(model, model).ok
    broken = model.clone()
    broken.graph.initializers["w"].const_value = ir.tensor(np.ones((4, 2), np.float32), name="w")
    assert not check_structure(broken, model).ok


def test_one_name_for_several_sizes_does_not_outlive_an_edit() -> None:
    """Shape inference gives all members of a sequence one unknown size; a runtime would let them share memory."""
    text = """<ir_version: 9, opset_import: ["" : 15]>
    agent (float[N, 4] x) => (float[N, 3] y) <float[4, 8] w = {}, float[5, 3] u = {}, float[2, 3] v = {},
        float[N, k] b, float[N, k] c> {
        h = MatMul (x, w)
        sizes = Constant <value = int64[3] {1, 5, 2}> ()
        one = Constant <value = int64 {1}> ()
        two = Constant <value = int64 {2}> ()
        parts = SplitToSequence <axis = 1> (h, sizes)
        b = SequenceAt (parts, one)
        c = SequenceAt (parts, two)
        p = MatMul (b, u)
        q = MatMul (c, v)
        y = Add (p, q)
    }"""
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        array = rng.standard_normal(tuple(tensor.dims)).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    model = ir.serde.deserialize_model(proto)
    before = surgery.Checkpoint(model, infer(model))
    after = surgery.apply(surgery.widen(before, factor=2), before).checkpoint.model
    shapes = {v.name: str(v.shape) for node in after.graph for v in node.outputs}
    assert (shapes["b"], shapes["c"]) == ("[N,10]", "[N,4]")
