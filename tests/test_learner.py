"""A whole gradient step against the equations: its losses, what it reports, and where the weights end."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from surgery.architectures import new
from surgery.distill.learner import Learner, Objective, make_optimizer
from surgery.distill.methods import METHODS
from surgery.distill.network import Network
from surgery.distill.settings import Settings
from surgery.distill.values import Expected
from surgery.interface import Environment
from surgery.replay import Batch
from surgery.torch import to_module

TAU, TEACHERS_TAU, MARGIN, LAMBDA, RATE = 0.5, 0.25, 0.7, 0.3, 0.01


def learner_of(kind: str = "adam", *, double: bool = False, acts: bool = False) -> Learner:
    """A student and a target of other weights."""
    settings = Settings.scaled(METHODS["qdagger"], Environment("CartPole-v1"), frames=1000, seed=0, envs=2)
    settings = settings.changed({"double": double, "temperature": TAU, "margin": MARGIN})
    student, target = (
        Network(to_module(new("mlp-8", observation=(4,), actions=3, seed=seed)), Expected(), (4,))
        for seed in (1, 5)
    )
    target.module.requires_grad_(False)
    return Learner(
        student, target, make_optimizer(kind, student, 1.0), settings,
        actions=3, teacher_temperature=TEACHERS_TAU, teacher_acts=acts,
    )  # fmt: skip


def drawn(size: int = 24) -> Batch:
    generator = np.random.default_rng(2)
    seen, after, scores = (generator.normal(size=(size, n)).astype(np.float32) * 2 for n in (4, 4, 3))
    action, returns = generator.integers(3, size=size), generator.normal(size=size).astype(np.float32)
    discount = np.where(generator.random(size) < 0.2, 0, 0.97).astype(np.float32)
    weight = generator.uniform(0.1, 1, size).astype(np.float32)
    return Batch(np.arange(size), seen, action, returns, discount, after, weight, scores)


def losses(module: nn.Module, target: nn.Module, batch: Batch, double: bool, kind: str) -> tuple:
    """Temporal differences and what is learned beside them, (B,) each, one example at a time."""
    seen, after = torch.from_numpy(batch.observation), torch.from_numpy(batch.next_observation)
    values, chooser, valuer = module(seen), (module if double else target)(after).detach(), target(after)
    temporal, beside = [], []
    for q, a, r, d, c, v, t in zip(
        values, batch.action, torch.from_numpy(batch.returns), torch.from_numpy(batch.discount), chooser, valuer,
        torch.from_numpy(batch.scores), strict=True,
    ):  # fmt: skip
        error = r + d * v[c.argmax()] - q[a]
        temporal.append(0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5)
        best = int(t.argmax())
        beside.append(
            {
                "none": q[0] * 0,
                "imitate": -((t / TEACHERS_TAU).softmax(0) * (q / TAU).log_softmax(0)).sum(),
                "acts": -(q / TAU).log_softmax(0)[best],
                "margin": max(q[k] + MARGIN * (k != best) for k in range(3)) - q[best],
                "conservative": (q / TAU).exp().sum().log() - q[a] / TAU,
            }[kind]
        )
    return torch.stack(temporal), torch.stack(beside), values


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    ("kind", "temporal"),
    [
        ("none", True),
        ("imitate", True),
        ("acts", True),
        ("margin", True),
        ("conservative", True),
        ("imitate", False),
    ],
)
def test_a_step_is_one_of_adam_down_the_weighted_means_of_the_equations(
    kind: str, double: bool, temporal: bool
):
    learner, held = (learner_of(double=double, acts=kind == "acts") for _ in range(2))
    batch = drawn()
    module = copy.deepcopy(learner.student.module)
    td, beside, values = losses(module, learner.target.module, batch, double, kind)
    td = td if temporal else td * 0
    weight = torch.from_numpy(batch.weight)
    loss = (weight * td).mean() + LAMBDA * (weight * beside).mean()
    auxiliary = "imitate" if kind == "acts" else kind
    for _ in range(2):  # what is read is a mean of steps
        held.update(batch, Objective(temporal, auxiliary), weight=LAMBDA, rate=0.0)
    told = held.read()
    assert told == pytest.approx(
        {
            "loss": loss.item(),
            "temporal": (weight * td).mean().item(),
            "auxiliary": (weight * beside).mean().item(),
            "agreement": float(np.mean(values.detach().numpy().argmax(1) == batch.scores.argmax(1))),
            "value": float(np.mean(values.detach().numpy()[np.arange(24), batch.action])),
        },
        rel=1e-4, abs=1e-6,
    )  # fmt: skip
    assert held.read() == {}
    found = learner.update(batch, Objective(temporal, auxiliary), weight=LAMBDA, rate=RATE)
    torch.testing.assert_close(found, td.detach(), rtol=1e-4, atol=1e-5)
    loss.backward()
    for before, after in zip(module.parameters(), learner.student.module.parameters(), strict=True):
        step = RATE * before.grad / (before.grad.abs() + 1.5e-4)  # both moments are corrected to g and g²
        torch.testing.assert_close(after.detach(), before.detach() - step, rtol=1e-3, atol=2e-5)


def test_double_learning_and_the_target_disagree_on_what_is_best_there():
    """Else the test above would not tell one from the other."""
    learner, after = learner_of(), torch.from_numpy(drawn().next_observation)
    one, other = (network.module(after).argmax(1) for network in (learner.student, learner.target))
    assert (one != other).any()


def test_the_nature_dqns_rmsprop_is_centered():
    """v − m² of the first step is 0.05 g² − (0.05 g)², and ε stands outside the root."""
    learner, batch = learner_of("rmsprop"), drawn()
    module = copy.deepcopy(learner.student.module)
    td, _, _ = losses(module, learner.target.module, batch, False, "none")
    (torch.from_numpy(batch.weight) * td).mean().backward()
    learner.update(batch, Objective(True, "none"), weight=0.0, rate=1e-3)
    for before, after in zip(module.parameters(), learner.student.module.parameters(), strict=True):
        g = before.grad
        step = 1e-3 * g / ((0.05 * g**2 - 0.0025 * g**2).sqrt() + 1e-5)
        torch.testing.assert_close(after.detach(), before.detach() - step, rtol=1e-3, atol=1e-5)


def test_the_target_stands_still_until_it_is_told():
    learner, seen = learner_of(), torch.from_numpy(drawn().observation)
    before = learner.target(seen)
    learner.update(drawn(), Objective(True, "imitate"), weight=1.0, rate=RATE)
    assert torch.equal(learner.target(seen), before)
    learner.sync_target()
    assert torch.equal(learner.target(seen), learner.student(seen))
    assert not torch.equal(learner.target(seen), before)
