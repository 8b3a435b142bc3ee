"""Whole episodes in the framework's environments: at every step the graph wants the action that `predict` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import ale_py
import gymnasium
import numpy as np
import onnx_ir as ir
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

import surgery
from surgery.cli import main
from surgery.errors import Refused
from surgery_adapters.sb3 import parity

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def _settings(**settings: object) -> dict[str, object]:
    """Of a small model; the framework writes into `policy_kwargs`, so that each gets its own."""
    return {"policy_kwargs": {"net_arch": [16, 16]}, "device": "cpu", "seed": 0, **settings}


def _plain(make: Callable[..., BaseAlgorithm], policy: str, environment: str, **settings: object):
    def write(path: Path) -> str:
        make(policy, environment, **_settings(**settings)).save(path)
        return environment

    return write


def _breakout(path: Path) -> str:
    gymnasium.register_envs(ale_py)
    venv = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", seed=0), 4)
    kwargs = {"features_extractor_kwargs": {"features_dim": 32}}
    model = sb3.PPO("CnnPolicy", venv, n_steps=8, batch_size=8, policy_kwargs=kwargs, device="cpu", seed=0)
    model.save(path)
    return "BreakoutNoFrameskip-v4"


def _normalised(path: Path) -> str:
    venv = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    model = sb3.PPO("MlpPolicy", venv, n_steps=64, batch_size=64, n_epochs=1, **_settings())
    model.learn(64)
    model.save(path)
    venv.save(path.with_name("vecnormalize.pkl"))
    return "Pendulum-v1"


MODELS: Mapping[str, Callable[[Path], str]] = {
    "dqn": _plain(sb3.DQN, "MlpPolicy", "CartPole-v1"),
    "recurrent": _plain(sb3_contrib.RecurrentPPO, "MlpLstmPolicy", "CartPole-v1", n_steps=8, batch_size=8),
    "sac": _plain(sb3.SAC, "MlpPolicy", "Pendulum-v1"),
    "td3": _plain(sb3.TD3, "MlpPolicy", "Pendulum-v1"),
    "a2c": _plain(sb3.A2C, "MlpPolicy", "MountainCarContinuous-v0"),
    "stacked frames of ALE": _breakout,
    "VecNormalize": _normalised,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_wants_the_actions_that_the_framework_takes(tmp_path, name):
    torch.set_num_threads(1)
    path = tmp_path / "run.zip"
    environment = MODELS[name](path)
    found = parity(path, surgery.load(path), environment, episodes=1, seed=3)
    assert found.steps > 5
    assert (found.differing, len(found.returns)) == (0, 1)
    found.check()


def test_a_graph_that_is_another_does_not_pass(tmp_path):
    path = tmp_path / "run.zip"
    environment = MODELS["dqn"](path)
    checkpoint = surgery.load(path)
    model = checkpoint.model.clone()
    head = model.graph.initializers["q_net.q_net.4.bias"]
    head.const_value = ir.Tensor(np.array([9.0, -9.0], np.float32), name=head.name)
    found = parity(path, checkpoint.replace(model=model), environment, episodes=1)
    assert found.differing > 0
    with pytest.raises(Refused, match="wants another action"):
        found.check()


def test_convert_plays_only_what_is_trusted_and_says_what_came_of_it(tmp_path, capsys):
    path, graph = tmp_path / "run.zip", str(tmp_path / "agent.onnx")
    environment = MODELS["dqn"](path)
    words = ["convert", str(path), "--check", environment, "-o", graph]
    assert main(words) == 2
    assert "--trust" in capsys.readouterr().err
    assert not Path(graph).exists()
    assert main([*words, "--trust"]) == 0
    assert "3 episodes of CartPole-v1" in capsys.readouterr().out
    assert surgery.load(path).environment.id is None
    assert surgery.load(graph).environment.id == "CartPole-v1"
    assert main(["convert", str(path), "--check", "Pendulum-v1", "--trust", "-o", graph, "--force"]) == 2
    assert "does not fit" in capsys.readouterr().err
