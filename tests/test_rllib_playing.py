"""Whole episodes by RLlib's own module and connectors: at every step the graph wants the same action."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("ray")

import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

import surgery
from surgery.cli import main
from surgery.errors import ArgumentError, Refused
from surgery_adapters.rllib import parity
from tests.rllib_models import start

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"fcnet_hiddens": [16, 12]}


def ppo(**settings: Any) -> Any:
    return PPOConfig().training(train_batch_size=60, minibatch_size=30, num_epochs=1, **settings)


def off(config: Any) -> Any:
    return config.training(train_batch_size=8, num_steps_sampled_before_learning_starts=10)


MODELS: Mapping[str, tuple[Callable[[], Any], str, Mapping[str, Any]]] = {
    "ppo": (ppo, "CartPole-v1", {}),
    "ppo lstm": (ppo, "CartPole-v1", {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4}),
    "ppo box": (ppo, "Pendulum-v1", {"vf_share_layers": False}),
    "dqn": (lambda: off(DQNConfig()), "CartPole-v1", {}),
    "dqn atoms": (lambda: off(DQNConfig().training(num_atoms=5, v_min=-3.0, v_max=7.0)), "CartPole-v1", {}),
    "sac": (lambda: off(SACConfig()), "Pendulum-v1", {}),
}
"""Kind -> its configuration, the environment, and settings of its networks."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of every kind, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("rllib")
    torch.set_num_threads(1)
    start()

    class Trained(dict):
        def __missing__(self, name: str) -> Path:
            make, environment, model = MODELS[name]
            self[name] = write(make(), environment, model, folder / name.replace(" ", "-"))
            return self[name]

    yield Trained()
    ray.shutdown()


def write(config: Any, environment: str, model: Mapping[str, Any], path: Path) -> Path:
    config = (
        config.environment(environment)
        .env_runners(num_env_runners=0, rollout_fragment_length=10)
        .learners(num_learners=0)
        .reporting(min_time_s_per_iteration=0)
        .debugging(seed=0)
        .rl_module(model_config=DefaultModelConfig(**SMALL, **model))
    )
    algorithm = config.build_algo()
    algorithm.train()
    algorithm.save_to_path(str(path))
    algorithm.stop()
    return path


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_wants_the_actions_that_the_framework_takes(trained, name):
    path, environment = trained[name], MODELS[name][1]
    found = parity(path, surgery.load(path), environment, episodes=2, seed=3)
    assert found.steps > 10
    assert (found.differing, len(found.returns)) == (0, 2)
    assert found.largest <= 1e-5


@pytest.mark.parametrize("name", ["ppo lstm", "sac"])
def test_a_widened_folder_plays_as_its_graph_does_and_as_before(trained, tmp_path, name):
    path, wide = trained[name], tmp_path / "wide"
    before = surgery.load(path)
    surgery.apply(surgery.widen(before, factor=2, seed=1), before).save(wide)
    old, new = (parity(p, surgery.load(p), MODELS[name][1], episodes=2, seed=5) for p in (path, wide))
    assert new.differing == 0
    np.testing.assert_allclose(new.returns, old.returns, rtol=1e-4)


def always(checkpoint: surgery.Checkpoint, action: int) -> surgery.Checkpoint:
    """A graph that wants one action, whatever it sees."""
    model = checkpoint.model.clone()
    head = next(v for k, v in model.graph.initializers.items() if k.startswith("pi.") and k.endswith(".bias"))
    bias = np.full(2, -90.0, np.float32)
    bias[action] = 90.0
    head.const_value = ir.Tensor(bias, name=head.name)
    return checkpoint.replace(model=model)


def test_a_graph_that_is_another_does_not_pass(trained):
    path = trained["ppo"]
    left, right = (parity(path, always(surgery.load(path), action), "CartPole-v1") for action in (0, 1))
    assert left.differing + right.differing == left.steps == right.steps
    with pytest.raises(Refused, match="wants another action"):
        max(left, right, key=lambda found: found.differing).check()


def test_what_a_filter_does_to_observations_is_not_passed_over(trained, tmp_path):
    """Statistics of a filter are not in the graph: that it is another agent is said, not found out in the game."""
    config = ppo().env_runners(env_to_module_connector=lambda *_, **__: MeanStdFilter())
    path = write(config, "CartPole-v1", {}, tmp_path / "filtered")
    with pytest.raises(Refused, match="connectors change what the environment shows"):
        parity(path, surgery.load(path), "CartPole-v1")


def test_a_folder_that_the_framework_cannot_load_is_one_clear_error(trained, tmp_path):
    path = Path(shutil.copytree(trained["ppo"], tmp_path / "run"))
    shutil.rmtree(path / "env_runner")
    with pytest.raises(Refused, match="RLlib cannot load"):
        parity(path, surgery.load(path), "CartPole-v1")


def test_environments_that_do_not_fit_are_one_clear_error(trained, tmp_path, capsys):
    path, graph = trained["dqn"], str(tmp_path / "agent.onnx")
    with pytest.raises(ArgumentError, match="does not fit Pendulum"):
        parity(path, surgery.load(path), "Pendulum-v1")
    assert main(["convert", str(path), "--check", "CartPole-v1", "-o", graph]) == 2
    assert "--trust" in capsys.readouterr().err
    assert main(["convert", str(path), "--check", "CartPole-v1", "--trust", "-o", graph]) == 0
    assert "3 episodes of CartPole-v1" in capsys.readouterr().out
