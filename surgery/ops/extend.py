"""Extend: new observations at any place of an input, and new actions, without changing what the policy does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.edits import MOST_UNITS, SpaceEdit
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph.layout import Layout, Units, text
from surgery.graph.spaces import Analysis, Space, analyse
from surgery.interface import Port
from surgery.ops.actions import NewAction, action_edit, action_space, alone
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


def extend(
    checkpoint: Checkpoint, observations: Sequence[NewObservation] = (), actions: Sequence[NewAction] = ()
) -> Plan:
    """Add observations and actions without changing what the policy does with the old ones.

    Observations: the weights that read a new feature start at zero: exact whatever it holds, and they learn at once, as
    their gradient is not zero. Constants of a normaliser in the graph start as those of a neighbouring feature.
    Actions: the old actions keep their values or logits; what the policy does with a new one depends on its start.

    Args:
      checkpoint: any checkpoint; only shapes are read.
      observations: what to insert; at most one entry per axis of an input.
      actions: what to add; at most one entry per output.

    Returns:
      A plan that claims "equivalent": equal outputs for the old actions.

    Raises:
      UnknownName: an input or output that is not there.
      ArgumentError: a count, place or label that does not fit, or a port with several axes of units.
      Refused: if the units are mixed in a way that new ones would show (a normalisation over the observation).

    References:
      OpenAI. Dota 2 with Large Scale Deep Reinforcement Learning. 2019 (arXiv:1912.06680), appendix B.
    """
    if not observations and not actions:
        raise ArgumentError(
            "nothing to extend", hint="give at least one --observation INPUT+K or --action OUTPUT+K"
        )
    analysis = analyse(checkpoint.model, checkpoint.interface, checkpoint.trained)
    edits: dict[str, SpaceEdit] = {}
    labels: dict[str, tuple[str, ...]] = {}
    averaged: list[str] = []
    for new in observations:
        name, space = _space(analysis, new.input)
        _once(edits, space)
        edits[space.name] = _edit(space, new)
        at = space.size if new.at is None else new.at
        labels[name] = _labels(checkpoint.interface.input(name), space.size, at, new.count, new.labels)
    for action in actions:
        name, space = action_space(analysis, action.output)
        _once(edits, space)
        edits[space.name] = action_edit(checkpoint, analysis, space, action)
        averaged += [space.name] if space.whole else []
        if alone(analysis, name, space):
            port = checkpoint.interface.output(name)
            labels[name] = _labels(port, space.size, space.size, action.count, action.labels)
    arguments = {
        "observations": [asdict(new) | {"labels": list(new.labels)} for new in observations],
        "actions": [asdict(new) | {"labels": list(new.labels)} for new in actions],
    }
    plan = build(
        checkpoint,
        analysis,
        "extend",
        list(edits.values()),
        arguments=arguments,
        claim="equivalent",
        labels=labels,
    )
    return replace(plan, inexact_slots=tuple(averaged), environment=_contract(checkpoint, analysis, actions))


def _once(edits: dict[str, SpaceEdit], space: Space) -> None:
    if space.name in edits:
        raise ArgumentError(f"'{space.name}' is extended twice", hint="give one count for each axis")


def _contract(checkpoint: Checkpoint, analysis: Analysis, actions: Sequence[NewAction]) -> dict[str, Any]:
    """Settings of the environment that change: which actions may be taken."""
    known = checkpoint.environment.settings.get("action_mask")
    mask: dict[str, Any] = dict(known) if isinstance(known, Mapping) else {}
    for action in actions:
        if action.start == "never":
            name, space = action_space(analysis, action.output)
            before = mask.get(name)
            allowed = list(before) if isinstance(before, Sequence) else [True] * space.size
            mask[name] = [*allowed, *[False] * action.count]
    return {"action_mask": mask} if any(action.start == "never" for action in actions) else {}


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


def _labels(port: Port, size: int, at: int, count: int, new: Sequence[str]) -> tuple[str, ...]:
    """The names of all features or actions afterwards; empty where neither the old nor the new ones have any."""
    if port.labels is None and not new:
        return ()
    known = port.labels if port.labels is not None and len(port.labels) == size else None
    old = known or tuple(f"{port.name}.{k}" for k in range(size))
    added = tuple(new) or tuple(f"{port.name}.new{k}" for k in range(count))
    if set(old) & set(added) or len(set(added)) < len(added):
        raise ArgumentError(f"the new names {', '.join(added)} are not new", hint="labels are unique")
    return (*old[:at], *added, *old[at:])
