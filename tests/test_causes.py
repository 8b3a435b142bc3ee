"""Why a score is not reached: what is suspected from what was seen, and what is tried."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import surgery
from surgery.architectures import new
from surgery.envs import complete
from surgery.evaluate import Score
from surgery.evaluate.causes import likely_causes
from surgery.evaluate.diagnosis import _trials
from surgery.evaluate.episodes import Episodes
from surgery.interface import Environment, PortPatch

KNOWN = Score("greedy", 10.0, 1.0, 30, {})


def played(high: float, truncated: int = 0) -> Episodes:
    return Episodes(np.zeros(4), np.ones(4, np.int64), truncated, 4, 0.0, high)


@pytest.mark.parametrize(
    ("declared", "high", "says"),
    [
        (255.0, 1.0, "scale: 'observation' is declared up to 255, observations end at 1"),
        (255.0, 255.0, None),
        (255.0, 0.0, None),  # nothing was seen
        (255.0, 1.5, None),
        (2.0, 1.0, None),
        (10.0, 255.0, "scale: 'observation' is declared up to 10, observations reach 255"),
        (10.0, 10.05, None),
        (1.0, 255.0, None),  # bytes are divided by 255 on their way there
        (None, 255.0, None),
    ],
)
def test_a_scale_that_is_not_the_declared_one_is_suspected(
    declared: float | None, high: float, says: str | None
):
    model = new("mlp-4", observation=(3,), actions=2)
    if declared is not None:
        model = surgery.annotate(model, inputs={"observation": PortPatch(low=0.0, high=declared)})
    causes = likely_causes(model, Environment("x"), KNOWN, "greedy", played(high))
    assert [cause for cause in causes if cause.startswith("scale")] == ([] if says is None else [says])


def test_a_range_that_nobody_declared_is_held_against_nobody():
    model = new("mlp-4", observation=(3,), actions=2)
    [port] = model.interface.inputs
    for declared, count in ((True, 1), (False, 0)):
        inputs = (replace(port, low=0.0, high=10.0, declared=declared),)
        one = model.replace(interface=replace(model.interface, inputs=inputs))
        causes = likely_causes(one, Environment("x"), KNOWN, "greedy", played(255.0))
        assert sum(cause.startswith("scale") for cause in causes) == count


def test_what_was_cut_off_is_suspected():
    model = new("mlp-4", observation=(3,), actions=2)
    [first, *_] = likely_causes(model, Environment("x"), KNOWN, "greedy", played(1.0, truncated=3))
    assert first == "time limit: 3 of 4 episodes were cut off"


def test_everything_that_an_atari_contract_may_say_wrongly_is_tried_alone():
    contract = complete(Environment("ALE/Breakout-v5", {"action_set": [0, 1, 3]}))
    trials = list(_trials(SimpleNamespace(environment=contract, mode="sample", episodes=played(255.0))))
    assert [trial.change for trial in trials] == [
        "sticky actions 0",
        "without fire at reset",
        "stack order reversed: the newest frame first",
        "observations ÷ 255",
        "outputs 0 and 1 exchanged: action_set [1, 0, 3]",
        "outputs 0 and 2 exchanged: action_set [3, 1, 0]",
        "outputs 1 and 2 exchanged: action_set [0, 3, 1]",
        "action selection greedy",
        "action selection epsilon:0.05",
    ]
    for trial in trials:
        differs = {k for k, v in trial.contract.settings.items() if v != contract.settings[k]}
        assert len(differs) + (trial.mode != "sample") + trial.change.startswith("stack") == 1
    assert trials[0].contract.settings["sticky_actions"] == 0
    assert trials[1].contract.settings["fire_reset"] is False
    assert trials[2].seen(np.arange(4)[None])[0].tolist() == [3, 2, 1, 0]
    assert trials[3].contract.settings["preprocessing"]["scale"] == 1 / 255


def test_what_is_tried_is_the_other_of_two():
    settings = {"sticky_actions": 0.1, "fire_reset": False, "frame_stack": 1, "preprocessing": {"scale": 0.5}}
    contract = Environment("x", {**settings, "action_set": list(range(7))})  # too many pairs
    trials = list(_trials(SimpleNamespace(environment=contract, mode="greedy", episodes=played(1.0))))
    assert [trial.change for trial in trials] == [
        "sticky actions 0", "sticky actions 0.25", "with fire at reset", "without the scale", "observations × 255",
        "action selection sample", "action selection epsilon:0.05",
    ]  # fmt: skip
    assert dict(trials[3].contract.settings["preprocessing"]) == {}
    assert trials[4].contract.settings["preprocessing"]["scale"] == 255
