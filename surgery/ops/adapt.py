"""Adapt: the plan that an environment's spaces ask for, found by comparing names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from surgery.checkpoint import Checkpoint
from surgery.description import Actions, Observed, SpaceDescription
from surgery.edits.plan import Plan
from surgery.edits.removal import fold
from surgery.edits.units import SpaceEdit, Start
from surgery.errors import ArgumentError, Refused, shape_text
from surgery.graph.layout import units
from surgery.graph.prepare import prepared
from surgery.graph.readers import mixed_parameters
from surgery.graph.spaces import Analysis
from surgery.interface import CRITIC_ACTION, Port
from surgery.ops.actions import action_space, alone, forbidden, in_the_graph, numbered, single
from surgery.ops.build import build
from surgery.ops.features import qualified
from surgery.ops.input_axes import arranged, input_axis, input_space

DISCRETE = ("q_values", "logits", "probabilities", "atom_logits", "quantiles")
CONTINUOUS = ("mean", "log_std")
Unnamed = Literal["append"]


@dataclass
class _Draft:
    """A plan in the making: of what and how, and what has been found so far.

    Attributes:
      constants: those that were given, without those that an observation has taken.
      averaged: spaces in whose mean new units take part.
      masks: output -> which of its actions may be taken.
    """

    checkpoint: Checkpoint
    new_action: str
    constants: dict[str, float]
    unnamed: Unnamed | None
    edits: list[SpaceEdit] = field(default_factory=list)
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    averaged: list[str] = field(default_factory=list)
    masks: dict[str, Any] = field(default_factory=dict)

    @property
    def analysis(self) -> Analysis:
        """Of the graph before."""
        return self.checkpoint.analysis


def adapt(
    checkpoint: Checkpoint,
    wanted: SpaceDescription,
    *,
    current: SpaceDescription | None = None,
    new_action: Literal["never", "mean"] = "never",
    constants: Mapping[str, float] | None = None,
    unnamed: Unnamed | None = None,
) -> Plan:
    """Compare what a model reads and does with what an environment shows and takes, and make the plan between them.

    Observations and actions are matched by name: new ones are inserted where the environment has them, the order
    follows, and observations that are gone are retired at the constant that they held. Where names are missing on one
    side, equal sizes are taken as they are.

    Args:
      wanted: the spaces of the environment (`surgery.envs.describe`, or a JSON file).
      current: the spaces that the model was trained on, where its interface does not name the features.
      new_action: how new actions start: as the mean of the old ones, "never" allowed at first or at once.
      constants: "INPUT.FEATURE" -> value, for observations that are gone.
      unnamed: "append" puts new features and actions without names behind the old ones, instead of asking for names.

    Returns:
      A plan that claims "equivalent".

    Raises:
      ArgumentError: names or constants are missing; nothing is to be done.
      Refused: a change that no plan can express, with the part of the spaces that asks for it.
    """
    draft = _Draft(checkpoint, new_action, dict(constants or {}), unnamed)
    for name, part in _pairs(checkpoint, wanted).items():
        _observations(draft, name, part, _known(current, name, part))
    if draft.constants:
        raise ArgumentError(f"these observations are not gone: {', '.join(draft.constants)}")
    if wanted.actions is not None:
        old = current.actions if current is not None else None
        _actions(draft, wanted.actions, old)
    if not draft.edits:
        raise ArgumentError(
            f"nothing to adapt: the model fits {wanted.environment or 'these spaces'} as it is"
        )
    arguments = {"to": wanted.to_json(), "new_action": new_action, "constants": dict(constants or {})}
    plan = build(
        checkpoint, draft.analysis, "adapt", draft.edits, arguments=arguments, claim="equivalent", labels=draft.labels,
        notes=draft.notes,
    )  # fmt: skip
    fold(plan, checkpoint, prepared(checkpoint.model, checkpoint.trained), double=False)
    environment: dict[str, Any] = {"action_mask": draft.masks} if draft.masks else {}
    if bounds := _bounds(checkpoint, wanted):
        environment["spaces"] = bounds
    if draft.masks and "action_set" in checkpoint.environment.settings:
        environment["action_set"] = None
    return replace(plan, inexact_slots=tuple(draft.averaged), environment=environment)


# ---- which array goes into which input --------------------------------------------------------------------------


def _pairs(checkpoint: Checkpoint, wanted: SpaceDescription) -> dict[str, Observed]:
    """Input of the model -> what the environment shows there."""
    inputs = [port.name for port in checkpoint.interface.inputs if port.kind == "observation"]
    parts = {part.name: part for part in wanted.observations}
    if len(inputs) == 1:
        only = wanted.observations[0]
        return {inputs[0]: only if len(parts) == 1 else _flattened(wanted.observations)}
    missing = [name for name in parts if name not in inputs]
    if missing:
        raise Refused(
            f"the environment shows '{missing[0]}', and the model has no input of that name: no plan adds an input",
            where={"inputs": ", ".join(inputs), "environment": ", ".join(parts)},
            hint="join it to an input in a wrapper of the environment, or distil: surgery distill",
        )
    gone = [name for name in inputs if name not in parts]
    if gone:
        raise Refused(
            f"the environment no longer shows '{gone[0]}': no plan takes an input away as a whole",
            hint="feed it a constant, and retire all its features but one: surgery retire",
        )
    return {name: parts[name] for name in inputs}


def _bounds(checkpoint: Checkpoint, wanted: SpaceDescription) -> dict[str, Any]:
    """What the contract keeps of the environment's bounds, by input: frameworks compare them with their own."""
    return {
        name: {"low": part.low, "high": part.high}
        for name, part in _pairs(checkpoint, wanted).items()
        if part.low is not None and part.high is not None
    }


