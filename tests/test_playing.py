"""What all adapters that play have in common; the games themselves are in the tests of each framework."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.envs.normaliser import Normaliser
from surgery.errors import ArgumentError, MissingDependency, Refused
from surgery.interface import Environment, Interface, Port
from surgery_adapters.playing import Graph, Tally, loading, make, scale

FRAMEWORKS = {
    "d3rlpy": ("d3rlpy", "pip install 'policy-surgery[d3rlpy]'"),
    "rllib": ("ray", "pip install 'policy-surgery[rllib]'"),
    "keras": ("keras", "pip install keras torch gymnasium"),
    "sb3": ("stable_baselines3", "pip install stable-baselines3"),
}


@pytest.mark.parametrize("adapter", FRAMEWORKS)
def test_without_the_framework_the_command_that_installs_it_is_named(monkeypatch, adapter):
    package, command = FRAMEWORKS[adapter]
    for name in [
        name
        for name in sys.modules
        if name.startswith((f"{package}.", f"surgery_adapters.{adapter}.playing"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    module = importlib.import_module(f"surgery_adapters.{adapter}")
    monkeypatch.delattr(module, "playing", raising=False)
    with pytest.raises(MissingDependency) as caught:
        module.parity(Path("nothing"), recurrent(), "CartPole-v1")
    assert caught.value.hint.startswith(command)


def recurrent() -> surgery.Checkpoint:
    """`state.next` = state + the sum of three observations; the two logits are that and its opposite."""
    graph = GraphBuilder("sums")
    x, state = graph.input("observation", (3,)), graph.input("state", (1,))
    after = graph.op("Add", state, graph.op("MatMul", x, graph.constant(np.ones((3, 1)), "float32")))
    logits = graph.op("MatMul", after, graph.constant(np.array([[1.0, -1.0]]), "float32"))
    graph.output(logits, "logits", (2,))
    graph.output(after, "state.next", (1,))
    inputs = (Port("observation", "observation", declared=True), Port("state", "state", declared=True))
    outputs = (Port("logits", "logits", declared=True), Port("state.next", "state", declared=True))
    noted = {
        "observation": {"mean": [1.0, 0.0, 0.0], "variance": [4.0, 1.0, 1.0], "epsilon": 0.0, "clip": 3.0}
    }
    return surgery.Checkpoint(
        graph.model(), Interface(inputs, outputs), environment=Environment(None, {"normaliser": noted})
    )


def test_a_graph_carries_its_state_forgets_it_and_normalises_as_the_contract_says():
    graph, seen = Graph(recurrent()), np.array([[3.0, 50.0, -1.0]])  # normalised 1, 3, −1
    assert graph.kind == "logits"
    assert [float(graph.ask(seen)[0, 0]) for _ in range(3)] == [3.0, 6.0, 9.0]
    graph.reset()
    assert float(graph.ask(seen)[0, 0]) == 3.0
    bare = Graph(recurrent(), normalised=True)
    assert float(bare.ask(seen)[0, 0]) == 52.0


def test_a_file_that_the_framework_cannot_load_is_one_clear_error(tmp_path):
    with (
        pytest.raises(Refused, match="Dreamer cannot load") as caught,
        loading("Dreamer", tmp_path / "agent"),
    ):
        raise AttributeError("no class 'Net'\nin module __main__")
    assert "AttributeError: no class 'Net'" in caught.value.message
    assert "\n" not in caught.value.message
    with pytest.raises(ArgumentError), loading("Dreamer", tmp_path):
        raise ArgumentError("it does not fit")


def test_what_is_no_number_is_a_difference():
    tally = Tally("World-v0", np.ones(2))
    tally.add(np.array([0.0, 1.0]), np.array([0.0, 1.0 + 5e-6]))
    assert tally.parity().differing == 0
    tally.add(np.array([0.0, np.nan]), np.zeros(2))
    tally.add(np.array([0.0, 2e-5]), np.zeros(2))
    assert (tally.differing, tally.steps) == (2, 3)
    with pytest.raises(Refused, match="2 of 3 steps"):
        tally.parity().check()


DAMAGED = {
    "no variance": {"mean": [0.0]},
    "of two sizes": {"mean": [0.0], "variance": [1.0, 1.0]},
    "a variance below 0": {"mean": [0.0], "variance": [-1.0]},
    "a variance of 0": {"mean": [0.0], "variance": [0.0]},
    "text": {"mean": ["a"], "variance": [1.0]},
    "a table": {"mean": [[0.0]], "variance": [[1.0]]},
    "no statistics": 3.0,
    "a clip that is text": {"mean": [0.0], "variance": [1.0], "clip": "wide"},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_statistics_are_one_clear_error(what):
    contract = Environment("World-v0", {"normaliser": {"observation": DAMAGED[what]}})
    with pytest.raises(ArgumentError, match="normaliser of 'observation' is damaged"):
        Normaliser.of(contract, "observation")


def test_an_environment_is_one_that_fits():
    pytest.importorskip("gymnasium")
    env = make("CartPole-v1", (4,), 2)
    assert scale(env.action_space) is None
    assert list(scale(make("Pendulum-v1", (3,), 1).action_space)) == [2.0]
    with pytest.raises(
        ArgumentError, match=r"does not fit CartPole-v1: it takes observations \(4,\) and gives 3"
    ):
        make("CartPole-v1", (4,), 3)
    with pytest.raises(ArgumentError, match="no environment 'Nowhere-v0'"):
        make("Nowhere-v0", (4,), 2)


@pytest.mark.parametrize("shape", [(4, 84, 84), (84, 84, 4), (1, 84, 84)])
def test_games_are_shown_as_the_network_takes_them(shape):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env, first = (make("ALE/Breakout-v5", form, 4) for form in (shape, (min(shape), 84, 84)))
    seen, frames = env.reset(seed=0)[0], first.reset(seed=0)[0]
    for _ in range(3):
        seen, frames = env.step(1)[0], first.step(1)[0]
    assert (seen.shape, seen.dtype) == (shape, np.uint8)
    assert env.observation_space.contains(seen)
    assert len(np.unique(frames)) > 2 and np.array_equal(
        np.moveaxis(seen, shape.index(min(shape)), 0), frames
    )
    env.close()
    first.close()
