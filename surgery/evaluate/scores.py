"""Recorded scores: what a contract says a policy reached, and whether what is measured now is less."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from surgery.checkpoint import Checkpoint
from surgery.interface import Environment
from surgery.json_values import Json, thaw

LEVEL = 0.01
"""A policy that is as good as its record is said to be worse this often."""


@dataclass(frozen=True)
class Score:
    """Returns of many episodes, in short.

    Attributes:
      mode: how actions were chosen: `greedy`, `sample`, `epsilon:0.05`, or `random`.
      mean: of the true returns.
      std: their standard deviation (divided by the number of episodes).
      episodes: how many.
      settings: of the environment, where they were not those of the contract; `id` if it was another one.
      model: digest of the model that reached it; None: unknown.
    """

    mode: str
    mean: float
    std: float
    episodes: int
    settings: Mapping[str, Json]
    model: str | None = None

    @staticmethod
    def of(returns: Sequence[float], mode: str, settings: Mapping[str, Json], model: str | None) -> Score:
        array = np.asarray(returns, np.float64)
        return Score(mode, float(array.mean()), float(array.std()), len(array), settings, model)

    def same_kind(self, other: Score) -> bool:
        """Whether two scores are of the same action selection in the same environment."""
        return self.mode == other.mode and thaw(self.settings) == thaw(other.settings)

    def to_json(self) -> dict[str, Json]:
        record: dict[str, Json] = {
            "mode": self.mode, "mean": self.mean, "std": self.std, "episodes": self.episodes
        }  # fmt: skip
        if self.settings:
            record["settings"] = thaw(self.settings)
        return record if self.model is None else {**record, "model": self.model}


def recorded_scores(environment: Environment) -> tuple[Score, ...]:
    """The scores that a contract records, in order."""
    listed = cast("Sequence[Mapping[str, Json]]", environment.settings.get("scores", ()))
    return tuple(
        Score(
            str(one["mode"]),
            float(cast(float, one["mean"])),
            float(cast(float, one["std"])),
            int(cast(int, one["episodes"])),
            cast("Mapping[str, Json]", one.get("settings", {})),
            cast("str | None", one.get("model")),
        )
        for one in listed
    )


def recorded(checkpoint: Checkpoint, mode: str, settings: Mapping[str, Json] | None = None) -> Score | None:
    """The score recorded for an action selection, and for settings that differ from the contract's; None: none."""
    wanted = Score(mode, 0.0, 0.0, 1, settings or {})
    return next((one for one in recorded_scores(checkpoint.environment) if one.same_kind(wanted)), None)


def below(measured: Score, known: Score) -> bool:
    """Whether a mean return is less than a recorded one, by more than their episodes explain.

    Welch's test of two means with unequal variances (Biometrika 34, 1947), one-sided at `LEVEL`. A single episode shows
    no variance: that of the other score is taken for it, and two single ones say nothing.
    """
    several = [score for score in (measured, known) if score.episodes > 1]
    if not several:
        return False
    variances = [
        _unbiased(score if score.episodes > 1 else several[0]) / score.episodes for score in (measured, known)
    ]
    error = math.sqrt(sum(variances))
    gap = known.mean - measured.mean
    if error == 0:
        return gap > 1e-9 * max(abs(known.mean), 1.0)
    if len(several) == 1:
        return gap / error > _student(LEVEL, several[0].episodes - 1)
    weights = [
        variance**2 / (score.episodes - 1)
        for variance, score in zip(variances, (measured, known), strict=True)
    ]
    return gap / error > _student(LEVEL, sum(variances) ** 2 / sum(weights))


def interval(score: Score) -> tuple[float, float] | None:
    """95% confidence interval of the mean, by Student's t; None for one episode."""
    if score.episodes < 2:
        return None
    half = _student(0.025, score.episodes - 1) * math.sqrt(_unbiased(score) / score.episodes)
    return score.mean - half, score.mean + half


def _unbiased(score: Score) -> float:
    """Of more than one episode."""
    return score.std**2 * score.episodes / (score.episodes - 1)


def _student(tail: float, freedom: float) -> float:
    """The point that Student's t exceeds with a probability of 0.01 or 0.025.

    Expansion in the degrees of freedom: Abramowitz and Stegun 1964, 26.7.5; below 0.5% off from 3 degrees on.
    """
    z = {0.01: 2.3263478740408408, 0.025: 1.9599639845400545}[tail]
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**k for k, term in enumerate(terms))
