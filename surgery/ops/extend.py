"""Extend: new observations at any place of an input, and new actions, without changing what the policy does."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.edits.arithmetic import MOST_UNITS, SpaceEdit
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError
from surgery.graph.spaces import Analysis, Space
from surgery.interface import Port
from surgery.ops.actions import (
    NewAction,
    action_edit,
    action_space,
    alone,
    critics_action,
    following,
    forbidden,
    in_the_graph,
    settled,
    single,
)
from surgery.ops.build import build
from surgery.ops.input_axes import arranged, input_axis
from surgery.ops.rows import more_rows, note, tables


@dataclass(frozen=True, slots=True)
class NewObservation:
    """Features or channels to insert into an input, or rows to append to the tables from which it chooses.

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
    their gradient is not zero. Constants of a normaliser in the graph start as those of a neighbouring feature. An
    input that holds numbers of rows (of an embedding) may hold more: rows are added, which no old number chooses.
    Actions: the old actions keep their values or logits; what the policy does with a new one depends on its start. The
    deviations of continuous actions, and the actions that critics read, follow.

    Args:
      checkpoint: any checkpoint; only shapes are read.
      observations: what to insert; at most one entry per axis of an input.
      actions: what to add; at most one entry per output.

    Returns:
      A plan that claims "equivalent": equal outputs for the old actions (one that is split counts with its copies).

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
    analysis, draft = checkpoint.analysis, _Draft()
    for new in observations:
        _observe(checkpoint, analysis, draft, new)
    actions = [settled(checkpoint, analysis, action) for action in actions]
    _act(checkpoint, analysis, draft, actions)
    arguments = {
        "observations": [asdict(new) | {"labels": list(new.labels)} for new in observations],
        "actions": [asdict(new) | {"labels": list(new.labels)} for new in actions],
    }
    notes = [said for action in actions for said in _notes(checkpoint, analysis, draft, action)]
    plan = build(
        checkpoint, analysis, "extend", list(draft.edits.values()), arguments=arguments, claim="equivalent",
        labels=draft.labels, notes=[*draft.notes, *notes],
    )  # fmt: skip
    return replace(
        plan, inexact_slots=tuple(draft.averaged), environment=_contract(checkpoint, analysis, actions)
    )


@dataclass
class _Draft:
    """An extension in the making.

    Attributes:
      edits: of the spaces, by name. labels: of inputs and outputs afterwards.
      averaged: spaces whose new units change the gradient of the old ones. notes: what the user should know.
    """

    edits: dict[str, SpaceEdit] = field(default_factory=dict)
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    averaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, edit: SpaceEdit) -> None:
        """Raises: ArgumentError: the space is extended already."""
        if edit.space in self.edits:
            raise ArgumentError(f"'{edit.space}' is extended twice", hint="give one count for each axis")
        self.edits[edit.space] = edit


def _observe(checkpoint: Checkpoint, analysis: Analysis, draft: _Draft, new: NewObservation) -> None:
    """What one insertion into an input changes."""
    _no_mask(checkpoint, new.input)
    if chosen := tables(analysis, new.input):
        _add_rows(checkpoint, draft, new, chosen)
        return
    axis, space = input_axis(analysis, new.input)
    if space is None and axis.table:
        raise axis.ambiguous()
    row = _inserted(axis.size if space is None else space.size, new)
    changed = axis.edits(row) if space is None else [arranged(space, row, {})]
    for edit in changed:
        draft.add(edit)
    draft.notes += axis.notes(changed) if axis.table else []
    if draft.labels.get(axis.input):
        raise ArgumentError(
            f"the names of '{axis.input}' cannot follow two insertions at once",
            hint="split it into two plans",
        )
    order, inner = (row, 1) if space is None else (axis.followed(changed[0]), axis.inner(space))
    port = checkpoint.interface.input(axis.input)
    draft.labels[axis.input] = _labels(port, axis.size, order, new.labels, inner)


def _add_rows(checkpoint: Checkpoint, draft: _Draft, new: NewObservation, spaces: list[Space]) -> None:
    """What more numbers that an input may hold change: the tables from which it chooses."""
    _inserted(spaces[0].size, new)
    if new.at not in (None, spaces[0].size) or new.labels:
        raise ArgumentError(
            f"'{new.input}' chooses rows by their numbers: new ones come last, and have no names",
            hint=f"--observation {new.input}+{new.count}",
        )
    for edit in more_rows(spaces, new.count):
        draft.add(edit)
    draft.notes.append(note(spaces, checkpoint.interface.input(new.input), new.count))


def _no_mask(checkpoint: Checkpoint, wanted: str) -> None:
    """Raises: ArgumentError: the input says which actions are legal."""
    masks = [port.name for port in checkpoint.interface.inputs if port.kind == "mask"]
    if wanted.partition("[")[0] in masks:
        raise ArgumentError(
            f"'{wanted}' says which actions are legal: it grows with the actions",
            hint="name the output of the actions: --action OUTPUT+K",
        )


