"""Observations can be inserted anywhere, and the policy does the same whatever they hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import surgery
from surgery import NewAction, NewObservation, Retired
from surgery.architectures import new
from surgery.builder import GraphBuilder
from surgery.description import Observed, SpaceDescription
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, shrink
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph.layout import text
from surgery.interface import Environment, PortPatch
from surgery.numeric import run
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.port_kinds import infer
from surgery.probes import probes
from surgery.verify.outputs import difference
from tests import zoo

EXPORTS = [
    pytest.param(name, style, id=f"{name}-{style}")
    for name, net in zoo.NETS.items()
    for style in zoo.STYLES
    if style not in net.impossible
]


def _axes(checkpoint: surgery.Checkpoint) -> list[str]:
    """Every axis of an input that the analysis could follow into a parameter."""
    analysis = checkpoint.analysis
    known = {space.name for space in analysis.spaces if "input" in space.kinds}
    ports = [axes for side, _, axes in analysis.ports if side == "input"]
    return [text(axis) for axes in ports for axis in axes if text(axis) in known]


def _with_state(checkpoint: surgery.Checkpoint, rng: np.random.Generator) -> surgery.Checkpoint:
    names = tuple(n for n, t in checkpoint.tensors.items() if t.dtype.is_floating_point() and len(t.shape))
    slots = {
        slot: {n: ir.tensor(rng.random(tuple(checkpoint.tensors[n].shape), np.float32)) for n in names}
        for slot in ("exp_avg", "exp_avg_sq")
    }
    groups = (ParamGroup(names, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0}),)
    return checkpoint.replace(optimizer=OptimizerState("adam", slots, dict.fromkeys(names, 10.0), groups))


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_new_observations_change_nothing_whatever_they_hold(name: str, style: str) -> None:
    checkpoint, rng = surgery.load(zoo.export(name, style)), np.random.default_rng(0)
    inputs = zoo.sample(name, 2, rng)
    before = run(checkpoint.model, inputs)
    for axis in _axes(checkpoint):
        for at in (
            (0, 1, None) if style == "dynamo" else (1,)
        ):  # places are counted before any exporter's axes
            try:
                plan = surgery.extend(checkpoint, [NewObservation(axis, 2, at)])
            except Refused as refusal:
                assert axis in refusal.message and ":" in refusal.message
                continue
            assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
            exact = execute(plan, checkpoint, double=True)
            for seed in (None, 1, 2):
                filled = grow(plan, inputs, None if seed is None else np.random.default_rng(seed))
                after = shrink(plan, run(exact.model, filled))
                assert difference(before, after)[1] <= 1e-13, (axis, at)


@pytest.mark.parametrize("name", ["nature_dqn", "mlp_relu", "sac_actor", "gru_policy", "conv_scalars"])
def test_a_result_is_proved_with_its_slots_and_can_be_loaded(name: str, tmp_path) -> None:
    rng = np.random.default_rng(0)
    checkpoint = _with_state(surgery.load(zoo.export(name, "dynamo")), rng)
    axis = _axes(checkpoint)[0]
    result = surgery.apply(surgery.extend(checkpoint, [NewObservation(axis, 3, 1)]), checkpoint)
    assert result.report is not None and result.report.ok
    assert result.report.check("optimizer slots") is not None
    result.save(tmp_path / "more.onnx")
    again = surgery.load(tmp_path / "more.onnx")
    assert again.lineage[-1].operation == "extend"
    for parameter, tensor in again.tensors.items():
        for slot in again.optimizer.slots.values():
            if parameter in slot:
                assert tuple(slot[parameter].shape) == tuple(tensor.shape)


def test_new_columns_are_zero_and_stand_where_they_were_asked_for() -> None:
    checkpoint = surgery.load(zoo.export("mlp_relu", "dynamo"))
    name = next(n for n in checkpoint.tensors if n.endswith("0.weight"))
    old = checkpoint.tensors[name].numpy()
    plan = surgery.extend(checkpoint, [NewObservation("observation", 2, 1)])
    new = execute(plan, checkpoint).tensors[name].numpy()
    assert new.shape == (old.shape[0], old.shape[1] + 2)
    assert not new[:, 1:3].any()
    np.testing.assert_array_equal(np.delete(new, [1, 2], axis=1), old)


def test_names_and_ranges_of_features_follow() -> None:
    checkpoint = surgery.load(zoo.export("mlp_relu", "dynamo"))
    port = checkpoint.interface.inputs[0]
    width = int(checkpoint.model.graph.inputs[0].shape[1])
    low, high = tuple(float(-k) for k in range(width)), (3.0,) * width
    port = dataclasses.replace(port, labels=tuple("abcdefgh"[:width]), low=low, high=high)
    checkpoint = checkpoint.replace(interface=dataclasses.replace(checkpoint.interface, inputs=(port,)))
    plan = surgery.extend(checkpoint, [NewObservation("observation", 1, 2, ("wind",))])
    after = execute(plan, checkpoint).interface.inputs[0]
    assert after.labels == (*port.labels[:2], "wind", *port.labels[2:])
    assert after.low == (*low[:2], None, *low[2:])  # nobody has said what the new one may hold
    assert after.high == (*high, 3.0)
    drawn = probes(execute(plan, checkpoint), 64, 0)["observation"]
    assert drawn[:, 2].min() < -1.0 and (drawn[:, 3] >= low[2]).all()
    assert (drawn.std(0) > 0.5).all()


def test_statistics_of_features_and_ranges_of_actions_follow_in_the_contract(model: Path) -> None:
    """A new feature is left as it is, a new action lies between -1 and 1."""
    checkpoint = surgery.load(model)
    statistics = {"mean": [1.0, 2.0, 3.0, 4.0], "variance": [5.0, 6.0, 7.0, 8.0], "epsilon": 0.25}
    ranges = {"q_values": {"low": [-2.0, -3.0], "high": [4.0, 5.0]}}
    settings = {"normaliser": {"observation": statistics}, "action_range": ranges}
    checkpoint = checkpoint.replace(environment=Environment(None, settings))
    plan = surgery.extend(checkpoint, [NewObservation("observation", 1, 1)], [NewAction("q_values", 1)])
    after = surgery.apply(plan, checkpoint).checkpoint.environment.settings
    found = after["normaliser"]["observation"]
    assert found == {
        "mean": (1.0, 0.0, 2.0, 3.0, 4.0),
        "variance": (5.0, 0.75, 6.0, 7.0, 8.0),
        "epsilon": 0.25,
    }
    assert after["action_range"]["q_values"] == {"low": (-2.0, -3.0, -1.0), "high": (4.0, 5.0, 1.0)}


def _parsed(text: str) -> surgery.Checkpoint:
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for info in [*model.graph.input][1:]:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        model.graph.initializer.append(
            numpy_helper.from_array(rng.normal(size=shape).astype("f4"), info.name)
        )
    del model.graph.input[1:]
    return surgery.Checkpoint(ir.from_proto(model), infer(ir.from_proto(model)))


def _in_parts() -> surgery.Checkpoint:
    """A network that reads a flat observation in parts, as of a dictionary: x[:, :4], x[:, 4:7]."""
    checkpoint = _parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[batch, 7] x, float[5, 4] left_weight, float[5] left_bias, float[5, 3] right_weight,
           float[5] right_bias, float[3, 10] head_weight, float[3] head_bias) => (float[batch, 3] q)
        <int64[2] sizes = {4, 3}> {
            a, b = Split<axis = 1>(x, sizes)
            l = Gemm<transB = 1>(a, left_weight, left_bias)
            r = Gemm<transB = 1>(b, right_weight, right_bias)
            h = Concat<axis = 1>(l, r)
            t = Tanh(h)
            q = Gemm<transB = 1>(t, head_weight, head_bias)
        }"""
    )
    return surgery.annotate(checkpoint, inputs={"x": PortPatch(kind="observation", labels=list("abcdefg"))})


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        (NewObservation("x", 2), "abcdefgXY"),
        (NewObservation("x", 2, 2), "abXYcdefg"),
        (NewObservation("x", 2, 0), "XYabcdefg"),
        (NewObservation("x[1][0]", 2), "abcdXYefg"),
        (NewObservation("x[1][1]", 2, 0), "abcdXYefg"),
        (NewObservation("x[1][1]", 2, 1), "abcdeXYfg"),
        (["d", "c", "b", "a", "g", "e", "f"], "dcbagef"),
        ([Retired("x", "b", 0.5), Retired("x", "g", -1.0)], "acdef"),
        ([Retired("x[1][1]", "f", 0.5)], "abcdeg"),
        ("aXcdgef", "aXcdgef"),
    ],
)
def test_an_observation_that_is_read_in_parts_changes_within_them(asked, labels: str) -> None:
    checkpoint, values = _in_parts(), np.random.default_rng(1).normal(size=(5, 9)).astype("f4")
    if isinstance(asked, NewObservation):
        plan = surgery.extend(checkpoint, [dataclasses.replace(asked, labels=("X", "Y"))])
    elif isinstance(asked, str):
        wanted = SpaceDescription((Observed("", (7,), tuple(asked)),), None)
        plan = surgery.adapt(checkpoint, wanted, constants={"x.b": 0.5})
        asked = [Retired("x", "b", 0.5)]
    elif isinstance(asked[0], Retired):
        plan = surgery.retire(checkpoint, asked)
    else:
        plan = surgery.reorder(checkpoint, {"x": asked})
    result = surgery.apply(plan, checkpoint).checkpoint
    assert "".join(result.interface.input("x").labels) == labels
    column = dict(zip("abcdefgXY", values.T, strict=True))
    if isinstance(asked, list):
        column |= {
            str(gone.feature): np.full(5, gone.value, "f4") for gone in asked if isinstance(gone, Retired)
        }
    before, after = (
        run(model, {"x": np.stack([column[name] for name in names], 1)})["q"]
        for model, names in ((checkpoint.model, "abcdefg"), (result.model, labels))
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: surgery.extend(c, [NewObservation("x", 1, 4)]),
            r"x\[1\]\[0\] \(0 to 3\), x\[1\]\[1\] \(4 to 6\)",
        ),
        (lambda c: surgery.reorder(c, {"x": list("eabcdfg")}), "would move between parts"),
        (lambda c: surgery.retire(c, [Retired("x", name, 0.0) for name in "efg"]), "keeps features 4 to 6"),
    ],
)
def test_what_would_cross_the_parts_of_an_observation_is_refused(change, words: str) -> None:
    with pytest.raises(surgery.SurgeryError, match=words):
        change(_in_parts())


