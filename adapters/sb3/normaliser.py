"""`VecNormalize`: the running statistics that observations are normalised with, in a pickle beside the model.

    observation' = clip((observation − mean) / √(variance + ε), −c, c)

The networks read what comes out. (stable_baselines3/common/vec_env/vec_normalize.py)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from surgery.errors import CorruptFile, Refused
from surgery.files import check_readable, read_error
from surgery.json_values import Json
from surgery_adapters.containers.pickle_tree import Made, Tree, parse
from surgery_adapters.containers.pickled_arrays import read_array, write_array
from surgery_adapters.containers.spaces import Source, Space, read_space

NAME = "vecnormalize.pkl"
_MOST = 1 << 12
"""Features of which the contract keeps the statistics."""


def find(model: Path, observation: Space) -> Path | None:
    """The statistics that belong to a model: beside it, or in a folder of its name, as RL Zoo has it.

    Names are our own, that of `CheckpointCallback(save_vecnormalize=True)`, and those of RL Zoo and of the examples in
    Stable-Baselines3's documentation, `vec_normalize.pkl`.

    Args:
      model: its file. observation: its space; statistics of other shapes are another model's, but for images, whose
        channels the framework moves, and which it stacks, after they are normalised.

    Raises:
      FileError, CorruptFile: see `read`.
    """
    places = (
        own(model),
        *([model.with_name(checkpoint)] if (checkpoint := _of_checkpoint(model.stem)) else []),
        model.parent / NAME,
        model.parent / "vec_normalize.pkl",
        model.parent / model.stem / NAME,
    )
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        return None
    ours, wanted = seen(found), _shapes(observation)
    fits = ours.keys() == wanted.keys() and all(
        shape == wanted[name] or len(shape) == len(wanted[name]) == 3 for name, shape in ours.items()
    )
    return found if fits else None


def _of_checkpoint(stem: str) -> str | None:
    """What `CheckpointCallback` writes beside `PREFIX_N_steps.zip`."""
    named = re.fullmatch(r"(.+)_(\d+)_steps", stem)
    return named and f"{named[1]}_vecnormalize_{named[2]}_steps.pkl"


def seen(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the observations that statistics are of; those of one without a name have none.

    Raises:
      FileError, CorruptFile: see `read`.
    """
    return _shapes(read_space(read(path).root.state["observation_space"]))


def _shapes(space: Space) -> dict[str, tuple[int, ...]]:
    return {name: part.shape for name, part in (space.spaces or {"": space}).items()}


def own(model: Path) -> Path:
    """Where the statistics of a model are written."""
    return model.with_name(f"{model.stem}.{NAME}")


def read(path: Path) -> Tree:
    """The pickle as a tree.

    Raises:
      FileError: it cannot be read. CorruptFile: damaged, or it is no `VecNormalize`.
    """
    check_readable(path)
    try:
        tree = parse(path.read_bytes())
    except OSError as error:
        raise read_error(error, path) from error
    except CorruptFile as error:
        raise error.within(file=path) from error
    if not isinstance(tree.root, Made) or not isinstance(tree.root.state, dict):
        raise CorruptFile(f"{path} holds no VecNormalize")
    return tree


def contract(path: Path) -> dict[str, Json]:
    """The statistics by input, for the contract of the environment; instead of those of images, what they are.

    Raises:
      FileError, CorruptFile: see `read`.
    """
    tree = read(path)
    state = tree.root.state
    if not state.get("norm_obs", True):
        return {}
    found: dict[str, Json] = {}
    for name, inner in _statistics(state).items():
        mean, variance = (read_array(inner[key]) for key in ("mean", "var"))
        if mean.ndim != 1 or mean.size > _MOST:
            sizes = "x".join(map(str, mean.shape))
            found[name] = {"elsewhere": f"{sizes} means and variances, in {path.name} of Stable-Baselines3"}
            continue
        found[name] = {
            "mean": mean.tolist(),
            "variance": variance.tolist(),
            "epsilon": _number(state.get("epsilon"), 1e-8),
            "clip": _number(state.get("clip_obs"), 10.0),
        }
    return found


def insert(tree: Tree, name: str, source: Source) -> None:
    """Give the statistics of an input new features, in place: they start with mean 0 and variance 1.

    Args:
      tree: the pickle. name: of the input. source: for every feature the old one that it was, or None.

    Raises:
      Refused: they are of images.
    """
    statistics = _statistics(tree.root.state)
    if name in statistics:
        inner = statistics[name]
        for key, fresh in (("mean", 0.0), ("var", 1.0)):
            old = read_array(inner[key])
            if old.ndim != 1:
                raise Refused(
                    f"'{name}' is normalised pixel by pixel (VecNormalize), and a new channel has no statistics",
                    hint="normalise rewards only (norm_obs=False), or save the model without vecnormalize.pkl",
                )
            new = np.array([fresh if k is None else old[k] for k in source], old.dtype)
            inner[key] = write_array(inner[key], new)


def _statistics(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each `RunningMeanStd` remembers, by the name of its input."""
    found = state.get("obs_rms")
    named = found if isinstance(found, dict) else {"observation": found}
    return {str(k): v.state for k, v in named.items() if isinstance(v, Made) and isinstance(v.state, dict)}


def _number(value: object, usual: float) -> float:
    return float(value) if isinstance(value, int | float) else usual
