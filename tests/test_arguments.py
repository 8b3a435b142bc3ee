"""Arguments of the wrong type are refused in one line that says what is wanted; NumPy's numbers count as numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import surgery
from surgery import NewAction, NewObservation, Retired
from surgery.errors import ArgumentError

LISTS = "a list of NewObservation(input, count, at, labels)"
WIDTHS = "a dictionary from strings to whole numbers"

WRONG: list[tuple[Callable[[Any], object], str]] = [
    (lambda c: surgery.load(c), "load(): 'path' must be a string or a path"),
    (lambda c: surgery.load(None), "'path' must be a string or a path, got None"),
    (lambda c: surgery.save("a.onnx", c), "'checkpoint' must be a Checkpoint, got 'a.onnx'"),
    (lambda c: surgery.widen("a.onnx", factor=2), "'checkpoint' must be a Checkpoint, got 'a.onnx'"),
    (lambda c: surgery.widen(c, factor="2"), "'factor' must be a number, got '2'"),
    (lambda c: surgery.widen(c, widths=["network.0"]), WIDTHS),
    (lambda c: surgery.widen(c, widths={"network.0": 200.5}), WIDTHS),
    (lambda c: surgery.widen(c, widths={"network.0": True}), WIDTHS),
    (
        lambda c: surgery.widen(c, factor=2, init=None),
        "'init' must be 'auto' or 'zero' or 'net2net', got None",
    ),
    (lambda c: surgery.widen(c, factor=2, seed=-1), "'seed' must be a whole number, 0 or more, got -1"),
    (lambda c: surgery.extend(c, observations={"x": 2}), f"{LISTS}, got {{'x': 2}}"),
    (lambda c: surgery.extend(c, observations="observation+1"), LISTS),
    (lambda c: surgery.extend(c, observations=NewObservation("observation", 1)), LISTS),
    (
        lambda c: surgery.extend(c, observations=[NewObservation("observation", "1")]),
        f"{LISTS}, of which 'count' is a whole number",
    ),
    (
        lambda c: surgery.extend(c, observations=[NewObservation("observation", 4, labels="wind")]),
        f"{LISTS}, of which 'labels' is a list of strings",
    ),
    (lambda c: surgery.extend(c, actions=["q_values+1"]), "a list of NewAction(output, count, "),
    (lambda c: surgery.retire(c, ["observation.0=0"]), "a list of Retired(input, feature, value)"),
    (lambda c: surgery.reorder(c, {"observation": "3210"}), "to a list of strings or whole numbers"),
    (lambda c: surgery.deepen(c, 0), "'after' must be a string or a list of strings, got 0"),
    (lambda c: surgery.migrate(c, c), "'to' must be a string, got a value of type Checkpoint"),
    (lambda c: surgery.adapt(c, "CartPole-v1"), "'wanted' must be a SpaceDescription, got 'CartPole-v1'"),
    (lambda c: surgery.apply(c, surgery.widen(c, factor=2)), "apply(): 'plan' must be a Plan"),
    (lambda c: surgery.invert("plan.json", c), "'plan' must be a Plan, got 'plan.json'"),
    (lambda c: surgery.verify(c, None), "'after' must be a Checkpoint, got None"),
    (lambda c: surgery.verify(c, c, observations=np.zeros((3, 4))), "a dictionary from strings to arrays"),
]


@pytest.fixture(scope="module")
def agent(teachers: Path) -> surgery.Checkpoint:
    return surgery.load(teachers / "cartpole-dqn.onnx")


@pytest.mark.parametrize(("call", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_type_is_one_clear_line(agent, call, words):
    with pytest.raises(ArgumentError) as caught:
        call(agent)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_call_that_does_not_fit_is_pythons_own_error(agent):
    with pytest.raises(TypeError, match=r"widen\(\) takes 1 positional argument but 2 were given"):
        surgery.widen(agent, 2)


@pytest.mark.parametrize(
    "plan",
    [
        lambda c: surgery.widen(
            c, widths={"network.0": np.int64(200), "network.2": 2.0 * 84}, seed=np.int64(3)
        ),
        lambda c: surgery.widen(c, factor=np.float32(1.5), init="net2net", noise=np.float32(0.5)),
        lambda c: surgery.extend(c, [NewObservation("observation", np.int64(1), at=np.int64(2))]),
        lambda c: surgery.extend(c, actions=[NewAction("q_values", np.int64(1), "logit", np.float32(2))]),
        lambda c: surgery.retire(c, [Retired("observation", np.int64(0), np.float32(0))]),
        lambda c: surgery.reorder(c, {"observation": np.array([3, 2, 1, 0])}),
        lambda c: surgery.permute(c, {"network.0": np.arange(120)[::-1]}),
        lambda c: surgery.deepen(c, "network.0", count=np.int64(1)),
        lambda c: surgery.narrow(c, widths={"network.0": np.int64(10)}, by="l1"),
    ],
)
def test_numpy_numbers_are_written_with_the_plan(agent, plan):
    made = plan(agent)
    assert surgery.Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), 1e300])
def test_no_action_starts_at_a_logit_that_no_number_holds(agent, bias):
    with pytest.raises(ArgumentError, match="float32 does not hold it"):
        surgery.extend(agent, actions=[NewAction("q_values", 1, "logit", bias)])


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        (np.zeros((0, 4)), "of shape 0×4 are empty"),
        (np.array([[0, 0, 0, np.nan]] + [[0.0] * 4] * 9), "hold NaN or infinity in 1 of 10 rows"),
        (np.full((3, 4), np.inf), "hold NaN or infinity in 3 of 3 rows"),
        (np.full((3, 4), 1j), "is of type complex128"),
        (np.full((3, 4), "a"), "is of type <U1"),
    ],
)
def test_recordings_that_prove_nothing_are_refused(agent, recorded, words):
    other = surgery.apply(surgery.widen(agent, factor=2, init="net2net", noise=0.5), agent).checkpoint
    with pytest.raises(ArgumentError, match=words):
        surgery.verify(agent, other, observations={"observation": recorded})
