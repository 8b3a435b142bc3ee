"""Stable-Baselines3's own files, played: action by action what the framework itself does."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import surgery
from surgery.cli import main
from surgery.envs import adjusted, make
from surgery.envs.normaliser import Normaliser
from surgery.errors import ArgumentError, Refused
from surgery.interface import Environment
from surgery.policy import load
from tests.beside_sb3 import both

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
sb3 = pytest.importorskip("stable_baselines3")
contrib = pytest.importorskip("sb3_contrib")
vec_env, env_util = (
    pytest.importorskip(f"stable_baselines3.common.{part}") for part in ("vec_env", "env_util")
)

ALGORITHMS = {
    "DQN": (sb3.DQN, "MlpPolicy", "q_values"),
    "PPO": (sb3.PPO, "MlpPolicy", "logits"),
    "A2C": (sb3.A2C, "MlpPolicy", "logits"),
    "QRDQN": (contrib.QRDQN, "MlpPolicy", "q_values"),
    "RecurrentPPO": (contrib.RecurrentPPO, "MlpLstmPolicy", "logits"),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_actions_are_those_that_the_framework_predicts(name, tmp_path):
    make, policy_name, kind = ALGORITHMS[name]
    model = make(policy_name, "CartPole-v1", seed=1)
    model.save(tmp_path / "model.zip")
    policy = load(surgery.load(tmp_path / "model.zip"))
    assert policy.kind == kind
    assert policy.recurrent == (name == "RecurrentPPO")
    chosen = []
    for ours, theirs in both(model, policy, lambda rng: rng.normal(size=(3, 4)).astype(np.float32)):
        assert np.array_equal(ours, theirs)
        chosen.extend(theirs)
    assert len({*chosen}) == 2


def test_a_framework_file_is_evaluated_and_its_score_goes_into_a_copy(tmp_path, capsys):
    model, scored = tmp_path / "model.zip", tmp_path / "scored.zip"
    sb3.PPO("MlpPolicy", "CartPole-v1", seed=1).save(model)
    words = ["evaluate", str(model), "--env", "CartPole-v1", "--episodes", "4", "--record"]
    before = model.read_bytes()
    assert main(words) == 2
    assert "not changed in place" in capsys.readouterr().err
    assert main([*words, "-o", str(scored)]) == 0
    assert model.read_bytes() == before
    sb3.PPO.load(scored)
    assert main(["evaluate", str(scored), "--episodes", "4", "--seed", "1"]) == 0  # it knows its environment
    assert "confirmed" in capsys.readouterr().out


@pytest.fixture
def normalised(tmp_path):
    """A model under `VecNormalize`, and its file."""
    venv = vec_env.VecNormalize(env_util.make_vec_env("CartPole-v1", seed=0), clip_obs=2.0)
    venv.obs_rms.mean, venv.obs_rms.var = np.array([0.5, -0.3, 0.02, 0.1]), np.array([0.01, 0.3, 0.002, 0.2])
    model = sb3.PPO("MlpPolicy", venv, seed=1, n_steps=8, batch_size=8)
    model.save(tmp_path / "model.zip")
    venv.save(str(tmp_path / "vecnormalize.pkl"))
    return model, venv, tmp_path / "model.zip"


def test_what_vec_normalize_does_to_observations_is_done_before_the_graph_sees_them(normalised):
    model, venv, path = normalised
    checkpoint = surgery.load(path)
    policy, rng = load(checkpoint), np.random.default_rng(0)
    envs = make(adjusted(checkpoint.environment, "CartPole-v1", {}), 1, seed=3, training=False)
    bare = make(Environment("CartPole-v1"), 1, seed=3, training=False)
    seen, raw, clipped = envs.reset(), bare.reset(), False
    for step in range(60):
        normal = venv.normalize_obs(raw)
        np.testing.assert_allclose(seen, normal, atol=1e-6)
        assert policy.act(seen, generator=rng) == model.predict(normal, deterministic=True)[0]
        action, clipped = np.array([step % 2]), clipped or (np.abs(seen) == 2.0).any()
        seen, raw = envs.step(action).observation, bare.step(action).observation
    assert clipped


@pytest.mark.parametrize(
    ("model", "statistics"),
    [
        ("rl_model_2000_steps", "rl_model_vecnormalize_2000_steps.pkl"),  # CheckpointCallback
        ("ppo", "vec_normalize.pkl"),  # the examples of Stable-Baselines3's documentation
        ("CartPole-v1", "CartPole-v1/vecnormalize.pkl"),  # RL Zoo
    ],
)
def test_statistics_are_found_under_the_names_that_they_are_saved_by(normalised, tmp_path, model, statistics):
    place, named = tmp_path / "run" / f"{model}.zip", tmp_path / "run" / statistics
    named.parent.mkdir(parents=True)
    normalised[2].rename(place)
    normalised[2].with_name("vecnormalize.pkl").rename(named)
    assert "normaliser" in surgery.load(place).environment.settings


def test_statistics_of_another_model_in_the_same_folder_are_not_taken(normalised):
    other = vec_env.VecNormalize(env_util.make_vec_env("Acrobot-v1", seed=0))
    other.save(str(normalised[2].with_name("vecnormalize.pkl")))
    assert "normaliser" not in surgery.load(normalised[2]).environment.settings


def test_statistics_in_the_contract_follow_their_features(normalised):
    before = surgery.load(normalised[2])
    old = before.environment.settings["normaliser"]["observation"]
    plan = surgery.extend(before, [surgery.NewObservation("observation", 1, 2)])
    after = surgery.apply(plan, before).checkpoint
    found = after.environment.settings["normaliser"]["observation"]
    assert list(found["mean"]) == [*old["mean"][:2], 0.0, *old["mean"][2:]]
    assert found["variance"][2] + found["epsilon"] == 1.0
    back = surgery.apply(surgery.invert(plan, after), after).checkpoint
    assert back.environment == before.environment
    wide = surgery.apply(surgery.widen(before, factor=2), before).checkpoint
    assert wide.environment == before.environment


@pytest.mark.parametrize("environment", ["Acrobot-v1", "MinAtar/Breakout-v1", "ALE/Breakout-v5"])
def test_statistics_that_an_environment_does_not_fit_are_refused(normalised, environment):
    checkpoint = surgery.load(normalised[2])
    with pytest.raises(ArgumentError, match="normaliser"):
        make(adjusted(checkpoint.environment, environment, {}), 1, seed=0, training=False)


class Frames(gymnasium.Env):
    """Random images."""

    observation_space = gymnasium.spaces.Box(0, 255, (2, 36, 36), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


@pytest.mark.parametrize("observations", [True, False])
def test_images_that_vec_normalize_normalises_are_not_played_without_it(observations, tmp_path):
    """Pixel by pixel, if it is told to: those statistics are in no contract, and it says so; rewards alone are none."""
    venv = vec_env.VecNormalize(vec_env.DummyVecEnv([Frames]), norm_obs=observations)
    kwargs = {"normalize_images": not observations}
    sb3.DQN("CnnPolicy", venv, seed=1, buffer_size=1, policy_kwargs=kwargs).save(tmp_path / "model.zip")
    venv.save(str(tmp_path / "vecnormalize.pkl"))
    checkpoint = surgery.load(tmp_path / "model.zip")
    if not observations:
        assert not checkpoint.environment.settings["normaliser"]
        return
    with pytest.raises(ArgumentError, match="2x36x36 means and variances") as caught:
        Normaliser.whole(checkpoint.environment)
    assert "--check" in caught.value.hint
    with pytest.raises(ArgumentError, match="normaliser"):
        make(adjusted(checkpoint.environment, "ALE/Breakout-v5", {}), 1, seed=0, training=False)
    plan = surgery.extend(checkpoint, [surgery.NewObservation("observation[1]", 1)])
    with pytest.raises(Refused, match="pixel by pixel"):
        surgery.apply(plan, checkpoint).save(tmp_path / "more.zip")
    assert not (tmp_path / "more.zip").exists()
