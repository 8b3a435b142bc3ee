"""What a network shall become: the layers of a named architecture, or those of another file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery.adapters import detect
from surgery.architectures.family import identify
from surgery.architectures.layers import Activation, Branches, Layer, Recurrent, Shape, change, resolved
from surgery.architectures.library import Architecture
from surgery.architectures.like import Setting, observed, setting
from surgery.architectures.names import parse
from surgery.architectures.recognise import Found, Network, Tree, flat, recognise, weighted
from surgery.architectures.untrained import channels_first
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, FileError, Refused, shape_text
from surgery.storage import load


@dataclass(frozen=True)
class Target:
    """What a network shall become.

    Attributes:
      name: what the user called it. layers: from the observation to the outputs.
      architecture: the name under which an untrained one can be made; None if it has none.
    """

    name: str
    layers: tuple[Layer, ...]
    architecture: str | None


def target_of(to: str, checkpoint: Checkpoint, network: Network) -> Target:
    """What a name or a file means for a network.

    Args:
      to: a named architecture with modifiers, or a model: `.onnx`, or a framework's own file or folder.
      checkpoint: the one that shall become it. network: its layers.

    Raises:
      UnknownName: no such architecture. ArgumentError: a file that holds no policy.
      Refused: a target with other observations or actions; the hint is the command that changes them.
    """
    path = file_of(to)
    if path is not None:
        return _file(path, checkpoint, network)
    return Target(to, named(parse(to), observed(checkpoint)[1], network.tree), to)


def file_of(to: str) -> Path | None:
    """The model that a target names, as `surgery.load` takes it; None where it is the name of an architecture."""
    path = Path(to)
    if path.suffix == ".onnx" or (path.suffix not in ("", ".toml") and path.is_file()):
        return path
    return path if path.suffix != ".toml" and path.exists() and detect(path) is not None else None


def named(architecture: Architecture, observation: Shape, tree: Tree) -> tuple[Layer, ...]:
    """An architecture with the network's own input stage, heads and streams, and with what its name leaves open."""
    try:
        layers, _ = resolved(_closed(architecture, tree), channels_first(observation))
    except ArgumentError as error:
        raise Refused(
            f"this network's observations do not fit '{architecture.name}': {error.message}",
            hint=error.hint or "surgery list architectures shows what each takes",
        ) from None
    return _fitted(tree, layers)


def _closed(architecture: Architecture, tree: Tree) -> tuple[Layer, ...]:
    """The activation and the encoder are the network's own where the name says nothing of them."""
    layers = architecture.layers
    kinds = [found.layer for found in flat(tree) if isinstance(found.layer, Activation)]
    if "activation" in architecture.open and kinds:
        layers = change(layers, lambda layer: kinds[0] if isinstance(layer, Activation) else layer)
    if "encoder" in architecture.open:
        own = _before_recurrent([found.layer for found in tree])
        if own is not None:
            layers = (*own, *layers[len(_before_recurrent(layers) or ()) :])
    return layers


def _before_recurrent(layers: Sequence[Layer]) -> tuple[Layer, ...] | None:
    places = [k for k, layer in enumerate(layers) if isinstance(layer, Recurrent)]
    return tuple(layers[: places[0]]) if places else None


def _fitted(tree: Tree, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The wanted layers between the network's own input stage and its heads.

    Where heads have layers of their own (the streams of a dueling head, the two networks of an actor and a critic),
    the last of the wanted layers go into each of them; where nothing is shared, all do.
    """
    places = [k for k, found in enumerate(tree) if weighted(found)]
    if not places:
        return (*layers, *(found.layer for found in tree))
    lead = tuple(found.layer for found in tree[: places[0]])
    if layers and lead and layers[: len(lead)] == lead:
        lead = ()
    head, last = places[-1], tree[places[-1]]
    rest = tuple(found.layer for found in tree[head:])
    if not isinstance(last.layer, Branches):
        return (*lead, *layers, *rest)
    hidden = [sum(map(weighted, branch)) - 1 for branch in last.branches]
    if len(places) == 1 and max(hidden) > 0:
        inner = tuple(
            _fitted(branch, layers) if own > 0 else _layers(branch)
            for branch, own in zip(last.branches, hidden, strict=True)
        )
        return (*lead, Branches(inner, last.layer.join), *rest[1:])
    cut = _cut(layers, max(hidden))
    inner = tuple(
        (*layers[_cut(layers, own) :], *_head(branch)) if own > 0 else _layers(branch)
        for branch, own in zip(last.branches, hidden, strict=True)
    )
    return (*lead, *layers[:cut], Branches(inner, last.layer.join), *rest[1:])


def _layers(tree: Tree) -> tuple[Layer, ...]:
    return tuple(found.layer for found in tree)


def _head(branch: Tree) -> tuple[Layer, ...]:
    """The last layer with weights, and what comes behind it."""
    last = max(k for k, found in enumerate(branch) if weighted(found))
    return _layers(branch[last:])


def _cut(layers: Sequence[Layer], count: int) -> int:
    """Where the last `count` layers with weights begin."""
    places = [k for k, layer in enumerate(layers) if weighted(Found(layer, ""))]
    return places[-count] if 0 < count <= len(places) else len(layers) if count <= 0 else 0


def _file(path: Path, checkpoint: Checkpoint, network: Network) -> Target:
    if not path.exists():
        raise FileError(
            f"there is no target '{path}'", hint="name a file, or an architecture: surgery list architectures"
        )
    other = load(path, optimizer=False)
    try:
        wanted = setting(other)
    except ArgumentError as error:
        raise ArgumentError(
            f"the target '{path}' is not a policy: {error.message}", hint=error.hint
        ) from None
    _same_task(setting(checkpoint), wanted, checkpoint, path)
    lead = next((k for k, found in enumerate(network.tree) if weighted(found)), 0)
    theirs = recognise(other)
    first = next((k for k, found in enumerate(theirs.tree) if weighted(found)), 0)
    name = identify(theirs, wanted.shape).name
    return Target(str(path), (*_layers(network.tree[:lead]), *theirs.layers[first:]), name)


def _same_task(have: Setting, want: Setting, checkpoint: Checkpoint, path: Path) -> None:
    """Observations and actions are extended or narrowed, not widened."""
    model = checkpoint.path or "MODEL"
    if channels_first(have.shape) != channels_first(want.shape):
        more = [b - a for a, b in zip(have.shape, want.shape, strict=False) if a != b]
        grows = len(have.shape) == len(want.shape) and len(more) == 1 and more[0] > 0
        verb = (
            f"extend {model} --observation {have.observation.name}+{more[0]}"
            if grows
            else f"adapt {model} --env ID"
        )
        raise Refused(
            f"the target reads observations of shape {shape_text(want.shape)}, this network {shape_text(have.shape)}",
            where={"target": path}, hint=f"first: surgery {verb} -o OUT",
        )  # fmt: skip
    if have.action.kind != want.action.kind:
        raise Refused(
            f"the target gives {want.action.kind}, this network {have.action.kind}", where={"target": path},
            hint="distillation changes the kind of a head: surgery distill",
        )  # fmt: skip
    if have.actions != want.actions:
        more_actions = want.actions - have.actions
        verb = (
            f"extend {model} --action {have.action.name}+{more_actions}"
            if more_actions > 0
            else f"adapt {model} --env ID"
        )
        raise Refused(
            f"the target has {want.actions} actions, this network {have.actions}",
            where={"target": path}, hint=f"first: surgery {verb} -o OUT",
        )  # fmt: skip