def _flattened(parts: Sequence[Observed]) -> Observed:
    """Several arrays one after the other, as gymnasium flattens them; features are called KEY.NAME or KEY.NUMBER."""
    labels: list[str] = []
    for part in parts:
        size = 1
        for n in part.shape:
            size *= n
        own = part.labels if part.labels is not None and len(part.labels) == size else map(str, range(size))
        labels += [f"{part.name}.{label}" for label in own]
    return Observed("", (len(labels),), tuple(labels))


def _known(current: SpaceDescription | None, name: str, part: Observed) -> Observed | None:
    if current is None:
        return None
    if len(current.observations) > 1 and part.name not in {o.name for o in current.observations}:
        return _flattened(current.observations)
    return next((o for o in current.observations if o.name in (part.name, name)), current.observations[0])


# ---- observations -----------------------------------------------------------------------------------------------


def _observations(draft: _Draft, name: str, part: Observed, known: Observed | None) -> None:
    """Draft what one input needs.

    Args:
      part: what the environment shows there. known: what it was trained on, if that is described.
    """
    shape, port = _shape(draft.checkpoint, name), draft.checkpoint.interface.input(name)
    if shape == () and len(part.shape) == 1 and isinstance(port.high, float):
        _same_choice(name, int(port.high) + 1, part.shape[0])
        return
    old_labels = port.labels or (known.labels if known is not None else None)
    axis = _feature_axis(name, shape, part, old_labels)
    if axis is None:
        return
    features, _ = input_axis(draft.analysis, f"{name}[{axis + 1}]")
    old = old_labels if old_labels is not None and len(old_labels) == features.size else None
    new = part.labels if part.labels is not None and len(part.labels) == part.shape[axis] else None
    order, gone = _order(f"observation '{name}'", old, features.size, new, part.shape[axis], draft.unnamed)
    values = {k: _constant(name, port, old, k, draft.constants) for k in gone}
    for edit in features.edits(order, values):
        if reason := mixed_parameters(draft.analysis, edit.space) if gone else None:
            raise Refused(f"'{edit.space}' cannot change exactly: {reason}")
        draft.edits.append(edit)
    if order == list(range(features.size)):
        return
    if new is not None:
        draft.labels[name] = new
    if gone:
        held = ", ".join(
            f"{qualified(name, old[k] if old else str(k))} = {value:g}" for k, value in values.items()
        )
        draft.notes.append(f"equal wherever {held}")


