"""What can go exactly goes exactly: unread, constant and duplicated units; everything else only on request."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, GraphError, PlanMismatch, Refused, UnknownName
from surgery.graph.spaces import analyse
from surgery.interface import PortPatch
from surgery.numeric import run
from surgery.numeric.bounds import Bounds, bounds
from surgery.ops.importance import SCORES, importance
from surgery.port_kinds import infer
from tests import zoo
from tests.test_daily import same_bytes, with_state

RNG = [np.random.default_rng(7)]


@pytest.fixture(autouse=True)
def _the_same_numbers() -> None:
    RNG[0] = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG[0].standard_normal(shape).astype(np.float32)


def dense(activation: str = "Relu", *, head_bias: bool = True, **first: np.ndarray) -> Checkpoint:
    """4 → 6 → 3, the first layer's weight and bias as given."""
    graph = GraphBuilder("dense")
    x = graph.input("observation", (4,))
    weight, shift = first.get("weight", normal(6, 4)), first.get("bias", normal(6))
    x = graph.op(activation, graph.linear(x, "body", weight, shift))
    x = graph.linear(x, "head", normal(3, 6), normal(3) if head_bias else None)
    graph.output(x, "q_values", (3,))
    return checkpoint(graph)


def convolutional(*, pad: int, norm: bool) -> Checkpoint:
    """A convolution whose second channel is constant, then another one, by itself or under a batch norm."""
    graph = GraphBuilder("convolutional")
    x = graph.input("observation", (2, 6, 6))
    weight, bias = normal(4, 2, 3, 3), normal(4)
    weight[1], bias[1] = 0, 0.75
    x = graph.op("Relu", graph.convolution(x, "first", weight, bias))
    x = graph.convolution(x, "second", normal(5, 4, 3, 3), None if norm else normal(5), pads=[pad] * 4)
    if norm:
        names = {"scale": normal(5), "shift": normal(5), "mean": normal(5), "var": 1 + normal(5) ** 2}
        x = graph.op("BatchNormalization", x, *(graph.parameter(f"norm.{k}", v) for k, v in names.items()))
    x = graph.op("GlobalAveragePool", graph.op("Relu", x))
    x = graph.linear(graph.op("Flatten", x), "head", normal(3, 5), normal(3))
    graph.output(x, "q_values", (3,))
    return checkpoint(graph)


def checkpoint(graph: GraphBuilder) -> Checkpoint:
    model = graph.model()
    return with_state(Checkpoint(model, infer(model)))


def zeroed(k: int = 2, value: float = 0.5) -> dict[str, np.ndarray]:
    """A first layer whose unit k does not depend on the observation."""
    weight, bias = normal(6, 4), normal(6)
    weight[k], bias[k] = 0, value
    return {"weight": weight, "bias": bias}


def proved(plan: Plan, before: Checkpoint) -> Checkpoint:
    result = surgery.apply(plan, before)
    assert plan.claim == "equivalent" and result.report is not None and result.report.ok
    slots = result.report.check("optimizer slots")
    assert slots is not None and slots.ok and slots.limit is not None
    return result.checkpoint


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid", "Gelu", "Softplus", "Mish"])
@pytest.mark.parametrize("value", [-0.8, 0.0, 0.5])
def test_a_unit_without_incoming_weights_is_folded_into_the_bias(activation: str, value: float) -> None:
    before = dense(activation, **zeroed(2, value))
    plan = surgery.narrow(before)
    (edit,) = plan.spaces
    assert edit.folded == ((2, None),) and edit.source == (0, 1, 3, 4, 5)
    after = proved(plan, before)
    f = {"Relu": max(value, 0), "Tanh": np.tanh(value), "Sigmoid": 1 / (1 + np.exp(-value))}.get(activation)
    if f is not None:
        moved = before.tensors["head.bias"].numpy() + before.tensors["head.weight"].numpy()[:, 2] * f
        np.testing.assert_allclose(after.tensors["head.bias"].numpy(), moved, rtol=1e-6)


