"""Random graphs and random edits are right or refused; and the fuzzer that says so finds every planted bug."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest

import surgery.edits.arithmetic
import surgery.edits.axis_maps
import surgery.edits.execute
from surgery.edits.arithmetic import AxisMap, edit_slot, edit_weight
from surgery.graph.rules import RULES
from surgery.graph.rules.table import Rule
from surgery.graph.trace import Trace
from tests.fuzzing import Case
from tests.fuzzing_cases import draw
from tests.fuzzing_judge import judge
from tests.fuzzing_shrink import shrink, text
from tests.fuzzing_verdicts import Tally, Wrong

SEEDS = range(6)
CASES = 8
"""Graphs a seed; `benchmarks/fuzz.py` draws as many as there is time for."""


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", SEEDS)
def test_no_edit_of_a_random_graph_changes_its_function(seed: int) -> None:
    tally = Tally()
    for number in range(CASES):
        case = draw(seed, number)
        if case is not None:
            judge(case, tally, single=number == 0)
    assert tally.edits > 2 * CASES
    assert not [text(*found) for found in tally.wrong]


def test_the_same_seed_draws_the_same_graph() -> None:
    one, other = draw(0, 1), draw(0, 1)
    assert one is not None and other is not None
    assert one.model.SerializeToString() == other.model.SerializeToString()
    assert all(np.array_equal(one.feeds[name], other.feeds[name]) for name in one.feeds)


# ---- the fuzzer is verified -------------------------------------------------------------------------------------


def first_failure(operators: Sequence[str] = (), tries: int = 40) -> tuple[Case, Wrong]:
    """The first failure among some graphs."""
    for number in range(tries):
        case = draw(7, number, operators)
        wrong = judge(case, Tally(), edits=4) if case else None
        if case and wrong:
            return case, wrong
    raise AssertionError("the planted bug was not found")


def _damaged(change: Callable[[AxisMap], dict[str, object]]) -> Callable[..., object]:
    """`edit_weight` on maps that have been tampered with."""

    def damaged(old: object, maps: Sequence[AxisMap | None], *rest: object, **more: object) -> object:
        tampered = [axis and dataclasses.replace(axis, **change(axis)) for axis in maps]  # type: ignore[arg-type]
        return edit_weight(old, tampered, *rest, **more)  # type: ignore[arg-type]

    return damaged


def test_consumers_that_are_not_zeroed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = _damaged(lambda axis: {"fresh_in": np.zeros_like(axis.fresh_in)})
    monkeypatch.setattr(surgery.edits.execute, "edit_weight", keep)
    assert first_failure()[1].kind == "outputs"


def test_copies_that_do_not_share_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _damaged(lambda axis: {"value": np.ones_like(axis.value)})
    monkeypatch.setattr(surgery.edits.execute, "edit_weight", whole)
    assert first_failure()[1].kind == "outputs"


def test_shares_that_are_not_added_up_again_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = _damaged(lambda axis: {"more_value": np.zeros((2, 0), np.int64)})
    monkeypatch.setattr(surgery.edits.execute, "edit_weight", lost)
    assert first_failure()[1].kind in ("invert: outputs", "narrow: outputs", "narrow all: outputs")


def test_gradients_that_are_not_added_up_again_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output is right, only the slots tell."""
    monkeypatch.setattr(
        surgery.edits.arithmetic,
        "_merged_slot",
        lambda old, k, axis, power: np.take(old, axis.source, axis=k),
    )
    assert first_failure()[1].kind in ("invert: restored", "narrow: restored")


@pytest.mark.parametrize("error", [1, -1])
def test_a_wrong_slot_power_is_found(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    monkeypatch.setattr(
        surgery.edits.execute,
        "edit_slot",
        lambda old, maps, power: edit_slot(old, maps, max(power + error, 0)),
    )
    assert first_failure()[1].kind == "slots"


def test_a_wrong_gradient_factor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies whose gradient is said to be whole: every output is right, only derivatives tell."""
    right = surgery.edits.axis_maps._factor_map

    def wrong(factor: object, edits: object) -> AxisMap:
        axis = right(factor, edits)  # type: ignore[arg-type]
        return dataclasses.replace(axis, grad=np.ones_like(axis.grad))

    monkeypatch.setattr(surgery.edits.axis_maps, "_factor_map", wrong)
    assert first_failure()[1].kind == "slot rule"


def _pointwise(t: Trace, node: object) -> None:
    t.put(node.outputs[0], t.axes(node.inputs[0]))  # type: ignore[attr-defined]


@pytest.mark.parametrize("operator", ["Softmax", "CumSum", "LpNormalization"])
def test_a_rule_that_calls_a_mixer_pointwise_is_found(monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    monkeypatch.setitem(RULES, operator, Rule(_pointwise, "all axes: pointwise"))
    assert first_failure([operator], tries=80)[1].kind in ("outputs", "narrow all: outputs")


def test_a_rule_that_swaps_the_order_of_units_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A concatenation read backwards."""
    right = RULES["Concat"].describe

    def backwards(t: Trace, node: object) -> None:
        inputs = list(node.inputs)  # type: ignore[attr-defined]
        right(t, node)  # type: ignore[arg-type]
        axes = t.axes(node.outputs[0])  # type: ignore[attr-defined]
        at = node.attributes.get_int("axis", 0) % len(axes)  # type: ignore[attr-defined]
        parts = axes[at][0].segments if len(inputs) == 2 and len(axes[at]) == 1 else None
        if parts and len({sum(atom.size for atom in part) for part in parts}) == 1:
            axes[at] = surgery.graph.atoms.concat(parts[::-1])
            t.put(node.outputs[0], axes)  # type: ignore[attr-defined]

    monkeypatch.setitem(RULES, "Concat", Rule(backwards, ""))
    first_failure(["Concat"], tries=80)


def test_a_failure_is_shrunk_to_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Softmax", Rule(_pointwise, "all axes: pointwise"))
    case, wrong = first_failure(["Softmax"], tries=80)
    small, still = shrink(case, wrong, seconds=60)
    assert still.kind == wrong.kind and "Softmax" in small.operators
    assert len(small.model.graph.node) < len(case.model.graph.node)
    assert len(small.model.graph.node) <= 8
    onnx.checker.check_model(small.model)
    assert "benchmarks/fuzz.py --seed 7" in text(small, still)
