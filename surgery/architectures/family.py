"""What a recognised network is called, and the names that its layers have there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from surgery.architectures.layers import (
    PLAIN,
    Activation,
    Attention,
    Branches,
    Convolution,
    Dense,
    Layer,
    Recurrent,
    Residual,
    Shape,
    passing,
    resolved,
    walk,
)
from surgery.architectures.library import built_in, named, numbered
from surgery.architectures.names import parse
from surgery.architectures.recognise import Network, Tree, weighted
from surgery.architectures.untrained import channels_first
from surgery.errors import SurgeryError
from surgery.graph.layout import units
from surgery.graph.spaces import Analysis

_STREAMS = {"dueling": ("value", "advantage")}
Layers = tuple[Layer, ...]


@dataclass(frozen=True)
class Family:
    """What a network is.

    Attributes:
      family: the architecture that it is in all but its widths; None if it is none of those with a name.
      name: of this very network, with modifiers; None if no name says these widths.
      layers: between the observation and the heads, under the family's names.
      aliases: the names that its layers have in the family -> the spaces of their units.
    """

    family: str | None
    name: str | None
    layers: Layers
    aliases: Mapping[str, str]


def identify(network: Network, observation: Shape) -> Family:
    """What a network is called.

    Args:
      network: as `recognise` found it. observation: the shape of one observation of it.
    """
    spines = list(_spines(network.tree))
    found = [_identified(tuple(found.layer for found in spine), observation) for _, _, spine in spines]
    known = {space.name for space in network.analysis.spaces}
    aliases: dict[str, str] = {}
    seen: set[str] = set()
    for (prefix, shared, spine), (_, _, layers) in zip(spines, found, strict=True):
        for k, (label, space) in enumerate(zip(_names_of(layers), _spaces(spine), strict=True)):
            alias = label if k < shared else f"{prefix}{label}"
            if space and space not in seen and not _taken(alias, space, known):
                aliases.setdefault(alias, space)
            seen.add(space)
    families, names = {one[0] for one in found}, {one[1] for one in found}
    return Family(
        families.pop() if len(families) == 1 else None,
        names.pop() if len(names) == 1 else None,
        found[0][2],
        aliases,
    )


def _taken(alias: str, space: str, known: Collection[str]) -> bool:
    """Whether a name says something else in the graph: a space, the ending of just one name, a module of several."""
    ending = [name for name in known if name.endswith(f".{alias}")]
    inside = {name for name in known if name.startswith(f"{alias}.")}
    return alias in known or (len(ending) == 1 and ending != [space]) or not inside <= {space}


def with_aliases(analysis: Analysis, aliases: Mapping[str, str]) -> Analysis:
    """The analysis with more names for its spaces."""
    spaces = (
        replace(space, aliases=tuple(alias for alias, name in aliases.items() if name == space.name))
        for space in analysis.spaces
    )
    return replace(analysis, spaces=tuple(spaces))


def _spines(tree: Tree) -> Iterator[tuple[str, int, Tree]]:
    """The layers between the input stage and a head; where heads have layers of their own, once for each.

    Yields: what the head is called, how many layers with a name are shared with other heads, and the layers.
    """
    places = [k for k, found in enumerate(tree) if weighted(found)]
    shared = tree[places[0] : places[-1]] if places else ()
    last = tree[places[-1]] if places else None
    hidden = [sum(map(weighted, branch)) > 1 for branch in last.branches] if last is not None else []
    if last is None or not isinstance(last.layer, Branches) or not any(hidden):
        yield "", 0, shared
        return
    labels = _STREAMS.get(last.layer.join) or last.outputs or tuple(map(str, range(len(hidden))))
    if len(set(labels)) < len(labels):  # ways from several inputs to the same outputs are no heads
        yield "", 0, shared
        return
    for label, branch, deep in zip(labels, last.branches, hidden, strict=True):
        for prefix, _, inner in _spines(branch) if deep else ():
            yield f"{label}.{prefix}", len(_spaces(shared)), (*shared, *inner)


def _identified(layers: Layers, observation: Shape) -> tuple[str | None, str | None, Layers]:
    """Family, name, and the layers under the family's names."""
    for pattern in _patterns(layers):
        wanted = _resolved(pattern, observation)
        if wanted is not None and _plain(wanted) == _plain(layers):
            return pattern.partition("-")[0], pattern, _renamed(wanted, layers) or layers
    cut = next((k for k, layer in enumerate(layers) if _recurrent(layer)), len(layers))
    candidates: list[tuple[str, str | None, Layers]] = []
    for family in built_in():
        wanted = _resolved(family, observation)
        own = None if wanted is None else _renamed(wanted, layers[:cut])
        if wanted is not None and own is not None:
            name = f"{family}{_modifiers(wanted, own)}{_cells(layers[cut:])}"
            exact = _resolved(name, observation)
            if exact is not None and _plain(exact) == _plain(layers):
                candidates.append((family, name, _renamed(exact, layers) or layers))
            else:
                candidates.append((family, None, (*own, *named(_nameless(layers[cut:]), family))))
    none = (None, None, named(_nameless(layers), "network"))
    return min(candidates, key=lambda found: (found[1] is None, found[0] != found[1]), default=none)