def test_a_unit_that_no_input_in_range_lets_through_is_dead() -> None:
    weight, bias = normal(6, 4), np.abs(normal(6))
    weight[3], bias[3] = [1, -2, 0.5, 1], -4.6  # at most 4.5 within the range
    before = dense(weight=weight, bias=bias)
    with pytest.raises(Refused, match="no unit of this model"):
        surgery.narrow(before)
    before = surgery.annotate(before, inputs={"observation": PortPatch(low=-1.0, high=1.0)})
    plan = surgery.narrow(before)
    assert plan.spaces[0].folded == ((3, None),)
    after = proved(plan, before)
    np.testing.assert_array_equal(after.tensors["head.bias"].numpy(), before.tensors["head.bias"].numpy())


def test_numbers_of_units_that_are_chosen_follow_where_they_would_fit_by_going_round() -> None:
    """Rows 9, 10 and 11 of 12 are 3, 4 and 5 of 6."""
    graph = GraphBuilder("fused")
    weight = graph.op("Gather", graph.parameter("fused", normal(4, 6)), graph.constant([3, 4, 5]), axis=1)
    graph.output(graph.op("MatMul", graph.input("observation", (4,)), weight), "q_values", (3,))
    before = checkpoint(graph)
    (free,) = (space for space in before.analysis.spaces if space.widenable and space.hidden)
    plan = surgery.widen(before, widths={free.name: 9}, init="net2net")
    wide = surgery.apply(plan, before).checkpoint
    result = surgery.apply(surgery.narrow(wide, widths={free.name: 3}), wide)
    assert result.report is not None and result.report.ok


@pytest.mark.parametrize("shares", ["equal", "unequal"])
def test_units_of_which_the_sum_is_taken_are_merged_where_they_are_shares_of_one(shares: str) -> None:
    """Behind a ReLU, the sum of two rows is not the sum of two units, unless one row is a multiple of the other."""
    graph = GraphBuilder("summed")
    x = graph.op("Relu", graph.linear(graph.input("observation", (4,)), "body", normal(6, 4), normal(6)))
    x = graph.op("ReduceSum", x, graph.constant([1]))
    graph.output(graph.linear(x, "head", normal(3, 1), normal(3)), "q_values", (3,))
    before = checkpoint(graph)
    with pytest.raises(Refused, match="0 duplicates"):
        surgery.narrow(before, widths={"body": 5})
    plan = surgery.widen(before, widths={"body": 10}, init="net2net", shares=shares)  # type: ignore[arg-type]
    wide = surgery.apply(plan, before).checkpoint
    result = surgery.apply(surgery.narrow(wide), wide)
    assert result.report is not None and result.report.ok
    assert result.checkpoint.analysis.space("body").size == 6


@pytest.mark.parametrize(("copied", "left"), [({"left", "right"}, 3), ({"left"}, None)])
def test_units_of_two_layers_under_one_mean_are_merged_in_the_same_proportion_only(
    copied: set[str], left: int | None
) -> None:
    """The mean of 6 and 4 units stays what it was if both are halved; not if one of them is."""
    graph = GraphBuilder("averaged")
    x, parts = graph.input("observation", (4,)), []
    for name, size in (("left", 6), ("right", 4)):
        weight, bias = normal(size, 4), normal(size)
        if name in copied:
            weight, bias = np.repeat(weight[::2], 2, axis=0), np.repeat(bias[::2], 2)
        parts.append(graph.op("Relu", graph.linear(x, name, weight, bias)))
    both = graph.op("Concat", *parts, axis=-1)
    mean = graph.op("ReduceMean", both, graph.constant([1]))
    graph.output(graph.linear(mean, "head", normal(3, 1), normal(3)), "q_values", (3,))
    before = checkpoint(graph)
    if left is None:
        with pytest.raises(Refused, match="no unit of this model"):
            surgery.narrow(before)
    else:
        after = proved(surgery.narrow(before), before)
        assert [after.analysis.space(name).size for name in ("left", "right")] == [left, 2]
    with pytest.raises(
        Refused, match=r"0 duplicates; its units are averaged .* 'right', which must lose the same"
    ):
        surgery.narrow(before, widths={"left": 3})


