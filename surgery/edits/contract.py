"""What follows in the environment's contract when a plan is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgery.edits.axis_maps import AxisMap, axis_maps
from surgery.edits.plan import Plan
from surgery.interface import Environment
from surgery.json_values import Json

NORMALISER = "normaliser"


def settled(environment: Environment, plan: Plan) -> Environment:
    """The contract of the changed model: settings that the plan names, and the statistics of observations that move.

    A new feature is left as it is: mean 0, variance 1 − ε.
    """
    settings: dict[str, Any] = {**environment.settings, **plan.environment}
    every = settings.get(NORMALISER)
    if isinstance(every, Mapping):
        settings[NORMALISER] = {
            name: _statistics(found, _features(plan, name)) for name, found in every.items()
        }
    kept = {key: value for key, value in settings.items() if value is not None}
    return environment if kept == environment.settings else Environment(environment.id, kept)


def _features(plan: Plan, name: str) -> AxisMap | None:
    """How the features of an input come from the old ones, which are its last axis; None if they stay."""
    port = next((port for port in plan.ports if (port.side, port.name) == ("input", name)), None)
    return None if port is None else axis_maps(port.axes, plan.edits)[-1]


def _statistics(found: Json, axis: AxisMap | None) -> Json:
    if axis is None or not isinstance(found, Mapping):
        return found
    changed: dict[str, Any] = dict(found)
    epsilon = found.get("epsilon", 0.0)
    fresh = {"mean": 0.0, "variance": 1.0 - (epsilon if isinstance(epsilon, float) else 0.0)}
    new = axis.fresh_in | axis.fresh_out
    for key, start in fresh.items():
        old = found.get(key)
        if isinstance(old, tuple) and len(old) == axis.before:
            changed[key] = np.where(new, start, np.asarray(old, np.float64)[axis.source]).tolist()
    return changed
