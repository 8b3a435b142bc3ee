"""The features of an input, by name: found, taken away, put into another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Plan
from surgery.edits.removal import fold
from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph.layout import Layout, Units, text
from surgery.graph.prepare import prepared
from surgery.graph.readers import mixed_parameters
from surgery.graph.spaces import Analysis, Space, analyse
from surgery.interface import Port
from surgery.ops.build import build


@dataclass(frozen=True, slots=True)
class Retired:
    """A feature that is constant from now on.

    Attributes:
      input: name of the graph's input, or of one axis of it ("observation[1]").
      feature: its label, or its number.
      value: the constant that it holds.
    """

    input: str
    feature: str | int
    value: float


def retire(checkpoint: Checkpoint, observations: Sequence[Retired]) -> Plan:
    """Take constant features out of an input: what they contribute is added to the biases behind them.

    The policy stays the same function of the other features wherever the retired ones hold their constants. Labels and
    ranges follow; no optimizer slot of what stays changes.

    Raises:
      UnknownName: an input or a feature that is not there. ArgumentError: a feature twice, or all of them.
      Refused: a layer that has no bias to take the constant, or sees it differently at different places (a convolution
        that pads with zeros; unless the constant is zero).
    """
    if not observations:
        raise ArgumentError("nothing to retire", hint="--observation INPUT.FEATURE=VALUE")
    analysis = analyse(checkpoint.model, checkpoint.interface, checkpoint.trained)
    constants: dict[str, dict[int, float]] = {}
    ports: dict[str, tuple[str, Space]] = {}
    for gone in observations:
        name, space = input_space(analysis, gone.input)
        port = checkpoint.interface.input(name)
        index = feature_index(port, space.size, gone.feature)
        known = constants.setdefault(space.name, {})
        if index in known:
            raise ArgumentError(f"feature '{gone.feature}' of '{gone.input}' is retired twice")
        known[index] = float(gone.value)
        ports[space.name] = name, space
    edits, labels = [], {}
    for key, (name, space) in ports.items():
        if reason := mixed_parameters(analysis, space.name):
            raise Refused(f"'{space.name}' cannot change exactly: {reason}")
        rest = [k for k in range(space.size) if k not in constants[key]]
        if not rest:
            raise ArgumentError(f"all features of '{name}' would be gone", hint="an input keeps at least one")
        edits.append(arranged(space, rest, constants[key]))
        labels[name] = arranged_labels(checkpoint.interface.input(name), space.size, rest)
    arguments = {
        "observations": [{"input": o.input, "feature": o.feature, "value": o.value} for o in observations]
    }
    plan = build(
        checkpoint, analysis, "retire", edits, arguments=arguments, claim="equivalent", labels=labels,
        notes=[f"equal wherever {constants_text(checkpoint, ports, constants)}"],
    )  # fmt: skip
    fold(plan, checkpoint, prepared(checkpoint.model, checkpoint.trained), double=False)
    return plan


def constants_text(
    checkpoint: Checkpoint,
    ports: Mapping[str, tuple[str, Space]],
    constants: Mapping[str, Mapping[int, float]],
) -> str:
    """`observation.wind = 0, …`"""
    parts = []
    for key, (name, space) in ports.items():
        known = feature_names(checkpoint.interface.input(name), space.size)
        parts += [f"{name}.{known[k]} = {value:g}" for k, value in sorted(constants.get(key, {}).items())]
    return ", ".join(parts)


def reorder(checkpoint: Checkpoint, orders: Mapping[str, Sequence[str | int]]) -> Plan:
    """Put the features of inputs into another order; weights, slots, labels and ranges follow.

    Args:
      orders: input (or one axis of it) -> all its features, by label or number, in the new order.

    Raises:
      UnknownName, ArgumentError: not exactly the features of that input.
      Refused: an axis that cannot be followed through the network.
    """
    if not orders:
        raise ArgumentError("nothing to reorder", hint="--observation INPUT=FEATURE,…")
    analysis = analyse(checkpoint.model, checkpoint.interface, checkpoint.trained)
    edits, labels = [], {}
    for wanted, order in orders.items():
        name, space = input_space(analysis, wanted)
        port = checkpoint.interface.input(name)
        indices = [feature_index(port, space.size, feature) for feature in order]
        if sorted(indices) != list(range(space.size)):
            missing = [n for k, n in enumerate(feature_names(port, space.size)) if k not in indices]
            raise ArgumentError(
                f"an order of '{name}' names each of its {space.size} features once",
                hint=f"missing: {', '.join(missing)}" if missing else "one is named twice",
            )
        edits.append(arranged(space, indices, {}))
        labels[name] = arranged_labels(port, space.size, indices)
    return build(
        checkpoint, analysis, "reorder", edits, arguments={"orders": {k: list(v) for k, v in orders.items()}},
        claim="equivalent", labels=labels,
    )  # fmt: skip


def arranged(space: Space, order: Sequence[int | None], constants: Mapping[int, float]) -> SpaceEdit:
    """The edit that gives a space another order.

    Args:
      order: for every place the old unit that stands there; None for a new one, which borrows the scales of the last
        old unit before it.
      constants: old unit -> value, of those that go.
    """
    source, last = [], next((k for k in order if k is not None), 0)
    for unit in order:
        last = last if unit is None else unit
        source.append(last)
    fresh = frozenset(place for place, unit in enumerate(order) if unit is None)
    folded: tuple[tuple[int, float | None], ...] = tuple(sorted(constants.items()))
    return SpaceEdit(space.name, space.size, tuple(source), fresh, folded=folded)


def feature_names(port: Port, size: int) -> list[str]:
    """The labels of an input's features, or their numbers."""
    return list(port.labels) if port.labels and len(port.labels) == size else [str(k) for k in range(size)]


