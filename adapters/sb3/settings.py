"""What follows in a model's settings when its networks change: spaces, widths, features extractors."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surgery.checkpoint import Checkpoint
from surgery.errors import Refused
from surgery.json_values import thaw
from surgery.ports import port_sources
from surgery.tensors import shape_of
from surgery_adapters.contract import since
from surgery_adapters.layers import Tensors
from surgery_adapters.pickle_tree import Name, Tree, dump
from surgery_adapters.sb3 import normaliser
from surgery_adapters.sb3.file import Sb3File, serialized
from surgery_adapters.spaces import Space, change_box, change_count, read_space, set_bound

OURS = "surgery_adapters.sb3.extractor"
_DEFAULT_CHANNELS, _DEFAULT_FEATURES, _DEFAULT_COMBINED = [32, 64, 64], 512, 256
_HEADS = ("q_values", "logits", "mean", "action")


def follow(
    file: Sb3File, checkpoint: Checkpoint, tensors: Tensors, optimizer: Mapping[str, object]
) -> dict[str, object]:
    """The settings of the file as they must be for the framework to load the changed networks.

    Args:
      file: the original.
      checkpoint: what is written; its lineage says where features were inserted.
      tensors: every tensor of the policy, as it will be.
      optimizer: `policy_kwargs` of another optimizer.

    Raises:
      Refused: widths that no settings of the framework can express.
    """
    settings: dict[str, object] = dict(file.data)
    if _observations(file, checkpoint, settings):
        for name in ("_last_obs", "_last_original_obs"):
            if name in settings:
                settings[name] = None  # an observation of the old shape; the next reset gives a new one
    _actions(file, checkpoint, settings)
    if changed := {**_widths(file, tensors), **optimizer}:
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


def _declared_bounds(checkpoint: Checkpoint, name: str) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Bounds that the contract gives for a space, entry by entry; None in it is unbounded."""
    spaces = checkpoint.environment.settings.get("spaces")
    found = spaces.get(name) if isinstance(spaces, Mapping) else None
    if not isinstance(found, Mapping):
        return {}
    sides = {"low": -np.inf, "high": np.inf}
    return {side: _filled(found[side], unbounded) for side, unbounded in sides.items() if side in found}


def _filled(values: object, unbounded: float) -> np.ndarray[Any, np.dtype[Any]]:
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
    stored: dict[str, object] = serialized(tree, str(old[":type:"]), shown)
    return stored


def _widths(file: Sb3File, tensors: Tensors) -> dict[str, object]:
    """`policy_kwargs` that make networks of these widths; none where no hidden width changed."""
    shapes = {name: shape_of(tensor) for name, tensor in tensors.items()}
    old = {name: shape_of(tensor) for name, tensor in file.policy.items()}
    kwargs, before, after = file.kwargs, _sizes(old), _sizes(shapes)
    changed: dict[str, object] = {}
    if _arch(before) != _arch(after):
        changed["net_arch"] = _net_arch(after, kwargs.get("net_arch"))
    if _of(before, "lstm") != _of(after, "lstm"):
        changed["lstm_hidden_size"] = _one(_of(after, "lstm"), "LSTM")[0]
    if _of(before, "cnn") != _of(after, "cnn") or _of(before, "dense") != _of(after, "dense"):
        # what the framework takes for net_arch where none is given depends on the class of the extractor
        changed |= {"net_arch": _net_arch(after, kwargs.get("net_arch")), **_extractor(after, kwargs)}
    return changed


Sizes = dict[tuple[str, str], list[int]]
"""(what, module) -> hidden widths, in order."""

_MLPS = {
    "mlp_extractor.policy_net.": "pi", "mlp_extractor.value_net.": "vf", "q_net.q_net.": "q",
    "quantile_net.quantile_net.": "q", "actor.latent_pi.": "pi", "actor.mu.": "pi",
}  # fmt: skip


