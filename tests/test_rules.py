"""Every operator rule against the real operator: grow units, run the graph, compare with what the rule implies."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from surgery.errors import SurgeryError
from surgery.graph.rules import RULES
from surgery.graph.spaces import analyse
from tests import rule_rows, rule_rows_chains, rule_rows_shape
from tests.rule_graphs import (
    Growth,
    Row,
    activation,
    check_demands,
    check_growth,
    check_means,
    check_row,
    edits_of,
    feeds,
    ints,
    mask,
    model_of,
    positive,
    row,
    weight,
)

ROWS = [*rule_rows.ROWS, *rule_rows_shape.ROWS, *rule_rows_chains.ROWS]
CASES = [
    pytest.param(case, opset, id=f"{k}-{case.subject}-{opset}")
    for k, case in enumerate(ROWS)
    for opset in case.opsets
]

LEVELS = {
    2: "Relu(x) LeakyRelu(x) Abs(x) Neg(x) Identity(x) Add(x,z) Sub(x,z) Sum(x,z) Mean(x,z) Mul(x,z) Div(x,p)",
    1: "Tanh(x) Erf(x) Elu(x) Selu(x) Sin(x) Softsign(x) HardSwish(x) Mish(x) Gelu(x) Sqrt(p) Round(x) Sign(x)",
    0: "Sigmoid(x) Softplus(x) Exp(x) Cos(x) Max(x,z) Pow(p,z) Softmax(x) Add(x,v) Greater(x,z) Div(v,p)",
}
"""What must be claimed: 2 the result scales with the operand's units, 1 it is zero where they are, 0 neither."""


@pytest.mark.parametrize(("case", "opset"), CASES)
def test_grown_units_give_the_result_that_the_rule_implies(case: Row, opset: int, rng: np.random.Generator):
    check_row(case, opset, rng)


@pytest.mark.parametrize(("case", "opset"), CASES)
def test_a_demand_on_units_does_to_the_result_what_the_rule_says(
    case: Row, opset: int, rng: np.random.Generator
):
    analysis = analyse(model_of(case, opset, rng))
    check_demands(analysis, case.results, rng)
    check_means(analysis, case.results, rng)


@pytest.mark.parametrize(
    ("level", "call"), [(level, call) for level, calls in LEVELS.items() for call in calls.split()]
)
def test_demands_travel_back_as_far_as_they_can(level: int, call: str, rng: np.random.Generator):
    operands = {"x": activation(3, 5), "z": activation(3, 5), "p": positive(3, 5), "v": weight(5)}
    used = {name: operand for name, operand in operands.items() if name in call.partition("(")[2]}
    case = row(f"y = {call}", [], **used)
    claimed = check_demands(analyse(model_of(case, 20, rng)), ["y"], rng)
    assert claimed.get(("y", 0), 0) == level


MEANS = {
    True: ["Add(x,z)", "Sub(x,z)", "Neg(x)", "MatMul(x,w)", "Mul(x,s)"],
    False: ["Relu(x)", "Abs(x)", "Max(x,z)", "Tanh(x)", "Mul(x,z)"],
}
"""Whether a unit at the mean of others gives the mean of the results."""


@pytest.mark.parametrize(
    ("linear", "call"), [(linear, call) for linear, calls in MEANS.items() for call in calls]
)
def test_the_mean_of_units_goes_through_linear_functions_only(
    linear: bool, call: str, rng: np.random.Generator
):
    operands = {
        "x": weight(3, 5),
        "z": activation(3, 5),
        "v": activation(5),
        "w": activation(5, 4),
        "s": weight(1),
    }
    used = {name: operand for name, operand in operands.items() if name in call.partition("(")[2]}
    case = row(f"y = {call}", [], **used)
    assert (check_means(analyse(model_of(case, 20, rng)), ["y"], rng) > 0) == linear


def test_every_rule_has_a_row():
    tested = {node.op_type for case in ROWS for node in case.nodes}
    assert not set(RULES) - tested


def test_every_rule_says_what_it_does_to_each_axis():
    assert all(rule.axes and rule.describe.__doc__ for rule in RULES.values())


