"""Whole episodes by Keras' own predictions: the graph wants the same actions, and says the same of what it sees."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import surgery

pytest.importorskip("h5py")
pytest.importorskip("gymnasium")
os.environ.setdefault("KERAS_BACKEND", "torch" if importlib.util.find_spec("torch") else "tensorflow")
keras = pytest.importorskip("keras")

from keras import layers  # noqa: E402

from surgery.cli import main  # noqa: E402
from surgery.errors import ArgumentError, Refused  # noqa: E402
from surgery.verify.outputs import runtime  # noqa: E402
from surgery_adapters.keras import parity  # noqa: E402
from surgery_adapters.playing import make  # noqa: E402
from tests.keras_models import write as write_net  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def cartpole() -> keras.Model:
    x = observation = keras.Input((4,), name="observation")
    x = layers.LayerNormalization()(layers.Dense(16, "tanh")(x))
    return keras.Model(observation, layers.Dense(2, name="logits")(layers.Dense(12, "gelu")(x)))


def actor_critic() -> keras.Model:
    """Two outputs, the value first."""
    observation = keras.Input((4,), name="observation")
    x = layers.Dense(16, "relu")(observation)
    return keras.Model(observation, [layers.Dense(1, name="value")(x), layers.Dense(2, name="logits")(x)])


def pendulum() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((3,), name="observation"),
            layers.Dense(16, "tanh"),
            layers.Dense(1, "tanh", name="action"),
        ]
    )


def breakout() -> keras.Model:
    """Nature's convolutions in small, on stacked frames with the channels last."""
    pixels = keras.Input((84, 84, 4), dtype="uint8", name="observation")
    x = layers.Conv2D(4, 8, 4, "same", activation="relu")(layers.Rescaling(1 / 255)(pixels))
    x = layers.Flatten()(layers.Conv2D(6, 4, 3, activation="relu")(x))
    return keras.Model(pixels, layers.Dense(4, name="q_values")(x))


MODELS: Mapping[str, tuple[Callable[[], keras.Model], str]] = {
    "cartpole": (cartpole, "CartPole-v1"),
    "actor and critic": (actor_critic, "CartPole-v1"),
    "pendulum": (pendulum, "Pendulum-v1"),
    "stacked frames of ALE": (breakout, "ALE/Breakout-v5"),
}


def written(name: str, path: Path) -> str:
    """Save a model; the environment that it plays."""
    if "ALE" in name:
        pytest.importorskip("ale_py")
        pytest.importorskip("cv2")
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    make_model, environment = MODELS[name]
    make_model().save(path)
    return environment


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_wants_the_actions_that_the_framework_takes(tmp_path, name):
    path = tmp_path / "agent.keras"
    environment = written(name, path)
    found = parity(path, surgery.load(path), environment, episodes=1, seed=3)
    assert found.steps > 5
    assert (found.differing, len(found.returns)) == (0, 1)
    assert found.largest <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_says_what_the_framework_says_of_real_observations(tmp_path, name):
    path = tmp_path / "agent.keras"
    environment = written(name, path)
    model = keras.saving.load_model(path)
    env = make(environment, tuple(model.inputs[0].shape[1:]), model.outputs[-1].shape[-1])
    env.action_space.seed(0)
    seen = [env.reset(seed=0)[0]]
    for _ in range(63):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(env.reset()[0] if terminated or truncated else observation)
    env.close()
    x = np.stack(seen).astype(model.inputs[0].dtype)
    wanted = model.predict(x, verbose=0)
    found = list(runtime(surgery.load(path).model)({"observation": x}).values())
    for ours, theirs in zip(found, wanted if len(found) > 1 else [wanted], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert (ours.argmax(1) == theirs.argmax(1)).all()


def test_a_widened_file_plays_as_its_graph_does_and_as_before(tmp_path):
    path, wide = tmp_path / "agent.keras", tmp_path / "wide.keras"
    environment = written("pendulum", path)
    before = surgery.load(path)
    surgery.apply(surgery.widen(before, factor=2, seed=1), before).save(wide)
    old, new = (parity(p, surgery.load(p), environment, episodes=1, seed=5) for p in (path, wide))
    assert new.differing == 0
    np.testing.assert_allclose(new.returns, old.returns, rtol=1e-4)


def test_a_graph_that_is_another_does_not_pass(tmp_path):
    path = tmp_path / "agent.keras"
    environment = written("pendulum", path)
    checkpoint = surgery.load(path)
    model = checkpoint.model.clone()
    bias = next(
        v for k, v in model.graph.initializers.items() if k.startswith("action") and k.endswith("bias")
    )
    bias.const_value = ir.Tensor(np.array([0.01], np.float32), name=bias.name)
    found = parity(path, checkpoint.replace(model=model), environment, episodes=1)
    assert found.differing == found.steps
    with pytest.raises(Refused, match="chooses another action"):
        found.check()


def test_environments_that_do_not_fit_are_one_clear_error(tmp_path, capsys):
    path, graph = tmp_path / "agent.keras", str(tmp_path / "agent.onnx")
    written("cartpole", path)
    with pytest.raises(ArgumentError, match="does not fit Pendulum"):
        parity(path, surgery.load(path), "Pendulum-v1")
    two = write_net("atoms", tmp_path)
    with pytest.raises(Refused, match="2 inputs"):
        parity(two, surgery.load(two), "CartPole-v1")
    assert main(["convert", str(path), "--check", "CartPole-v1", "-o", graph]) == 2
    assert "--trust" in capsys.readouterr().err
    assert main(["convert", str(path), "--check", "CartPole-v1", "--trust", "-o", graph]) == 0
    assert "3 episodes of CartPole-v1" in capsys.readouterr().out
