"""Statistics of a few runs on several games, vectorised over bootstrap samples.

Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021
(arXiv:2108.13264): interquartile mean, stratified bootstrap, probability of improvement, performance profiles.

Scores are given as one array (runs,) per game; games may have different numbers of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from surgery.arrays import Array

Games = Sequence[Array]
SAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate, with its 95% interval; None where one run a game leaves nothing to resample."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> list[float | None]:
        return [self.value, self.low, self.high]


def iqm(scores: Array) -> Array:
    """Interquartile mean along the last axis: the mean without the lowest and the highest quarter.

    Args:
      scores: (…, n), the runs of all games together.

    Returns:
      (…,); of n scores, ⌊n/4⌋ are left out at either end.
    """
    count = scores.shape[-1]
    cut = count // 4
    middle = np.sort(scores, axis=-1)[..., cut : count - cut]
    return np.asarray(middle.mean(-1))


def bootstrap(
    games: Games, statistic: Callable[[Array], Array], *, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """A statistic of all runs, with the percentile interval of the stratified bootstrap.

    Runs are drawn again with replacement within each game, so that every sample has the same games.

    Args:
      games: (runs,) per game.
      statistic: (…, n) -> (…,), as `iqm`.
      samples: how many times runs are drawn.
      seed: of the draws.
    """
    value = float(statistic(np.concatenate(list(games))))
    if all(len(runs) < 2 for runs in games):
        return Interval(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = statistic(np.concatenate([_drawn(runs, samples, rng) for runs in games], axis=1))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def probability_of_improvement(
    games: Games, others: Games, *, samples: int = 2000, seed: int = 0
) -> Interval:
    """How likely a run of one method is better than a run of another on a game drawn at random; ties count half.

    Args:
      games: (runs,) per game.
      others: the same games, of the other method.
    """
    value = float(np.mean([_better(x[None], y[None])[0] for x, y in zip(games, others, strict=True)]))
    if all(len(runs) < 2 for runs in (*games, *others)):
        return Interval(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = np.mean(
        [
            _better(_drawn(x, samples, rng), _drawn(y, samples, rng))
            for x, y in zip(games, others, strict=True)
        ],
        axis=0,
    )
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def profile(
    games: Games, thresholds: Array, *, samples: int = 2000, seed: int = 0
) -> tuple[Array, Array, Array]:
    """The share of runs above each threshold, with its interval.

    Args:
      thresholds: (k,)

    Returns:
      (k,) share, (k,) low, (k,) high.
    """
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([_drawn(runs, samples, rng) for runs in games], axis=1)
    shares = np.stack([(drawn > threshold).mean(-1) for threshold in thresholds], axis=-1)
    low, high = np.percentile(shares, [2.5, 97.5], axis=0)
    scores = np.concatenate(list(games))
    return (scores[:, None] > thresholds).mean(0), low, high


def _drawn(runs: Array, samples: int, rng: np.random.Generator) -> Array:
    """(samples, runs), drawn with replacement."""
    return runs[rng.integers(0, len(runs), (samples, len(runs)))]


def _better(x: Array, y: Array) -> Array:
    """How often a run of x (s, n) beats one of y (s, m), in each sample: Mann and Whitney's U ÷ nm; (s,)."""
    beats = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    return np.asarray(beats.mean((1, 2)))
