"""Fine-tuning: weights, optimizer state and replay go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery import policy as policies
from surgery.architectures import new
from surgery.builder import GraphBuilder
from surgery.distill import Options, execute, plan_finetune
from surgery.distill.session import Session
from surgery.errors import ArgumentError
from surgery.interface import Environment, Interface, Port, PortPatch


@pytest.fixture
def teacher(teachers: Path) -> surgery.Checkpoint:
    return surgery.load(teachers / "cartpole-dqn.onnx")


def test_fine_tuning_carries_weights_and_optimizer_state_on(
    teacher: surgery.Checkpoint, teachers: Path, tmp_path: Path
):
    with_state = surgery.attach(teacher, teachers / "cartpole-dqn.pt")
    options = Options(frames=1000, envs=4, changes={"evaluation_episodes": 2, "evaluate_every": 1000})
    job = plan_finetune(with_state, tmp_path / "on", environment=teacher.environment, options=options)
    session = Session(job)
    for name, parameter in session.student.module.named_parameters():
        had = with_state.optimizer.slots["exp_avg_sq"][name].numpy()
        np.testing.assert_array_equal(session.learner.optimizer.state[parameter]["exp_avg_sq"], had)
        assert float(session.learner.optimizer.state[parameter]["step"]) == with_state.optimizer.steps[name]
    session.close()
    outcome = execute(job)
    assert outcome.mean_return > 100
    tuned = surgery.load(outcome.student)
    assert tuned.optimizer.steps["network.0.weight"] == pytest.approx(
        with_state.optimizer.steps["network.0.weight"] + outcome.updates
    )
    assert tuned.lineage[-1].operation == "finetune"
    metrics = (tmp_path / "on" / "metrics.jsonl").read_text().splitlines()
    trained = [line for line in map(json.loads, metrics) if line["kind"] == "train"]
    assert trained[0]["epsilon"] == 0.01


def test_fine_tuning_begins_with_the_replay_that_it_is_given(teacher: surgery.Checkpoint, tmp_path: Path):
    generator = np.random.default_rng(0)
    states = generator.normal(size=(901, 4)).astype(np.float32)
    np.savez(
        tmp_path / "replay.npz", obs=states[:-1], next_obs=states[1:], action=generator.integers(0, 2, 900),
        reward=np.ones(900, np.float32), terminated=generator.random(900) < 0.05,
    )  # fmt: skip
    options = Options(frames=1000, envs=4, changes={"evaluation_episodes": 2, "learn_after": 600})
    job = plan_finetune(
        teacher,
        tmp_path / "on",
        environment=teacher.environment,
        options=options,
        replay=tmp_path / "replay.npz",
    )
    assert execute(job).updates == pytest.approx(1000 / 4, abs=3)


def test_fine_tuning_with_another_optimizer_turns_the_state_into_its(teachers: Path, tmp_path: Path):
    with_state = surgery.attach(
        surgery.load(teachers / "minatar-breakout-dqn.onnx"), teachers / "minatar-breakout-dqn.pt"
    )
    assert with_state.optimizer.kind == "rmsprop"
    job = plan_finetune(
        with_state, tmp_path / "run", environment=with_state.environment, options=Options(frames=1000, envs=2)
    )
    session = Session(job)
    state = session.learner.optimizer.state
    for name, parameter in session.student.module.named_parameters():
        assert float(state[parameter]["exp_avg_sq"].abs().sum()) > 0, name
        np.testing.assert_array_equal(parameter.detach().numpy(), with_state.tensors[name].numpy())
    assert session.learner.optimizer.param_groups[0]["lr"] == 1e-5
    session.close()


def new_of(observation: int, actions: int) -> surgery.Checkpoint:
    return new("mlp-8", observation=(observation,), actions=actions)


@pytest.mark.parametrize(
    ("name", "environment", "message", "hint"),
    [
        ("cartpole-dqn", "Acrobot-v1", "takes observations of shape 4, got 6", "surgery adapt"),
        ("cartpole-dqn", "MountainCar-v0", "takes observations of shape 4, got 2", "surgery adapt"),
        ("five", "CartPole-v1", "has 5 actions, the environment only 2", "action_set"),
        ("masked", "CartPole-v1", "has 5 actions, the environment only 2", "action_set"),
        ("two", "MountainCar-v0", "has 2 actions, the environment 3", "surgery extend"),
        ("breakout-ppo", "ALE/Breakout-v5", r"output of values; this model has logits \(logits\)", "surgery distill"),
    ],
)  # fmt: skip
def test_what_cannot_go_on_is_refused_before_anything_is_written(
    name: str, environment: str, message: str, hint: str, teachers: Path, tmp_path: Path
):
    made = {"five": (4, 5), "masked": (4, 5), "two": (2, 2)}.get(name)
    model = surgery.load(teachers / f"{name}.onnx") if made is None else new_of(*made)
    mask = {"action_mask": [True, True, True, False, False]} if name == "masked" else {}
    with pytest.raises(ArgumentError, match=message) as error:
        plan_finetune(model, tmp_path / "run", environment=Environment(environment, mask))
    assert hint in str(error.value.hint)
    assert not (tmp_path / "run").exists()


def one_of(values: int, actions: int) -> surgery.Checkpoint:
    """Reads one whole number of several, as Stable-Baselines3's models of discrete observations do."""
    graph = GraphBuilder("choice")
    table = np.random.default_rng(0).standard_normal((values, actions)).astype(np.float32)
    x = graph.input("observation", (), "int64")
    graph.output(graph.op("Gather", graph.parameter("table", table), x), "q_values", (actions,))
    ports = (Port("observation", "observation", low=0.0, high=values - 1.0, declared=True),)
    return surgery.Checkpoint(graph.model(), Interface(ports, (Port("q_values", "q_values"),)))


def bytes_for_one() -> surgery.Checkpoint:
    made = new("minatar", observation=(4, 84, 84), actions=4)
    return surgery.annotate(made, inputs={"observation": PortPatch(low=0, high=1)})


@pytest.mark.parametrize(
    ("model", "environment", "settings"),
    [
        (
            lambda: new("mlp-8", observation=(4,), actions=2),
            "CartPole-v1",
            {"preprocessing": {"scale": 10.0}},
        ),
        (lambda: one_of(16, 4), "FrozenLake-v1", {}),
        (bytes_for_one, "ALE/Breakout-v5", {}),
    ],
    ids=["scaled by the contract", "one of several", "bytes for 0 to 1"],
)
def test_a_model_learns_from_what_it_is_shown_in_play(model, environment, settings, tmp_path: Path):
    contract = Environment(environment, settings)
    session = Session(
        plan_finetune(model(), tmp_path / "run", environment=contract, options=Options(frames=8000, envs=2))
    )
    observation = session.begin()
    wanted = policies.load(model(), environment=contract).scores(observation).numpy()
    assert wanted.std() > 0
    for network in (session.student, session.learner.target):
        had = network(network.there(observation)).detach().numpy()
        np.testing.assert_allclose(had, wanted, rtol=0.02, atol=0.005)  # images in bfloat16
    session.close()
