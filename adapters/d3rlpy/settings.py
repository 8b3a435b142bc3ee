"""What follows in the configuration of a file when its networks change: shapes, encoders, scalers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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
    """What a scaler normalises observations with, as a setting of the environment's contract; {} if nothing does.

    Raises:
      CorruptFile: the scaler has no such numbers.
    """
    scaler = config["config"]["params"].get("observation_scaler") or {}
    params = scaler.get("params") or {}
    try:
        pairs = _normalised(scaler.get("type"), params)
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptFile(f"the configuration's 'observation_scaler' is damaged: {error}") from error
    if not pairs:
        return {}
    found: dict[str, Json] = {
        "mean": [m for m, _ in pairs],
        "variance": [v for _, v in pairs],
        "epsilon": 0.0,
    }
    return {"normaliser": {"observation": found}}


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
