"""State dicts and optimizers of PyTorch inside a pickle's tree: other keys, more parameters, another optimizer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.errors import CorruptFile, Refused
from surgery.json_values import Json
from surgery.ops.optimizer_settings import CONVENTIONS
from surgery.optimizer import SCALARS, OptimizerState, ParamGroup, momentum_product
from surgery.optimizer_record import OptimizerRecord
from surgery.parameter_order import hyper
from surgery_adapters.containers.pickle_tree import Made, walk
from surgery_adapters.containers.torch_patch import Edit, Make, View, tensors_in, view_of
from surgery_adapters.writeback.sequences import HINT, Numbering

Tensors = Mapping[str, ir.TensorProtocol]

_DICTS = ("collections.OrderedDict", "builtins.dict", "collections.defaultdict")
_WRAPPERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_KEPT = ("params", "param_names", "initial_lr")
"""What a parameter group keeps when it becomes one of another optimizer."""

MADE_WITH: Mapping[str, tuple[str, ...]] = {
    "adam": ("betas", "eps", "weight_decay", "amsgrad"),
    "adamw": ("betas", "eps", "weight_decay", "amsgrad"),
    "rmsprop": ("alpha", "eps", "weight_decay", "momentum", "centered"),
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
}
"""Kind -> what PyTorch's class is made with, beside the learning rate."""


def entries(node: object) -> dict[Any, Any] | None:
    """The items of a node that makes a dict, which can be changed in place; None if it makes none."""
    if isinstance(node, dict):
        return node
    return node.keyed if isinstance(node, Made) and node.is_a(*_DICTS) else None


def renumber(
    root: object, old: Tensors, numbering: Numbering, tensors: Tensors, prefixes: Iterable[str], make: Make
) -> None:
    """Give every state dict of a tree the names of a new numbering, and the parameters that are new.

    Args:
      root: of the tree. old: the file's parameters by their old names.
      numbering: the new names. tensors: by them.
      prefixes: that the names of one network have in front of its keys, the first's being empty.
      make: of nodes for new tensors.

    Raises:
      Refused: no dict of the file holds the parameters of a network, and of no other.
    """
    found = False
    dicts = [(node, items) for node in walk(root) if (items := entries(node)) is not None]
    for node, items in dicts:
        views = {key: view for key, value in items.items() if (view := _view(value)) is not None}
        for prefix in prefixes:
            if views and all(_is(old, f"{prefix}{key}", view) for key, view in views.items()):
                _rename(node, items, set(views), numbering, prefix, old, tensors, make)
                found = True
                break
    if not found:
        raise Refused(
            "no dict of the file holds only this network, so that its names could be changed", hint=HINT
        )


def _view(node: object) -> View | None:
    if isinstance(node, Made) and node.is_a(*_WRAPPERS):
        node = node.arguments[0]
    found = next(tensors_in(node), None) if isinstance(node, Made) else None
    return view_of(found) if found is not None and found is node else None


def _is(old: Tensors, name: object, view: View) -> bool:
    return name in old and old[str(name)].meta.get(SHARED) == view


def _rename(
    node: object,
    items: dict[Any, Any],
    own: set[Any],
    numbering: Numbering,
    prefix: str,
    old: Tensors,
    tensors: Tensors,
    make: Make,
) -> None:
    """Rename the parameters of a state dict, in place; what else is in it stays behind them."""
    others = {key: value for key, value in items.items() if key not in own}
    names = {f"{prefix}{key}": value for key, value in items.items() if key in own}
    nodes = {numbering.moved(name): value for name, value in names.items()}
    order = numbering.order({name: old[name] for name in names})
    items.clear()
    items.update(
        {name.removeprefix(prefix): nodes[name] if name in nodes else make(tensors[name]) for name in order}
    )
    items.update(others)
    state = node.state if isinstance(node, Made) else None
    metadata = entries(state.get("_metadata")) if isinstance(state, dict) else None
    if metadata is not None:
        _rename_modules(metadata, numbering, prefix)


def _rename_modules(metadata: dict[Any, Any], numbering: Numbering, prefix: str) -> None:
    """`_metadata` of a state dict: a version for every module, those without parameters included."""
    moved = [
        (numbering.moved(f"{prefix}{path}").removeprefix(prefix) if path else path, value)
        for path, value in metadata.items()
    ]
    for new in numbering.added:
        group, _, place = new.rpartition(".")[0].rpartition(".")
        front = f"{group}.{int(place) - 1}".removeprefix(prefix)
        paths = [path for path, _ in moved]
        own = [f"{group}.{int(place) + k}".removeprefix(prefix) for k in (0, 1)]
        if group.startswith(prefix) and front in paths and own[0] not in paths:
            at = paths.index(front)
            moved[at + 1 : at + 1] = [(path, moved[at][1]) for path in own]
    metadata.clear()
    metadata.update(moved)