def _act(checkpoint: Checkpoint, analysis: Analysis, draft: _Draft, actions: Sequence[NewAction]) -> None:
    """What new actions change: their outputs, those that follow, and what critics read."""
    taken = {*draft.edits, *(action_space(analysis, action.output)[1].name for action in actions)}
    followers = [other for action in actions for other in following(checkpoint, analysis, action, taken)]
    for action in (*actions, *followers):
        name, space = action_space(analysis, action.output)
        draft.add(action_edit(checkpoint, analysis, space, action))
        draft.averaged += [space.name] if space.whole else []
        order = [*range(space.size), *[None] * action.count]
        named = [name] if alone(analysis, name, space) else []
        for output in (*named, *single(checkpoint, analysis, space)):
            draft.labels[output] = _labels(
                checkpoint.interface.output(output), space.size, order, action.labels
            )
    for action in actions:
        if (read := critics_action(checkpoint, analysis, action, taken)) is not None:
            draft.edits[read.name] = arranged(read, [*range(read.size), *[None] * action.count], {})


def _notes(checkpoint: Checkpoint, analysis: Analysis, draft: _Draft, action: NewAction) -> list[str]:
    name, space = action_space(analysis, action.output)
    found = [forbidden(name)] if action.start == "never" else []
    if action.start == "split":
        found.append(
            f"action {action.of} of '{action.output}' keeps 1/{action.count + 1} of its probability, each new "
            "action gets as much; the others keep theirs, and the greedy action stays the same"
        )
    for table in analysis.spaces:
        if table.indexed and table.size == space.size and table.name not in draft.edits:
            found.append(
                f"'{table.axes[0].tensor}' has a row for each of {table.size} numbers and none for a new one: an input "
                f"that holds the last action needs that, too (--observation INPUT+{action.count})"
            )
    return [*found, *in_the_graph(checkpoint, analysis, space, action.start)]


def _contract(checkpoint: Checkpoint, analysis: Analysis, actions: Sequence[NewAction]) -> dict[str, Any]:
    """Settings of the environment that change: which actions may be taken."""
    environment = checkpoint.environment
    known = environment.settings.get("action_mask")
    mask: dict[str, Any] = dict(known) if isinstance(known, Mapping) else {}
    changed = False
    for action in actions:
        name, space = action_space(analysis, action.output)
        before, never = mask.get(name, environment.action_mask(name)), action.start == "never"
        if never or isinstance(before, Sequence):
            allowed = list(before) if isinstance(before, Sequence) else [True] * space.size
            mask[name], changed = [*allowed, *[not never] * action.count], True
    return {"action_mask": mask} if changed else {}


def _inserted(size: int, new: NewObservation) -> list[int | None]:
    """So many units in their new order, None for the new ones."""
    if not 0 < new.count <= MOST_UNITS:
        raise ArgumentError(
            f"'{new.input}' cannot be extended by {new.count}", hint="a whole number, 1 or more"
        )
    at = size if new.at is None else new.at
    if not 0 <= at <= size:
        raise ArgumentError(f"'{new.input}' has {size} features: there is no place {at}",
                            hint=f"places are 0 to {size}")  # fmt: skip
    if new.labels and len(new.labels) != new.count:
        raise ArgumentError(f"{new.count} new features of '{new.input}', but {len(new.labels)} names")
    return [*range(at), *[None] * new.count, *range(at, size)]


def _labels(
    port: Port, size: int, order: Sequence[int | None], new: Sequence[str], inner: int = 1
) -> tuple[str, ...]:
    """The names of all features or actions afterwards; empty where neither the old nor the new ones have any.

    Where a new one is several numbers, each in another row of a table or `inner` of them side by side, these are
    numbered.
    """
    if port.labels is None and not new:
        return ()
    known = port.labels if port.labels is not None and len(port.labels) == size else None
    old = known or tuple(f"{port.name}.{k}" for k in range(size))
    count = sum(unit is None for unit in order)
    if not new:
        unused = (name for k in itertools.count() if (name := f"{port.name}.new{k}") not in old)
        added = tuple(itertools.islice(unused, count))
    elif len(new) == count:
        added = tuple(new)
    else:
        runs = [divmod(k // inner, len(new)) for k in range(count)]
        added = tuple(f"{new[which]}.{run * inner + k % inner}" for k, (run, which) in enumerate(runs))
    if set(old) & set(added) or len(set(added)) < len(added):
        raise ArgumentError(f"the new names {', '.join(added)} are not new", hint="labels are unique")
    names = iter(added)
    return tuple(next(names) if unit is None else old[unit] for unit in order)
