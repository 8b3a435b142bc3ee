"""Extend: new observations at any place of an input, which the policy ignores until it has learned to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from surgery.checkpoint import Checkpoint
from surgery.edits import MOST_UNITS, SpaceEdit
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph.layout import Layout, Units, text
from surgery.graph.spaces import Analysis, Space, analyse
from surgery.ops.build import build
from surgery.plan import Plan


@dataclass(frozen=True, slots=True)
class NewObservation:
    """Features or channels to insert into an input.

    Attributes:
      input: name of the graph's input, or of one axis of it ("observation[1]").
      count: how many.
      at: before which of the old features, 0 for the first place; None for behind the last.
      labels: a name for each of the new ones; empty if they have none.
    """

    input: str
    count: int
    at: int | None = None
    labels: Sequence[str] = ()


def extend(checkpoint: Checkpoint, observations: Sequence[NewObservation]) -> Plan:
    """Add observations without changing what the policy does, whatever the new ones hold.

    The weights that read a new feature start at zero: exact, and they learn at once, as their gradient is not zero.
    Constants of a normaliser in the graph (mean, variance) start as those of a neighbouring feature.

    Args:
      checkpoint: any checkpoint; only shapes are read.
      observations: what to insert; at most one entry per axis of an input.

    Returns:
      A plan that claims "equivalent".

    Raises:
      UnknownName: an input that is not there.
      ArgumentError: a count, place or label that does not fit, or an input with several axes of features.
      Refused: if the features are mixed in a way that new ones would show (a normalisation over the observation).

    References:
      OpenAI. Dota 2 with Large Scale Deep Reinforcement Learning. 2019 (arXiv:1912.06680), appendix B.
    """
    if not observations:
        raise ArgumentError("nothing to extend", hint="give at least one --observation INPUT+K")
    analysis = analyse(checkpoint.model, checkpoint.interface, checkpoint.trained)
    edits: list[SpaceEdit] = []
    labels: dict[str, tuple[str, ...]] = {}
    for new in observations:
        name, space = _space(analysis, new.input)
        if any(edit.space == space.name for edit in edits):
            raise ArgumentError(f"'{space.name}' is extended twice", hint="give one count for each axis")
        edits.append(_edit(space, new))
        found = _labels(checkpoint, name, space, new)
        if found:
            labels[name] = found
    arguments = {"observations": [asdict(new) | {"labels": list(new.labels)} for new in observations]}
    return build(
        checkpoint, analysis, "extend", edits, arguments=arguments, claim="equivalent", labels=labels
    )


def _space(analysis: Analysis, wanted: str) -> tuple[str, Space]:
    """The input and the space that a request means."""
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
            hint="name one of them: " + ", ".join(f"{part.space}+K" for part in found),
        )
    raise UnknownName("input", wanted, [*ports, *by_name])


def _alone(axis: Layout) -> Units | None:
    return axis[0] if len(axis) == 1 and isinstance(axis[0], Units) else None


def _free(space: Space) -> Space:
    """Only its being an input may keep the space from growing."""
    others = [reason for kind, reason in zip(space.kinds, space.reasons, strict=False) if kind != "input"]
    if set(space.kinds) - {"input"}:
        raise Refused(f"'{space.name}' cannot be extended exactly: {(others or space.reasons)[0]}")
    if space.no_zero is not None:
        raise Refused(f"'{space.name}' cannot be extended exactly: {space.no_zero}")
    return space


def _edit(space: Space, new: NewObservation) -> SpaceEdit:
    if not 0 < new.count <= MOST_UNITS:
        raise ArgumentError(
            f"'{new.input}' cannot be extended by {new.count}", hint="a whole number, 1 or more"
        )
    at = space.size if new.at is None else new.at
    if not 0 <= at <= space.size:
        raise ArgumentError(f"'{space.name}' has {space.size} features: there is no place {at}",
                            hint=f"places are 0 to {space.size}")  # fmt: skip
    if new.labels and len(new.labels) != new.count:
        raise ArgumentError(f"{new.count} new features of '{new.input}', but {len(new.labels)} names")
    donor = max(at - 1, 0)
    source = (*range(at), *[donor] * new.count, *range(at, space.size))
    return SpaceEdit(space.name, space.size, source, frozenset(range(at, at + new.count)))


def _labels(checkpoint: Checkpoint, name: str, space: Space, new: NewObservation) -> tuple[str, ...]:
    """The names of all features afterwards; empty where neither the old nor the new ones have any."""
    old = checkpoint.interface.input(name).labels
    if old is None and not new.labels:
        return ()
    known = (
        old if old is not None and len(old) == space.size else tuple(f"{name}.{k}" for k in range(space.size))
    )
    at = space.size if new.at is None else new.at
    added = tuple(new.labels) or tuple(f"{name}.new{k}" for k in range(new.count))
    if set(known) & set(added) or len(set(added)) < len(added):
        raise ArgumentError(
            f"the new names {', '.join(added)} are not new", hint="labels of features are unique"
        )
    return (*known[:at], *added, *known[at:])
