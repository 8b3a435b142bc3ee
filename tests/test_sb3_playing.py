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
    with pytest.raises(Refused, match="chooses another action"):
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


GAMES = """
import gymnasium


class Counting(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Discrete(5), gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(5))
        return self.place, {}

    def step(self, action):
        self.place = (self.place + int(action)) % 5
        return self.place, float(self.place == 4), bool(self.np_random.random() < 0.1), False, {}


class More(Counting):
    observation_space = gymnasium.spaces.Discrete(6)


gymnasium.register("Counting-v0", Counting)
gymnasium.register("More-v0", More)
"""


def test_a_game_of_ones_own_that_shows_one_of_several_is_played_by_its_module(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_games.py").write_text(GAMES)
    monkeypatch.chdir(tmp_path)
    words = ["convert", "run.zip", "--check", "my_games:Counting-v0", "--trust", "-o", "agent.onnx"]
    spaces = gymnasium.spaces
    model = sb3.DQN("MlpPolicy", _Shown(spaces.Discrete(5), spaces.Discrete(3)), **_settings())
    model.save("run.zip")
    assert main(words) == 0
    assert surgery.load("agent.onnx").environment.id == "Counting-v0"  # a file names no module to import
    assert main(["evaluate", "run.zip", "--env", "my_games:Counting-v0", "--episodes", "2"]) == 0
    capsys.readouterr()
    assert main(["adapt", "run.zip", "--env", "my_games:Counting-v0", "-o", "same.zip"]) == 2
    assert "the model fits Counting-v0 as it is" in capsys.readouterr().err
    assert main(["adapt", "run.zip", "--env", "my_games:More-v0", "-o", "more.zip"]) == 1
    assert "is one of 5 values and the environment shows one of 6" in capsys.readouterr().err
    assert main(["adapt", "run.zip", "--env", "Unheard-v0", "-o", "more.zip"]) == 2
    assert "--env MODULE:Unheard-v0" in capsys.readouterr().err


class _Shown(gymnasium.Env):
    """Spaces for a model that is never trained."""

    def __init__(self, observation: gymnasium.Space, action: gymnasium.Space) -> None:
        self.observation_space, self.action_space = observation, action
