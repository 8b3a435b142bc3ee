"""Whole episodes by d3rlpy's own `predict`: at every step the graph, with its contract, wants the same action."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("d3rlpy")

import d3rlpy
import torch
from d3rlpy.models.encoders import PixelEncoderFactory, VectorEncoderFactory
from d3rlpy.models.q_functions import IQNQFunctionFactory, QRQFunctionFactory
from d3rlpy.preprocessing import (
    MinMaxActionScaler,
    MinMaxObservationScaler,
    PixelObservationScaler,
    StandardObservationScaler,
)

import surgery
from surgery.cli import main
from surgery.envs.step import seeds
from surgery.errors import ArgumentError, Refused
from surgery.evaluate import evaluate
from surgery.interface import Environment
from surgery_adapters.d3rlpy import parity
from surgery_adapters.playing import make

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = VectorEncoderFactory([16, 12])
BOTH = {"actor_encoder_factory": SMALL, "critic_encoder_factory": SMALL}


def recording(environment: str, shape: tuple[int, ...], actions: int) -> Any:
    """Two hundred steps at random."""
    env = make(environment, shape, actions)
    env.action_space.seed(0)
    seen, taken, rewards, ends = [], [], [], []
    observation, _ = env.reset(seed=0)
    for step in range(200):
        action = env.action_space.sample()
        seen.append(np.asarray(observation))
        taken.append(np.atleast_1d(action))
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        ends.append(float(terminated or truncated or step == 199))
        if ends[-1]:
            observation, _ = env.reset()
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    env.close()
    return d3rlpy.dataset.MDPDataset(
        np.stack(seen), np.stack(taken), np.array(rewards, np.float32), np.array(ends, np.float32),
        action_space=d3rlpy.ActionSpace.DISCRETE if discrete else d3rlpy.ActionSpace.CONTINUOUS, action_size=actions,
    )  # fmt: skip


def of(
    name: str, environment: str, shape: tuple[int, ...], actions: int, **settings: Any
) -> Callable[[Path], str]:
    """Write an algorithm that has learned for a moment; the environment that it plays."""

    def write(path: Path) -> str:
        d3rlpy.seed(0)
        torch.manual_seed(0)
        algorithm = getattr(d3rlpy.algos, f"{name}Config")(batch_size=16, **settings).create(device="cpu:0")
        algorithm.fit(
            recording(environment, shape, actions), n_steps=10, n_steps_per_epoch=10, show_progress=False,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        )  # fmt: skip
        algorithm.save(str(path))
        return environment

    return write


CARTPOLE, PENDULUM = ("CartPole-v1", (4,), 2), ("Pendulum-v1", (3,), 1)
MODELS: Mapping[str, Callable[[Path], str]] = {
    "dqn, standard scaler": of("DQN", *CARTPOLE, encoder_factory=SMALL, observation_scaler=StandardObservationScaler()),
    "quantiles": of("DQN", *CARTPOLE, encoder_factory=SMALL, q_func_factory=QRQFunctionFactory(n_quantiles=5)),
    "implicit quantiles": of(
        "DoubleDQN", *CARTPOLE, encoder_factory=SMALL,
        q_func_factory=IQNQFunctionFactory(n_greedy_quantiles=4, embed_size=8)),
    "discrete sac": of("DiscreteSAC", *CARTPOLE, **BOTH),
    "discrete bc": of("DiscreteBC", *CARTPOLE, encoder_factory=SMALL, observation_scaler=MinMaxObservationScaler()),
    "sac, scaled actions": of(
        "SAC", *PENDULUM, **BOTH, observation_scaler=MinMaxObservationScaler(),
        action_scaler=MinMaxActionScaler(minimum=[-2.0], maximum=[2.0])),
    "td3 and bc": of("TD3PlusBC", *PENDULUM, **BOTH),
    "iql": of("IQL", *PENDULUM, **BOTH, value_encoder_factory=SMALL),
    "stacked frames of ALE": of(
        "DQN", "BreakoutNoFrameskip-v4", (4, 84, 84), 4, observation_scaler=PixelObservationScaler(),
        encoder_factory=PixelEncoderFactory(filters=[[4, 8, 4], [8, 4, 2]], feature_size=16)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_wants_the_actions_that_the_framework_takes(tmp_path, name):
    if "ALE" in name:
        pytest.importorskip("ale_py")
    torch.set_num_threads(1)
    path = tmp_path / "agent.d3"
    environment = MODELS[name](path)
    found = parity(path, surgery.load(path), environment, episodes=2, seed=3)
    assert found.steps > 10
    assert (found.differing, len(found.returns)) == (0, 2)
    assert found.largest <= 1e-5


@pytest.mark.parametrize("name", ["dqn, standard scaler", "sac, scaled actions"])
def test_a_widened_file_plays_as_its_graph_does_and_as_before(tmp_path, name):
    path, wide = tmp_path / "agent.d3", tmp_path / "wide.d3"
    environment = MODELS[name](path)
    before = surgery.load(path)
    surgery.apply(surgery.widen(before, factor=2, seed=1), before).save(wide)
    old, new = (parity(p, surgery.load(p), environment, episodes=2, seed=5) for p in (path, wide))
    assert new.differing == 0
    np.testing.assert_allclose(new.returns, old.returns, rtol=1e-4)


@pytest.mark.parametrize("name", ["dqn, standard scaler", "sac, scaled actions", "td3 and bc"])
def test_an_evaluation_gives_the_returns_that_the_framework_gets(tmp_path, name):
    path = tmp_path / "agent.d3"
    environment = MODELS[name](path)
    checkpoint = surgery.load(path)
    wanted = parity(path, checkpoint, environment, episodes=2, seed=int(seeds(3, 1)[0]))
    contract = Environment(environment, checkpoint.environment.settings)
    done = evaluate(checkpoint, environment=contract, mode="greedy", episodes=2, num_envs=1, seed=3)
    np.testing.assert_allclose(done.episodes.returns, wanted.returns, rtol=1e-5)


def test_a_graph_that_is_another_or_lacks_the_scaler_does_not_pass(tmp_path):
    path = tmp_path / "agent.d3"
    environment = MODELS["dqn, standard scaler"](path)
    checkpoint = surgery.load(path)
    model = checkpoint.model.clone()
    head = next(v for k, v in model.graph.initializers.items() if k.endswith("_fc.bias"))
    head.const_value = ir.Tensor(np.array([90.0, -90.0], np.float32), name=head.name)
    found = parity(path, checkpoint.replace(model=model), environment, episodes=1)
    assert found.differing > 0
    with pytest.raises(Refused, match="chooses another action"):
        found.check()
    bare = checkpoint.replace(environment=Environment(checkpoint.environment.id))
    assert parity(path, bare, environment, episodes=3).differing > 0


def test_environments_that_do_not_fit_or_do_not_exist_are_one_clear_error(tmp_path, capsys):
    path, graph = tmp_path / "agent.d3", str(tmp_path / "agent.onnx")
    MODELS["discrete sac"](path)
    with pytest.raises(ArgumentError, match="does not fit Pendulum"):
        parity(path, surgery.load(path), "Pendulum-v1")
    with pytest.raises(ArgumentError, match="no environment 'Nowhere-v0'"):
        parity(path, surgery.load(path), "Nowhere-v0")
    assert main(["convert", str(path), "--check", "CartPole-v1", "-o", graph]) == 2
    assert "--trust" in capsys.readouterr().err
    assert main(["convert", str(path), "--check", "CartPole-v1", "--trust", "-o", graph]) == 0
    assert "3 episodes of CartPole-v1" in capsys.readouterr().out
