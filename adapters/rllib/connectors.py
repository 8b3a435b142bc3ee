"""What an RLlib folder's connectors make of an observation before its module sees it, read and changed as data.

`MeanStdFilter` normalises: clip((x − mean) / (√variance + 10⁻⁶), −c, c), with the unbiased variance S / (n − 1).
(ray/rllib/connectors/env_to_module, ray/rllib/utils/filter.py)
"""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.errors import CorruptFile, Refused
from surgery.json_values import Json
from surgery_adapters.containers.pickle_tree import Name
from surgery_adapters.containers.pickled_arrays import is_array, read_array, write_array
from surgery_adapters.containers.spaces import Source, Space, read_space
from surgery_adapters.rllib.folder import RllibFolder
from surgery_adapters.writeback.sequences import HINT

PIPELINE = "env_to_module_connector"
_MAKING = f"env_runner/{PIPELINE}/class_and_ctor_args.pkl"
_ACTING = "env_runner/module_to_env_connector/class_and_ctor_args.pkl"
_STATE = f"{PIPELINE}/MeanStdFilter/state.pkl"
_SMALL = 1e-6
"""What the framework adds to a deviation."""
_MOST = 1 << 12
"""Features of which the contract keeps the statistics."""
_LARGEST = 1 << 24
"""Bytes of one array of statistics."""
_CARRIERS = {
    "AddObservationsFromEpisodesToBatch", "AddStatesFromEpisodesToBatch", "AddTimeDimToBatchAndZeroPad",
    "AgentToModuleMapping", "BatchIndividualItems", "NumpyToTensor",
}  # fmt: skip
"""Connectors that bring observations to the module as they are."""
FILTER, FLATTEN, PREVIOUS = "MeanStdFilter", "FlattenObservations", "PrevActionsPrevRewards"
_ARRAYS: Mapping[str, str] = {
    "mean_array": "", "mean_delta_array": "", "sum_sq_diff_array": "num_pushes",
    "sum_sq_diff_delta_array": "num_pushes_delta",
}  # fmt: skip
"""What the framework remembers of every feature -> the count of what it sums over."""


@dataclass(frozen=True)
class Connectors:
    """What stands between the environment and the module.

    Attributes:
      shown: the environment's observation space; None if it is of a kind that is not read.
      names: of the connectors that make other observations, in order.
      normaliser: the statistics of the contract, by input; empty where it has no place for them.
    """

    shown: Space | None
    names: tuple[str, ...]
    normaliser: Mapping[str, Json]

    @staticmethod
    def read(folder: RllibFolder) -> Connectors:
        """Raises: CorruptFile: damaged."""
        if not (folder.path / _MAKING).is_file():
            return Connectors(None, (), {})
        root = folder.tree(_MAKING).root
        try:
            spaces, keywords = root["ctor_args_and_kwargs"]
            kinds = [kind for kind, *_ in keywords["connectors"]]
            names = tuple(kind.name for kind in kinds if isinstance(kind, Name))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"'{_MAKING}' does not say which connectors there are") from error
        found = tuple(name for name in names if name not in _CARRIERS)
        return Connectors(_space(spaces[0]) if spaces else None, found, _normaliser(folder, found))

    @property
    def untold(self) -> tuple[str, ...]:
        """Those whose work neither the graph nor the contract does."""
        known = {FLATTEN, FILTER} if self.normaliser else {FLATTEN}
        return tuple(name for name in self.names if name not in known)


def scales_actions(folder: RllibFolder) -> bool:
    """Whether what the module gives between −1 and 1 stands for the bounds of the environment's actions.

    (ray/rllib/connectors/module_to_env/normalize_and_clip_actions.py)
    """
    space = folder.space("action_space")
    if (
        not (folder.path / _ACTING).is_file()
        or space.kind != "Box"
        or space.low is None
        or space.high is None
    ):
        return False
    try:
        made = folder.tree(_ACTING).root["ctor_args_and_kwargs"][1]["connectors"]
        told = [
            keywords for kind, _, keywords in made if getattr(kind, "name", "") == "NormalizeAndClipActions"
        ]
        scaled = any(keywords.get("normalize_actions", True) for keywords in told)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile(f"'{_ACTING}' does not say which connectors there are") from error
    return scaled and bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())


