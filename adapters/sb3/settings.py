"""What follows in a model's settings when its networks change: spaces, widths, features extractors."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.edits.ports import port_sources
from surgery.errors import Refused
from surgery.json_values import thaw
from surgery_adapters.containers.pickle_tree import Name, Tree
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.containers.spaces import Space, change_box, change_count, read_space, set_bound
from surgery_adapters.networks.layers import Tensors
from surgery_adapters.sb3 import normaliser
from surgery_adapters.sb3.file import Sb3File, serialized
from surgery_adapters.sb3.sizes import widths
from surgery_adapters.writeback.contract import since

_HEADS = ("q_values", "logits", "mean", "action")


def follow(
    file: Sb3File,
    checkpoint: Checkpoint,
    tensors: Tensors,
    optimizer: Mapping[str, object],
    names: Mapping[str, str],
) -> dict[str, object]:
    """The settings of the file as they must be for the framework to load the changed networks.

    Args:
      file: the original.
      checkpoint: what is written; its lineage says where features were inserted.
      tensors: every tensor of the policy, as it will be.
      optimizer: `policy_kwargs` of another optimizer.
      names: parameter of the graph -> its name among the tensors.

    Raises:
      Refused: widths that no settings of the framework can express.
    """
    settings: dict[str, object] = dict(file.data)
    if _observations(file, checkpoint, settings):
        for name in ("_last_obs", "_last_original_obs"):
            if name in settings:
                settings[name] = None  # an observation of the old shape; the next reset gives a new one
    _actions(file, checkpoint, settings)
    if changed := {**widths(file, tensors, checkpoint.model, names), **optimizer}:
        settings["policy_kwargs"] = _stored(file, {**copy.deepcopy(dict(file.kwargs)), **changed})
    return settings


def _observations(file: Sb3File, checkpoint: Checkpoint, settings: dict[str, object]) -> bool:
    tree = file.tree("observation_space")
    assert tree is not None
    space = read_space(tree.root)
    parts = space.spaces or {"observation": space}
    changed = False
    for name, part in parts.items():
        changed |= _box_follows(name, part, checkpoint, "input")
    if changed:
        settings["observation_space"] = _shown_space(tree, file.data["observation_space"])
    return changed


def _box_follows(name: str, part: Space, checkpoint: Checkpoint, side: str) -> bool:
    """Whether a Box changed with a port of the graph; if so, its node is changed."""
    sources = port_sources(since(checkpoint), side, name)
    bounds = _declared_bounds(checkpoint, name)
    axes = {axis - 1: source for axis, source in sources.items() if axis}
    if axes and part.kind != "Box":
        raise Refused(f"'{name}' is a {part.kind}, which has no place for new features")
    if axes:
        port = getattr(checkpoint.interface, side)(name)
        change_box(part, axes, port.low, port.high)
    shape = read_space(part.node).shape
    # bounds that were declared before the last change of the shape are bounds of something else
    fitting = {
        side: array for side, array in bounds.items() if part.kind == "Box" and array.shape in ((), shape)
    }
    for bound, array in fitting.items():
        set_bound(part, bound, np.broadcast_to(array, shape).astype(part.dtype))
    return bool(axes or fitting)


def _declared_bounds(checkpoint: Checkpoint, name: str) -> dict[str, Array]:
    """Bounds that the contract gives for a space, entry by entry; None in it is unbounded."""
    spaces = checkpoint.environment.settings.get("spaces")
    found = spaces.get(name) if isinstance(spaces, Mapping) else None
    if not isinstance(found, Mapping):
        return {}
    sides = {"low": -np.inf, "high": np.inf}
    return {side: _filled(found[side], unbounded) for side, unbounded in sides.items() if side in found}


def _filled(values: object, unbounded: float) -> Array:
    nested = np.array(thaw(values), dtype=object)  # type: ignore[arg-type]
    flat = [unbounded if value is None else float(value) for value in nested.reshape(-1)]
    return np.array(flat, np.float64).reshape(nested.shape)


def _actions(file: Sb3File, checkpoint: Checkpoint, settings: dict[str, object]) -> None:
    tree = file.tree("action_space")
    assert tree is not None
    if _actions_follow(read_space(tree.root), checkpoint):
        settings["action_space"] = _shown_space(tree, file.data["action_space"])


def _actions_follow(space: Space, checkpoint: Checkpoint) -> bool:
    """Whether there are other actions; if so, the node of their space is changed."""
    output = next((port.name for port in checkpoint.interface.outputs if port.name in _HEADS), "")
    source = port_sources(since(checkpoint), "output", output).get(1)
    if source is None:
        return False
    if space.kind == "Discrete":
        change_count(space, len(source))
    elif space.kind == "Box" and len(space.shape) == 1:
        low, high = (
            float(bound.flat[-1]) if bound is not None else None for bound in (space.low, space.high)
        )
        change_box(space, {0: source}, low, high)
    else:
        raise Refused(f"a {space.kind} of actions cannot be extended in the file: its heads are not one list")
    return True


def statistics(file: Sb3File, checkpoint: Checkpoint, like: Path) -> bytes | None:
    """`VecNormalize`'s pickle for other spaces; None if there is none, or the spaces are what they were."""
    beside = normaliser.find(like, file.space("observation_space"))
    if beside is None:
        return None
    tree = normaliser.read(beside)
    state = tree.root.state
    seen = read_space(state["observation_space"])
    changed = _actions_follow(read_space(state["action_space"]), checkpoint)
    for name, part in (seen.spaces or {"observation": seen}).items():
        if _box_follows(name, part, checkpoint, "input"):
            changed = True
            if source := port_sources(since(checkpoint), "input", name).get(1):
                normaliser.insert(tree, name, source)
    content: bytes = dump(tree)
    return content if changed else None


def _shown_space(tree: Tree, old: Mapping[str, Any]) -> dict[str, object]:
    """A space as the framework stores it, readable fields included."""
    space = read_space(tree.root)
    shown = {key: value for key, value in old.items() if key not in (":type:", ":serialized:")}
    fresh = {
        "_shape": list(space.shape), "low": space.low, "high": space.high,
        "n": space.counts[0] if space.kind == "Discrete" else None,
    }  # fmt: skip
    shown |= {key: value for key, value in fresh.items() if key in shown and value is not None}
    if space.low is not None and space.high is not None:
        flags = {"bounded_below": np.isfinite(space.low), "bounded_above": np.isfinite(space.high)}
        shown |= {key: value for key, value in flags.items() if key in shown}
    return serialized(tree, str(old[":type:"]), shown)


def _stored(file: Sb3File, kwargs: dict[str, Any]) -> object:
    """`policy_kwargs` as JSON where it can hold them, else as the framework stores a dict with classes."""
    tree = file.tree("policy_kwargs")
    if tree is None:
        try:
            return json.loads(json.dumps(kwargs))
        except TypeError:
            pass
    shown = {key: f"<class '{value}'>" if isinstance(value, Name) else value for key, value in kwargs.items()}
    return serialized(Tree(kwargs, 4 if tree is None else tree.protocol), "<class 'dict'>", shown)