@dataclass(frozen=True)
class Member:
    """A parameter of an optimizer.

    Attributes:
      name: in the graph. number: in the file; None if it is new.
      like: the number of a parameter whose state its own is made like.
      file: its new name in the file.
    """

    name: str
    number: object
    like: object
    file: str


@dataclass(frozen=True)
class Revision:
    """How an optimizer in a file becomes that of a checkpoint, beyond the numbers in its slots.

    Attributes:
      groups: their parameters, in order. settings: of each group, by name; None for those that stay.
      swapped: whether it is of another kind, so that nothing of its old state stays.
    """

    groups: tuple[tuple[Member, ...], ...]
    settings: tuple[Mapping[str, Json] | None, ...]
    swapped: bool

    @property
    def needed(self) -> bool:
        """Whether anything but numbers changes."""
        added = any(member.number is None for group in self.groups for member in group)
        return self.swapped or added or any(found is not None for found in self.settings)

    def common(self, framework: str, name: str) -> Mapping[str, Json]:
        """The settings that all parameters of an optimizer have.

        Args:
          framework: which has no others. name: of the optimizer.

        Raises:
          Refused: they have several.
        """
        first = self.settings[0]
        if first is None or any(other != first for other in self.settings[1:]):
            raise Refused(
                f"{framework} gives all parameters of '{name}' the same settings", hint=f"--match all; {HINT}"
            )
        return first

    def edit(self, state: OptimizerState) -> Edit:
        """The change of a tree that is this optimizer's state dict."""
        return lambda root, make: write(root, self, state, make)


def revise(
    record: OptimizerRecord,
    places: Sequence[Sequence[str]],
    state: OptimizerState,
    numbering: Numbering,
    old: Tensors,
    *,
    conventions: Sequence[str] = (),
    carried: Collection[str] = (),
) -> Revision:
    """Say how an optimizer in a file becomes that of a checkpoint.

    Args:
      record: what the file holds. places: the names of its parameters.
      state: of the checkpoint. numbering: of the file's parameters. old: the file's parameters.
      conventions: of `surgery.ops.optimizer_settings.CONVENTIONS`, those that the framework's class has.
      carried: names of parameters that the checkpoint knows nothing of, whose state stays.

    Raises:
      Refused: something that PyTorch's own classes, with the groups that the file has, cannot hold.
    """
    members = tuple(
        tuple(_with_added(list(zip(names, numbers, strict=True)), state, numbering, old))
        for names, numbers in zip(places, record.numbers, strict=True)
    )
    swapped = state.kind != record.kind()
    if swapped and carried:
        raise Refused(
            f"the file's optimizer also trains '{min(carried)}', which belongs to no network", hint=HINT
        )
    settings = tuple(
        _settings(
            [member.name for member in group if member.name not in carried],
            state, found, conventions, swapped=swapped,
        )
        for group, found in zip(members, record.groups, strict=True)
    )  # fmt: skip
    revision = Revision(members, settings, swapped)
    numbers = [number for group in record.numbers for number in group]
    if revision.needed and numbers != list(range(len(numbers))):
        raise Refused("the file's optimizer does not number its parameters one after the other", hint=HINT)
    if "step" in state.slots:
        raise Refused(
            "the steps are counted per element, for which a framework's optimizer has no place", hint=HINT
        )
    if not swapped and (missing := set(state.slots) ^ _slots(record)):
        raise Refused(
            f"the slots {', '.join(sorted(missing))} are not those of the file's optimizer", hint=HINT
        )
    return revision


def _slots(record: OptimizerRecord) -> set[str]:
    return {
        str(slot)
        for state in record.states.values()
        for slot, value in state.items()
        if slot not in SCALARS and isinstance(value, ir.TensorProtocol)
    }


def _with_added(
    known: Sequence[tuple[str, object]], state: OptimizerState, numbering: Numbering, old: Tensors
) -> list[Member]:
    """The parameters of a group, new ones behind those of the module that they follow."""
    first, trained = numbering.of_graph(old), set(state.parameters)
    members = [Member(name, number, number, numbering.moved(name)) for name, number in known]
    behind = {member.name: member.name.rpartition(".")[0] for member in members}
    for new, item in numbering.added.items():
        module = item.behind.rpartition(".")[0]
        at = [k for k, member in enumerate(members) if behind[member.name] == module]
        if at and item.name in trained and first[item.name] == new:
            behind[item.name] = module
            members.insert(at[-1] + 1, Member(item.name, None, members[at[0]].like, new))
    return members