def feature_index(port: Port, size: int, feature: str | int) -> int:
    """The number of a feature that is named by its label or its number.

    Raises:
      UnknownName: there is none.
    """
    known = feature_names(port, size)
    if isinstance(feature, str) and feature in known:
        return known.index(feature)
    if str(feature).isdecimal() and int(feature) < size:
        return int(feature)
    raise UnknownName("feature", str(feature), known)


def arranged_labels(port: Port, size: int, order: Sequence[int]) -> tuple[str, ...]:
    """The labels in another order; empty if there are none."""
    return tuple(port.labels[k] for k in order) if port.labels and len(port.labels) == size else ()


def input_space(analysis: Analysis, wanted: str) -> tuple[str, Space]:
    """The input and the space that a request means.

    Raises:
      UnknownName: no such input or axis. ArgumentError: an input with several axes of features.
      Refused: an axis that cannot be followed, or is mixed in a way that a change would show.
    """
    ports = {name: axes for side, name, axes in analysis.ports if side == "input"}
    by_name = {space.name: space for space in analysis.spaces if "input" in space.kinds}
    for name, axes in ports.items():
        found = [part for axis in axes if (part := _alone(axis)) is not None and part.space in by_name]
        if wanted in {part.space for part in found}:
            return name, _free(by_name[wanted])
        if wanted != name:
            continue
        if len(found) == 1:
            return name, _free(by_name[found[0].space])
        if not found:
            shape = " × ".join(text(axis) for axis in axes)
            raise Refused(f"no axis of input '{name}' ({shape}) can be followed through the network")
        raise ArgumentError(
            f"input '{name}' has several axes of features",
            hint="name one of them: " + ", ".join(part.space for part in found),
        )
    raise UnknownName("input", wanted, [*ports, *by_name])


def _alone(axis: Layout) -> Units | None:
    return axis[0] if len(axis) == 1 and isinstance(axis[0], Units) else None


def _free(space: Space) -> Space:
    """Only its being an input may keep the space from changing."""
    others = [reason for kind, reason in zip(space.kinds, space.reasons, strict=False) if kind != "input"]
    if set(space.kinds) - {"input"}:
        raise Refused(f"'{space.name}' cannot change exactly: {(others or space.reasons)[0]}")
    if space.no_zero is not None:
        raise Refused(f"'{space.name}' cannot change exactly: {space.no_zero}")
    return space
