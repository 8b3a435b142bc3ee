"""What follows in the configuration of a file when its networks change: shapes, encoders, scalers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.edits.ports import port_sources
from surgery.errors import CorruptFile, Refused
from surgery.json_values import Json
from surgery.tensors import shape_of
from surgery_adapters.d3rlpy.encoders import Encoder
from surgery_adapters.d3rlpy.networks import Networks
from surgery_adapters.networks.layers import Tensors
from surgery_adapters.writeback.contract import since

_HEADS = ("q_values", "logits", "mean", "action")
_SCALES: Mapping[str, Mapping[str, float]] = {
    "standard": {"mean": 0.0, "std": 1.0}, "min_max": {"minimum": -1.0, "maximum": 1.0}, "pixel": {}, "none": {},
}  # fmt: skip
"""Scaler -> what it has of every feature, and with which numbers it leaves a new one as it is."""
_STANDARD_EPS = 1e-3


def follow(
    config: Mapping[str, Any], checkpoint: Checkpoint, tensors: Tensors, networks: Networks
) -> dict[str, Any]:
    """The configuration as it must be for the framework to load the changed networks.

    Args:
      config: the file's. checkpoint: what is written; its lineage says where features were inserted.
      tensors: every parameter, as it will be. networks: of the file, as it was.

    Raises:
      Refused: widths, or features of a scaler, that no configuration can express.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    params = changed["config"]["params"]
    for axis, source in port_sources(since(checkpoint), "input", "observation").items():
        if axis:
            changed["observation_shape"][axis - 1] = len(source)
            _scale(params, "observation_scaler", source)
    heads = [port.name for port in checkpoint.interface.outputs if port.name in _HEADS]
    if heads and (actions := port_sources(since(checkpoint), "output", heads[0]).get(1)) is not None:
        changed["action_size"] = len(actions)
        _scale(params, "action_scaler", actions)
    _widths(config, tensors, networks, params)
    return changed


def statistics(config: Mapping[str, Any]) -> dict[str, Json]:
    """What scalers do to observations and actions, as settings of the environment's contract; {} if nothing.

    Raises:
      CorruptFile: a scaler has no such numbers.
    """
    found: dict[str, Json] = {}
    if pairs := _pairs(config, "observation_scaler", _normalised):
        mean, variance = ([pair[k] for pair in pairs] for k in (0, 1))
        found["normaliser"] = {"observation": {"mean": mean, "variance": variance, "epsilon": 0.0}}
    if pairs := _pairs(config, "action_scaler", _stretched):
        low, high = ([pair[k] for pair in pairs] for k in (0, 1))
        found["action_range"] = {"action": {"low": low, "high": high}}
    return found


def _pairs(
    config: Mapping[str, Any],
    name: str,
    read: Callable[[object, Mapping[str, Any]], list[tuple[float, float]]],
) -> list[tuple[float, float]]:
    scaler = config["config"]["params"].get(name) or {}
    try:
        return read(scaler.get("type"), scaler.get("params") or {})
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptFile(f"the configuration's '{name}' is damaged: {error}") from error


def _normalised(kind: object, params: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The mean and the variance of every feature. (d3rlpy/preprocessing/observation_scalers.py)"""
    if kind == "standard" and params.get("mean") is not None:
        eps = params.get("eps", _STANDARD_EPS)
        return [
            (float(mean), (std + eps) ** 2) for mean, std in zip(params["mean"], params["std"], strict=True)
        ]
    if kind == "min_max" and params.get("minimum") is not None:
        ends = zip(params["minimum"], params["maximum"], strict=True)
        return [((low + high) / 2, ((high - low) / 2) ** 2) for low, high in ends]
    return []


def _stretched(kind: object, params: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The ends of every action, which the networks have at −1 and 1. (d3rlpy/preprocessing/action_scalers.py)"""
    if kind != "min_max" or params.get("minimum") is None:
        return []
    ends = zip(params["minimum"], params["maximum"], strict=True)
    return [(float(low), float(high)) for low, high in ends]


def _scale(params: dict[str, Any], name: str, source: Sequence[int | None]) -> None:
    """Give a scaler new features, which it leaves as they are."""
    scaler = params.get(name) or {"type": "none"}
    if scaler["type"] not in _SCALES:
        raise Refused(f"there is no rule for new features of the scaler '{scaler['type']}'")
    for key, fresh in _SCALES[scaler["type"]].items():
        if (old := scaler["params"].get(key)) is not None:
            scaler["params"][key] = [fresh if k is None else old[k] for k in source]


def _widths(config: Mapping[str, Any], tensors: Tensors, networks: Networks, params: dict[str, Any]) -> None:
    """Encoder factories that make encoders of these widths."""
    shapes = {name: shape_of(tensor) for name, tensor in tensors.items()}
    for factory, prefixes in networks.encoders.items():
        old = Encoder.read(params[factory], len(config["observation_shape"]))
        every = [old.widths(shapes, prefix) for prefix in prefixes]
        for prefix, encoder in zip(prefixes, every, strict=True):
            if encoder != every[0]:
                raise Refused(
                    f"'{prefixes[0].rstrip('.')}' and '{prefix.rstrip('.')}' would have different widths, "
                    f"{list(every[0].units)} and {list(encoder.units)}: d3rlpy has one '{factory}' for both",
                    hint="give the same widths to all of them",
                )
        if every[0] != old:
            params[factory] = every[0].settings(params[factory]["params"])
