"""Several choices at once: action by action what the framework does, the same returns, and what is refused."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import surgery
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.envs import make
from surgery.envs.actions import MultiBinary, action_space
from surgery.envs.step import seeds
from surgery.errors import ArgumentError, Refused
from surgery.evaluate import evaluate
from surgery.interface import Environment, PortPatch
from surgery.policy import load
from surgery.policy.laws import Switches
from surgery.port_kinds import infer
from tests import deployed
from tests.beside_sb3 import both

sb3, contrib = pytest.importorskip("stable_baselines3"), pytest.importorskip("sb3_contrib")
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Levers(gymnasium.Env):
    """Twelve steps; the reward is the weighted sum of what is chosen, and what is no action is an error."""

    observation_space = spaces.Box(-2, 2, (4,), np.float32)
    action_space = spaces.MultiDiscrete([2, 4, 3])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 12
        return self.np_random.uniform(-2, 2, 4).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left -= 1
        flat = np.asarray(action, np.float64).reshape(-1)
        seen = self.np_random.uniform(-2, 2, 4).astype(np.float32)
        return seen, float(flat @ 10.0 ** np.arange(len(flat))), False, self.left == 0, {}


def levers(name, space):
    gymnasium.register(f"{name}-v0", type(name, (Levers,), {"action_space": space}))


SPACES = {
    "Levers": spaces.MultiDiscrete([2, 4, 3]),
    "Lights": spaces.MultiBinary(5),
    "Table": spaces.MultiDiscrete(np.array([[2, 3], [3, 1]])),
    "Panel": spaces.MultiBinary([2, 3]),
    "Later": spaces.MultiDiscrete([2, 4, 3], start=[1, -2, 5]),
    "Pair": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(4, start=-1), spaces.Discrete(3))),
    "Words": spaces.Text(4),
    "Whole": spaces.Box(0, 9, (2,), np.int64),
}
for name, space in SPACES.items():
    levers(name, space)

SMALL = {"policy_kwargs": {"net_arch": [16, 16]}, "device": "cpu", "seed": 0}
MODELS = {
    "ppo": (sb3.PPO, "MlpPolicy", "Levers-v0"),
    "a2c, switches": (sb3.A2C, "MlpPolicy", "Lights-v0"),
    "recurrent": (contrib.RecurrentPPO, "MlpLstmPolicy", "Levers-v0"),
    "recurrent, switches": (contrib.RecurrentPPO, "MlpLstmPolicy", "Lights-v0"),
}


def saved(name, folder):
    """A model whose choices vary, and its file."""
    import torch

    algorithm, policy, environment = MODELS[name]
    model = algorithm(policy, environment, **{**SMALL, "policy_kwargs": {"net_arch": [16, 16]}})
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100)
    model.save(folder / "model.zip")
    return model, folder / "model.zip", environment


def met(checkpoint, environment, **settings):
    policy, envs = load(checkpoint, **settings), make(Environment(environment), 1, seed=0, training=False)
    policy.meet(envs.observation_shape, envs.parts, envs.takes)
    return policy


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("host", [True, False])
def test_actions_and_returns_are_those_of_the_framework(name, host, tmp_path):
    model, path, environment = saved(name, tmp_path)
    policy, seen = met(surgery.load(path), environment, host=host), []
    for ours, theirs in both(model, policy, lambda rng: rng.uniform(-2, 2, (3, 4)).astype(np.float32)):
        assert np.array_equal(ours, theirs)
        seen.append(theirs)
    assert len(np.unique(np.concatenate(seen), axis=0)) > 2
    venv = make_vec_env(environment)
    venv.seed(int(seeds(5, 1)[0]))
    returns, _ = evaluate_policy(model, venv, 3, return_episode_rewards=True)
    done = evaluate(
        surgery.load(path),
        environment=Environment(environment),
        episodes=3,
        num_envs=1,
        seed=5,
        mode="greedy",
    )
    np.testing.assert_allclose(done.episodes.returns, returns, rtol=1e-6)


def test_a_framework_file_is_drawn_from_recorded_and_confirmed(tmp_path, capsys):
    _, path, environment = saved("ppo", tmp_path)
    scored = str(tmp_path / "scored.zip")
    words = ["evaluate", str(path), "--env", environment, "--episodes", "8", "--record", "-o", scored]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["evaluate", scored, "--episodes", "8", "--seed", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mode"], report["confirmed"], report["random"]["source"]) == ("sample", True, "recorded")


def plain(sizes, rows, *, environment=None, **patch):
    """Constant numbers for whatever is seen, in outputs of some sizes."""
    graph, begin = GraphBuilder("plain"), 0
    x = graph.input("observation", (4,))
    for k, size in enumerate(sizes):
        part = np.array(rows[begin : begin + size], np.float32)
        name = f"logits_{k}" if len(sizes) > 1 else "logits"
        graph.output(graph.linear(x, f"head{k}", np.zeros((size, 4), np.float32), part), name, (size,))
        begin += size
    model = graph.model()
    made = Checkpoint(model, infer(model), environment or Environment())
    return surgery.annotate(
        made, outputs={port.name: PortPatch("logits", **patch) for port in made.interface.outputs},
        environment=made.environment,
    )  # fmt: skip


LOGITS = [0.0, 1.0, 3.0, 2.0, -1.0, 0.5, 0.0, 0.0, 4.0]
ROWS = {
    "one output": (plain([9], LOGITS), "Levers-v0", [1, 0, 2]),
    "an output for each": (plain([2, 4, 3], LOGITS), "Levers-v0", [1, 0, 2]),
    "a table": (plain([9], LOGITS), "Table-v0", [[1, 0], [0, 0]]),
    "switches": (plain([5], LOGITS[:5]), "Lights-v0", [0, 1, 1, 1, 0]),
    "a panel": (plain([6], LOGITS[:6]), "Panel-v0", [[0, 1, 1], [1, 0, 1]]),
    "numbers of their own": (plain([9], LOGITS), "Later-v0", [1, 0, 2]),
    "a tuple": (plain([9], LOGITS), "Pair-v0", [1, 0, 2]),
    "some are forbidden": (
        plain([9], LOGITS, environment=Environment(None, {"action_mask": [True, False] + [False] + [True] * 6})),
        "Levers-v0", [0, 1, 2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("mode", ["greedy", "sample", "epsilon"])
def test_each_choice_is_made_among_its_own_numbers(case, mode):
    made, environment, wanted = ROWS[case]
    policy = met(made, environment)
    found = policy.act(
        np.zeros((4000, 4), np.float32), mode=mode, epsilon=0.3, generator=np.random.default_rng(0)
    )
    assert found.shape == (4000, *np.shape(wanted))
    greedy = (found.reshape(4000, -1) == np.reshape(wanted, -1)).all(1).mean()
    envs = make(Environment(environment), 1, seed=0, training=False)
    if mode == "greedy":
        assert greedy == 1
    if mode == "epsilon":
        assert 0.7 < greedy < 0.76
    if mode == "sample":
        flat = found.reshape(4000, -1)
        first = flat[:, 1] if "switches" in case or "panel" in case else flat[:, 0]
        sure = 1 / (1 + np.exp(-1.0))  # of a switch with logit 1, and of 1 between logits 0 and 1
        if "forbidden" not in case:
            assert first.mean() == pytest.approx(sure, abs=0.03)
    space = SPACES[environment.removesuffix("-v0")]
    assert all(space.contains(envs.takes.taken(action)) for action in found[:200])
    if "forbidden" in case:
        assert not found[:, 0].any() and found[:, 1].min() == 1
    done = evaluate(made.replace(environment=Environment(environment, made.environment.settings)), episodes=2)
    assert done.random.source == "measured"


@pytest.mark.parametrize("name", ["Levers", "Lights", "Table", "Panel", "Pair", "Later"])
def test_random_play_is_distributed_as_gymnasium_samples(name):
    space = SPACES[name]
    space.seed(0)
    takes, rng = action_space(Environment(), space), np.random.default_rng(0)
    ours = np.array([np.ravel(takes.taken(one)) for one in takes.random(6000, rng)])
    theirs = np.array([np.ravel(space.sample()) for _ in range(6000)])
    assert space.contains(takes.taken(takes.random(1, rng)[0]))
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.06)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.04)


def test_numbers_that_a_graph_names_itself_are_taken_as_they_are(tmp_path):
    """ML-Agents' export: one whole number of each choice, drawn in one output and the likeliest in another."""
    made = surgery.load(deployed.export("mlagents", "torchscript", tmp_path))
    gymnasium.register(
        "Twice-v0",
        type("Twice", (Levers,), {"action_space": spaces.MultiDiscrete([3, 2]),
                                  "observation_space": spaces.Box(-2, 2, (5,), np.float32)}),
    )  # fmt: skip
    policy = load(made)
    assert policy.head.output == "deterministic_discrete_actions"
    policy.meet((5,), (), action_space(Environment(), spaces.MultiDiscrete([3, 2])))
    seen = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    found = policy.act(seen, generator=np.random.default_rng(0))
    assert found.shape == (6, 2) and len(np.unique(found, axis=0)) > 1
    with pytest.raises(Refused, match="nothing says how they are drawn"):
        policy.act(seen, mode="sample", generator=np.random.default_rng(0))
    with pytest.raises(ArgumentError, match="names 2 choices at once"):
        policy.meet((5,), (), action_space(Environment(), spaces.MultiDiscrete([3, 2, 2])))