@pytest.mark.parametrize(("pad", "norm"), [(0, False), (0, True)])
def test_a_constant_channel_is_folded_into_the_next_bias_or_batch_norm(pad: int, norm: bool) -> None:
    before = convolutional(pad=pad, norm=norm)
    plan = surgery.narrow(before)
    assert plan.sizes == {"first": 3}
    after = proved(plan, before)
    changed = {n for n in ("second.bias", "norm.mean") if n in before.tensors
               and (before.tensors[n].numpy() != after.tensors[n].numpy()).any()}  # fmt: skip
    assert changed == {"norm.mean" if norm else "second.bias"}


def test_a_constant_channel_stays_where_a_border_of_zeros_ends_it() -> None:
    with pytest.raises(Refused, match="no unit of this model"):
        surgery.narrow(convolutional(pad=1, norm=False))


def test_a_constant_without_a_bias_to_go_into_stays() -> None:
    with pytest.raises(Refused, match="no unit of this model"):
        surgery.narrow(dense(head_bias=False, **zeroed(2, 0.5)))
    assert surgery.narrow(dense(head_bias=False, **zeroed(2, -0.5))).sizes == {
        "body": 5
    }  # zero leaves nothing behind


def test_a_constant_stays_where_its_bias_serves_another_layer_and_the_others_go() -> None:
    """Unit 2 is constant, unit 4 dead; two heads have one bias, and only one of them reads the units."""
    weight, bias = normal(6, 4), normal(6)
    weight[[2, 4]], bias[[2, 4]] = 0, [0.5, -1]
    graph = GraphBuilder("shared")
    x = graph.input("observation", (4,))
    h = graph.op("Relu", graph.linear(x, "body", weight, bias))
    shared = graph.parameter("heads.bias", normal(3))
    for name, value, size in (("one", h, 6), ("two", x, 4)):
        y = graph.op("MatMul", value, graph.parameter(f"{name}.weight", normal(size, 3)))
        graph.output(graph.op("Add", y, shared), f"{name}_q", (3,))
    before = checkpoint(graph)
    with pytest.raises(Refused, match="1 constant"):
        surgery.narrow(before, widths={"body": 4})
    plan = surgery.narrow(before)
    assert plan.spaces[0].folded == ((4, None),)
    proved(plan, before)


def test_duplicates_give_their_outgoing_weights_to_one() -> None:
    weight, bias = normal(6, 4), normal(6)
    weight[4], bias[4] = weight[1], bias[1]
    before = dense("Tanh", weight=weight, bias=bias)
    plan = surgery.narrow(before)
    assert plan.spaces[0].merged == ((4, 1),)
    after, old = proved(plan, before), before.tensors["head.weight"].numpy()
    np.testing.assert_allclose(after.tensors["head.weight"].numpy()[:, 1], old[:, 1] + old[:, 4], rtol=1e-6)
    assert any("second moments" in note for note in plan.notes)


def test_the_slots_of_merged_units_are_sums_of_gradients() -> None:
    weight, bias = normal(6, 4), normal(6)
    weight[4], bias[4] = weight[1], bias[1]
    before = dense("Tanh", weight=weight, bias=bias)
    assert before.optimizer is not None
    after = execute(surgery.narrow(before), before)
    m, v = (before.optimizer.slots[slot]["body.bias"].numpy() for slot in ("exp_avg", "exp_avg_sq"))
    new = {slot: after.optimizer.slots[slot]["body.bias"].numpy() for slot in ("exp_avg", "exp_avg_sq")}
    np.testing.assert_allclose(new["exp_avg"][1], m[1] + m[4], rtol=1e-6)
    np.testing.assert_allclose(new["exp_avg_sq"][1], (np.sqrt(v[1]) + np.sqrt(v[4])) ** 2, rtol=1e-6)
    kept = before.optimizer.slots["exp_avg"]["head.weight"].numpy()[:, :4]
    np.testing.assert_array_equal(after.optimizer.slots["exp_avg"]["head.weight"].numpy()[:, :4], kept)


