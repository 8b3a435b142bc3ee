"""Environments that show dictionaries: each input of a model gets the entry of its name, as its framework gives it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import stable_baselines3 as sb3
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

import surgery
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.envs import make
from surgery.envs.parts import parts_of
from surgery.errors import ArgumentError
from surgery.evaluate import evaluate
from surgery.interface import Environment, PortPatch
from surgery.policy import load
from surgery.port_kinds import infer
from tests.dict_worlds import Signals

ID = "tests.dict_worlds:Signals-v0"
TURNED = ["--env-setting", 'preprocessing={"layout":"CHW"}']

SPACES = {
    "a dictionary": Signals.observation_space,
    "nested": spaces.Dict(
        {
            "b": spaces.Dict({"z": spaces.Box(0, 1, (2, 3)), "a": spaces.Discrete(4, start=-1)}),
            "a": spaces.MultiDiscrete([2, 3]),
        }
    ),
    "a tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float64), spaces.MultiBinary((2, 2)))),
    "a number": spaces.Discrete(5),
}  # fmt: skip


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_parts_are_where_gymnasium_flattens_them_to(space: spaces.Space):
    space.seed(0)
    seen, parts = space.sample(), parts_of(space)
    flat, begin = spaces.flatten(space, seen), 0
    assert sum(part.size for part in parts) == len(flat)
    for part in parts:
        leaf, inner = seen, space
        for key in part.name.split(".") if part.name else []:
            key = key if isinstance(inner, spaces.Dict) else int(key)
            leaf, inner = leaf[key], inner[key]
        mine = flat[begin : begin + part.size].reshape(part.shape)
        np.testing.assert_array_equal(mine, spaces.flatten(inner, leaf).reshape(part.shape))
        begin += part.size


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dictionaries") / "ppo.zip"
    venv = VecTransposeImage(DummyVecEnv([Signals]))
    kwargs = {"net_arch": [32], "features_extractor_kwargs": {"cnn_output_dim": 8}}
    model = sb3.PPO(
        "MultiInputPolicy", venv, n_steps=96, batch_size=48, learning_rate=3e-3, policy_kwargs=kwargs,
        device="cpu", seed=0,
    )  # fmt: skip
    model.learn(960).save(path)
    return path


def test_a_model_of_the_framework_takes_its_actions_in_the_dictionarys_environment(trained: Path):
    """Of 400 observations, one environment and several, and asked by a mapping too."""
    model, contract = (
        sb3.PPO.load(trained, device="cpu"),
        Environment("Signals-v0", {"preprocessing": {"layout": "CHW"}}),
    )
    policy, generator = load(surgery.load(trained), environment=contract, host=True), np.random.default_rng(0)
    envs = make(contract, 4, seed=3, training=False)
    policy.meet(envs.observation_shape, envs.parts)
    flat = envs.reset()
    space = model.observation_space
    for _ in range(100):
        seen = [spaces.unflatten(space, row) for row in flat]
        batch = {key: np.stack([one[key] for one in seen]) for key in space}
        wanted = model.predict(batch, deterministic=True)[0]
        action = policy.act(flat, generator=generator)
        assert action.tolist() == wanted.tolist() == policy.act(batch, generator=generator).tolist()
        flat = envs.step(action).observation


def test_it_is_evaluated_and_teaches_a_student_that_sees_the_dictionary_flattened(
    trained: Path, tmp_path: Path, capsys
):
    model, venv = sb3.PPO.load(trained, device="cpu"), VecTransposeImage(DummyVecEnv([Signals]))
    known, _ = evaluate_policy(model, venv, 40, warn=False)
    words = ["evaluate", str(trained), "--env", ID, "--episodes", "40", "--mode", "greedy", "--json"]
    assert main([*words, *TURNED]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean_return"] == pytest.approx(known, abs=2) and known > 6
    assert main(words[:-1]) == 2
    assert "'camera' takes observations of shape 1×36×36, got 36×36×1" in (said := capsys.readouterr().err)
    assert '"layout":"CHW"' in said
    run = ["--env", ID, *TURNED, "--frames", "1000", "--seed", "0", "-o", str(tmp_path / "run")]
    assert main(["distill", str(trained), "--to", "mlp-32", *run]) == 0
    student = surgery.load(tmp_path / "run" / "student.onnx")
    assert [port.name for port in student.interface.inputs] == ["observation"]
    assert evaluate(student, episodes=4).mean >= 0


def preferring(tmp_path: Path, *names: str) -> surgery.Checkpoint:
    """Q-values 3, 2 and 1 whatever is shown; of actions that its mask, if it has one, forbids much less."""
    graph = GraphBuilder("preferring")
    shapes = {"place": (2,), "goal": (3,), "legal": (3,), "wind": (1,)}
    seen = [graph.input(name, shapes[name]) for name in names]
    observed = graph.op("Concat", *[x for x in seen if x.name != "legal"], axis=1)
    width = sum(shapes[name][0] for name in names if name != "legal")
    q = graph.linear(observed, "q", np.zeros((3, width), np.float32), np.float32([3, 2, 1]))
    for x in seen:
        if x.name == "legal":
            q = graph.op(
                "Add",
                q,
                graph.op(
                    "Mul", graph.op("Sub", x, graph.constant(1.0, "float32")), graph.constant(1e6, "float32")
                ),
            )
    graph.output(q, "q_values", (3,))
    inputs = {name: PortPatch("mask" if name == "legal" else "observation") for name in names}
    made = surgery.annotate(
        Checkpoint(graph.model(), infer(graph.model())),
        inputs=inputs,
        outputs={"q_values": PortPatch("q_values")},
    )
    surgery.save(made, tmp_path / "model.onnx")
    return made


@pytest.mark.parametrize("names", [("place", "goal", "legal"), ("goal", "legal")])
def test_a_mask_that_the_environment_shows_is_the_one_that_is_obeyed(names: tuple[str, ...], tmp_path: Path):
    policy, generator = load(preferring(tmp_path, *names)), np.random.default_rng(0)
    envs = make(Environment("Signals-v0"), 5, seed=0, training=False)
    policy.meet(envs.observation_shape, envs.parts)
    flat = envs.reset()
    for _ in range(20):
        legal = np.stack([spaces.unflatten(Signals.observation_space, row)["legal"] for row in flat])
        action = policy.act(flat, generator=generator)
        assert action.tolist() == (legal * [3, 2, 1]).argmax(1).tolist()
        flat = envs.step(action).observation


REFUSED = {
    "a name that is not shown": (
        ["evaluate", "--episodes", "2"], ("place", "wind"), ID, "what is shown is camera, goal, legal, place"
    ),
    "one array": (
        ["evaluate", "--episodes", "2"], ("place", "goal"), "CartPole-v1", "observations are shown as one array"
    ),
    "stacked": (
        ["evaluate", "--episodes", "2", "--env-setting", "frame_stack=2"], ("place", "goal"), ID, "as one array"
    ),
    "a student": (["finetune"], ("place", "goal"), ID, "a student has one input for observations"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_dictionary_that_does_not_fit_is_refused_and_says_why(case: str, tmp_path: Path, capsys):
    words, names, env, says = REFUSED[case]
    preferring(tmp_path, *names)
    out = ["-o", str(tmp_path / "run")] if words[0] == "finetune" else []
    assert main([words[0], str(tmp_path / "model.onnx"), *words[1:], "--env", env, *out]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_statistics_of_a_dictionarys_parts_normalise_them(tmp_path: Path):
    """`VecNormalize` of one entry of several."""
    venv = VecNormalize(DummyVecEnv([Signals]), norm_obs_keys=["place"])
    for _ in range(50):
        venv.step(np.array([0])) if _ else venv.reset()
    statistics = {
        "place": {
            "mean": venv.obs_rms["place"].mean.tolist(), "variance": venv.obs_rms["place"].var.tolist(),
            "epsilon": venv.epsilon, "clip": 0.8,
        }
    }  # fmt: skip
    venv.clip_obs = 0.8
    envs = make(Environment("Signals-v0", {"normaliser": statistics}), 1, seed=0, training=False)
    plain = make(Environment("Signals-v0"), 1, seed=0, training=False)
    [flat], [raw] = envs.reset(), plain.reset()
    seen = spaces.unflatten(Signals.observation_space, raw)
    np.testing.assert_allclose(
        flat[-2:], venv.normalize_obs({k: np.array(v) for k, v in seen.items()})["place"], rtol=1e-6
    )
    np.testing.assert_array_equal(flat[:-2], raw[:-2])
    statistics["place"]["mean"] = statistics["place"]["variance"] = [1.0]
    with pytest.raises(ArgumentError, match="'place' has 1 features, the environment shows 2"):
        make(Environment("Signals-v0", {"normaliser": statistics}), 1, seed=0, training=False)
