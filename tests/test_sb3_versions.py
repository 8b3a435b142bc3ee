"""Files that old versions of Stable-Baselines3 wrote (tests/fixtures/sb3/make.py): read, changed, loaded by today's."""

from __future__ import annotations

import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import A2C

import surgery
from surgery.ops.extend import NewObservation
from surgery.verify.outputs import runtime
from surgery_adapters.sb3.file import Sb3File

FIXTURES = Path(__file__).parent / "fixtures" / "sb3"
WIDENED = {
    "a2c-1.0": [{"pi": [16], "vf": [12]}],
    "ppo-shared-1.6.2": [8, {"pi": [12], "vf": [12]}],
}
"""File -> `net_arch` after every layer was doubled, in the form that its version takes."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def check(path: Path, name: str) -> None:
    """The graph answers as the framework's network did when it wrote the original."""
    recorded = np.load(FIXTURES / f"{name}.npz")
    out = runtime(surgery.load(path).model)({"observation": recorded["observation"]})
    chances = out["logits"] - np.log(np.exp(out["logits"]).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(chances, recorded["log_probabilities"], atol=1e-6)
    np.testing.assert_allclose(out["value"], recorded["value"], atol=1e-6)


@pytest.mark.parametrize("name", WIDENED)
def test_what_an_old_version_wrote_is_read_and_written_in_its_form(name, tmp_path):
    check(FIXTURES / f"{name}.zip", name)
    before = surgery.load(FIXTURES / f"{name}.zip")
    surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "wide.zip")
    check(tmp_path / "wide.zip", name)
    assert Sb3File.open(tmp_path / "wide.zip").kwargs["net_arch"] == WIDENED[name]


def test_todays_version_loads_and_trains_what_an_old_one_began(tmp_path):
    """With spaces of its own: those in the file are of a gym that is not installed."""
    path = shutil.copy(FIXTURES / "a2c-1.0.zip", tmp_path / "old.zip")
    shutil.copy(FIXTURES / "a2c-1.0.vecnormalize.pkl", tmp_path / "old.vecnormalize.pkl")
    before = surgery.load(path)
    assert "normaliser" in before.environment.settings
    surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "wide.zip")
    env = gymnasium.make("CartPole-v1")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    old, new = (
        A2C.load(tmp_path / name, device="cpu", custom_objects=spaces) for name in ("old.zip", "wide.zip")
    )
    seen = np.load(FIXTURES / "a2c-1.0.npz")["observation"]
    np.testing.assert_array_equal(*(model.predict(seen, deterministic=True)[0] for model in (old, new)))
    new.set_env(env)
    new.learn(20)


def test_spaces_of_an_old_gym_take_new_features(tmp_path):
    before = surgery.load(FIXTURES / "a2c-1.0.zip")
    plan = surgery.extend(before, observations=[NewObservation("observation", 1, at=2)])
    surgery.apply(plan, before).save(tmp_path / "more.zip")
    space = Sb3File.open(tmp_path / "more.zip").space("observation_space")
    assert space.shape == (5,)