def test_a_plan_of_another_checkpoint_is_refused_where_its_units_are_not_the_same() -> None:
    weight, bias = normal(6, 4), normal(6)
    weight[4], bias[4] = weight[1], bias[1]
    merge, fold = surgery.narrow(dense(weight=weight, bias=bias)), surgery.narrow(dense(**zeroed()))
    other = dense()
    with pytest.raises(Refused, match="no longer the same"):
        surgery.apply(merge, other)
    with pytest.raises(Refused, match="not constant"):
        surgery.apply(fold, other)
    with pytest.raises(PlanMismatch):
        surgery.apply(merge, convolutional(pad=0, norm=False))


# ---- widened, and narrowed at once: the old network --------------------------------------------------------------


def of_its_own() -> Checkpoint:
    """Of 6 units the first is unread, the second dead, the fourth constant."""
    weight, bias = normal(6, 4), normal(6)
    weight[[1, 3]], bias[[1, 3]] = 0, [-1, 0.5]
    before = dense(weight=weight, bias=bias)
    head = before.tensors["head.weight"].numpy().copy()
    head[:, 0] = 0
    before.model.graph.initializers["head.weight"].const_value = ir.tensor(head, name="head.weight")
    return before


def recurrent(*, state: str) -> Checkpoint:
    """An LSTM that begins at nothing, at zeros, at parameters or at what it is given, and one after it.

    Its step is not the graph's.
    """
    graph = GraphBuilder("recurrent")
    x = graph.op("Transpose", graph.input("observation", (5, 4)), perm=[1, 0, 2])
    for name, inputs in (("first", 4), ("second", 3)):
        weights = [normal(1, 12, inputs), normal(1, 12, 3), normal(1, 24)]
        values = [graph.parameter(f"{name}.{k}", array) for k, array in zip("wrb", weights, strict=True)]
        begin = np.zeros((1, 1, 3), np.float32) if state == "zeros" else normal(1, 1, 3)
        states: list[ir.Value | None] = [None] if state != "nothing" else []
        for k in ("h", "c") if states else ():
            given = graph.input(f"{name}.{k}", (3,)) if state == "given" else None
            states.append(
                graph.parameter(f"{name}.{k}", begin) if given is None
                else graph.op("Unsqueeze", given, graph.constant([0]))
            )  # fmt: skip
        x, *ends = graph.ops("LSTM", x, *values, *states, outputs=3, hidden_size=3)
        for k, end in zip(("h", "c"), ends if state == "given" else (), strict=False):
            graph.output(graph.op("Squeeze", end, graph.constant([0])), f"{name}.{k}.next", (3,))
        x = graph.op("Squeeze", x, graph.constant([1]))
    x = graph.op("MatMul", x, graph.parameter("head.weight", normal(3, 2)))
    x = graph.op("Add", x, graph.parameter("head.bias", normal(2)))
    graph.output(graph.op("Transpose", x, perm=[1, 0, 2]), "q_values", (5, 2))
    return checkpoint(graph)


def test_a_constant_that_a_recurrence_reads_is_folded_into_its_gates() -> None:
    before = recurrent(state="parameters")
    plan = surgery.retire(before, [surgery.Retired("observation[2]", 1, 0.5)])
    after = proved(plan, before)
    gates = before.tensors["first.b"].numpy()[0, :12] + 0.5 * before.tensors["first.w"].numpy()[0, :, 1]
    np.testing.assert_allclose(after.tensors["first.b"].numpy()[0, :12], gates, rtol=1e-6)


