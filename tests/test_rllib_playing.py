"""Whole episodes by RLlib's own module and connectors: at every step the graph wants the same action."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("ray")

import gymnasium
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter, PrevActionsPrevRewards
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.connectors.learner.frame_stacking import FrameStackingLearner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
from ray.tune.registry import register_env

import surgery
from surgery.cli import main
from surgery.envs.step import seeds
from surgery.errors import ArgumentError, Refused, RunFailed
from surgery.evaluate import evaluate
from surgery.interface import Environment
from surgery_adapters.rllib import parity
from surgery_adapters.rllib.connectors import Connectors
from surgery_adapters.rllib.folder import RllibFolder
from surgery_adapters.rllib.worlds import world
from tests.rllib_models import start

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"fcnet_hiddens": [16, 12]}


def ppo(**settings: Any) -> Any:
    return PPOConfig().training(train_batch_size=60, minibatch_size=30, num_epochs=1, **settings)


def off(config: Any) -> Any:
    return config.training(train_batch_size=8, num_steps_sampled_before_learning_starts=10)


@dataclasses.dataclass(frozen=True)
class Played:
    """A kind of agent.

    Attributes:
      config: makes its configuration. environment: gymnasium's id. model: settings of its networks.
      made: makes the environment, where it is the user's own; of its settings.
      connectors: what there is between environment and module, if the user asks for something there.
      assumed: what the report says about what is not in the folder.
    """

    config: Callable[[], Any]
    environment: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    made: Callable[[Any], Any] | None = None
    connectors: Callable[..., Any] | None = None
    assumed: tuple[str, ...] = ()


def game(**settings: Any) -> Callable[[Any], Any]:
    """A game as RLlib's own examples make it."""
    pytest.importorskip("ale_py")
    return lambda config: wrap_atari_for_new_api_stack(
        gymnasium.make("ALE/Pong-v5", frameskip=1, **config), dim=42, **settings
    )


