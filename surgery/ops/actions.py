"""New actions: rows of a head that leave the values of the old actions as they are."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from surgery.checkpoint import Checkpoint
from surgery.edits.arithmetic import MOST_UNITS, SpaceEdit, Start
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph.choices import Answers, answers, behind
from surgery.graph.layout import Units, units
from surgery.graph.singles import fixed
from surgery.graph.spaces import Analysis, Space
from surgery.interface import CRITIC_ACTION
from surgery.ops.features import feature_index, feature_names
from surgery.ops.input_axes import LARGEST, input_space

_CONTINUOUS = ("mean", "log_std", "action")
"""Kinds of outputs that have a number for every continuous action."""
Kind = Literal["never", "mean", "zero", "logit", "split"]
KINDS: tuple[Kind, ...] = ("never", "mean", "zero", "logit", "split")


@dataclass(frozen=True, slots=True)
class NewAction:
    """Actions to add behind the old ones of an output.

    Attributes:
      output: name of the graph's output, or of the space that makes its actions.
      count: how many.
      start: how their rows begin. "mean": as the mean of the old actions, so that none is greedy (and a mean over
        advantages stays what it is); "never": likewise, and the environment's contract forbids them until that is
        lifted (a continuous action, which nothing forbids, is zero then); "zero": value or logit 0; "logit": zero
        weights and a bias; "split": as copies of one action of a softmax policy, which shares its probability with
        them.
      bias: that bias, for "logit": the logit of the new action whatever is observed.
      labels: a name for each; empty if they have none.
      of: the action that is split, by its label or its number.
    """

    output: str
    count: int
    start: Kind = "never"
    bias: float = 0.0
    labels: Sequence[str] = ()
    of: str | int | None = None


def action_space(analysis: Analysis, wanted: str) -> tuple[str, Space]:
    """The output and the space that a request means.

    An output that holds the number of an action means the values or logits that it was chosen from.

    Raises:
      UnknownName: no such output or space. ArgumentError: an output with several axes of units.
      Refused: no axis of the output is one of units.
    """
    ports = [name for side, name, _ in analysis.ports if side == "output"]
    made = {name: made_of(analysis, name) for name in ports}
    if wanted in _fixed(analysis):
        raise Refused(f"output '{wanted}' is a constant of the file: it holds no actions")
    heads = {name: made[name] or behind(analysis, name) for name in ports}
    for name in [name for name in ports if wanted in (name, *made[name])] or [
        name for name in ports if wanted in heads[name]
    ]:
        found = [wanted] if wanted in heads[name] else wider(heads[name], analysis)
        if not found:
            why = fixed(analysis.model.graph, analysis.trace.described, name)
            raise Refused(
                f"no axis of output '{name}' can be followed back to parameters" if why is None
                else f"'{name}' is one number, and stays so: {why}",
                hint="export what that node reads, or teach a network that has more: surgery distill" if why else None,
            )  # fmt: skip
        if len(found) > 1:
            raise ArgumentError(
                f"output '{name}' has several axes of units" if made[name]
                else f"output '{name}' holds several choices",
                hint="name one of them: " + ", ".join(found),
            )  # fmt: skip
        own = name if found[0] in made[name] else next((n for n in ports if found[0] in made[n]), name)
        return own, analysis.by_name[found[0]]
    raise UnknownName(
        "output", wanted, [*ports, *dict.fromkeys(name for names in made.values() for name in names)]
    )


def wider(spaces: Sequence[str], analysis: Analysis) -> list[str]:
    """Of several spaces those that have more than one unit, if there are any: one unit is meant where it is named."""
    return [name for name in spaces if analysis.by_name[name].size > 1] or list(spaces)


def _fixed(analysis: Analysis) -> list[str]:
    """The outputs that are constants of the file."""
    constant = analysis.trace.facts.constant
    return [str(value.name) for value in analysis.model.graph.outputs if value in constant]


def continuous(checkpoint: Checkpoint, analysis: Analysis, output: str) -> bool:
    """Whether an output has a number for every continuous action; one that holds the number of an action has not."""
    return checkpoint.interface.output(output).kind in _CONTINUOUS and bool(made_of(analysis, output))


def numbered(analysis: Analysis, output: str) -> bool:
    """Whether an output holds the number of an action."""
    return not made_of(analysis, output) and bool(behind(analysis, output))


def single(checkpoint: Checkpoint, analysis: Analysis, space: Space) -> list[str]:
    """The outputs that hold one number, of an action of this space."""
    numbers = answers(analysis, space, checkpoint.interface).numbers
    return [name for name in numbers if behind(analysis, name) == [space.name]]


def settled(checkpoint: Checkpoint, analysis: Analysis, new: NewAction) -> NewAction:
    """With a start that its output knows: a continuous action cannot be forbidden, and is zero instead."""
    name, _ = action_space(analysis, new.output)
    zero = new.start == "never" and continuous(checkpoint, analysis, name)
    return replace(new, start="zero") if zero else new


def made_of(analysis: Analysis, output: str) -> list[str]:
    """The spaces of actions that an output has axes of, in order."""
    known = {space.name for space in analysis.spaces if "output" in space.kinds}
    axes = next((axes for side, name, axes in analysis.ports if (side, name) == ("output", output)), ())
    return list(dict.fromkeys(part.space for part in units(*axes) if part.space in known))


def following(
    checkpoint: Checkpoint, analysis: Analysis, new: NewAction, taken: Collection[str]
) -> list[NewAction]:
    """As many of the other numbers of continuous actions: deviations as the mean of the old ones, or means of zero.

    Args:
      taken: spaces that are extended anyhow.
    """
    name, space = action_space(analysis, new.output)
    if not continuous(checkpoint, analysis, name):
        return []
    found: dict[str, NewAction] = {}
    for port in checkpoint.interface.outputs:
        if port.kind in _CONTINUOUS:
            other = next((s for s in analysis.spaces if s.name in made_of(analysis, port.name)), None)
            if other is not None and other.size == space.size and other.name not in taken:
                start: Kind = "mean" if port.kind == "log_std" else "zero"
                found.setdefault(other.name, replace(new, output=port.name, start=start, labels=()))
    return list(found.values())


def critics_action(
    checkpoint: Checkpoint, analysis: Analysis, new: NewAction, taken: Collection[str]
) -> Space | None:
    """The actions that critics read beside a policy of continuous actions; None if there are none, or taken ones."""
    name, space = action_space(analysis, new.output)
    known = any(port.name == CRITIC_ACTION for port in checkpoint.interface.inputs)
    if not known or not continuous(checkpoint, analysis, name):
        return None
    _, read = input_space(analysis, CRITIC_ACTION)
    return read if read.size == space.size and read.name not in taken else None


def forbidden(output: str) -> str:
    """What there is to know about actions that start with "never"."""
    return (
        f"new actions of '{output}' start as the mean of the old ones; only the contract's action_mask forbids "
        "them: code that ignores masks may take them"
    )


def in_the_graph(checkpoint: Checkpoint, analysis: Analysis, space: Space, start: Kind) -> list[str]:
    """What there is to know of outputs that are made of all actions, the new ones included."""
    made, found = answers(analysis, space, checkpoint.interface), list[str]()
    masked = any(why.kind == "input" for why in space.freezes)
    for name in made.numbers:
        if name in made.drawn:
            found.append(f"'{name}' is drawn in the graph, which ignores action_mask: it may be a new action")
        elif start in ("never", "mean") and not masked:
            found.append(
                f"'{name}' chooses among new actions too; none is chosen while they are the mean of the old"
            )
        else:
            found.append(
                f"'{name}' chooses among new actions too, and where one is the largest, it is chosen"
            )
    if made.counted:
        names = ", ".join(f"'{name}'" for name in made.counted)
        found.append(f"computed from all actions, so new actions change them: {names}")
    if made.numbers and (fixed := _fixed(analysis)):
        names = ", ".join(f"'{name}'" for name in fixed)
        found.append(
            f"constants of the file, kept as they are, though one of them may count the actions: {names}"
        )
    return found


def action_edit(checkpoint: Checkpoint, analysis: Analysis, space: Space, new: NewAction) -> SpaceEdit:
    """The edit of the space, checked.

    Raises:
      ArgumentError: a count, start or label that does not fit. Refused: a start that would change the old actions,
        or a space that cannot grow.
    """
    _check_request(new)
    made = answers(analysis, space, checkpoint.interface)
    _check_exact(analysis, space, new, made)
    if new.start == "split":
        return _split(checkpoint, analysis, space, new)
    start = Start(
        "mean" if new.start in ("never", "mean") else "zero", new.bias if new.start == "logit" else 0.0
    )
    source = (*range(space.size), *[space.size - 1] * new.count)
    fresh = frozenset(range(space.size, space.size + new.count))
    return SpaceEdit(space.name, space.size, source, fresh, start=start)


def _check_request(new: NewAction) -> None:
    if not 0 < new.count <= MOST_UNITS:
        raise ArgumentError(
            f"'{new.output}' cannot be extended by {new.count}", hint="a whole number, 1 or more"
        )
    if new.labels and len(new.labels) != new.count:
        raise ArgumentError(f"{new.count} new actions of '{new.output}', but {len(new.labels)} names")
    if new.start not in KINDS:
        raise ArgumentError(f"unknown start '{new.start}' of an action", hint=", ".join(KINDS))
    if new.start == "logit" and not abs(new.bias) <= LARGEST:
        raise ArgumentError(f"a new action cannot start at the logit {new.bias}: float32 does not hold it")


def _check_exact(analysis: Analysis, space: Space, new: NewAction, made: Answers) -> None:
    """Refuse a start that would change the old actions, or that the head has no number for."""
    # a logarithm behind a softmax keeps hidden units from starting at random, but every score is finite there
    softened = made.counted or made.drawn
    if new.start in ("zero", "logit") and (space.whole or (space.no_zero and not softened)):
        raise Refused(
            f"a new action that starts at '{new.start}' would change the old ones: {space.whole or space.no_zero}",
            hint="start it at the mean: --new-action mean",
        )
    if space.whole and (node := analysis.not_averaged(space.name)) is not None:
        raise Refused(
            f"a new action would change the old ones: {space.whole}, and no rows of its weights give "
            "the mean of the others",
            where={"averaged by": f"node '{node}'"},
            hint="export the network without noise and with its weights multiplied out (as it plays), or distil",
        )
    if new.start == "split" and made.greedy:
        raise Refused(
            f"a probability cannot be split where the graph takes the largest one: {made.greedy[0]} would take"
            " another action",
            hint="start it at the mean: --new-action mean",
        )
    makers = [ref.tensor for ref in space.axes if ref.role == "out"]
    if new.start == "logit" and not any(analysis.fills[tensor] == "zero" for tensor in makers):
        raise Refused(
            f"the head of '{space.name}' has no bias that could be set to {new.bias}",
            hint="start it at the mean, or at zero: --new-action mean, zero",
        )


def _split(checkpoint: Checkpoint, analysis: Analysis, space: Space, new: NewAction) -> SpaceEdit:
    """Copies of one action; all of them get −log of their number, so that they have its probability together."""
    name, _ = action_space(analysis, new.output)
    port = checkpoint.interface.output(name)
    if port.kind != "logits" or not alone(analysis, name, space):
        raise Refused(
            f"'{name}' holds no logits: only the probability of a softmax policy can be split",
            hint=f"if these are logits: surgery annotate MODEL --output {name}:logits -o OUT; else --new-action mean",
        )
    if space.whole or space.no_net2net or new.of is None:
        raise Refused(
            f"no action of '{name}' can be split: {space.whole or space.no_net2net or 'none is named'}"
        )
    makers = [ref.tensor for ref in space.axes if ref.role == "out"]
    if not any(analysis.fills[tensor] == "zero" for tensor in makers):
        raise Refused(f"the head of '{space.name}' has no bias by which a probability could be shared")
    shared = feature_index(feature_names(port, space.size), new.of)
    start = Start("split", -math.log(new.count + 1))
    return SpaceEdit(space.name, space.size, (*range(space.size), *[shared] * new.count), start=start)


def alone(analysis: Analysis, output: str, space: Space) -> bool:
    """Whether the last axis of an output counts the units of one space and nothing else."""
    axes = next(axes for side, name, axes in analysis.ports if side == "output" and name == output)
    return any(len(axis) == 1 and isinstance(axis[0], Units) and axis[0].space == space.name for axis in axes)
