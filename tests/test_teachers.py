"""A teacher is a black box: whatever it gives, a student learns to act as it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import surgery
from surgery.architectures import new
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.distill import Options, execute, plan_distill
from surgery.distill.session import Session
from surgery.distill.teacher import Teacher
from surgery.interface import Environment, PortPatch
from surgery.port_kinds import infer

CARTPOLE = Environment("CartPole-v1", {"max_episode_steps": 500})
LEAN = np.array([0.05, 0.2, 1.0, 0.4], np.float32)
"""A pole that leans or falls to the right is caught by going right: hundreds of steps, where chance has twenty."""
ATOMS = np.linspace(-10, 10, 11, dtype=np.float32)


def teacher_of(kind: str) -> Checkpoint:
    """A linear controller that says what it would do as values, logits, atoms, quantiles, or only does it."""
    graph = GraphBuilder(kind)
    x, both = graph.input("observation", (4,)), np.stack([-LEAN, LEAN])
    weight = {
        "q_values": both, "logits": 40 * both, "action": both,
        "atom_logits": (both[:, None] * ATOMS[:, None]).reshape(-1, 4), "quantiles": np.repeat(both, 5, axis=0),
    }[kind]  # fmt: skip
    bias = np.tile(np.arange(5.0) - 2, 2) if kind == "quantiles" else np.zeros(len(weight))
    y = graph.linear(x, "head", weight.astype(np.float32), bias.astype(np.float32))
    if kind in ("atom_logits", "quantiles"):
        y = graph.op("Reshape", y, graph.constant([-1, 2, len(weight) // 2]))
    shape: tuple[int, ...] = (2,) if len(weight) == 2 else (2, len(weight) // 2)
    patch = PortPatch(kind, low=-10.0, high=10.0) if kind == "atom_logits" else PortPatch(kind)
    if kind == "action":
        y, shape = graph.op("ArgMax", y, axis=1, keepdims=0), ()
        patch = PortPatch(kind, labels=["left", "right"])
    graph.output(y, "out", shape, "int64" if kind == "action" else "float32")
    model = graph.model()
    made = Checkpoint(model, infer(model), CARTPOLE)
    return surgery.annotate(made, outputs={"out": patch}, environment=CARTPOLE)


@pytest.mark.parametrize(
    ("kind", "temperature", "head"),
    [("q_values", 0.1, "q"), ("logits", 1.0, "c51"), ("atom_logits", 0.1, "dueling"), ("quantiles", 0.1, "q"),
     ("action", 1.0, "q")],
)  # fmt: skip
def test_a_student_learns_from_a_teacher_of_any_kind(
    kind: str, temperature: float, head: str, tmp_path: Path
):
    changes = {
        "evaluation_episodes": 2, "evaluation_steps": 300, "offline_updates": 150, "teacher_data": 600, "rate": 3e-3,
        "learn_after": 1000, "evaluate_every": 1000,
    }  # fmt: skip
    options = Options(frames=1000, envs=4, device="cpu", head=head, changes=changes)
    job = plan_distill(teacher_of(kind), "mlp-32", tmp_path, environment=CARTPOLE, options=options)
    session = Session(job)
    assert session.teacher is not None
    assert session.teacher.temperature == temperature
    assert session.teacher.only_acts == session.learner._teacher_acts == (kind == "action")
    assert session.learner._teacher_temperature == temperature
    session.close()
    outcome = execute(job)
    assert outcome.teacher is not None
    assert outcome.teacher > 5 * outcome.random
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    agreement = [
        line["agreement"] for line in found if line["kind"] == "train" and line["phase"] == "offline"
    ]
    assert np.mean(agreement[-5:]) > 0.8
    assert outcome.mean_return > 3 * outcome.random


@pytest.mark.parametrize(("kind", "share"), [("logits", 0.75), ("q_values", 1.0)])
def test_a_teacher_acts_as_it_was_trained_to_act(kind: str, share: float, rng: np.random.Generator):
    teacher = Teacher(teacher_of(kind), CARTPOLE, device="cpu")
    actions = teacher.choose(torch.tensor([[0.0, np.log(3)]] * 4000), rng)
    assert actions.mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_what_a_teacher_may_not_do_is_not_taught(tmp_path: Path):
    """It has five actions, its environment two, of which its contract allows one."""
    mask = (False, True, False, False, False)
    contract = Environment("CartPole-v1", {"action_mask": mask})
    teacher = new("mlp-8", observation=(4,), actions=5, seed=3).replace(environment=contract)
    options = Options(frames=1000, envs=2, device="cpu")
    session = Session(plan_distill(teacher, "mlp-8", tmp_path, environment=contract, options=options))
    assert session.teacher is not None
    scores = session.teacher.scores(session.begin()).numpy()
    assert np.isneginf(scores).tolist() == [[True, False]] * 2
    assert session.envs.actions == session.replay.scores == 2
    session.close()