CONV = {"conv_filters": [[4, 8, 4], [4, 4, 2]], "head_fcnet_hiddens": [8]}
SKIP = "not recorded: the wrapper's frame skip of 4"
MODELS: Mapping[str, Played] = {
    "ppo": Played(ppo, "CartPole-v1"),
    "ppo lstm": Played(ppo, "CartPole-v1", {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4}),
    "ppo box": Played(ppo, "Pendulum-v1", {"vf_share_layers": False}),
    "dqn": Played(lambda: off(DQNConfig()), "CartPole-v1"),
    "dqn atoms": Played(lambda: off(DQNConfig().training(num_atoms=5, v_min=-3.0, v_max=7.0)), "CartPole-v1"),
    "sac": Played(lambda: off(SACConfig()), "Pendulum-v1"),
    "ppo filter": Played(ppo, "CartPole-v1", connectors=lambda *_, **__: MeanStdFilter()),
    "sac filter": Played(
        lambda: off(SACConfig()), "Pendulum-v1",
        connectors=lambda *_, **__: MeanStdFilter(de_mean_to_zero=False, clip_by_value=2.0),
    ),
    "dqn one-hot": Played(
        lambda: off(DQNConfig()), "FrozenLake-v1", connectors=lambda *_, **__: FlattenObservations()
    ),
    "ppo what was": Played(
        ppo, "CartPole-v1",
        connectors=lambda *_, **__: [PrevActionsPrevRewards(n_prev_actions=2), FlattenObservations()],
        assumed=("with the framework's PrevActionsPrevRewards",),
    ),
    "ppo game": Played(ppo, "ALE/Pong-v5", CONV, lambda c: game(framestack=4)(c), assumed=(SKIP,)),
    "ppo colours": Played(
        ppo, "ALE/Pong-v5", CONV, lambda c: game(grayscale=False)(c),
        assumed=(f"{SKIP} and 3 channels as colours",),
    ),
    "ppo frames": Played(
        lambda: ppo(learner_connector=lambda *_: FrameStackingLearner(num_frames=3)), "ALE/Pong-v5", CONV,
        lambda c: game()(c), lambda *_, **__: FrameStackingEnvToModule(num_frames=3),
        (SKIP, "with the framework's FrameStacking"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of every kind, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("rllib")
    torch.set_num_threads(1)
    start()

    class Trained(dict):
        def __missing__(self, name: str) -> Path:
            self[name] = write(MODELS[name], folder / name.replace(" ", "-"))
            return self[name]

    yield Trained()
    ray.shutdown()


def write(played: Played, path: Path) -> Path:
    if played.made is not None:
        if "ALE" in played.environment:
            game()
        register_env("Mine", played.made)
    config = (
        played.config()
        .environment("Mine" if played.made else played.environment)
        .env_runners(num_env_runners=0, rollout_fragment_length=10, env_to_module_connector=played.connectors)
        .learners(num_learners=0)
        .reporting(min_time_s_per_iteration=0)
        .debugging(seed=0)
        .rl_module(model_config=DefaultModelConfig(**{**SMALL, **played.model}))
    )
    algorithm = config.build_algo()
    algorithm.train()
    algorithm.save_to_path(str(path))
    algorithm.stop()
    return path


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_wants_the_actions_that_the_framework_takes(trained, name):
    path, environment = trained[name], MODELS[name].environment
    found = parity(path, surgery.load(path), environment, episodes=1 if "ALE" in environment else 2, seed=3)
    assert found.steps > 4
    assert (found.differing, found.assumed) == (0, MODELS[name].assumed)
    assert found.largest <= 1e-5


@pytest.mark.parametrize("name", ["ppo lstm", "sac", "ppo filter"])
def test_a_widened_folder_plays_as_its_graph_does_and_as_before(trained, tmp_path, name):
    path, wide = trained[name], tmp_path / "wide"
    before = surgery.load(path)
    surgery.apply(surgery.widen(before, factor=2, seed=1), before).save(wide)
    old, new = (
        parity(p, surgery.load(p), MODELS[name].environment, episodes=2, seed=5) for p in (path, wide)
    )
    assert new.differing == 0
    np.testing.assert_allclose(new.returns, old.returns, rtol=1e-4)


@pytest.mark.parametrize("name", ["ppo", "ppo lstm", "ppo box", "sac", "sac filter"])
def test_an_evaluation_gives_the_returns_that_the_framework_gets(trained, name):
    path, environment = trained[name], MODELS[name].environment
    checkpoint = surgery.load(path)
    wanted = parity(path, checkpoint, environment, episodes=2, seed=int(seeds(3, 1)[0]))
    contract = Environment(environment, checkpoint.environment.settings)
    done = evaluate(checkpoint, environment=contract, mode="greedy", episodes=2, num_envs=1, seed=3)
    np.testing.assert_allclose(done.episodes.returns, wanted.returns, rtol=1e-4)


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
    with pytest.raises(Refused, match="chooses another action"):
        max(left, right, key=lambda found: found.differing).check()


def test_statistics_of_a_filter_are_not_passed_over(trained):
    """Without them the graph is another agent, and that is found out."""
    before = surgery.load(trained["sac filter"])
    plain = before.replace(environment=Environment(before.environment.id))
    with pytest.raises(Refused, match="chooses another action"):
        parity(trained["sac filter"], plain, "Pendulum-v1", episodes=1).check()


def test_settings_of_the_environment_are_the_folders(tmp_path):
    def config() -> Any:
        return off(DQNConfig()).environment(env_config={"is_slippery": False})

    path = write(dataclasses.replace(MODELS["dqn one-hot"], config=config), tmp_path / "run")
    folder = RllibFolder.open(path)
    env, _ = world(folder, Connectors.read(folder), "FrozenLake-v1")
    assert env.spec.kwargs["is_slippery"] is False


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


class Brittle(gymnasium.Wrapper):
    """An environment that breaks in the midst of an episode."""

    def step(self, action: Any) -> Any:
        raise OSError("the simulator is gone")


def test_an_environment_that_fails_is_no_bug_of_ours(trained):
    gymnasium.register("Brittle-v0", lambda: Brittle(gymnasium.make("CartPole-v1")))
    path = trained["ppo"]
    with pytest.raises(RunFailed, match="the environment Brittle-v0 failed: OSError: the simulator is gone"):
        parity(path, surgery.load(path), "Brittle-v0")
