"""What follows in the environment's contract when a plan is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgery.edits.axis_maps import AxisMap, axis_maps
from surgery.edits.plan import Plan
from surgery.interface import Environment
from surgery.json_values import Json

NORMALISER, ACTION_RANGE = "normaliser", "action_range"


def settled(environment: Environment, plan: Plan) -> Environment:
    """The contract of the changed model: settings that the plan names, and the numbers of observations and actions.

    A new feature is left as it is: mean 0, variance 1 − ε; a new action is between −1 and 1.
    """
    settings: dict[str, Any] = {**environment.settings, **plan.environment}
    every = settings.get(NORMALISER)
    if isinstance(every, Mapping):
        settings[NORMALISER] = {
            name: _followed(found, _units(plan, "input", name), _unchanged(found))
            for name, found in every.items()
        }
    ranges = settings.get(ACTION_RANGE)
    if isinstance(ranges, Mapping):
        settings[ACTION_RANGE] = {
            name: _followed(found, _units(plan, "output", name), {"low": -1.0, "high": 1.0})
            for name, found in ranges.items()
        }
    kept = {key: value for key, value in settings.items() if value is not None}
    return environment if kept == environment.settings else Environment(environment.id, kept)


def _units(plan: Plan, side: str, name: str) -> AxisMap | None:
    """How the units of a port come from the old ones, which are its last axis; None if they stay."""
    port = next((port for port in plan.ports if (port.side, port.name) == (side, name)), None)
    return None if port is None else axis_maps(port.axes, plan.edits)[-1]


def _unchanged(found: Json) -> Mapping[str, float]:
    """Statistics that leave a feature as it is."""
    epsilon = found.get("epsilon", 0.0) if isinstance(found, Mapping) else 0.0
    return {"mean": 0.0, "variance": 1.0 - (epsilon if isinstance(epsilon, float) else 0.0)}


def _followed(found: Json, axis: AxisMap | None, fresh: Mapping[str, float]) -> Json:
    """Lists of a number per unit; fresh: of a new one."""
    if axis is None or not isinstance(found, Mapping):
        return found
    changed: dict[str, Any] = dict(found)
    new = axis.fresh_in | axis.fresh_out
    for key, start in fresh.items():
        old = found.get(key)
        if isinstance(old, tuple) and len(old) == axis.before:
            changed[key] = np.where(new, start, np.asarray(old, np.float64)[axis.source]).tolist()
    return changed