def spectral() -> Checkpoint:
    """A weight that is divided by its largest singular value, as two vectors tell it."""
    graph = GraphBuilder("spectral")
    weight = graph.parameter("body.original", normal(6, 4))
    left, right = graph.parameter("body.u", normal(6)), graph.parameter("body.v", normal(4))
    size = graph.op("Abs", graph.op("MatMul", left, graph.op("MatMul", weight, right)))
    x = graph.op("Gemm", graph.input("observation", (4,)), graph.op("Div", weight, size), transB=1)
    graph.output(graph.linear(graph.op("Relu", x), "head", normal(3, 6), normal(3)), "q_values", (3,))
    return checkpoint(graph)


def product() -> Checkpoint:
    """One layer makes units of two spaces, each of which is read by itself."""
    graph = GraphBuilder("product")
    x = graph.op("Relu", graph.linear(graph.input("observation", (4,)), "body", normal(6, 4), normal(6)))
    x = graph.op("Reshape", x, graph.constant([0, 3, 2]))
    x = graph.op("MatMul", x, graph.parameter("columns", normal(2, 5)))
    x = graph.op("Relu", graph.op("Transpose", x, perm=[0, 2, 1]))
    x = graph.op("Flatten", graph.op("MatMul", x, graph.parameter("rows", normal(3, 2))))
    graph.output(graph.linear(x, "head", normal(3, 10), normal(3)), "q_values", (3,))
    return checkpoint(graph)


BACK = {
    "units to spare of its own": of_its_own,
    "a chain of layers": lambda: deep(),
    "a recurrence from nothing": lambda: recurrent(state="nothing"),
    "a recurrence from zeros": lambda: recurrent(state="zeros"),
    "a recurrence from parameters": lambda: recurrent(state="parameters"),
    "a recurrence from a state that is given": lambda: recurrent(state="given"),
    "a spectral norm": spectral,
    "a product of two spaces": product,
}


@pytest.mark.parametrize("init", ["zero", "net2net"])
@pytest.mark.parametrize("name", BACK)
def test_what_was_widened_is_narrowed_to_the_same_bytes(name: str, init: Literal["zero", "net2net"]) -> None:
    """By the old widths; and everything that is found is at least what was added."""
    before = BACK[name]()
    free = [space for space in before.analysis.spaces if space.widenable]
    widths = {space.name: space.size + 1 + space.size // 2 for space in free}
    plan = surgery.widen(before, widths=widths, init=init)
    wide = execute(plan, before)
    back = surgery.narrow(wide, widths={edit.space: edit.before for edit in plan.spaces})
    same_bytes(before, execute(back, wide))
    same_bytes(before, execute(surgery.invert(plan, wide), wide))
    everything = surgery.narrow(wide)
    assert all(everything.sizes[edit.space] <= edit.before for edit in plan.spaces)
    assert surgery.apply(everything, wide).report.ok


def deep(*, used: float = 0.0) -> Checkpoint:
    """4 → 6 → 5 → 3, twice: only unit 3 of `body` reads units 1 and 2 of `first`, and unit 3 is read by `used`.

    Unit 4 of `first` is read by nothing, unit 0 of `body` in the target network only.
    """
    rng, graph = np.random.default_rng(0), GraphBuilder("deep")
    x = graph.input("observation", (4,))
    for prefix in ("online", "target"):
        first, body, head = (
            rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (5, 6), (3, 5))
        )
        body[np.arange(5) != 3, 1:3] = body[:, 4] = head[:, 3] = 0
        head[1, 3] = used
        if prefix == "online":
            head[:, 0] = 0
        y = graph.op("Tanh", graph.linear(x, f"{prefix}.first", first, np.full(6, 0.1, np.float32)))
        y = graph.op("Tanh", graph.linear(y, f"{prefix}.body", body, np.full(5, 0.1, np.float32)))
        graph.output(graph.linear(y, f"{prefix}.head", head), f"{prefix}_q", (3,))
    return replace(checkpoint(graph), copies={"target.": "online."})


