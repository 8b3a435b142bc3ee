"""What the entries of a PyTorch checkpoint are: networks, copies of them, optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import TypeGuard

import onnx_ir as ir

from surgery.adapters import TrainingState
from surgery.tensors import shape_of
from surgery_adapters.networks.chains import Part
from surgery_adapters.networks.statistics import are_statistics
from surgery_adapters.networks.words import COPIES
from surgery_adapters.writeback.torch_tree import entries


def state_of(content: Mapping[object, object]) -> TrainingState:
    """What the entries of a checkpoint are, wherever the common layouts put them."""
    networks: dict[str, Mapping[str, ir.TensorProtocol]] = {}
    optimizers: dict[str, Mapping[str, object]] = {}
    extra: dict[str, object] = {}
    for key, value in content.items():
        found = dict(optimizers_in(str(key), value))
        if found:
            optimizers.update(found)
        elif inner := dict(networks_in(str(key), value)):
            networks.update(inner)
        else:
            extra[str(key)] = value
    # a state dict with more in it than tensors: Tianshou's algorithms put their optimizers there
    alone = {key: value for key, value in extra.items() if isinstance(value, ir.TensorProtocol)}
    if not networks and any("." in key for key in alone):
        networks["model"] = alone
        extra = {key: value for key, value in extra.items() if key not in alone}
    return TrainingState(networks, optimizers, extra)


def prefixes(state: TrainingState) -> dict[str, str]:
    """Network -> what its parameters' names in the graph have in front: nothing for the first, else its own name."""
    # the first network's names stay bare: an original's, wherever its copies stand in the file
    ordered = sorted(
        state.networks,
        key=lambda name: (
            are_statistics(name, state.networks[name]),
            any(word in name.lower() for word in COPIES),
        ),
    )
    return {name: f"{name}." if k else "" for k, name in enumerate(ordered) if not _is_carried(state, name)}


def _is_carried(state: TrainingState, name: str) -> bool:
    """Whether an entry is of no graph."""
    members = state.networks[name]
    return not are_statistics(name, members) and not _weighs(members)


def _weighs(members: Mapping[str, ir.TensorProtocol]) -> bool:
    """Whether there is the weight of a layer among some tensors."""
    return any(len(tensor.shape) > 1 for tensor in members.values())


def _is_loose(members: Mapping[str, ir.TensorProtocol]) -> bool:
    """Whether some tensors are of no module: single numbers, or a buffer of the whole (Tianshou's `tau_hat`)."""
    return not _weighs({name: tensor for name, tensor in members.items() if "." in name})


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
    statistics = [prefix for prefix, name in labels.items() if are_statistics(name, state.networks[name])]
    beside = {name: tensor for prefix in statistics for name, tensor in named.pop(prefix).items()}
    if len(named) == 1:
        divided: dict[str, dict[str, ir.TensorProtocol]] = {}
        for name, tensor in named[""].items():
            divided.setdefault(f"{name.partition('.')[0]}.", {})[name] = tensor
        if _copies(divided):
            loose = [prefix for prefix, members in divided.items() if _is_loose(members)]
            beside |= {name: tensor for prefix in loose for name, tensor in divided.pop(prefix).items()}
            named = divided
    for members in (*named.values(), beside):
        for name, tensor in members.items():
            tensor.name = name
    copies = _copies(named)
    parts = []
    for prefix, members in named.items():
        beginning, original = copies.get(prefix, ("", None))
        label = labels.get(prefix, prefix)
        parts.append(Part(prefix, label, members, original, beginning, beside))
    parts.sort(key=lambda part: part.original is not None)
    return parts


def _copies(named: Mapping[str, Mapping[str, ir.TensorProtocol]]) -> dict[str, tuple[str, str]]:
    """Target and averaged networks: what their names begin with, and those of the networks that they are copies of."""
    copies = [prefix for prefix in named if any(word in prefix.lower() for word in COPIES)]
    shapes = {prefix: _layers_in(members) for prefix, members in named.items()}
    found: dict[str, tuple[str, str]] = {}
    for copy in copies:
        own = _without_words(copy)
        originals = sorted((p for p in named if p not in copies), key=lambda p: _without_words(p) != own)
        for original in originals:
            if (way := _alike(shapes[copy], copy, shapes[original], original)) is not None:
                found.setdefault(copy, way)
    return found


def _layers_in(members: Mapping[str, ir.TensorProtocol]) -> dict[str, tuple[int, ...]]:
    """The shapes of what layers have; a copy may lack what stands beside them (Tianshou's `support`)."""
    shapes = {name: shape_of(tensor) for name, tensor in members.items()}
    modules = {name.rpartition(".")[0] for name, shape in shapes.items() if len(shape) > 1}
    return {name: shape for name, shape in shapes.items() if name.rpartition(".")[0] in modules}


def _alike(
    copy: Mapping[str, tuple[int, ...]], prefix: str, original: Mapping[str, tuple[int, ...]], its: str
) -> tuple[str, str] | None:
    """What the names of a copy begin with, and those of its original, if they are the same but for that."""
    for ours, theirs in ((prefix, its), (_beginning(copy), _beginning(original))):
        if {name.removeprefix(ours): shape for name, shape in copy.items()} == {
            name.removeprefix(theirs): shape for name, shape in original.items()
        }:
            return ours, theirs
    return None


def _beginning(names: Iterable[str]) -> str:
    """The modules that all names are in, with the dot."""
    paths = [name.split(".")[:-2] for name in names]
    shared = takewhile(lambda modules: len(set(modules)) == 1, zip(*paths, strict=False))
    return "".join(f"{modules[0]}." for modules in shared)


def _without_words(prefix: str) -> str:
    words = prefix.lower().strip(".").split("_")
    return "_".join(word for word in words if word not in COPIES)


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