def _as_table() -> surgery.Checkpoint:
    """A network that reads a flat observation, a to l, as 3 rows of 4."""
    checkpoint = _parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[batch, 12] x, float[4, 5] row_weight, float[5] row_bias, float[3, 15] head_weight, float[3] bias)
            => (float[batch, 3] q)
        <int64[3] rows = {-1, 3, 4}, int64[2] flat = {-1, 15}> {
            a = Reshape(x, rows)
            h = MatMul(a, row_weight)
            b = Add(h, row_bias)
            t = Tanh(b)
            f = Reshape(t, flat)
            q = Gemm<transB = 1>(f, head_weight, bias)
        }"""
    )
    patch = PortPatch(kind="observation", labels=list("abcdefghijkl"), low=[float(-k) for k in range(12)])
    return surgery.annotate(checkpoint, inputs={"x": patch})


ROWS, COLUMNS = "x[1][0]", "x[1][1]"


def _adapted(names: str) -> Callable[[surgery.Checkpoint], surgery.Plan]:
    wanted = SpaceDescription((Observed("", (len(names),), tuple(names)),), None)
    return lambda c: surgery.adapt(c, wanted, constants={f"x.{name}": 0.5 for name in "bfj"})


@pytest.mark.parametrize(
    ("change", "labels"),
    [
        (lambda c: surgery.extend(c, [NewObservation(COLUMNS, 1, 2, ("N",))]), "ab0cdef1ghij2kl"),
        (lambda c: surgery.extend(c, [NewObservation(ROWS, 1, 1, ("N",))]), "abcd0123efghijkl"),
        (lambda c: surgery.reorder(c, {COLUMNS: [3, 0, 2, 1]}), "dacbhegflikj"),
        (lambda c: surgery.reorder(c, {ROWS: [2, 0, 1]}), "ijklabcdefgh"),
        (lambda c: surgery.reorder(c, {"x": list("jilkbadcfehg")}), "jilkbadcfehg"),
        (lambda c: surgery.retire(c, [Retired(COLUMNS, 1, 0.5)]), "acdeghikl"),
        (lambda c: surgery.retire(c, [Retired("x", name, 0.5) for name in "bfj"]), "acdeghikl"),
        (lambda c: surgery.retire(c, [Retired(ROWS, 2, 0.5)]), "abcdefgh"),
        (_adapted("ac0deg1hik2l"), "ac0deg1hik2l"),
    ],
)
def test_an_observation_that_is_read_as_a_table_changes_by_rows_and_columns(change, labels: str) -> None:
    checkpoint, rng = _as_table(), np.random.default_rng(1)
    plan = change(checkpoint)
    result = surgery.apply(plan, checkpoint).checkpoint
    port = result.interface.input("x")
    assert "".join(label.removeprefix("N.") for label in port.labels) == labels
    kept = [k for k, name in enumerate(labels) if name.isalpha()]
    assert [port.low[k] for k in kept] == [-float("abcdefghijkl".index(labels[k])) for k in kept]
    column = {name: rng.normal(size=5).astype("f4") for name in "abcdefghijkl0123"}
    column |= {name: np.full(5, 0.5, "f4") for name in "abcdefghijkl" if name not in labels}
    before, after = (
        run(model, {"x": np.stack([column[name] for name in names], 1)})["q"]
        for model, names in ((checkpoint.model, "abcdefghijkl"), (result.model, labels))
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: surgery.extend(c, [NewObservation("x", 1)]), "one more of what"),
        (lambda c: surgery.reorder(c, {"x": list("bacdefghijkl")}), "changes in all of them"),
        (lambda c: surgery.retire(c, [Retired("x", "b", 0.0)]), "changes in all of them"),
        (
            lambda c: surgery.retire(c, [Retired("x", name, float(k)) for k, name in enumerate("abcd")]),
            "have 4 different constants",
        ),
    ],
)
def test_what_is_no_whole_row_or_column_is_refused_with_what_is(change, words: str) -> None:
    with pytest.raises(surgery.SurgeryError, match=words) as refused:
        change(_as_table())
    assert refused.value.hint


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        pytest.param(NewObservation("observatoin", 1), UnknownName, id="unknown input"),
        pytest.param(NewObservation("observation", 0), ArgumentError, id="none"),
        pytest.param(NewObservation("observation", 1, 99), ArgumentError, id="no such place"),
        pytest.param(NewObservation("observation", 2, None, ("a",)), ArgumentError, id="too few names"),
        pytest.param(NewObservation("observation", 2, None, ("a", "a")), ArgumentError, id="one name twice"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(request_: NewObservation, error: type[Exception]) -> None:
    with pytest.raises(error):
        surgery.extend(surgery.load(zoo.export("mlp_relu", "dynamo")), [request_])


def _action_spaces(checkpoint: surgery.Checkpoint) -> list[str]:
    analysis = checkpoint.analysis
    return [space.name for space in analysis.spaces if set(space.kinds) == {"output"}]


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_new_actions_leave_the_old_ones_alone(name: str, style: str) -> None:
    checkpoint, rng = surgery.load(zoo.export(name, style)), np.random.default_rng(0)
    inputs = zoo.sample(name, 2, rng)
    before = run(checkpoint.model, inputs)
    for space in _action_spaces(checkpoint):
        starts = [
            NewAction(space, 2, "mean"),
            NewAction(space, 1, "zero"),
            NewAction(space, 1, "logit", -3.0),
        ]
        for action in (
            starts if style == "dynamo" else starts[:1]
        ):  # one start is as good as another to an exporter
            try:
                plan = surgery.extend(checkpoint, actions=[action])
            except Refused as refusal:
                assert space in refusal.message or "average" in refusal.message or "mean" in refusal.message
                continue
            assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
            exact = execute(plan, checkpoint, double=True)
            after = run(exact.model, grow(plan, inputs))
            assert difference(before, shrink(plan, after))[1] <= 1e-13, action


def test_a_centred_head_with_noise_in_its_weights_takes_no_new_action() -> None:
    """The mean of W + S · ε over the actions is no W' + S' · ε' of the means."""
    checkpoint = _parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[batch, 4] x, float[4, 3] mean, float[4, 3] spread, float[3] noise) => (float[batch, 3] q)
        <int64[1] one = {1}> {
            s = Mul(spread, noise)
            w = Add(mean, s)
            a = MatMul(x, w)
            m = ReduceMean(a, one)
            q = Sub(a, m)
        }"""
    )
    with pytest.raises(Refused, match="would change the old ones"):
        surgery.extend(checkpoint, actions=[NewAction("q", 1, "mean")])


def test_outputs_behind_shapes_that_only_the_file_knows_grow() -> None:
    checkpoint = _parsed(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[2, 4] x, float[4, 3] w) => (float[2, 3] q)
        <bool[2] all = {1, 1}, float[2, 4] r> {
            r = Compress<axis = 0>(x, all)
            q = MatMul(r, w)
        }"""
    )
    plan = surgery.extend(checkpoint, actions=[NewAction("q", 1, "zero")])
    after = surgery.apply(plan, checkpoint).checkpoint
    assert [*after.model.graph.outputs[0].shape] == [2, 4]