def _space(node: object) -> Space | None:
    try:
        return read_space(node)
    except Refused:
        return None


def statistics(folder: RllibFolder) -> list[str]:
    """The pickles of `MeanStdFilter`'s statistics: of the runners that train, and of those that evaluate."""
    return [name for name in folder.files() if name.endswith(_STATE)]


def _normaliser(folder: RllibFolder, names: tuple[str, ...]) -> dict[str, Json]:
    """The statistics of vectors as the contract has them, where nothing else is done to the same observations."""
    name = f"env_runner/{_STATE}"
    if sorted(names) not in ([FILTER], [FLATTEN, FILTER]) or not (folder.path / name).is_file():
        return {}
    agents = folder.tree(name).root
    try:
        found = agents[None]
        mean, deviation = _moments(found)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptFile(f"'{name}' holds no statistics of one agent's observations: {error}") from error
    if mean.ndim != 1 or mean.size > _MOST or mean.shape != folder.space("observation_space").shape:
        return {}
    clip = found["clip_by_value"]
    return {
        "observation": {
            "mean": mean.tolist(),
            "variance": (deviation.astype(np.float64) ** 2).tolist(),
            "epsilon": 0.0,
            **({"clip": float(clip)} if clip else {}),
        }
    }


def _moments(found: Mapping[str, Any]) -> tuple[Array, Array]:
    """What is subtracted, and what it is divided by, in the framework's own precision."""
    (running,) = found["running_stats"]
    mean, squares = _unpacked(running["mean_array"]), _unpacked(running["sum_sq_diff_array"])
    count = int(running["num_pushes"])
    variance = squares / (count - 1) if count > 1 else np.zeros_like(squares)
    deviation = np.sqrt(np.maximum(variance.astype(np.float32), 0)) + np.float32(_SMALL)
    return (
        mean if found["de_mean_to_zero"] else np.zeros_like(mean),
        deviation if found["de_std_to_one"] else np.ones_like(deviation),
    )


def follow(root: object, sources: Mapping[int, Source]) -> None:
    """Give the statistics of a `MeanStdFilter` other features, in place: new ones come out as they are.

    Args:
      root: of its state's tree. sources: axis -> for every entry the old one that it was, or None.

    Raises:
      Refused: statistics of several agents, or of observations of another shape.
    """
    try:
        (agent,) = root.values()  # type: ignore[attr-defined]
        (running,) = agent["running_stats"]
        changed = {key: _grown(_unpacked(running[key]), sources, _fresh(running, key)) for key in _ARRAYS}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise Refused(
            "the folder's MeanStdFilter has other statistics than those of one agent's observations, which cannot "
            "follow",
            hint=HINT,
        ) from error
    running.update({key: _packed(array) for key, array in changed.items()})
    if is_array(agent.get("shape")):
        shape = np.array(changed["mean_array"].shape, read_array(agent["shape"]).dtype)
        agent["shape"] = write_array(agent["shape"], shape)


def _fresh(running: Mapping[str, Any], key: str) -> float:
    """Of a feature of mean 0 that comes out as it is, after so many observations."""
    return max(float(running[_ARRAYS[key]]) - 1, 0) * (1 - _SMALL) ** 2 if _ARRAYS[key] else 0.0


def _grown(array: Array, sources: Mapping[int, Source], fresh: float) -> Array:
    for axis, source in sources.items():
        if any(k is not None and k >= array.shape[axis] for k in source):
            raise ValueError(f"{array.shape} has no entry {max(k or 0 for k in source)}")
        array = np.take(array, [0 if k is None else k for k in source], axis=axis)
        np.moveaxis(array, axis, 0)[[k is None for k in source]] = fresh
    return array


def _unpacked(text: object) -> Array:
    """An array that the framework packed: NumPy's file format, deflated, in base 64."""
    if not isinstance(text, str):
        raise ValueError("an array is no text")
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), _LARGEST)
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except (binascii.Error, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"an array is damaged: {error}") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        raise ValueError("an array is not of numbers")
    return found


def _packed(array: Array) -> str:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(out.getvalue())).decode("ascii")
