"""The features of an input, by name: found, taken away, put into another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Plan
from surgery.edits.removal import fold
from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph.layout import Sum, Units
from surgery.graph.layout import size as layout_size
from surgery.graph.prepare import prepared
from surgery.graph.readers import mixed_parameters
from surgery.graph.spaces import Analysis, Space
from surgery.interface import Interface, Port
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
    analysis = checkpoint.analysis
    constants: dict[InputAxis, dict[int, float]] = {}
    for gone in observations:
        axis, own = input_axis(analysis, gone.input)
        index = own[feature_index(axis.names(checkpoint.interface, own), gone.feature)]
        known = constants.setdefault(axis, {})
        if index in known:
            raise ArgumentError(f"feature '{gone.feature}' of '{gone.input}' is retired twice")
        known[index] = float(gone.value)
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
        names = axis.names(interface, range(axis.size))
        parts += [f"{axis.input}.{names[k]} = {value:g}" for k, value in sorted(known.items())]
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
    analysis = checkpoint.analysis
    edits, labels = list[SpaceEdit](), {}
    for wanted, order in orders.items():
        axis, own = input_axis(analysis, wanted)
        names = axis.names(checkpoint.interface, own)
        indices = [own[feature_index(names, feature)] for feature in order]
        if sorted(indices) != list(own):
            missing = [name for k, name in zip(own, names, strict=True) if k not in indices]
            raise ArgumentError(
                f"an order of '{wanted}' names each of its {len(own)} features once",
                hint=f"missing: {', '.join(missing)}" if missing else "one is named twice",
            )
        whole = [*range(own.start), *indices, *range(own.stop, axis.size)]
        edits += axis.edits(whole)
        labels[axis.input] = arranged_labels(checkpoint.interface.input(axis.input), axis.size, whole)
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


@dataclass(frozen=True)
class InputAxis:
    """The axis of an input that counts its features.

    Attributes:
      input: name of the graph's input.
      parts: the parts that the network reads apart from one another (x[:, :4], x[:, 4:]), in order: the space of their
        features, None where these cannot change, and how many they are. As a rule there is one.
    """

    input: str
    parts: tuple[tuple[Space | None, int], ...]

    @property
    def size(self) -> int:
        """Number of features."""
        return sum(size for _, size in self.parts)

    @property
    def ranges(self) -> list[range]:
        """Which features each part has."""
        ends = [*accumulate((size for _, size in self.parts), initial=0)]
        return [range(*pair) for pair in pairwise(ends)]

    def names(self, interface: Interface, own: range) -> list[str]:
        """The labels of some features, or their numbers among these."""
        labels = interface.input(self.input).labels
        if labels is not None and len(labels) == self.size:
            return list(labels[own.start : own.stop])
        return [str(k) for k in range(len(own))]

    def edits(
        self,
        order: Sequence[int | None],
        constants: Mapping[int, float] | None = None,
        own: range | None = None,
    ) -> list[SpaceEdit]:
        """What gives the features another order; see `arranged`.

        Args:
          own: the part that new features go into, where they stand between two.

        Raises:
          ArgumentError: a new feature between two parts, or none that stays in a part.
          Refused: a feature that would move from one part to another, or a part that cannot change.
        """
        place_of = [k for k, mine in enumerate(self.ranges) for _ in mine]
        rows: list[list[int | None]] = [[] for _ in self.parts]
        at = 0
        for place, unit in enumerate(order):
            to = self._receiving(order, place, place_of, own) if unit is None else place_of[unit]
            if to < at:
                raise Refused(f"the features of '{self.input}' would move between {self._described()}")
            at = to
            rows[at].append(unit)
        found = []
        for (space, size), row, mine in zip(self.parts, rows, self.ranges, strict=True):
            if row == list(mine):
                continue
            if space is None or all(unit is None for unit in row):
                which = f"feature {mine.start}" if size == 1 else f"features {mine.start} to {mine.stop - 1}"
                raise Refused(f"'{self.input}' keeps {which}: the network reads such a part by itself")
            inner = [None if unit is None else mine.index(unit) for unit in row]
            held = {mine.index(k): value for k, value in (constants or {}).items() if k in mine}
            found.append(arranged(_free(space), inner, held))
        return found

    def _receiving(
        self, order: Sequence[int | None], place: int, place_of: Sequence[int], own: range | None
    ) -> int:
        """The part that a new feature belongs to."""
        before = [place_of[unit] for unit in order[:place] if unit is not None][-1:]
        after = [place_of[unit] for unit in order[place:] if unit is not None][:1]
        sides = sorted({*before, *after})
        if len(sides) > 1 and own is not None and len(own) < self.size:
            return place_of[own.start]
        if len(sides) > 1:
            raise ArgumentError(
                f"a new feature at {place} of '{self.input}' stands between {self._described()}",
                hint="name the part that it belongs to: --observation PART+K[@AT]",
            )
        return sides[0]

    def _described(self) -> str:
        """`parts that the network reads apart: x[1][0] (0 to 3), x[1][1] (4 to 6)`"""
        parts = [
            f"{'a fixed one' if space is None else space.name} ({mine.start} to {mine.stop - 1})"
            for (space, _), mine in zip(self.parts, self.ranges, strict=True)
        ]
        return f"parts that the network reads apart: {', '.join(parts)}"


def input_axis(analysis: Analysis, wanted: str) -> tuple[InputAxis, range]:
    """The axis of an input that a request means, and which of its features: all, or those of one part.

    Raises:
      UnknownName: no such input, axis or part. ArgumentError: an input with several axes of features.
      Refused: an axis that cannot be followed, or is mixed in a way that a change would show.
    """
    by_name = {space.name: space for space in analysis.spaces if "input" in space.kinds}
    ports = [name for side, name, _ in analysis.ports if side == "input"]
    for name in ports:
        found = _axes(analysis, name, by_name)
        for k, axis in found.items():
            for (space, _), mine in zip(axis.parts, axis.ranges, strict=True):
                if space is not None and wanted == space.name:
                    return _checked(axis, mine)
            if wanted == f"{name}[{k}]":
                return _checked(axis, range(axis.size))
        if wanted == name and len(found) == 1:
            axis = next(iter(found.values()))
            return _checked(axis, range(axis.size))
        if wanted == name and not found:
            raise Refused(
                f"no axis of input '{name}' has features that could come, go or change places",
                hint="surgery inspect shows what each of its axes is, and why it is fixed",
            )
        if wanted == name:
            names = [
                axis.parts[0][0].name if axis.parts[0][0] else f"{name}[{k}]" for k, axis in found.items()
            ]
            raise ArgumentError(
                f"input '{name}' has several axes of features", hint="name one of them: " + ", ".join(names)
            )
    if wanted in by_name:
        raise Refused(f"'{wanted}' cannot change by itself: its features stand several times in the input")
    raise UnknownName("input", wanted, [*ports, *by_name])


def input_space(analysis: Analysis, wanted: str) -> tuple[str, Space]:
    """The input and the one space of its features that a request means; errors are those of `input_axis`."""
    axis, _ = input_axis(analysis, wanted)
    space = axis.parts[0][0]
    if space is None or len(axis.parts) > 1:
        raise Refused(f"the features of '{axis.input}' stand in {axis._described()}")
    return axis.input, space


def _axes(analysis: Analysis, name: str, by_name: Mapping[str, Space]) -> dict[int, InputAxis]:
    """The axes of an input that count features which can be followed, by number."""
    found: dict[int, InputAxis] = {}
    for k, layout in enumerate(
        next(axes for side, port, axes in analysis.ports if (side, port) == ("input", name))
    ):
        whole = layout[0] if len(layout) == 1 else None
        rows = whole.parts if isinstance(whole, Sum) else (layout,)
        parts = [
            (
                by_name.get(row[0].space) if len(row) == 1 and isinstance(row[0], Units) else None,
                layout_size(row),
            )
            for row in rows
        ]
        if any(space is not None for space, _ in parts):
            found[k] = InputAxis(name, tuple(parts))
    return found


def _checked(axis: InputAxis, own: range) -> tuple[InputAxis, range]:
    if len(axis.parts) == 1 and axis.parts[0][0] is not None:
        _free(axis.parts[0][0])
    return axis, own


def _free(space: Space) -> Space:
    """Only its being an input may keep the space from changing."""
    others = [reason for kind, reason in zip(space.kinds, space.reasons, strict=False) if kind != "input"]
    if set(space.kinds) - {"input"}:
        raise Refused(f"'{space.name}' cannot change exactly: {(others or space.reasons)[0]}")
    if space.no_zero is not None:
        raise Refused(f"'{space.name}' cannot change exactly: {space.no_zero}")
    return space