def _resolved(name: str, observation: Shape) -> Layers | None:
    try:
        return resolved(parse(name).layers, channels_first(observation))[0]
    except SurgeryError:
        return None


def _plain(layers: Sequence[Layer]) -> list[Layer]:
    """Without what says nothing of what a network can do."""
    return [layer for layer in layers if not passing(layer)]


def _recurrent(layer: Layer) -> bool:
    return isinstance(layer, Recurrent) or (isinstance(layer, Residual) and any(map(_recurrent, layer.body)))


# ---- the same layers with other widths ----------------------------------------------------------------------------


def _kind(layer: Layer) -> tuple[object, ...]:
    """A layer without widths and names; of an activation only that it is one."""
    match layer:
        case Convolution():
            return "conv", layer.kernel, layer.stride, layer.padding
        case Dense() | Activation():
            return (type(layer),)
        case Recurrent():
            return (layer.kind,)
        case Residual():
            return ("residual", *map(_kind, layer.body))
    return (layer,)


def _runs(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers one by one, but blocks of one form that follow each other together."""
    out: list[list[Layer]] = []
    for layer in _plain(layers):
        if out and isinstance(layer, Residual) and _kind(layer) == _kind(out[-1][0]):
            out[-1].append(layer)
        else:
            out.append([layer])
    return out


def _renamed(base: Sequence[Layer], own: Sequence[Layer]) -> Layers | None:
    """Layers under the names of those of a family; None if they are others in more than width and number of blocks."""
    theirs, ours = _runs(base), _runs(own)
    if [_kind(run[0]) for run in theirs] != [_kind(run[0]) for run in ours]:
        return None
    if len({layer.kind for _, layer in walk(own) if isinstance(layer, Activation)}) > 1:
        return None
    return tuple(
        _called(layer, run[0], k)
        for run, members in zip(theirs, ours, strict=True)
        for k, layer in enumerate(members)
    )


def _called(layer: Layer, base: Layer, k: int) -> Layer:
    if isinstance(layer, Residual) and isinstance(base, Residual):
        body = (_called(inner, other, 0) for inner, other in zip(layer.body, base.body, strict=True))
        return Residual(tuple(body), numbered(base.name, k))
    return layer if isinstance(layer, PLAIN) or isinstance(base, PLAIN) else replace(layer, name=base.name)


def _nameless(layers: Sequence[Layer]) -> Layers:
    return tuple(
        Residual(_nameless(layer.body)) if isinstance(layer, Residual)
        else layer if isinstance(layer, PLAIN) else replace(layer, name="")
        for layer in layers
    )  # fmt: skip


# ---- names --------------------------------------------------------------------------------------------------------


def _patterns(layers: Layers) -> Iterator[str]:
    """Names of families without a fixed depth that these layers may have; what they stand for is compared."""
    flat = [layer for _, layer in walk(layers)]
    dense = [layer.width for layer in layers if isinstance(layer, Dense)]
    cells = [layer for layer in flat if isinstance(layer, Recurrent)]
    heads = [layer.heads for layer in flat if isinstance(layer, Attention)]
    if heads:
        yield f"transformer-{dense[0] if dense else 0}-l{len(heads)}-h{heads[0]}"
    elif cells:
        chain = "-".join(str(cell.width) for cell in cells)
        yield f"{cells[0].kind}-{chain}-fc{dense[0] if dense else 0}{_activation(layers)}"
    else:
        yield f"mlp-{'-'.join(map(str, dense))}{_activation(layers)}"


def _activation(layers: Layers) -> str:
    kinds = {layer.kind for _, layer in walk(layers) if isinstance(layer, Activation)}
    return f"-{kinds.pop().lower()}" if len(kinds) == 1 and kinds != {"Relu"} else ""


def _cells(layers: Layers) -> str:
    cells = [layer for _, layer in walk(layers) if isinstance(layer, Recurrent)]
    return "".join([f"-{cells[0].kind}", *(f"-{cell.width}" for cell in cells)]) if cells else ""


def _modifiers(base: Layers, own: Layers) -> str:
    """What makes the one the other, if modifiers can."""
    text = ""
    channels = [[x.channels for x in layers if isinstance(x, Convolution)] for layers in (base, own)]
    if channels[0] != channels[1]:
        text += f"-x{channels[1][0] / channels[0][0]:g}"
    counts = [[len(run) for run in _runs(layers) if isinstance(run[0], Residual)] for layers in (base, own)]
    if counts[0] != counts[1]:
        text += f"-b{counts[1][0]}"
    widths = [[x.width for x in layers if isinstance(x, Dense)] for layers in (base, own)]
    if widths[0] != widths[1]:
        text += f"-fc{widths[1][-1]}"
    return text + _activation(own)


def _names_of(layers: Layers) -> list[str]:
    return [name for name, layer in walk(layers) if not isinstance(layer, PLAIN)]


def _spaces(spine: Tree) -> list[str]:
    """The space of every layer with a name, empty where it has none or several; those of blocks where they stand."""
    out: list[str] = []
    for found in spine:
        if isinstance(found.layer, Residual):
            out += _spaces(found.branches[0])
        elif not isinstance(found.layer, PLAIN):
            own = {part.space for part in units(found.units)}
            out.append(own.pop() if len(own) == 1 else "")
    return out