def test_what_nothing_reads_goes_and_what_only_that_reads_with_it() -> None:
    before = deep()
    plan = surgery.narrow(before)
    found = {edit.space.partition(".")[2]: edit.dropped for edit in plan.spaces}
    assert found == {"first": (1, 2, 4), "body": (3,)} and len(plan.spaces) == 4
    after = proved(plan, before)
    weight = before.tensors["online.body.weight"].numpy()
    kept = np.ix_([0, 1, 2, 4], [0, 3, 5])
    np.testing.assert_array_equal(after.tensors["online.body.weight"].numpy(), weight[kept])
    with pytest.raises(Refused, match="no unit"):
        surgery.narrow(after)


def test_one_space_by_itself_loses_what_no_unit_that_stays_reads() -> None:
    before = deep()
    (edit, _) = surgery.narrow(before, widths={"online.first": 5}).spaces
    assert edit.dropped == (4,)
    with pytest.raises(Refused, match="1 are unread, 0 constant"):
        surgery.narrow(before, widths={"online.first": 4})


def test_a_plan_is_refused_where_training_has_connected_what_nothing_read() -> None:
    with pytest.raises(Refused, match=r"in use: '.*head.weight'\[1, 3\] is 0.5"):
        surgery.apply(surgery.narrow(deep()), deep(used=0.5))


def test_of_units_that_nothing_reads_one_stays() -> None:
    before = dense("Tanh")
    weight = np.zeros((3, 6), np.float32)
    before.model.graph.initializers["head.weight"].const_value = ir.tensor(weight, name="head.weight")
    plan = surgery.narrow(before)
    assert [edit.after for edit in plan.spaces] == [1]
    proved(plan, before)


@pytest.mark.parametrize("by", SCORES)
def test_other_units_go_by_importance_and_the_change_is_measured(by: str) -> None:
    before = dense("Tanh", **zeroed(2))
    with pytest.raises(Refused, match="1 constant") as refusal:
        surgery.narrow(before, widths={"body": 4})
    assert "5 is exact; for fewer" in (refusal.value.hint or "")
    assert "surgery narrow MODEL --width body=4 --by l2" in (refusal.value.hint or "")
    plan = surgery.narrow(before, widths={"body": 4}, by=by)
    assert plan.claim == "changed" and 2 not in plan.spaces[0].source
    report = surgery.apply(plan, before).report
    assert report is not None and report.ok and not report.exact and report.max_abs_error > 1e-3


@pytest.mark.parametrize("by", SCORES)
def test_the_least_important_unit_is_the_one_that_hardly_matters(by: str) -> None:
    before = dense("Tanh")
    weight = before.tensors["head.weight"].numpy().copy()
    weight[:, 3] *= 1e-4
    before.model.graph.initializers["head.weight"].const_value = ir.tensor(weight, name="head.weight")
    analysis = before.analysis
    scores = importance(before, analysis, analysis.space("body"), by)
    assert scores.shape == (6,) and (scores >= 0).all() and scores.argmin() == 3


def test_a_taylor_score_is_the_change_that_a_linear_readout_sees() -> None:
    before = dense("Tanh")
    analysis = before.analysis
    x = normal(32, 4)
    scores = importance(before, analysis, analysis.space("body"), "taylor", observations={"observation": x})
    head, h = before.tensors["head.weight"].numpy(), np.tanh(
        x @ before.tensors["body.weight"].numpy().T + before.tensors["body.bias"].numpy()
    )  # fmt: skip
    wanted = [np.sqrt(np.square(np.outer(h[:, k], head[:, k])).mean()) for k in range(6)]
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