def test_a_new_action_starts_as_it_was_asked_to() -> None:
    checkpoint = surgery.load(zoo.export("mlp_relu", "dynamo"))
    inputs = zoo.sample("mlp_relu", 8, np.random.default_rng(0))
    (space,) = _action_spaces(checkpoint)
    output = checkpoint.interface.outputs[0].name
    old = run(checkpoint.model, inputs)[output]
    rows = {}
    for action in (
        NewAction(space, 2, "mean"),
        NewAction(space, 2, "zero"),
        NewAction(space, 2, "logit", -3.0),
    ):
        exact = execute(surgery.extend(checkpoint, actions=[action]), checkpoint, double=True)
        rows[action.start] = run(exact.model, inputs)[output][:, -2:]
    np.testing.assert_allclose(rows["mean"], old.mean(1, keepdims=True).repeat(2, 1), rtol=1e-12)
    np.testing.assert_array_equal(rows["zero"], 0)
    np.testing.assert_allclose(rows["logit"], -3, rtol=1e-12)


def last_action(form: str = "embedding", high: float | None = None) -> surgery.Checkpoint:
    """Five values from three observations and the last action, which chooses one of five rows of four numbers."""
    rng, graph = np.random.default_rng(0), GraphBuilder("last action")
    weights = [
        rng.standard_normal(shape).astype(np.float32) for shape in ((5, 4), (6, 7), (6,), (5, 6), (5,))
    ]
    number, rows = graph.input("action", (), "int64"), graph.parameter("rows.weight", weights[0])
    if form == "one-hot":
        one = graph.op("OneHot", number, graph.constant(5), graph.constant([0.0, 1.0], "float32"), axis=-1)
        last = graph.op("MatMul", one, rows)
    else:
        last = graph.op("Gather", rows, graph.op("Cast", number, to=6), axis=0)
    x = graph.op("Concat", graph.input("observation", (3,)), last, axis=-1)
    x = graph.linear(graph.op("Relu", graph.linear(x, "body", *weights[1:3])), "head", *weights[3:])
    if form == "summed":
        x = graph.op("Add", x, graph.op("ReduceSum", rows, graph.constant([0, 1]), keepdims=0))
    graph.output(x, "q_values", (5,))
    model = graph.model()
    made = surgery.Checkpoint(model, infer(model))
    return made if high is None else surgery.annotate(made, inputs={"action": PortPatch(low=0.0, high=high)})