def _same_choice(name: str, values: int, wanted: int) -> None:
    """Refuse another number of values where an input is one of several, which its graph makes one-hot."""
    if values != wanted:
        raise Refused(
            f"input '{name}' is one of {values} values and the environment shows one of {wanted}: no plan adds or "
            "removes one",
            hint="distil: surgery distill",
        )


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int | None, ...]:
    """The shape of an input without its batch; None for a symbolic dimension."""
    return tuple(d if isinstance(d, int) else None for d in (checkpoint.value(name).shape or ())[1:])


def _feature_axis(
    name: str, shape: tuple[int | None, ...], part: Observed, old_labels: Sequence[str] | None
) -> int | None:
    """The one axis along which features come and go; None if there is none.

    Raises:
      Refused: another rank, or other sizes along several axes.
    """
    if len(shape) != len(part.shape):
        raise Refused(
            f"input '{name}' is {shape_text(shape)} and the environment shows {shape_text(part.shape)}: no plan"
            " changes the number of axes",
            hint="flatten or stack it in a wrapper of the environment",
        )
    differ = [k for k, (old, new) in enumerate(zip(shape, part.shape, strict=True)) if old not in (None, new)]
    if len(differ) > 1 or (differ and len(shape) > 1 and differ[0] != _channels(shape)):
        raise Refused(
            f"input '{name}' is {shape_text(shape)} and the environment shows {shape_text(part.shape)}: only"
            " features and channels can come and go, not rows and columns",
            hint="resize it in a wrapper of the environment",
        )
    if differ:
        return differ[0]
    named = part.labels is not None and old_labels is not None
    axis = 0 if len(shape) == 1 else _channels(shape)
    fits = part.labels is not None and axis < len(part.shape) and len(part.labels) == part.shape[axis]
    return axis if named and fits else None


def _channels(shape: Sequence[int | None]) -> int:
    """The axis of the channels: the first one, before rows and columns."""
    return max(0, len(shape) - 3)


def _order(
    what: str,
    old: Sequence[str] | None,
    size: int,
    new: Sequence[str] | None,
    wanted: int,
    unnamed: Unnamed | None,
) -> tuple[list[int | None], list[int]]:
    """For every new place the old unit that stands there or None, and the old units that are gone."""
    if old is not None and new is not None:
        known = {label: k for k, label in enumerate(old)}
        return [known.get(label) for label in new], [k for label, k in known.items() if label not in set(new)]
    if wanted == size:
        return list(range(size)), []
    if wanted > size and unnamed == "append":
        return [*range(size), *[None] * (wanted - size)], []
    side = "the model does not name them" if old is None else "the environment does not name its own"
    which, append = (
        ("new", "; or --unnamed append, if they stand behind the old ones") if wanted > size else ("gone", "")
    )
    raise ArgumentError(
        f"{what} has {wanted} units in the environment and {size} in the model, and {side}: which ones are {which}?",
        hint=f"name them: surgery annotate MODEL … labels=[A,B,…], or --before OLD.json and --after NEW.json{append}",
    )


def _constant(
    name: str, port: Port, old: Sequence[str] | None, unit: int, constants: dict[str, float]
) -> float:
    """The value of a feature that is gone: given, or the only one in its declared range."""
    label = old[unit] if old else str(unit)
    for key in (f"{name}.{label}", f"{name}.{unit}"):
        if key in constants:
            return constants.pop(key)
    ends = [end[unit] if isinstance(end, tuple) and unit < len(end) else end for end in (port.low, port.high)]
    if ends[0] is not None and ends[0] == ends[1] and isinstance(ends[0], float):
        return ends[0]
    raise ArgumentError(
        f"the environment no longer shows '{label}' of '{name}'",
        hint=f"say what it holds from now on: --retire {name}.{label}=0",
    )


# ---- actions ----------------------------------------------------------------------------------------------------


