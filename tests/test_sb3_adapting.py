"""A saved model fitted to an environment that has really changed: it loads there, does what it did, and trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import surgery
from surgery.cli import main
from surgery.interface import PortPatch
from surgery.verify.outputs import runtime
from tests.sb3_models import ROWS, Row, Saved, World, given, observations

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
LIMIT = 1e-5
OLD, NEW = ["x", "y", "angle", "speed", "fuel"], ["speed", "wind", "x", "fuel", "angle", "y"]
ACTIONS, MORE_ACTIONS = ["left", "stay", "right"], ["left", "jump", "right", "stay"]

LARGER: Mapping[str, Row] = {
    **{name: ROWS[name] for name in ("sac", "td3", "tqc", "ppo elu", "ppo dict")},
    **{
        f"{name} of one": dataclasses.replace(ROWS[name], observation="one", action="one")
        for name in ("sac", "td3", "tqc", "ppo elu", "ppo sde")
    },
    "ppo frame": dataclasses.replace(ROWS["ppo image"], observation="frame"),
}
"""Models, those of one number and one action among them, whose spaces become larger."""


class Rearranged(World):
    """The small world, later: its features in another order with one among them, its actions too."""

    observation_labels = NEW

    def __init__(self) -> None:
        super().__init__("vector", "choice", 1)
        high = np.array([2, 9, 2, np.inf, 2, 2], np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)

    def get_action_meanings(self) -> list[str]:
        return MORE_ACTIONS


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Mapping[str, Path]:
    return Saved(tmp_path_factory.mktemp("sb3"), {**ROWS, **LARGER})


@pytest.fixture
def registered() -> Mapping[str, str]:
    """Changed environments by kind of model."""
    for name, row in LARGER.items():
        gymnasium.register(f"More{name.replace(' ', '')}-v0", lambda row=row: row.env(1))
    gymnasium.register("Rearranged-v0", Rearranged)
    yield {name: f"More{name.replace(' ', '')}-v0" for name in LARGER}
    for name in LARGER:
        del gymnasium.registry[f"More{name.replace(' ', '')}-v0"]
    del gymnasium.registry["Rearranged-v0"]


@pytest.mark.parametrize("name", LARGER)
def test_larger_spaces_are_loaded_and_trained_in(saved, registered, tmp_path, name):
    row, target = LARGER[name], tmp_path / "more.zip"
    words = ["--unnamed", "append", "--new-action", "mean", "-o", str(target)]
    assert main(["adapt", str(saved[name]), "--env", registered[name], *words]) == 0
    old, new = row.load(saved[name]), row.load(target, more=1)
    arrays = observations(row, 24, more=1)
    key = "position" if name == "ppo dict" else "observation"
    fewer = {**arrays, key: arrays[key][:, :-1]}
    greedy, wanted = (m.predict(given(a), deterministic=True)[0] for m, a in ((new, arrays), (old, fewer)))
    if row.action in ("box", "one"):
        np.testing.assert_allclose(greedy[:, : wanted.shape[1]], wanted, atol=LIMIT)
    else:
        assert (greedy == wanted).all()
    new.learn(row.steps)
    new.save(tmp_path / "later.zip")
    steps = surgery.load(saved[name]).optimizer.steps
    later = surgery.load(tmp_path / "later.zip").optimizer.steps
    assert all(later[parameter] > step for parameter, step in steps.items())


@pytest.mark.parametrize(
    ("name", "deviation"),
    [("ppo elu", "log_std"), ("ppo elu of one", "log_std"), ("sac", "actor.log_std.bias")],
)
def test_a_new_action_deviates_as_the_old_ones_do(saved, registered, tmp_path, name, deviation):
    target = tmp_path / "more.zip"
    words = ["--unnamed", "append", "-o", str(target)]
    assert main(["adapt", str(saved[name]), "--env", registered[name], *words]) == 0
    old, new = (surgery.load(path).tensors[deviation].numpy() for path in (saved[name], target))
    assert old.all()
    np.testing.assert_allclose(new, [*old, old.mean()], rtol=1e-6)


def test_critics_value_an_action_as_before_whatever_its_new_component_is(saved, registered, tmp_path):
    target = tmp_path / "more.zip"
    words = ["--unnamed", "append", "--new-action", "mean", "-o", str(target)]
    assert main(["adapt", str(saved["sac"]), "--env", registered["sac"], *words]) == 0
    rng = np.random.default_rng(0)
    seen, action = (rng.uniform(-1, 1, (16, n)).astype(np.float32) for n in (6, 3))
    wide = runtime(surgery.load(target).model)({"observation": seen, "critic_action": action})
    fewer = {"observation": seen[:, :5], "critic_action": action[:, :2]}
    before = runtime(surgery.load(saved["sac"]).model)(fewer)
    for critic in ("qf0", "qf1", "qf0_target", "qf1_target"):
        np.testing.assert_allclose(wide[critic], before[critic], atol=LIMIT)


def test_features_and_actions_follow_their_names_into_another_order(saved, registered, tmp_path):
    before = surgery.load(saved["dqn"])
    named = surgery.annotate(
        before, inputs={"observation": PortPatch(labels=OLD)}, outputs={"q_values": PortPatch(labels=ACTIONS)}
    )
    surgery.save(named, tmp_path / "named.zip")
    target = tmp_path / "there.zip"
    assert main(["adapt", str(tmp_path / "named.zip"), "--env", "Rearranged-v0", "-o", str(target)]) == 0
    env = gymnasium.make("Rearranged-v0")
    with target.open("rb") as file:
        new = ROWS["dqn"].algorithm.load(file, env=env, device="cpu")
    assert new.observation_space == env.observation_space
    seen = np.random.default_rng(0).uniform(-1, 1, (24, 6)).astype(np.float32)
    after = runtime(surgery.load(target).model)({"observation": seen})["q_values"]
    wanted = runtime(before.model)({"observation": seen[:, [NEW.index(name) for name in OLD]]})["q_values"]
    np.testing.assert_allclose(after[:, [MORE_ACTIONS.index(name) for name in ACTIONS]], wanted, atol=LIMIT)
    new.learn(40)
