"""Every loss is pinned: against numbers worked out by hand, against plain loops, and by its own properties."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from surgery.architectures import new
from surgery.distill import losses
from surgery.distill.values import Categorical, Expected, Quantiles, values_of
from surgery.errors import ArgumentError

LN2, LN3 = math.log(2), math.log(3)


def tensor(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def entropy(scores: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=scores).entropy()


def test_cross_entropy_by_hand():
    # Teacher Q (0, ln 3)·τ gives ¼, ¾; student (ln 2, 0) gives ⅔, ⅓: −¼ ln ⅔ − ¾ ln ⅓ = ln 3 − ¼ ln 2.
    tau = 0.1
    teacher, student = tensor([0.0, LN3 * tau]), tensor([LN2 * tau, 0.0])
    np.testing.assert_allclose(losses.cross_entropy(teacher / tau, student / tau), [LN3 - LN2 / 4])


def test_cross_entropy_is_one_number_per_example_and_is_not_multiplied_by_the_batch():
    teacher, student = torch.randn(1, 6), torch.randn(1, 6)
    one = losses.cross_entropy(teacher, student).mean()
    many = losses.cross_entropy(teacher.expand(32, 6), student.expand(32, 6)).mean()
    torch.testing.assert_close(one, many)
    summed = torch.nn.functional.kl_div(
        student.expand(32, 6).log_softmax(1), teacher.expand(32, 6).softmax(1), reduction="none"
    ).sum()
    torch.testing.assert_close(
        summed / (many - entropy(teacher).mean()), torch.tensor(32.0), rtol=1e-4, atol=0
    )


def test_cross_entropy_has_the_gradient_of_the_kl_divergence_and_is_least_at_the_teacher():
    teacher, student = torch.randn(8, 5).double(), torch.randn(8, 5).double().requires_grad_()
    [ours] = torch.autograd.grad(losses.cross_entropy(teacher, student).mean(), student)
    kl = torch.nn.functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    [theirs] = torch.autograd.grad(kl, student)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(losses.cross_entropy(teacher, teacher + 7), entropy(teacher))


def test_actions_that_the_teacher_may_not_take_have_no_weight():
    teacher, student = tensor([0.0, -math.inf, 0.0]), tensor([0.0, 5.0, 0.0])
    wanted = math.log(2 + math.exp(5.0))
    np.testing.assert_allclose(losses.cross_entropy(teacher, student), [wanted])


def test_best_action_by_hand():
    # Student (0, ln 3): the chance of action 1 is ¾, of action 0 it is ¼.
    student = tensor([0.0, LN3], [0.0, LN3])
    teacher = tensor([0.0, 1.0], [1.0, 0.0])
    np.testing.assert_allclose(losses.best_action(teacher, student), [math.log(4 / 3), math.log(4)])


def test_best_action_is_the_cross_entropy_of_a_cold_teacher():
    teacher, student = torch.randn(8, 5).double(), torch.randn(8, 5).double()
    torch.testing.assert_close(
        losses.best_action(teacher, student), losses.cross_entropy(teacher * 1e6, student)
    )


def test_conservative_by_hand():
    # τ = 0.1: Q/τ = (0, ln 3); logsumexp = ln 4; action 1: ln 4 − ln 3.
    values = tensor([0.0, LN3 * 0.1])
    found = losses.conservative(values, torch.tensor([1]), 0.1)
    np.testing.assert_allclose(found, [math.log(4 / 3)])


def test_large_margin_by_hand():
    # Expert takes action 0, worth 2; with margin 1 action 1 is worth 1.5 + 1 = 2.5: short of it by 0.5.
    values = tensor([2.0, 1.5, -4.0], [2.0, 0.5, -4.0])
    np.testing.assert_allclose(losses.large_margin(values, torch.tensor([0, 0]), 1.0), [0.5, 0.0])


@pytest.mark.parametrize(
    ("error", "wanted"), [(0.0, 0.0), (0.5, 0.125), (-1.0, 0.5), (3.0, 2.5), (-3.0, 2.5)]
)
def test_huber_by_hand(error: float, wanted: float):
    assert losses.huber(torch.tensor(error)).item() == pytest.approx(wanted)


def test_temporal_difference_by_hand():
    # R 1, γ³ 0.5, Q' 4, Q 2.5: the target is 3, the error 0.5; at the end of an episode 1 − 2.5 = −1.5.
    found = losses.temporal_difference(tensor(2.5, 2.5), tensor(4.0, 4.0), tensor(1.0, 1.0), tensor(0.5, 0.0))
    np.testing.assert_allclose(found, [0.125, 1.0])


def test_no_gradient_reaches_the_target():
    value, after = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    losses.temporal_difference(value, after, torch.zeros(3), torch.full((3,), 0.5)).sum().backward()
    assert after.grad is None
    assert value.grad is not None


def test_projection_by_hand():
    # Atoms −1, 0, 1. R 0.25, γ 0.5 moves them to −0.25, 0.25, 0.75.
    support, probability = tensor(-1, 0, 1).float(), torch.tensor([[0.2, 0.3, 0.5]])
    found = losses.projection(support, probability, torch.tensor([0.25]), torch.tensor([0.5]))
    wanted = [0.2 * 0.25, 0.2 * 0.75 + 0.3 * 0.75 + 0.5 * 0.25, 0.3 * 0.25 + 0.5 * 0.75]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6)


def bellemare(support: np.ndarray, probability: np.ndarray, reward: float, discount: float) -> np.ndarray:
    """Algorithm 1 as printed, one atom at a time."""
    low, high, spacing = support[0], support[-1], support[1] - support[0]
    m = np.zeros(len(support))
    for j, atom in enumerate(support):
        b = (min(max(reward + discount * atom, low), high) - low) / spacing
        lower, upper = math.floor(b), math.ceil(b)
        if lower == upper:
            m[lower] += probability[j]
        else:
            m[lower] += probability[j] * (upper - b)
            m[upper] += probability[j] * (b - lower)
    return m


def test_projection_agrees_with_the_algorithm_as_printed(rng: np.random.Generator):
    support = np.linspace(-10, 10, 51)
    probability = rng.dirichlet(np.ones(51), 16)
    reward, discount = rng.normal(0, 5, 16), rng.choice([0, 0.97, 1.0], 16)
    found = losses.projection(*(torch.from_numpy(x) for x in (support, probability, reward, discount)))
    wanted = [bellemare(support, p, r, g) for p, r, g in zip(probability, reward, discount, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    np.testing.assert_allclose(found.sum(dim=1), 1)


def test_quantile_huber_agrees_with_the_equation_as_printed(rng: np.random.Generator):
    quantiles, after = rng.normal(0, 2, (4, 5)), rng.normal(0, 2, (4, 5))
    returns, discount = rng.normal(0, 1, 4), np.array([0.9, 0.9, 0.0, 1.0])
    wanted = np.zeros(4)
    for b in range(4):
        for i in range(5):
            for j in range(5):
                u = returns[b] + discount[b] * after[b, j] - quantiles[b, i]
                h = 0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5
                wanted[b] += abs((i + 0.5) / 5 - (u < 0)) * h / 5
    found = losses.quantile_huber(*(torch.from_numpy(x) for x in (quantiles, after, returns, discount)))
    np.testing.assert_allclose(found, wanted)


def test_quantile_huber_by_hand():
    # Two quantiles at 0, both targets 2: u = 2, huber 1.5; weights ¼ and ¾: 1.5.
    found = losses.quantile_huber(tensor([0.0, 0.0]), tensor([0.0, 0.0]), tensor(2.0), tensor(0.9))
    np.testing.assert_allclose(found, [1.5])


def output_of(kind: str, distribution: np.ndarray) -> tuple[object, torch.Tensor]:
    """An output whose expected values are those of a categorical distribution (B, A, N) on −10 … 10."""
    support = np.linspace(-10, 10, distribution.shape[2])
    expected = torch.from_numpy(distribution @ support)
    if kind == "q":
        return Expected(), expected
    if kind == "c51":
        return Categorical(-10.0, 10.0), torch.from_numpy(np.log(distribution))
    spread = torch.linspace(-1, 1, 11, dtype=torch.float64)
    return Quantiles(), expected[:, :, None] + spread


@pytest.mark.parametrize("kind", ["q", "c51", "qr"])
def test_every_head_reads_expected_values_and_learns_towards_the_target(kind: str, rng: np.random.Generator):
    distribution = rng.dirichlet(np.ones(51), (6, 3))
    values, output = output_of(kind, distribution)
    np.testing.assert_allclose(values.expected(output), distribution @ np.linspace(-10, 10, 51), atol=1e-9)
    action, after = torch.tensor([0, 1, 2, 0, 1, 2]), output.clone()
    output = output.clone().requires_grad_()
    returns, discount = torch.full((6,), 3.0).double(), torch.zeros(6).double()
    optimizer = torch.optim.Adam([output], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        here, there = losses.pick(output, action), losses.pick(after, action)
        loss = values.loss(here, there, returns, discount)
        assert loss.shape == (6,)
        assert (loss >= 0).all()
        loss.sum().backward()
        optimizer.step()
    learned = losses.pick(values.expected(output.detach()), action)
    np.testing.assert_allclose(learned, 3.0, atol=0.35)
    others = torch.ones(6, 3, dtype=torch.bool).scatter(1, action[:, None], False)
    torch.testing.assert_close(values.expected(output.detach())[others], values.expected(after)[others])


@pytest.mark.parametrize(
    ("kind", "low", "high", "says"),
    [
        (
            "logits",
            None,
            None,
            r"one output of kind q_values, atom_logits, quantiles; this one has q_values \(logits\)",
        ),
        ("atom_logits", None, 10.0, "the support of 'q_values' is not known"),
        ("atom_logits", -10.0, None, "the support of 'q_values' is not known"),
    ],
)
def test_an_output_that_cannot_learn_by_temporal_differences_is_refused(
    kind: str, low: float | None, high: float | None, says: str
):
    made = new("mlp-4", observation=(3,), actions=2)
    [port] = made.interface.outputs
    interface = replace(made.interface, outputs=(replace(port, kind=kind, low=low, high=high),))
    with pytest.raises(ArgumentError, match=says):
        values_of(made.replace(interface=interface))