UNRULED = [
    ("y = Det(x)", {"x": activation(2, 5, 5)}),
    ("y = NonZero(x)", {"x": mask(3, 5)}),
    ("y = Unique(x)", {"x": activation(7)}),
    ("y = Einsum3(x, z)", {"x": activation(3, 5), "z": activation(3, 5)}),
    ("y = custom.Magic(x)", {"x": activation(3, 5)}),
]


@pytest.mark.parametrize(("text", "operands"), UNRULED, ids=[text for text, _ in UNRULED])
def test_an_operator_without_a_rule_freezes_what_it_touches_and_is_named(text: str, operands: dict):
    case = row(text, [], **operands)
    assert case.subject not in RULES
    analysis = analyse(model_of(case, 20, np.random.default_rng(0)))
    assert analysis.spaces
    for space in analysis.spaces:
        assert not space.widenable
        assert any("'y'" in reason and case.subject in reason for reason in space.reasons)


# ---- the oracle itself: a wrong edit must not pass ----------------------------------------------------------


def _example(rng: np.random.Generator) -> tuple:
    case = row("h = MatMul(x, v)\nf = Reshape(h, s)\ny = MatMul(f, w)", [3, 4, 5, 7], x=activation("N", 3),
               v=weight(3, 20), s=ints(0, 4, 5), w=weight(5, 7))  # fmt: skip
    analysis = analyse(model_of(case, 20, rng))
    return case, analysis, feeds(analysis.model, rng)


def test_the_oracle_accepts_the_right_edit(rng: np.random.Generator):
    case, analysis, given = _example(rng)
    for edits in edits_of(analysis, rng):
        check_growth(analysis, edits, case.results, given)


@pytest.mark.parametrize("damage", ["order", "share", "zero"])
def test_the_oracle_rejects_a_wrong_edit(
    damage: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    from surgery.edits import execute

    def wrong(old, maps, *rest):
        change = {
            "order": lambda m: {"source": m.source[::-1]},
            "share": lambda m: {"value": m.value**0},
            "zero": lambda m: {"fresh_in": m.fresh_in & False},
        }[damage]
        maps = [m and dataclasses.replace(m, **change(m)) for m in maps]
        return right(old, maps, *rest)

    right = execute.edit_weight
    monkeypatch.setattr(execute, "edit_weight", wrong)
    case, analysis, given = _example(rng)
    failures = 0
    for edits in edits_of(analysis, rng):
        try:
            check_growth(analysis, edits, case.results, given)
        except AssertionError:
            failures += 1
    assert failures


def test_the_oracle_maps_an_axis_as_the_executor_does(rng: np.random.Generator):
    from surgery.edits.arithmetic import axis_map

    case = row("c = Concat<axis=1>(a, b)\ny = Reshape(c, s)", [2, 5, 7], a=activation("N", 2, 5),
               b=activation("N", 7, 5), s=ints(0, 45))  # fmt: skip
    analysis = analyse(model_of(case, 20, rng))
    axis = analysis.trace.axes(analysis.model.graph[-2].outputs[0])[1]
    for edits in edits_of(analysis, rng):
        here, there = (
            Growth(analysis, edits).axis(axis),
            axis_map(analysis.layout(axis), {e.space: e for e in edits}),
        )
        assert here.source.tolist() == there.source.tolist()


@pytest.mark.parametrize(("case", "opset"), CASES)
def test_no_row_makes_the_analysis_crash_when_its_results_are_outputs(
    case: Row, opset: int, rng: np.random.Generator
):
    model = model_of(case, opset, rng)
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in case.results)
    try:
        analysis = analyse(model)
    except SurgeryError as error:
        pytest.fail(str(error))
    assert isinstance(analysis.model, ir.Model)
    shown = {
        name for name in case.results if analysis.trace.described(_value(analysis.model, name)) is not None
    }
    for name in shown:
        for axis in analysis.trace.axes(_value(analysis.model, name)):
            assert all(
                space.kinds for space in analysis.spaces if space.name in _spaces(analysis.layout(axis))
            )


def _value(model: ir.Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


def _spaces(layout: tuple) -> set[str]:
    from surgery.graph.layout import units

    return {part.space for part in units(layout)}