def test_a_target_network_loses_the_same_units_and_only_what_both_can_spare() -> None:
    """Unit 2 is constant in both networks, unit 4 a duplicate in the online one alone."""
    rng, graph = np.random.default_rng(0), GraphBuilder("pair")
    x = graph.input("observation", (4,))
    for prefix in ("online", "target"):
        weight, bias = rng.standard_normal((2, 6, 4)).astype(np.float32)[0], np.full(6, 0.1, np.float32)
        weight[2] = 0
        if prefix == "online":
            weight[4] = weight[1]
        h = graph.op("Relu", graph.linear(x, f"{prefix}.body", weight, bias))
        head = rng.standard_normal((3, 6)).astype(np.float32), np.full(3, 0.1, np.float32)
        graph.output(graph.linear(h, f"{prefix}.head", *head), f"{prefix}_q", (3,))
    both = replace(checkpoint(graph), copies={"target.": "online."})
    plan = surgery.narrow(both)
    assert {e.space: (e.folded, e.merged) for e in plan.spaces} == dict.fromkeys(
        ("online.body", "target.body"), (((2, None),), ())
    )
    proved(plan, both)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param({"widths": {"body": 6}}, ArgumentError, id="as wide as it is"),
        pytest.param({"widths": {"body": 0}}, ArgumentError, id="nothing left"),
        pytest.param({"widths": {"nobody": 3}}, UnknownName, id="unknown space"),
        pytest.param({"widths": {}}, ArgumentError, id="no widths"),
        pytest.param({"widths": {"head": 2}}, Refused, id="an output"),
        pytest.param({"widths": {"body": 3}, "by": "luck"}, ArgumentError, id="unknown score"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(arguments: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        surgery.narrow(dense(), **arguments)


@pytest.mark.parametrize("name", sorted(zoo.NETS))
def test_bounds_hold_every_value_of_every_network(name: str) -> None:
    """Whatever the input within its range, no value of the graph leaves its bounds."""
    checkpoint = surgery.load(
        zoo.export(name, next(s for s in zoo.STYLES if s not in zoo.NETS[name].impossible))
    )
    model, rng = analyse(checkpoint.model, checkpoint.interface).model, np.random.default_rng(0)
    samples = [zoo.sample(name, 2, rng) for _ in range(3)]
    ranges = {key: Bounds(np.minimum.reduce(column), np.maximum.reduce(column))
              for key in samples[0] if (column := [sample[key] for sample in samples])}  # fmt: skip
    values = [str(out.name) for node in model.graph for out in node.outputs if out.name]
    found = bounds(model, ranges, values)
    assert any(b is not None for b in found.values())
    for sample in samples:
        for key, value in run(model, sample, outputs=[n for n in values if found[n] is not None]).items():
            limits = found[key]
            assert limits is not None and value.shape == limits.low.shape
            slack = 1e-9 * (1 + np.abs(value)) if value.dtype.kind == "f" else 0
            assert ((value >= limits.low - slack) & (value <= limits.high + slack)).all(), key


def test_the_verb_folds_everything_that_is_exact_and_says_so(tmp_path, capsys) -> None:
    surgery.save(dense(**zeroed()), tmp_path / "a.onnx")
    assert main(["narrow", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "b.onnx")]) == 0
    assert "body 6→5" in capsys.readouterr().out
    assert main(["narrow", str(tmp_path / "b.onnx"), "-o", str(tmp_path / "c.onnx")]) == 1
    assert "dead, constant or a duplicate" in capsys.readouterr().err
    assert (
        main(["narrow", str(tmp_path / "b.onnx"), "--width", "body=3", "-o", str(tmp_path / "c.onnx")]) == 1
    )
    assert not (tmp_path / "c.onnx").exists()
    words = [
        "narrow",
        str(tmp_path / "b.onnx"),
        "--width",
        "body=3",
        "--by",
        "l2",
        "-o",
        str(tmp_path / "c.onnx"),
    ]
    assert main(words) == 0
    assert "outputs change by at most" in capsys.readouterr().out


def test_scores_of_activity_need_a_network_that_can_be_run() -> None:
    before = dense()
    broken = before.model.clone()
    next(node for node in broken.graph if node.op_type == "Relu").domain = "unknown.domain"
    broken.opset_imports["unknown.domain"] = 1
    with pytest.raises((GraphError, Refused)):
        surgery.narrow(replace(before, model=broken), widths={"body": 3}, by="activation")
