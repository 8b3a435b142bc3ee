"""Statistics that observations are normalised with before a network reads them, as a contract has them.

    x' = clip((x − mean) / √(variance + ε), −c, c)

(stable_baselines3/common/vec_env/vec_normalize.py, d3rlpy/preprocessing/observation_scalers.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.envs.parts import Part
from surgery.errors import ArgumentError, shape_text
from surgery.interface import Environment

NAME = "normaliser"
"""The setting: of every input that is normalised, by its name, `mean`, `variance`, `epsilon` and perhaps `clip`.

Of one whose statistics a contract does not hold (images), `elsewhere` says what and where they are.
"""


@dataclass(frozen=True)
class Normaliser:
    """What is done to the observations of one input.

    Attributes:
      mean: (features,) float64. deviation: (features,) float64, ε included, all above 0.
      clip: largest magnitude of the result, (features,) or one for all; infinite where there is none.
    """

    mean: Array
    deviation: Array
    clip: float | Array

    @staticmethod
    def of(environment: Environment, port: str) -> Normaliser | None:
        """What a contract says of an input; None if nothing.

        Raises:
          ArgumentError: numbers that normalise nothing.
        """
        every = environment.settings.get(NAME)
        found = every.get(port) if isinstance(every, Mapping) else None
        if found is None:
            return None
        if isinstance(found, Mapping) and "elsewhere" in found:
            raise ArgumentError(
                f"'{port}' is normalised by {found['elsewhere']} before the network reads it; only vectors are "
                "normalised here",
                hint="play it in its own framework (surgery convert --check ENV); if observations are normalised "
                "already: surgery annotate MODEL --env-setting normaliser=null -o OUT",
            )
        try:
            return _read(found)
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"the contract's {NAME} of '{port}' is damaged: {error}",
                hint="a list of a mean and of a variance for every feature, epsilon, and clip if there is one",
            ) from error

    @staticmethod
    def whole(environment: Environment, parts: Sequence[Part] = ()) -> Normaliser | None:
        """What a contract says of the one observation that there is, or of parts of it.

        Raises:
          ArgumentError: it speaks of several inputs that are no parts, or see `of`.
        """
        every = environment.settings.get(NAME)
        names = list(every) if isinstance(every, Mapping) else []
        if names and set(names) <= {part.name for part in parts}:
            return _joined([(part, Normaliser.of(environment, part.name)) for part in parts])
        if len(names) > 1:
            raise ArgumentError(
                f"{environment.id} cannot honour a {NAME} of several inputs: {', '.join(names)}"
            )
        return Normaliser.of(environment, names[0]) if names else None

    def __call__(self, observation: Array) -> Array:
        """Observations (…, features) as the network takes them, float32."""
        scaled = (np.asarray(observation, np.float64) - self.mean) / self.deviation
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)


def _joined(parts: Sequence[tuple[Part, Normaliser | None]]) -> Normaliser:
    """Of a flattened observation; parts without statistics stay as they are."""
    mean, deviation, clip = [], [], []
    for part, found in parts:
        if found is not None and part.shape != found.mean.shape:
            raise ArgumentError(
                f"the contract's {NAME} of '{part.name}' has {len(found.mean)} features, the environment shows "
                f"{shape_text(part.shape)}",
                hint="surgery annotate MODEL --env-setting normaliser=null -o OUT",
            )
        mean.append(np.zeros(part.size) if found is None else found.mean)
        deviation.append(np.ones(part.size) if found is None else found.deviation)
        clip.append(np.full(part.size, np.inf if found is None else found.clip))
    return Normaliser(np.concatenate(mean), np.concatenate(deviation), np.concatenate(clip))


def _read(found: Any) -> Normaliser:  # noqa: ANN401
    mean, variance = (np.asarray(found[key], np.float64) for key in ("mean", "variance"))
    if mean.ndim != 1 or mean.shape != variance.shape:
        raise ValueError(f"{mean.shape} means and {variance.shape} variances")
    with np.errstate(invalid="ignore"):
        deviation = np.sqrt(variance + float(found.get("epsilon", 0.0)))
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
        raise ValueError("a variance that is not above 0")
    clip = found.get("clip")
    return Normaliser(mean, deviation, np.inf if clip is None else float(clip))
