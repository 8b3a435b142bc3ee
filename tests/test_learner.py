"""A whole gradient step against the equations: its losses, what it reports, and where the weights end."""

from __future__ import annotations

import copy
from dataclasses import replace

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
from surgery.policy.feeds import state_ports
from surgery.replay import Batch, Stretch
from surgery.torch import to_module

TAU, TEACHERS_TAU, MARGIN, LAMBDA, RATE = 0.5, 0.25, 0.7, 0.3, 0.01
BURN_IN, UNROLL = 2, 4


def learner_of(kind: str = "adam", *, to: str = "mlp-8", double: bool = False, acts: bool = False) -> Learner:
    """A student and a target of other weights."""
    recurrent = to.startswith("gru")
    settings = Settings.scaled(
        METHODS["qdagger"], Environment("CartPole-v1"), frames=1000, seed=0, envs=2, recurrent=recurrent
    )
    settings = settings.changed({"double": double, "temperature": TAU, "margin": MARGIN})
    settings = settings.changed({"burn_in": BURN_IN, "unroll": UNROLL} if recurrent else {})
    made = [new(to, observation=(4,), actions=3, seed=seed) for seed in (1, 5)]
    student, target = (Network(to_module(one), Expected(), (4,), states=state_ports(one)) for one in made)
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


def stretches(size: int = 5) -> Batch:
    """Of which some go on from a state, and in some an episode begins in the midst."""
    generator, length = np.random.default_rng(3), BURN_IN + UNROLL + 1
    count, alone = size * UNROLL, drawn(size * UNROLL)
    begins = generator.random((length, size)) < 0.25
    state = generator.normal(size=(size, 6)).astype(np.float32)
    after = (np.arange(count) // size + BURN_IN + 1) * size + np.arange(
        count
    ) % size  # one step on, time first
    seen = generator.normal(size=(length, size, 4)).astype(np.float32) * 2
    return replace(
        alone, observation=seen, next_observation=seen[:0, 0], stretch=Stretch(begins, state, after)
    )


def outputs(network: Network, batch: Batch) -> torch.Tensor:
    """(T, C, A), one stretch and one step at a time; gradients in those that are learned from."""
    found = []
    for c in range(batch.observation.shape[1]):
        state, said = network.unpacked(torch.from_numpy(batch.stretch.state[c : c + 1])), []
        for t, seen in enumerate(torch.from_numpy(batch.observation[:, c : c + 1])):
            with torch.set_grad_enabled(BURN_IN <= t < BURN_IN + UNROLL):
                state = network.blank(1) if batch.stretch.begins[t, c] else state
                output, state = network.step(seen, state)
            said.append(output[0])
        found.append(torch.stack(said))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize("double", [False, True])
def test_a_step_on_stretches_is_the_same_equations_after_a_burn_in_without_gradients(
    double: bool, temporal: bool
):
    learner, held = (learner_of(to="gru-6", double=double) for _ in range(2))
    batch, student = stretches(), held.student
    own, valuer = outputs(student, batch), outputs(learner.target, batch).detach()
    values = own[BURN_IN : BURN_IN + UNROLL].flatten(0, 1)
    best = (own if double else valuer).detach().flatten(0, 1)[batch.stretch.after].argmax(1)
    there = valuer.flatten(0, 1)[batch.stretch.after].gather(1, best[:, None])[:, 0]
    here = values.gather(1, torch.from_numpy(batch.action)[:, None])[:, 0]
    error = torch.from_numpy(batch.returns) + torch.from_numpy(batch.discount) * there - here
    td = torch.where(error.abs() <= 1, 0.5 * error**2, error.abs() - 0.5) * temporal
    teacher = (torch.from_numpy(batch.scores) / TEACHERS_TAU).softmax(1)
    beside = -(teacher * (values / TAU).log_softmax(1)).sum(1)
    found = learner.update(batch, Objective(temporal, "imitate"), weight=LAMBDA, rate=RATE)
    torch.testing.assert_close(found, td.detach(), rtol=1e-4, atol=1e-5)
    (torch.from_numpy(batch.weight) * (td + LAMBDA * beside)).mean().backward()
    pairs = zip(student.module.parameters(), learner.student.module.parameters(), strict=True)
    for before, after in pairs:
        step = RATE * before.grad / (before.grad.abs() + 1.5e-4)
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