def _settings(
    names: Sequence[str],
    state: OptimizerState,
    old: Mapping[str, object],
    conventions: Sequence[str],
    *,
    swapped: bool,
) -> Mapping[str, Json] | None:
    """The settings of one group of the file; None if they stay."""
    known = {name: group.hyper for group in state.groups for name in group.parameters}
    if stray := [name for name in names if name not in known]:
        raise Refused(f"the file's optimizer trains '{stray[0]}', the checkpoint's does not", hint=HINT)
    found = [known[name] for name in names]
    if any(settings != found[0] for settings in found):
        raise Refused(
            "a group of the file's optimizer has one setting for all its parameters, and theirs now differ",
            hint=f"one learning rate for all: --match all; or {HINT}",
        )
    odd = [name for name in CONVENTIONS if found and found[0].get(name) and name not in conventions]
    if odd:
        raise Refused(f"no optimizer of PyTorch has the setting {odd[0]}", hint=HINT)
    before = ParamGroup((), hyper(old)).hyper
    if not found or (not swapped and all(before.get(name) == value for name, value in found[0].items())):
        return None
    return {name: value for name, value in found[0].items() if name not in CONVENTIONS}


def write(node: object, revision: Revision, state: OptimizerState, make: Make) -> None:
    """Change an optimizer's state dict in a tree, in place.

    Raises:
      CorruptFile: it is none.
    """
    items = entries(node)
    states = None if items is None else entries(items.get("state"))
    if items is None or states is None:
        raise CorruptFile("the optimizer state is not a PyTorch optimizer's")
    before, number = dict(states), 0
    states.clear()
    for group, members, settings in zip(
        items["param_groups"], revision.groups, revision.settings, strict=True
    ):
        numbers = list(range(number, number + len(members)))
        number += len(members)
        _write_group(entries(group) or {}, members, numbers, settings, swapped=revision.swapped)
        for at, member in zip(numbers, members, strict=True):
            if revision.swapped:
                found = _fresh(member.name, state, make)
            elif member.number is not None:
                found = before.get(member.number)
            else:
                found = _alike(member.name, entries(before.get(member.like)), state, make)
            if found is not None:
                states[at] = found


def _write_group(
    group: dict[Any, Any],
    members: Sequence[Member],
    numbers: list[int],
    settings: Mapping[str, Json] | None,
    *,
    swapped: bool,
) -> None:
    if settings is not None:
        kept = {key: group[key] for key in (_KEPT if swapped else group) if key in group}
        group.clear()
        group.update({**kept, **settings})
    del group["params"]
    group["params"] = numbers  # at the end, as PyTorch writes it
    if "param_names" in group:
        group["param_names"] = [member.file for member in members]


def _fresh(name: str, state: OptimizerState, make: Make) -> dict[str, object] | None:
    """The state of a parameter, as PyTorch's optimizers keep it."""
    slots: dict[str, object] = {slot: make(held[name]) for slot, held in state.slots.items() if name in held}
    if name in state.steps:
        slots = {**{slot: make(count) for slot, count in _counts(name, state).items()}, **slots}
    return slots or None


def _alike(
    name: str, sibling: Mapping[Any, Any] | None, state: OptimizerState, make: Make
) -> dict[str, object] | None:
    """The state of a new parameter, in the form that another one's has."""
    if sibling is None:
        return None
    # LAMB counts before it divides by 1 − βⁿ, from one on (sample_factory/algo/utils/optimizers.py)
    steps = max(state.steps.get(name, 0.0), 1.0 if state.kind == "lamb" else 0.0)
    made: dict[str, object] = {}
    for slot, value in sibling.items():
        if slot == "step":
            made[slot] = make(_count(steps)) if isinstance(value, Made) else _counted(steps, value)
        elif slot in SCALARS:
            made[slot] = make(_counts(name, state)[slot])
        elif name in state.slots.get(slot, {}):
            made[slot] = make(state.slots[slot][name])
        else:
            made[slot] = None
    return made


def _counts(name: str, state: OptimizerState) -> dict[str, ir.TensorProtocol]:
    """What is one number for a whole parameter."""
    steps = state.steps.get(name, 0.0)
    counts = {"step": _count(steps)}
    if state.kind == "nadam":
        product = momentum_product(steps, state.group(name).hyper)
        counts["mu_product"] = ir.Tensor(np.array(product, np.float32), name="mu_product")
    return counts


def _count(steps: float) -> ir.TensorProtocol:
    return ir.Tensor(np.array(steps, np.float32), name="step")


def _counted(steps: float, like: object) -> float | int:
    return steps if isinstance(like, float) else int(steps)
