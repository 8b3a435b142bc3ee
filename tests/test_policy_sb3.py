"""Stable-Baselines3's own files, played: action by action what the framework itself does."""

from __future__ import annotations

import numpy as np
import pytest

import surgery
from surgery.cli import main
from surgery.policy import load

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
sb3 = pytest.importorskip("stable_baselines3")
contrib = pytest.importorskip("sb3_contrib")

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
    rng = np.random.default_rng(0)
    state, starts, chosen = None, np.ones(3, bool), []
    for step in range(40):
        observation = rng.normal(size=(3, 4)).astype(np.float32)
        if step == 20:
            starts = np.array([True, False, True])
            policy.reset(starts)
        wanted, state = model.predict(observation, state=state, episode_start=starts, deterministic=True)
        starts = np.zeros(3, bool)
        assert np.array_equal(policy.act(observation, generator=rng), wanted)
        chosen.extend(wanted)
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


def test_continuous_actions_are_refused(tmp_path, capsys):
    sb3.PPO("MlpPolicy", "Pendulum-v1", seed=1, n_steps=8, batch_size=8).save(tmp_path / "model.zip")
    assert main(["evaluate", str(tmp_path / "model.zip"), "--env", "Pendulum-v1"]) == 1
    assert "continuous actions" in capsys.readouterr().err