def test_an_input_that_chooses_rows_may_hold_more_numbers(rng: np.random.Generator) -> None:
    before = _with_state(last_action(high=4.0), rng)
    plan = surgery.extend(before, [NewObservation("action", 2)], [NewAction("q_values", 2)])
    assert not any("has a row for each" in note for note in plan.notes)
    assert any("'action' may be 5 to 6, too" in note and "action:other,high=6" in note for note in plan.notes)
    result = surgery.apply(plan, before)
    assert result.report.ok and result.report.check("optimizer slots").ok
    after, old = (c.tensors["rows.weight"].numpy() for c in (result.checkpoint, before))
    np.testing.assert_array_equal(after[:5], old)
    assert after.shape == (7, 4) and len(np.unique(after, axis=0)) == 7
    assert not result.checkpoint.optimizer.slots["exp_avg"]["rows.weight"].numpy()[5:].any()
    inputs = {"observation": rng.standard_normal((7, 3)).astype(np.float32), "action": np.arange(7)}
    first, last = (
        run(c.model, {n: x[:5] for n, x in inputs.items()})["q_values"] for c in (before, result.checkpoint)
    )
    assert (
        np.array_equal(first, last[:, :5])
        and np.isfinite(run(result.checkpoint.model, inputs)["q_values"]).all()
    )
    with pytest.raises(Refused, match="may be in use"):
        surgery.invert(plan, result.checkpoint)