REFUSED = {
    "too many numbers": (plain([9], LOGITS), "Twice", "9 actions, the environment takes choices among 3, 2"),
    "other sizes": (plain([4, 2, 3], LOGITS), "Levers", "3 outputs are logits (logits_0, logits_1, logits_2)"),
    "several for one": (plain([4, 5], LOGITS), "CartPole-v1", "takes one of 2"),
    "several for switches": (plain([2, 3], LOGITS), "Lights", "takes 5 switches"),
    "nothing left": (
        plain([9], LOGITS, environment=Environment(None, {"action_mask": [False] * 2 + [True] * 7})), "Levers",
        "leaves a choice without any value",
    ),
    "a mask of switches": (
        plain([5], LOGITS[:5], environment=Environment(None, {"action_mask": [False] + [True] * 4})), "Lights",
        "these are switches",
    ),
    "words": (plain([9], LOGITS), "Words", "cannot be played here"),
    "whole numbers of a Box": (plain([9], LOGITS), "Whole", "cannot be played here"),
    "an action set": (
        plain([9], LOGITS, environment=Environment(None, {"action_set": [0, 1]})), "Levers", "cannot honour",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_played_says_why(case):
    made, name, says = REFUSED[case]
    if name == "Twice" and "Twice-v0" not in gymnasium.registry:
        levers("Twice", spaces.MultiDiscrete([3, 2]))
    environment = name if "-v" in name else f"{name}-v0"
    with pytest.raises(ArgumentError) as caught:
        evaluate(made, environment=Environment(environment, made.environment.settings), episodes=1)
    assert says in caught.value.message
    assert caught.value.hint


def test_they_are_not_distilled_yet_and_nothing_is_begun(tmp_path, capsys):
    _, path, environment = saved("ppo", tmp_path)
    branches = tmp_path / "branches.onnx"
    surgery.save(plain([2, 4, 3], LOGITS), branches)
    run = str(tmp_path / "run")
    for words in (
        ["distill", str(path), "--env", environment],
        ["distill", str(branches), "--env", "CartPole-v1"],
        ["finetune", str(branches), "--env", environment],
    ):
        to = ["--to", "mlp-16"] if words[0] == "distill" else []
        assert main([*words, *to, "-o", run]) == 1
        assert "surgery evaluate plays such an agent" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_switches_are_drawn_by_their_sigmoid_at_a_temperature(rng):
    said = np.full((4000, 2), 2 * np.log(3), np.float32) * [1, -1]
    on = Switches(MultiBinary((2,)), temperature=2.0).sample(said, rng).mean(0)
    assert on == pytest.approx([0.75, 0.25], abs=4 * (0.75 * 0.25 / 4000) ** 0.5)