def _actions(draft: _Draft, wanted: Actions, current: Actions | None) -> None:
    """Draft what the outputs need that choose actions, and a critic that reads them.

    Args:
      wanted: the environment's. current: those it was trained on, if they are described.
    """
    interface = draft.checkpoint.interface
    outputs = interface.outputs
    kinds = {port.kind for port in outputs}
    # where there are no values or logits beside it, the number of an action stands for those that it was chosen from
    numbers = [port for port in outputs if port.kind == "action" and numbered(draft.analysis, port.name)]
    discrete = [port for port in outputs if port.kind in DISCRETE] or numbers
    has = "discrete" if discrete else "continuous" if kinds & set(CONTINUOUS) else None
    if has is not None and has != wanted.kind:
        raise Refused(
            f"the model's actions are {has} and the environment's {wanted.kind}: no plan turns one into the other",
            hint="train a new head on the old body, or distil: surgery distill",
        )
    # a deterministic policy has no mean; what others call an action is made of theirs
    continuous = CONTINUOUS if has == "continuous" else ("action",)
    order: list[int | None] = []
    for port in discrete if wanted.kind == "discrete" else [p for p in outputs if p.kind in continuous]:
        order = _arrange_actions(draft, port, wanted, current)
    critics = any(port.name == CRITIC_ACTION for port in interface.inputs)
    if critics and wanted.kind == "continuous" and order != sorted(k for k in order if k is not None):
        _, space = input_space(draft.analysis, CRITIC_ACTION)
        draft.edits.append(arranged(space, order, {}))


def _arrange_actions(draft: _Draft, port: Port, wanted: Actions, current: Actions | None) -> list[int | None]:
    """For every action of the environment the old one that it is, or None."""
    _, space = action_space(draft.analysis, _action_request(draft.analysis, port))
    known = port.labels or (current.labels if current is not None else None)
    old = known if known is not None and len(known) == space.size else None
    order, gone = _order(f"output '{port.name}'", old, space.size, wanted.labels, wanted.count, draft.unnamed)
    if gone:
        named = ", ".join(old[k] for k in gone) if old else str(len(gone))
        raise Refused(
            f"the environment no longer takes {named}: no plan removes an action and keeps the policy",
            hint="forbid it instead: surgery annotate MODEL --env-setting 'action_mask={…}' -o OUT",
        )
    if order == list(range(space.size)) or space.name in {edit.space for edit in draft.edits}:
        return order
    edit = arranged(space, order, {})
    start = Start("mean" if wanted.kind == "discrete" or port.kind == "log_std" else "zero")
    draft.edits.append(replace(edit, start=start if edit.fresh else None))
    draft.averaged += [space.name] if space.whole and edit.fresh else []
    if wanted.labels is not None:
        own = [port.name] if alone(draft.analysis, port.name, space) else []
        more = single(draft.checkpoint, draft.analysis, space)
        draft.labels |= dict.fromkeys([*own, *more], wanted.labels)
    draft.notes += in_the_graph(draft.checkpoint, draft.analysis, space, "mean")
    allowed = wanted.kind == "continuous" or draft.new_action != "never"
    draft.notes += [forbidden(port.name)] if None in order and not allowed else []
    mask = _mask(draft.checkpoint, port.name, order, allowed=allowed)
    if mask is not None:
        draft.masks[port.name] = mask
    return order


def _action_request(analysis: Analysis, port: Port) -> str:
    """The output, or the space of the actions in it where atoms stand beside them."""
    axes = next((axes for side, name, axes in analysis.ports if (side, name) == ("output", port.name)), ())
    at = -2 if port.kind in ("atom_logits", "quantiles") and len(axes) > 2 else -1
    spaces = {space.name for space in analysis.spaces if "output" in space.kinds}
    found = {part.space for part in units(axes[at])} & spaces if axes else set()
    return found.pop() if len(found) == 1 else port.name


def _mask(
    checkpoint: Checkpoint, output: str, order: Sequence[int | None], *, allowed: bool
) -> list[bool] | None:
    """Which actions may be taken, in their new order; None where all may."""
    before = checkpoint.environment.action_mask(output)
    old = list(before) if isinstance(before, Sequence) else None
    mask = [
        allowed if k is None else bool(old[k]) if old is not None and k < len(old) else True for k in order
    ]
    return None if all(mask) and old is None else mask
