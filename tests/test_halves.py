"""Weights that are cast at once: what autocast computes, by a third fewer kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from surgery.distill.learner import Objective
from tests.test_captured import filled, learner_of

SHAPE = (2, 36, 36)


class Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[kernel] += 1
        return kernel(*args, **(kwargs or {}))


def learned(to: str, head: str, noisy: bool, **given: Any) -> tuple[list[torch.Tensor], Counter[Any]]:
    """Parameters and losses after some steps, and the kernels of the last one."""
    learner, _ = learner_of(to, head, noisy, SHAPE, precision=torch.bfloat16, **given)
    replay, generator, told = filled(False, SHAPE), np.random.default_rng(1), []
    torch.manual_seed(5)
    for number in range(6):
        with Kernels() as kernels:
            batch = replay.sample(8, generator)
            told.append(learner.update(batch, Objective(True, "imitate"), weight=1.0, rate=1e-2).clone())
        if number == 3:
            learner.sync_target()
    return [*(one.detach() for one in learner.student.module.parameters()), *told], kernels.counts


@pytest.mark.parametrize(
    ("to", "head", "noisy"), [("impala-fc16", "dueling", True), ("nature-fc16", "c51", False)]
)
def test_it_is_autocast_bit_for_bit_with_one_cast_a_pass(to: str, head: str, noisy: bool):
    """Two passes of the student, one of the target, and one of gradients."""
    wanted, before = learned(to, head, noisy, recorded=False)
    found, after = learned(to, head, noisy, recorded=False, at_once=True)
    for one, other in zip(wanted, found, strict=True):
        assert torch.equal(one, other)
    assert after[torch.ops.aten._foreach_copy_.default] == 4
    casts = before[torch.ops.aten._to_copy.default], after[torch.ops.aten._to_copy.default]
    assert casts[0] > 2 * casts[1]
    assert after[torch.ops.aten.clone.default] == before[torch.ops.aten.clone.default]


def test_recorded_it_is_the_step_that_runs():
    wanted, _ = learned("nature-fc16", "q", False, recorded=False)
    found, _ = learned("nature-fc16", "q", False, recorded=True, at_once=True)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_pass_that_fails_leaves_the_weights_in_their_places():
    learner, _ = learner_of(
        "nature-fc16", "q", False, SHAPE, recorded=False, precision=torch.bfloat16, at_once=True
    )
    student = learner.student
    held = list(student.module.parameters())
    for _ in range(2):
        student(torch.zeros(1, *SHAPE))
    with pytest.raises(RuntimeError):
        student(torch.zeros(1, 3, 36, 36))
    assert all(one is other for one, other in zip(held, student.module.parameters(), strict=True))
