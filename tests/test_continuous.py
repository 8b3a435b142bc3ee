"""Continuous actions: action by action what the framework does, the same returns, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.envs import make
from surgery.envs.actions import Box
from surgery.envs.step import seeds
from surgery.errors import ArgumentError, Refused
from surgery.evaluate import diagnose, evaluate, record
from surgery.interface import Environment, PortPatch
from surgery.ops.actions import NewAction
from surgery.policy import load
from surgery.port_kinds import infer
from tests.beside_sb3 import both

sb3, contrib = pytest.importorskip("stable_baselines3"), pytest.importorskip("sb3_contrib")
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
FIXTURES = Path(__file__).parent / "fixtures"
CARTPOLE = Path(__file__).parent.parent / "examples" / "teachers" / "cartpole-dqn.onnx"
LOW, HIGH = np.array([[-3, -1], [0, -2]], np.float32), np.array([[1, 4], [2, 7]], np.float32)


class Reach(gymnasium.Env):
    """Ten steps; the sum of the actions is the reward, and one outside of the bounds is an error."""

    observation_space = gymnasium.spaces.Box(-2, 2, (4,), np.float32)
    action_space = gymnasium.spaces.Box(LOW, HIGH)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 10
        return self.np_random.uniform(-2, 2, 4).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left -= 1
        seen = self.np_random.uniform(-2, 2, 4).astype(np.float32)
        return seen, float(np.sum(action)), False, self.left == 0, {}


class Free(Reach):
    """The same with two numbers without bounds."""

    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))


class Line(Reach):
    """The same with two numbers between −2 and 2."""

    action_space = gymnasium.spaces.Box(-2, 2, (2,))


class Wide(Line):
    """The same with three."""

    action_space = gymnasium.spaces.Box(-2, 2, (3,))


for kind in (Reach, Free, Line, Wide):
    gymnasium.register(f"{kind.__name__}-v0", kind)

SMALL = {"policy_kwargs": {"net_arch": [16, 16]}, "device": "cpu", "seed": 0}
SDE = {"use_sde": True, **SMALL}
MODELS = {
    "ppo": (sb3.PPO, "MlpPolicy", "mean", SMALL),
    "ppo gsde": (sb3.PPO, "MlpPolicy", "mean", SDE),
    "ppo squashed": (
        sb3.PPO, "MlpPolicy", "action",
        {**SDE, "policy_kwargs": {"net_arch": [16], "squash_output": True, "log_std_init": -1.0}},
    ),
    "a2c": (sb3.A2C, "MlpPolicy", "mean", SMALL),
    "sac": (sb3.SAC, "MlpPolicy", "action", SMALL),
    "sac gsde": (sb3.SAC, "MlpPolicy", "action", SDE),
    "tqc": (contrib.TQC, "MlpPolicy", "action", SMALL),
    "td3": (sb3.TD3, "MlpPolicy", "action", SMALL),
    "ddpg": (sb3.DDPG, "MlpPolicy", "action", SMALL),
    "recurrent": (contrib.RecurrentPPO, "MlpLstmPolicy", "mean", SMALL),
}  # fmt: skip


def saved(name, folder, environment="Reach-v0"):
    """A model whose actions are spread over their range, and its file."""
    import torch

    algorithm, policy, kind, settings = MODELS[name]
    model = algorithm(policy, environment, **copy.deepcopy(settings))
    with torch.no_grad():
        for key, tensor in model.policy.named_parameters():
            if "action_net" in key or key.startswith("actor.mu") or "latent_pi" in key:
                tensor.mul_(30 if "action_net" in key else 2)
    model.save(folder / "model.zip")
    return model, folder / "model.zip", kind


def met(checkpoint, environment="Reach-v0", **settings):
    """The checkpoint as a policy that has met an environment."""
    policy, envs = load(checkpoint, **settings), make(Environment(environment), 1, seed=0, training=False)
    policy.meet(envs.observation_shape, envs.parts, envs.takes)
    return policy


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "host"])
def test_actions_are_those_that_the_framework_predicts(name, backend, tmp_path):
    model, path, kind = saved(name, tmp_path)
    policy = met(surgery.load(path), host=backend == "host", backend="auto" if backend == "host" else backend)
    assert (policy.kind, policy.actions, policy.recurrent) == (kind, 4, name == "recurrent")
    ends = 0
    for found, wanted in both(model, policy, lambda rng: rng.uniform(-2, 2, (3, 4)).astype(np.float32)):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=3e-5)
        ends += int((np.isclose(found, LOW) | np.isclose(found, HIGH)).sum())
    assert (kind == "action") or ends > 10  # means beyond the bounds


RETURNS = {
    "ppo": ("Pendulum-v1", False), "sac": ("Pendulum-v1", False), "td3": ("MountainCarContinuous-v0", False),
    "recurrent": ("Pendulum-v1", False), "a2c": ("Pendulum-v1", True),
}  # fmt: skip


@pytest.mark.parametrize("name", RETURNS)
def test_returns_are_those_that_the_framework_evaluates(name, tmp_path):
    environment, normalised = RETURNS[name]
    model, path, _ = saved(name, tmp_path, environment)
    venv = make_vec_env(environment)
    if normalised:
        venv = VecNormalize(venv, clip_obs=2.0, training=False, norm_reward=False)
        venv.obs_rms.mean, venv.obs_rms.var = np.array([0.2, -0.1, 0.5]), np.array([0.1, 2.0, 4.0])
        venv.save(str(tmp_path / "vecnormalize.pkl"))
    venv.seed(int(seeds(7, 1)[0]))
    wanted, _ = evaluate_policy(model, venv, 2, return_episode_rewards=True)
    found = evaluate(
        surgery.load(path), environment=Environment(environment, surgery.load(path).environment.settings),
        episodes=2, num_envs=1, seed=7,
    )  # fmt: skip
    assert found.mode == "greedy"
    np.testing.assert_allclose(found.episodes.returns, wanted, rtol=1e-4)
    assert found.random.source == "measured"


def test_a_framework_file_is_evaluated_recorded_confirmed_and_diagnosed(tmp_path, capsys):
    _, path, _ = saved("sac", tmp_path)
    scored = tmp_path / "scored.zip"
    words = ["evaluate", str(path), "--env", "Reach-v0", "--episodes", "4", "--record", "-o", str(scored)]
    assert main(words) == 0
    sb3.SAC.load(scored)
    capsys.readouterr()
    assert main(["evaluate", str(scored), "--episodes", "4", "--seed", "1", "--teacher", "9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mode"], report["confirmed"], report["random"]["source"]) == ("greedy", True, "recorded")
    assert report["teacher_normalised"] is not None
    assert "action_set" not in report["environment"]["settings"]


@pytest.mark.parametrize(
    ("numbers", "declared", "found"),
    [([0.5, 1.0], True, "mapped from −1 … 1"), ([-0.5, -1.0], False, "in the environment's own units")],
)
def test_a_range_that_is_declared_wrongly_is_found(numbers, declared, found):
    ends = {"low": -1.0, "high": 1.0}
    right, wrong = (
        plain(numbers, kind="action", **(ends if said else {})) for said in (declared, not declared)
    )
    reached = record(right, evaluate(right, environment=Environment("Line-v0"), episodes=4))
    wrong = wrong.replace(environment=reached.environment)
    done = evaluate(wrong, episodes=4)
    assert done.confirmed is False
    assert any(cause.startswith("range of actions: 'action'") for cause in done.causes)
    reaches = [one.change for one in diagnose(wrong, done, episodes=2) if one.reaches]
    assert any(found in change for change in reaches)


def plain(mean, log_std=None, *, kind="mean", environment=None, batch=None, **patch):
    """Constant numbers for whatever is seen, and the logarithm of their deviation."""
    graph = GraphBuilder("plain")
    x = graph.input("observation", (4,))
    zeros = np.zeros((len(mean), 4), np.float32)
    graph.output(graph.linear(x, "mean", zeros, np.array(mean, np.float32)), kind, (len(mean),))
    if log_std is not None:
        graph.output(graph.linear(x, "std", zeros, np.array(log_std, np.float32)), "log_std", (len(mean),))
    model = graph.model()
    if batch is not None:
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.shape = type(value.shape)([batch, *list(value.shape)[1:]])
    made = Checkpoint(model, infer(model), environment or Environment())
    return surgery.annotate(made, outputs={kind: PortPatch(kind, **patch)}, environment=made.environment)


def acted(made, environment, count=20_000, **how):
    policy = met(made, environment)
    return policy.act(np.zeros((count, 4), np.float32), generator=np.random.default_rng(0), **how)


def test_a_sample_is_normal_and_clipped_and_epsilon_is_any_action_of_the_box():
    made = plain([0.5, -1.5], [np.log(0.3), np.log(2.0)])
    assert (acted(made, "Line-v0") == np.array([0.5, -1.5], np.float32)).all()
    drawn = acted(made, "Line-v0", mode="sample")
    assert drawn[:, 0].mean() == pytest.approx(0.5, abs=0.01)
    assert drawn[:, 0].std() == pytest.approx(0.3, abs=0.01)
    assert (np.abs(drawn) <= 2).all()
    assert (drawn[:, 1] == -2).mean() == pytest.approx(0.4013, abs=0.015)  # Φ(−0.25)
    free = acted(made, "Free-v0", mode="sample")
    assert free[:, 1].std() == pytest.approx(2.0, abs=0.05)
    some = acted(made, "Line-v0", mode="epsilon", epsilon=0.25)
    other = (some != np.array([0.5, -1.5], np.float32)).all(1)
    assert other.mean() == pytest.approx(0.25, abs=0.015)
    assert some[other].std(0) == pytest.approx(4 / np.sqrt(12), abs=0.03)
    tiny = acted(made, "Line-v0", count=3, mode="epsilon", epsilon=0.0)
    assert (tiny == np.array([0.5, -1.5], np.float32)).all()


def test_a_sample_of_a_squashed_policy_is_tanh_of_a_normal_one(tmp_path):
    import torch

    model, path, _ = saved("sac", tmp_path)
    seen = np.random.default_rng(1).uniform(-2, 2, (1, 4)).astype(np.float32)
    drawn = met(surgery.load(path)).act(
        np.repeat(seen, 20_000, 0), mode="sample", generator=np.random.default_rng(0)
    )
    with torch.no_grad():
        mean, log_std, _ = model.actor.get_action_dist_params(torch.from_numpy(seen))
    torch.manual_seed(0)
    wanted = torch.tanh(mean + log_std.exp() * torch.randn(20_000, 4)).numpy().reshape(-1, 2, 2)
    scaled = LOW + 0.5 * (wanted + 1) * (HIGH - LOW)
    found, known = (np.quantile(actions, [0.1, 0.5, 0.9], 0) for actions in (drawn, scaled))
    np.testing.assert_allclose(found, known, atol=0.15)


@pytest.mark.parametrize(
    ("patch", "wanted"),
    [
        ({"kind": "mean"}, [0.5, -2.0]),
        ({"kind": "action"}, [0.5, -2.0]),
        ({"kind": "action", "low": -1.0, "high": 1.0}, [1.0, -2.0]),
        ({"kind": "mean", "low": (-1.0, -5.0), "high": (1.0, 5.0)}, [1.0, -1.2]),
        ({"kind": "action", "low": -1.0, "high": 1.0,
          "environment": Environment(None, {"action_range": {"action": {"low": [-4.0, 0.0], "high": [4.0, 1.0]}}})},
         [2.0, -1.0]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [None, 1, 2])
def test_numbers_are_mapped_from_the_declared_range_to_the_bounds_and_clipped(patch, wanted, batch):
    np.testing.assert_allclose(
        acted(plain([0.5, -3.0], batch=batch, **patch), "Line-v0", count=3), [wanted] * 3
    )


def test_random_play_is_distributed_as_gymnasium_samples():
    inf = np.float32(np.inf)
    space = gymnasium.spaces.Box(
        np.array([-2, 1, -inf, -inf], np.float32), np.array([3, inf, 1, inf], np.float32)
    )
    space.seed(0)
    wanted = np.stack([space.sample() for _ in range(20_000)])
    found = Box(space.low, space.high).random(20_000, np.random.default_rng(0))
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(
        np.quantile(found, [0.05, 0.5, 0.95], 0), np.quantile(wanted, [0.05, 0.5, 0.95], 0), atol=0.1
    )
    done = evaluate(plain([0.0, 0.0]), environment=Environment("Free-v0"), episodes=40)
    assert abs(done.random.mean) < 5 and done.random.mean != 0


def test_sticky_actions_repeat_continuous_ones_too():
    made = plain([1.0, 1.0], [0.0, 0.0])
    still, stuck = (
        evaluate(made, environment=Environment("Line-v0", {"sticky_actions": p}), mode="sample", episodes=60)
        for p in (0.0, 0.95)
    )
    assert stuck.episodes.returns.std() > 1.5 * still.episodes.returns.std()


REFUSED = {
    "too few": (plain([0.0]), "Line-v0", {}, "has 1 actions, the environment 2", "--action mean+1"),
    "too many": (plain([0.0] * 3), "Line-v0", {}, "has 3 actions, the environment only 2", "no edit removes"),
    "one of several": (plain([0.0] * 2), "CartPole-v1", {}, "takes one of 2", "surgery annotate"),
    "numbers for choices": (None, "Reach-v0", {}, "takes 2×2 numbers", "surgery annotate"),
    "no bounds": (
        plain([0.0] * 2, kind="action", low=-1.0, high=1.0), "Free-v0", {}, "no bounds", "RescaleAction"
    ),
    "no bounds for ε": (plain([0.0] * 2), "Free-v0", {"mode": "epsilon:0.1"}, "no bounds", "greedy"),
    "no deviation": (plain([0.0] * 2), "Line-v0", {"mode": "sample"}, "no outputs are log_std", "greedy"),
    "an action alone": (plain([0.0] * 2, kind="action"), "Line-v0", {"mode": "sample"}, "would be drawn", "greedy"),
    "half a range": (plain([0.0] * 2, low=-1.0), "Line-v0", {}, "range of output 'mean'", "low=-1,high=1"),
    "a mask": (
        plain([0.0] * 2, environment=Environment(None, {"action_mask": {"mean": [True, False]}})), "Line-v0", {},
        "a mask cannot forbid numbers", "action_mask=null",
    ),
    "a range of other actions": (
        plain([0.0] * 2, low=-1.0, high=1.0,
              environment=Environment(None, {"action_range": {"mean": {"low": [0.0], "high": [1.0]}}})),
        "Line-v0", {}, "does not fit its 2 actions", "action_range=null",
    ),
    "a range of nothing": (
        plain([0.0] * 2, environment=Environment(None, {"action_range": {"mean": {"low": 0, "high": 1}}})),
        "Line-v0", {}, "not declared", "low=-1,high=1",
    ),
    "an action set": (plain([0.0] * 2), "Line-v0", {"action_set": [0, 1]}, "cannot honour", "action_set=null"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_played_says_why(case):
    made, environment, how, says, hint = REFUSED[case]
    made = surgery.load(CARTPOLE) if made is None else made
    known = {k: v for k, v in made.environment.settings.items() if k in ("action_mask", "action_range")}
    mode = how.get("mode")
    contract = Environment(environment, {**known, **{k: v for k, v in how.items() if k != "mode"}})
    with pytest.raises((ArgumentError, Refused)) as caught:
        evaluate(made, environment=contract, episodes=1, mode=mode)
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_a_policy_that_has_met_no_environment_has_no_bounds_and_no_scores():
    policy = load(plain([0.0, 0.0]))
    with pytest.raises(ArgumentError, match="bounds are the environment's"):
        policy.act(np.zeros((1, 4), np.float32), generator=np.random.default_rng(0))
    with pytest.raises(Refused, match="not scores"):
        policy.scores(np.zeros((1, 4), np.float32))
    with pytest.raises(ArgumentError, match="temperature"):
        load(plain([0.0, 0.0]), temperature=0.5)


def test_they_are_not_distilled_from_or_trained_on_yet_and_nothing_is_begun(tmp_path, capsys):
    _, path, _ = saved("td3", tmp_path)
    run = str(tmp_path / "run")
    for words in (
        ["distill", str(path), "--to", "mlp-16", "--env", "Reach-v0", "-o", run],
        ["distill", str(path), "--to", "mlp-16", "--env", "CartPole-v1", "-o", run],
        ["distill", str(CARTPOLE), "--to", "mlp-16", "--env", "Reach-v0", "-o", run],
        ["finetune", str(path), "--env", "Reach-v0", "-o", run],
    ):
        assert main(words) == 1
        said = capsys.readouterr().err
        assert "surgery evaluate plays such an agent" in said
    assert not Path(run).exists()


RANGES = {
    "d3rlpy/td3.d3": ("action", None, {}),
    "d3rlpy/sac.d3": ("action", -1.0, {"action": {"low": (-2.0, -3.0), "high": (2.0, 3.0)}}),
    "d3rlpy/iql.d3": ("action", None, {}),
    "dopamine/sac.ckpt.3.gz": ("action", -1.0, {}),
    "flax/td3.cleanrl_model": ("action", -1.0, {}),
    "rllib/ppo-box.zip": ("mean", -1.0, {}),
    "rllib/sac.zip": ("mean", -1.0, {}),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_framework_file_says_what_its_actions_stand_for(name, tmp_path):
    import gzip
    import zipfile

    output, low, reach = RANGES[name]
    path = FIXTURES / name
    if path.suffix == ".zip":
        zipfile.ZipFile(path).extractall(path := tmp_path / "run")
    elif path.suffix == ".gz":
        content = gzip.decompress(path.read_bytes())
        (path := tmp_path / "ckpt.3").write_bytes(content)
    made = surgery.load(path)
    policy = load(made)
    assert policy.head.output == output
    assert made.interface.output(output).low == low
    assert made.environment.settings.get("action_range", {}) == reach


@pytest.mark.parametrize(("name", "kind"), [("td3", sb3.TD3), ("sac", sb3.SAC), ("ppo", sb3.PPO)])
def test_an_agent_that_is_adapted_to_more_actions_goes_on_as_it_played(name, kind, tmp_path, capsys):
    _, path, _ = saved(name, tmp_path, "Line-v0")
    assert main(["evaluate", str(path), "--env", "Wide-v0", "--episodes", "1"]) == 2
    assert "surgery adapt" in capsys.readouterr().err
    more = tmp_path / "more.zip"
    assert main(["adapt", str(path), "--env", "Wide-v0", "--unnamed", "append", "-o", str(more)]) == 0
    assert main(["evaluate", str(more), "--env", "Wide-v0", "--episodes", "1"]) == 0
    policy, before = met(surgery.load(more), "Wide-v0"), met(surgery.load(path), "Line-v0")
    seen, rng = np.random.default_rng(0).uniform(-2, 2, (20, 4)).astype(np.float32), np.random.default_rng(0)
    found = policy.act(seen, generator=rng)
    np.testing.assert_allclose(found[:, :2], before.act(seen, generator=rng), atol=1e-5)
    assert not found[:, 2].any()
    wanted, _ = kind.load(more, env=Wide()).predict(seen, deterministic=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_range_of_a_scaler_follows_new_actions(tmp_path):
    scaled = surgery.load(FIXTURES / "d3rlpy/sac.d3")
    plan = surgery.extend(scaled, actions=[NewAction("mean", 1)])
    wide = surgery.apply(plan, scaled).checkpoint
    assert wide.environment.settings["action_range"]["action"]["high"] == (2.0, 3.0, 1.0)
    surgery.save(wide, tmp_path / "wide.d3")
    again = surgery.load(tmp_path / "wide.d3")
    assert again.environment.settings["action_range"] == wide.environment.settings["action_range"]
    back = surgery.apply(surgery.invert(plan, wide), wide).checkpoint
    assert back.environment == scaled.environment
