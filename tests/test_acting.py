"""Whose turn it is when a teacher acts along (JSRL): lengths, their shrinking, and both orders."""

from __future__ import annotations

import numpy as np
import pytest

from surgery.distill import METHODS
from surgery.distill.acting import Turns
from surgery.distill.methods import RollIn

NOBODY = np.array([], np.int64)


def rolls_in(turns: Turns, envs: int, fraction: float) -> np.ndarray:
    """For how many steps each of the environments' next episodes begins with the teacher."""
    turns.progress(fraction)
    turns.step(np.arange(envs))
    lengths = np.zeros(envs, np.int64)
    while (acts := turns.teacher_acts(fraction)).any():
        lengths += acts
        turns.step(NOBODY)
    return lengths


@pytest.mark.parametrize(
    ("fraction", "longest"), [(0.0, 50), (0.05, 50), (0.1, 40), (0.35, 25), (0.9, 5), (1.0, 4)]
)
def test_the_teacher_opens_each_episode_for_a_uniform_number_of_steps_that_shrinks(
    fraction: float, longest: int
):
    turns = Turns(RollIn(1000, 0.8, "first"), 50, 4000, np.random.default_rng(0))
    lengths = rolls_in(turns, 4000, fraction)
    counts = np.bincount(lengths, minlength=longest + 1)
    assert (lengths.min(), lengths.max()) == (1, longest)
    expected = 4000 / longest
    assert ((counts[1:] - expected) ** 2 / expected).sum() < longest + 5 * (2 * longest) ** 0.5  # χ²


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_in_the_released_configuration_the_teacher_closes_each_episode_ever_more_rarely(fraction: float):
    turns = Turns(RollIn(100, 0.8, "after"), 1, 10_000, np.random.default_rng(0))
    assert not turns.teacher_acts(fraction).any()  # the first step is the student's
    turns.step(NOBODY)
    assert turns.teacher_acts(fraction).mean() == pytest.approx(1 - fraction, abs=0.03)


@pytest.mark.parametrize(
    ("method", "episode", "longest"),
    [("jsrl", 4000.0, 1000), ("jsrl", 129.6, 130), ("jsrl", 0.2, 1), ("jsrl-released", 20.0, 100)],
)
def test_a_teacher_opens_an_episode_for_no_longer_than_it_lasts(method: str, episode: float, longest: int):
    roll_in = METHODS[method].roll_in
    assert roll_in is not None
    assert roll_in.longest(episode) == longest
