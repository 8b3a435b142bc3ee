"""Which group of layers reads which: told by names, sizes and the order of a state dict, or else refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from surgery.adapters import SHARED
from surgery.errors import Refused
from surgery_adapters.networks.layers import HINT, Tensors
from surgery_adapters.networks.stacked import stacked_in
from surgery_adapters.networks.words import is_last, roles_of


@dataclass(frozen=True)
class Layer:
    """A module with a weight.

    Attributes:
      module: its path. shape: of its weight, of one network's where several are stacked.
      group: the path of the sequence that it is in. place: its number there; None if it has a name.
      normalises: whether its weight is a scale per unit, after statistics of its own (batch) or not (layer).
    """

    module: str
    shape: tuple[int, ...]
    group: str
    place: int | None
    normalises: str | None = None

    @property
    def units(self) -> int:
        """How many it makes."""
        return self.shape[0]


@dataclass
class Group:
    """Layers that follow each other.

    Attributes:
      name: the path of their sequence. layers: in order.
      units: how many the last one makes, or what stands behind it.
    """

    name: str
    layers: list[Layer] = field(default_factory=list)
    units: int = 0

    @property
    def wanted(self) -> int | None:
        """How many it reads; None if that is an image or a signal."""
        first = self.layers[0]
        if len(first.shape) > 2:
            return None
        return first.units if first.normalises else first.shape[1]


def groups_of(tensors: Tensors) -> list[Group]:
    """The layers of a network in groups, those that others read before them.

    Raises:
      Refused: a weight of a kind that no layer here has.
    """
    groups: dict[str, Group] = {}
    for layer in layers_of(tensors):
        groups.setdefault(layer.group, Group(layer.group)).layers.append(layer)
    for group in groups.values():
        group.layers.sort(key=lambda layer: -1 if layer.place is None else layer.place)
        group.units = group.layers[-1].units
    return _trunks_first(list(groups.values()))


def layers_of(tensors: Tensors) -> list[Layer]:
    """The modules with weights, in the file's order.

    Raises:
      Refused: a weight of a kind that no layer here has.
    """
    found = []
    weights = {tensor.meta.get(SHARED) for name, tensor in tensors.items() if name.endswith("weight")}
    stacked = bool(stacked_in(tensors))
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        shape = tuple(tensor.shape.numpy())[stacked:]
        if leaf != "weight":
            if tensor.meta.get(SHARED, name) not in weights:
                _check_free(name, shape)
            continue
        group, _, place = module.rpartition(".")
        kind = None
        if len(shape) == 1:
            kind = "batch" if f"{module}.running_mean" in tensors else "layer"
        elif len(shape) not in (2, 3, 4):
            raise nowhere(name, shape)
        number = int(place) if place.isdecimal() else None
        found.append(Layer(module, shape, group if number is not None else module, number, kind))
    return found


def _check_free(name: str, shape: tuple[int, ...]) -> None:
    """Refuse what no layer of a chain has: recurrent weights, embeddings, factors of matrices."""
    if sum(size > 1 for size in shape) > 1:
        raise nowhere(name, shape)


def nowhere(name: str, shape: Sequence[int]) -> Refused:
    """What no layer has."""
    return Refused(
        f"'{name}' of shape {list(shape)} belongs to no layer whose order a state dict reveals", hint=HINT
    )


def _trunks_first(groups: list[Group]) -> list[Group]:
    """Groups in the file's order, unless that begins with one whose features only another one makes.

    A state dict lists modules as the network's code makes them; other formats sort their names.
    """
    made = {id(group): {other.units for other in groups if other is not group} for group in groups}
    roots = [group for group in groups if group.wanted is None or group.wanted not in made[id(group)]]
    if not roots or groups[0] in roots:
        return groups
    return [*roots, *(group for group in groups if group not in roots)]


def agents(groups: Sequence[Group]) -> Group:
    """The group that reads the agent's observation: the first one, or the policy's where that is a critic."""
    names = _own_names(groups)
    roles = [roles_of(names[group.name]) for group in groups]
    if "actor" not in roles[0] and roles[0] & {"critic", "q"}:
        return next((group for group, own in zip(groups, roles, strict=True) if "actor" in own), groups[0])
    return groups[0]


@dataclass(frozen=True)
class Wiring:
    """What each group of a network reads.

    Attributes:
      sources: group -> the group that it reads; None: an observation.
    """

    sources: Mapping[str, str | None]

    def is_read(self, group: Group) -> bool:
        """Whether another group reads it."""
        return group.name in self.sources.values()


def wire(groups: Sequence[Group], features: int, *, free: bool = True) -> Wiring:
    """Find what each group reads.

    A critic beside a policy may read an observation of its own: with the actions, or with what only a simulator knows.

    Args:
      groups: those that others read before them. features: of the observation; 0 for an image.
      free: whether groups may read other observations.

    Raises:
      Refused: nothing makes what a group reads, or more than one does.
    """
    own = _own_names(groups)
    sources: dict[str, str | None] = {}
    for k, group in enumerate(groups):
        before = groups[:k]
        known = all(roles_of(own[other.name]) for other in (*before, group)) or not before
        trunks = {other.name for other in before if _is_trunk(other, groups, own)}
        sources[group.name] = _source(group, before, trunks, sources, features, own, free=free and known)
    return Wiring(sources)


def _source(
    group: Group,
    before: Sequence[Group],
    trunks: Collection[str],
    sources: Mapping[str, str | None],
    features: int,
    own: Mapping[str, str],
    *,
    free: bool,
) -> str | None:
    if group.wanted is None:
        return None
    roles = roles_of(own[group.name])
    makers = [other for other in before if other.units == group.wanted and not is_last(own[other.name])]
    related = [other for other in makers if _related(roles_of(own[other.name]), roles)]
    if group.wanted == features:
        related = [other for other in related if _leads(other, group, before, own)]
    elif not related and len(group.layers) == 1:  # a critic's head on the policy's trunk
        related = [other for other in makers if other.name in trunks]
    if not related:
        if group.wanted == features or (free and not makers):
            return None
        raise Refused(f"nothing makes the {group.wanted} features that '{group.name}' reads", hint=HINT)
    nearest = [other for other in related if roles_of(own[other.name]) == roles] or related
    unread = [other for other in nearest if other.name not in sources.values()]
    if len(unread) > 1:
        raise _several(group, unread[0], unread[1])
    return (unread or nearest)[-1].name


def _is_trunk(group: Group, groups: Sequence[Group], own: Mapping[str, str]) -> bool:
    """Whether an output of the agent that a group is of has a name, and a place behind it, of its own."""
    roles = roles_of(own[group.name])
    heads = [other for other in groups if other is not group and is_last(own[other.name])]
    return any(other.wanted == group.units and _related(roles_of(own[other.name]), roles) for other in heads)


def _related(other: frozenset[str], roles: frozenset[str]) -> bool:
    return not other or not roles or bool(other & roles)


def _leads(other: Group, group: Group, before: Sequence[Group], own: Mapping[str, str]) -> bool:
    """Whether a group reads another one, and not the observation, which has as many features.

    Raises:
      Refused: it could be either.
    """
    theirs, ours = roles_of(own[other.name]), roles_of(own[group.name])
    if (ours and not theirs) or group.layers[
        0
    ].normalises:  # the head of a trunk; what a layer is normalised by
        return True
    if len(other.layers) == len(group.layers) == 1 and not ours and not theirs:
        return other is before[-1]  # fc1, fc2, fc3
    if len(group.layers) > 1 and _letters(own[other.name]) == _letters(own[group.name]):
        return False  # q1, q2
    raise Refused(
        f"'{group.name}' reads {group.wanted} features: either the observation's or what '{other.name}' makes",
        hint=HINT,
    )


def _several(group: Group, one: Group, other: Group) -> Refused:
    return Refused(f"'{group.name}' reads what either '{one.name}' or '{other.name}' makes", hint=HINT)


def _own_names(groups: Sequence[Group]) -> dict[str, str]:
    """The groups' paths without what all of them begin with."""
    paths = [group.name.split(".") for group in groups]
    shared = 0
    while len(paths) > 1 and all(len(path) > shared + 1 for path in paths):
        if len({path[shared] for path in paths}) > 1:
            break
        shared += 1
    return {group.name: ".".join(path[shared:]) for group, path in zip(groups, paths, strict=True)}


def _letters(name: str) -> str:
    return "".join(letter for letter in name if not letter.isdecimal())