def _sizes(shapes: Mapping[str, Sequence[int]]) -> Sizes:
    """The hidden widths that a policy's settings can express."""
    found: Sizes = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        parent, _, place = module.rpartition(".")
        if leaf == "weight_hh_l0":
            found[("lstm", module)] = [shape[1]]
        elif leaf != "weight" or not place.isdecimal():
            continue
        elif parent.endswith("cnn"):
            found.setdefault(("cnn", parent.removesuffix("cnn")), []).append(shape[0])
        elif parent.endswith("linear"):
            found.setdefault(("dense", parent.removesuffix("linear")), []).append(shape[0])
        else:
            found.setdefault(("mlp", f"{parent}."), []).append(shape[0])
    return found


def _of(sizes: Sizes, what: str) -> list[list[int]]:
    return [widths for (kind, _), widths in sizes.items() if kind == what]


def _arch(sizes: Sizes) -> dict[str, list[list[int]]]:
    """Part of `net_arch` -> the hidden widths of every network that it makes."""
    found: dict[str, list[list[int]]] = {}
    for (kind, module), widths in sizes.items():
        part = _MLPS.get(module) or ("qf" if module.startswith("critic.qf") else None)
        clipped = module == "actor.mu." and ("mlp", "actor.latent_pi.") in sizes
        if kind == "mlp" and part is not None and not clipped:
            headless = part in ("vf",) or module in ("mlp_extractor.policy_net.", "actor.latent_pi.")
            found.setdefault(part, []).append(widths if headless else widths[:-1])
    return found


def _net_arch(sizes: Sizes, old: object) -> object:
    parts = {part: _one(every, part) for part, every in _arch(sizes).items()}
    if set(parts) == {"q"}:
        return parts["q"]
    keys = {"pi", "qf"} if "qf" in parts else {"pi", "vf"}
    full = {key: parts.get(key, []) for key in sorted(keys)}
    equal = all(widths == full["pi"] for widths in full.values())
    return full["pi"] if equal and isinstance(old, list) and old else full


def _one(every: list[list[int]], what: str) -> list[int]:
    if any(widths != every[0] for widths in every):
        shown = " and ".join(str(widths) for widths in every)
        raise Refused(
            f"the networks '{what}' would have different widths, {shown}: Stable-Baselines3 has one setting for all",
            hint="give the same widths to all of them",
        )
    return every[0]


def _extractor(sizes: Sizes, kwargs: Mapping[str, Any]) -> dict[str, object]:
    """The features extractor, and its arguments, that has these widths."""
    given = dict(kwargs.get("features_extractor_kwargs") or {})
    kept = {key: value for key, value in given.items() if key == "normalized_image"}
    by_key: dict[str, dict[str, list[int]]] = {"cnn": {}, "dense": {}}
    for (kind, module), widths in sizes.items():
        if kind in by_key and not module.startswith(
            ("q_net_target.", "quantile_net_target.", "critic_target.", "actor_target.")
        ):
            key = module.rstrip(".").rpartition("extractors.")[2] if "extractors." in module else ""
            known = by_key[kind].setdefault(key, widths)
            _one([known, widths], f"{module}{kind}")
    channels, dense = by_key["cnn"], {key: widths[0] for key, widths in by_key["dense"].items()}
    plain = all(widths == _DEFAULT_CHANNELS for widths in channels.values())
    if set(channels) == {""}:
        if plain and not str(kwargs.get("features_extractor_class", "")).startswith(OURS):
            return {"features_extractor_kwargs": {**kept, "features_dim": dense[""]}}
        made: dict[str, object] = {"channels": channels[""], "features_dim": dense[""]}
        return {
            "features_extractor_class": Name(OURS, "NatureCNN"), "features_extractor_kwargs": {**kept, **made},
        }  # fmt: skip
    made = {"channels": channels, "features_dims": dense}
    return {
        "features_extractor_class": Name(OURS, "CombinedExtractor"), "features_extractor_kwargs": {**kept, **made},
    }  # fmt: skip


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
