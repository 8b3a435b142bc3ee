"""What the entries of a PyTorch checkpoint are: networks, copies of them, optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import onnx_ir as ir

from surgery.adapters import TrainingState
from surgery.tensors import shape_of
from surgery_adapters.networks.chains import Part
from surgery_adapters.writeback.torch_tree import entries

_COPIES = ("target", "old", "ema", "avg")


def prefixes(state: TrainingState) -> dict[str, str]:
    """Network -> what its parameters' names in the graph have in front: nothing for the first, else its own name."""
    # the first network's names stay bare: an original's, wherever its copies stand in the file
    ordered = sorted(state.networks, key=lambda name: any(word in name.lower() for word in _COPIES))
    names = [
        name
        for name in ordered
        if any(len(tensor.shape) > 1 for tensor in state.networks[name].values())  # the others are statistics
    ]
    return {name: f"{name}." if k else "" for k, name in enumerate(names)}


def parts_of(state: TrainingState) -> list[Part]:
    """The networks of a training state, originals before their copies.

    The first network's parameters keep their names, those of the others have the network's name in front. A network
    whose own parts are copies of each other (`q_network`, `target_network`) is taken apart.
    """
    labels = {prefix: name for name, prefix in prefixes(state).items()}
    named = {
        prefix: {f"{prefix}{key}": tensor for key, tensor in state.networks[name].items()}
        for prefix, name in labels.items()
    }
    if len(named) == 1:
        divided: dict[str, dict[str, ir.TensorProtocol]] = {}
        for name, tensor in named[""].items():
            divided.setdefault(f"{name.partition('.')[0]}.", {})[name] = tensor
        named = divided if _copies(divided) else named
    for members in named.values():
        for name, tensor in members.items():
            tensor.name = name
    copies = _copies(named)
    parts = [
        Part(prefix, labels.get(prefix, prefix), members, copies.get(prefix))
        for prefix, members in named.items()
    ]
    return sorted(parts, key=lambda part: part.original is not None)


def _copies(named: Mapping[str, Mapping[str, ir.TensorProtocol]]) -> dict[str, str]:
    """Prefixes of target and averaged networks, and those of the networks that they have the shape of."""
    shapes = {
        prefix: {name.removeprefix(prefix): shape_of(tensor) for name, tensor in members.items()}
        for prefix, members in named.items()
    }
    copies = [prefix for prefix in named if any(word in prefix.lower() for word in _COPIES)]
    return {
        copy: original
        for copy in copies
        if (original := next((p for p in named if p not in copies and shapes[p] == shapes[copy]), None))
        is not None
    }


def is_network(value: Mapping[object, object]) -> bool:
    """Whether a dict is the state dict of a network."""
    return bool(value) and all(
        isinstance(key, str) and isinstance(item, ir.TensorProtocol) for key, item in value.items()
    )


def optimizers_in(name: str, value: object) -> Iterator[tuple[str, Mapping[str, object]]]:
    """The optimizers in an entry of a checkpoint, or of the tree of its pickle."""
    short, items = name.removesuffix("_state_dict"), entries(value)
    if _is_optimizer(value):
        yield short, value
    elif isinstance(value, list) and all(map(_is_optimizer, value)):
        yield from ((f"{short}[{number}]", item) for number, item in enumerate(value))
    elif items is not None and all(map(_is_optimizer, items.values())):
        yield from ((f"{short}.{key}", item) for key, item in items.items())


def _is_optimizer(value: object) -> TypeGuard[Mapping[str, object]]:
    return {"state", "param_groups"} <= set(entries(value) or ())


def networks_in(name: str, value: object) -> Iterator[tuple[str, Mapping[str, ir.TensorProtocol]]]:
    """The networks in an entry of a checkpoint."""
    short = "model" if name == "state_dict" else name.removesuffix("_state_dict")
    if isinstance(value, dict) and is_network(value):
        yield short, value
    elif (
        isinstance(value, dict)
        and value
        and all(isinstance(v, dict) and is_network(v) for v in value.values())
    ):
        yield from ((f"{short}.{key}", item) for key, item in value.items())
