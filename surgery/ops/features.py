"""The features of an input, by name: found, taken away, put into another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Plan
from surgery.edits.removal import fold
from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph.prepare import prepared
from surgery.graph.readers import mixed_parameters
from surgery.interface import Interface, Port
from surgery.ops.build import build
from surgery.ops.input_axes import InputAxis, input_axis


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
    analysis = checkpoint.analysis
    constants: dict[InputAxis, dict[int, float]] = {}
    for gone in observations:
        axis, space = input_axis(analysis, gone.input)
        index = feature_index(axis.names(checkpoint.interface, space), gone.feature)
        known = constants.setdefault(axis, {})
        places = axis.places(space)[index]
        if known.keys() & set(places):
            raise ArgumentError(f"feature '{gone.feature}' of '{gone.input}' is retired twice")
        known |= dict.fromkeys(places, float(gone.value))
    edits, labels = list[SpaceEdit](), {}
    for axis, known in constants.items():
        rest = [k for k in range(axis.size) if k not in known]
        if not rest:
            raise ArgumentError(
                f"all features of '{axis.input}' would be gone", hint="an input keeps at least one"
            )
        changed = axis.edits(rest, known)
        for edit in changed:
            if reason := mixed_parameters(analysis, edit.space):
                raise Refused(f"'{edit.space}' cannot change exactly: {reason}")
        edits += changed
        labels[axis.input] = arranged_labels(checkpoint.interface.input(axis.input), axis.size, rest)
    arguments = {
        "observations": [{"input": o.input, "feature": o.feature, "value": o.value} for o in observations]
    }
    plan = build(
        checkpoint, analysis, "retire", edits, arguments=arguments, claim="equivalent", labels=labels,
        notes=[f"equal wherever {_constants_text(checkpoint.interface, constants)}"],
    )  # fmt: skip
    fold(plan, checkpoint, prepared(checkpoint.model, checkpoint.trained), double=False)
    return plan


def _constants_text(interface: Interface, constants: Mapping[InputAxis, Mapping[int, float]]) -> str:
    """`observation.wind = 0, …`"""
    parts = []
    for axis, known in constants.items():
        names = axis.names(interface, None)
        parts += [f"{qualified(axis.input, names[k])} = {value:g}" for k, value in sorted(known.items())]
    return ", ".join(parts)


def qualified(owner: str, name: str) -> str:
    """`observation.wind`; the number of one that has no name stands behind its input already."""
    return name if name.startswith(f"{owner}.") else f"{owner}.{name}"


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
    analysis = checkpoint.analysis
    edits, labels = list[SpaceEdit](), {}
    for wanted, order in orders.items():
        axis, space = input_axis(analysis, wanted)
        names = axis.names(checkpoint.interface, space)
        indices = [feature_index(names, feature) for feature in order]
        if sorted(indices) != list(range(len(names))):
            missing = [name for k, name in enumerate(names) if k not in indices]
            raise ArgumentError(
                f"an order of '{wanted}' names each of its {len(names)} features once",
                hint=f"missing: {', '.join(missing)}" if missing else "one is named twice",
            )
        whole = list(range(axis.size))
        places = axis.places(space)
        for old, new in enumerate(indices):
            for here, there in zip(places[old], places[new], strict=True):
                whole[here] = there
        edits += axis.edits(whole)
        labels[axis.input] = arranged_labels(checkpoint.interface.input(axis.input), axis.size, whole)
    return build(
        checkpoint, analysis, "reorder", edits, arguments={"orders": {k: list(v) for k, v in orders.items()}},
        claim="equivalent", labels=labels,
    )  # fmt: skip


def feature_names(port: Port, size: int) -> list[str]:
    """The labels of an input's features, or their numbers."""
    return list(port.labels) if port.labels and len(port.labels) == size else [str(k) for k in range(size)]


def feature_index(names: Sequence[str], feature: str | int) -> int:
    """The number of a feature that is named by its label or its number.

    Args:
      names: see `feature_names`.

    Raises:
      UnknownName: there is none.
    """
    if isinstance(feature, str) and feature in names:
        return names.index(feature)
    if str(feature).isdecimal() and int(feature) < len(names):
        return int(feature)
    raise UnknownName("feature", str(feature), names)


def arranged_labels(port: Port, size: int, order: Sequence[int]) -> tuple[str, ...]:
    """The labels in another order; empty if there are none."""
    return tuple(port.labels[k] for k in order) if port.labels and len(port.labels) == size else ()