def test_what_has_a_row_for_every_old_action_is_named() -> None:
    plan = surgery.extend(last_action(), actions=[NewAction("q_values", 1)])
    assert any("'rows.weight' has a row for each of 5 numbers" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("form", "new", "error", "says"),
    [
        ("one-hot", NewObservation("action", 1), Refused, "chooses one of 5 places that node"),
        ("summed", NewObservation("action", 1), Refused, "cannot grow: 'rows.weight' both makes and"),
        ("embedding", NewObservation("action", 1, 0), ArgumentError, "new ones come last"),
        ("embedding", NewObservation("action", 1, None, ["jump"]), ArgumentError, "have no names"),
        ("embedding", NewObservation("action", 0), ArgumentError, "cannot be extended by 0"),
    ],
)
def test_rows_that_cannot_be_added_are_refused(
    form: str, new: NewObservation, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        surgery.extend(last_action(form), [new])


def test_dueling_keeps_its_mean_and_says_that_gradients_change() -> None:
    rng = np.random.default_rng(0)
    checkpoint = _with_state(surgery.load(zoo.export("dueling", "dynamo")), rng)
    (space,) = [s for s in _action_spaces(checkpoint) if "adv" in s]
    result = surgery.apply(surgery.extend(checkpoint, actions=[NewAction(space, 1)]), checkpoint)
    assert result.report is not None and result.report.ok
    assert result.plan.inexact_slots == (space,)
    with pytest.raises(Refused, match="averaged"):
        surgery.extend(checkpoint, actions=[NewAction(space, 1, "zero")])


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("start", ["never", "zero"])
def test_what_was_forbidden_before_stays_so_in_either_form_of_a_mask(named: bool, start: str) -> None:
    made = new("mlp-4", observation=(3,), actions=3)
    [output] = made.interface.outputs
    old = [True, False, True]
    mask = {"action_mask": {output.name: old} if named else old}
    checkpoint = made.replace(environment=Environment("x", mask))
    plan = surgery.extend(checkpoint, actions=[NewAction(output.name, 2, start)])
    after = surgery.apply(plan, checkpoint).checkpoint.environment
    assert after.action_mask(output.name) == (True, False, True, *[start == "zero"] * 2)


def test_names_that_nobody_gave_are_those_that_are_free():
    """A second extension numbers on, and leaves out a name that somebody took."""
    made = new("mlp-4", observation=(2,), actions=2)
    patches = {"labels": ("a", "q_values.new1")}
    checkpoint = surgery.annotate(made, outputs={"q_values": PortPatch(**patches)})
    for _ in range(2):
        plan = surgery.extend(checkpoint, [NewObservation("observation", 1)], [NewAction("q_values", 2)])
        checkpoint = surgery.apply(plan, checkpoint).checkpoint
    numbers = (0, 2, 3, 4)
    assert checkpoint.interface.output("q_values").labels == (
        *patches["labels"],
        *(f"q_values.new{k}" for k in numbers),
    )


def test_a_forbidden_action_is_masked_in_the_contract_and_never_greedy(tmp_path) -> None:
    checkpoint = surgery.load(zoo.export("mlp_relu", "dynamo"))
    (space,) = _action_spaces(checkpoint)
    output = checkpoint.interface.outputs[0].name
    result = surgery.apply(
        surgery.extend(checkpoint, actions=[NewAction(space, 2, labels=("a", "b"))]), checkpoint
    )
    mask = result.checkpoint.environment.settings["action_mask"][output]
    assert list(mask) == [True] * (len(mask) - 2) + [False] * 2
    assert result.report.check(f"new actions of '{output}', greedy").value == 0
    assert result.checkpoint.interface.output(output).labels[-2:] == ("a", "b")
    result.save(tmp_path / "x.onnx")
    assert surgery.load(tmp_path / "x.onnx").environment == result.checkpoint.environment


@pytest.mark.parametrize(
    ("action", "error"),
    [
        pytest.param(NewAction("q", 0), ArgumentError, id="none"),
        pytest.param(NewAction("nothing", 1), UnknownName, id="unknown output"),
        pytest.param(NewAction("q", 2, labels=("a",)), ArgumentError, id="too few names"),
    ],
)
def test_an_action_that_does_not_fit_is_refused(action: NewAction, error: type[Exception]) -> None:
    checkpoint = surgery.load(zoo.export("mlp_relu", "dynamo"))
    output = checkpoint.interface.outputs[0].name
    asked = dataclasses.replace(action, output=output) if action.output == "q" else action
    with pytest.raises(error):
        surgery.extend(checkpoint, actions=[asked])
