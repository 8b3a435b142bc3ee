"""A PyTorch optimizer's state dict, and its state under the names of the parameters that it trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.errors import WITHOUT_OPTIMIZER, ArgumentError, CorruptFile, Refused
from surgery.optimizer import SCALARS, OptimizerState, ParamGroup
from surgery.parameter_order import Shape, hyper, number, optimizer_kind, unique_order
from surgery.tensors import shape_of

Tensors = Mapping[str, ir.TensorProtocol]
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_WRAPPER = "_orig_mod."


def align(tensors: Iterable[str], network: Iterable[str]) -> dict[str, str]:
    """The graph's names -> the network's, which may all have one more prefix on one side.

    `torch.compile` puts `_orig_mod.` anywhere into a name; it is ignored. Where several prefixes fit, the one
    that names the most parameters is taken.
    """
    ours = {name.replace(_WRAPPER, ""): name for name in tensors}
    theirs = {name.replace(_WRAPPER, ""): name for name in network}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name, original in ours.items():
        for prefix, rest in _splits(name):
            if rest in theirs:
                found.setdefault((prefix, ""), {})[original] = theirs[rest]
    for name, original in theirs.items():
        for prefix, rest in _splits(name):
            if prefix and rest in ours:
                found.setdefault(("", prefix), {})[ours[rest]] = original
    return max(found.values(), key=len, default={})


def _splits(name: str) -> Iterator[tuple[str, str]]:
    parts = name.split(".")
    for cut in range(len(parts)):
        yield ".".join(parts[:cut]), ".".join(parts[cut:])


@dataclass(frozen=True)
class OptimizerRecord:
    """A PyTorch optimizer's state dict: groups of numbered parameters, and what is kept of each number."""

    groups: Sequence[Mapping[str, object]]
    numbers: Sequence[Sequence[object]]
    states: Mapping[object, Mapping[str, object]]

    @staticmethod
    def parse(record: Mapping[str, object]) -> OptimizerRecord:
        groups, states = record.get("param_groups"), record.get("state")
        if not isinstance(groups, list) or not isinstance(states, dict) or not groups:
            raise CorruptFile("the optimizer state is not a PyTorch optimizer's")
        if not all(isinstance(item, dict) for item in (*groups, *states.values())):
            raise CorruptFile("a group or a state of the optimizer is not a dict")
        numbers: list[list[object]] = []
        for group in groups:
            places = group.get("params")
            if not isinstance(places, list) or not all(isinstance(place, int | str) for place in places):
                raise CorruptFile("a parameter group has no list of parameters")
            numbers.append(places)
        return OptimizerRecord(groups, numbers, states)

    def kind(self) -> str:
        """The kind of optimizer, as `surgery.optimizer.POWERS` names it."""
        return optimizer_kind(self.groups, {str(slot) for state in self.states.values() for slot in state})

    def bind(self, scopes: Sequence[Tensors], order: Sequence[str] | None) -> list[list[str]]:
        """The name of each place of each group."""
        if order is not None:
            return self._named(list(order), "order", scopes[-1])
        names = [name for group in self.groups for name in _param_names(group)]
        if names:
            return self._named(names, "param_names of the file", scopes[-1])
        places = [[shape_of_state(self.states.get(place, {})) for place in group] for group in self.numbers]
        for scope in scopes:
            candidates = _candidates(scope)
            found = unique_order(places, [shape for _, shape in candidates])
            if found is not None:
                return [[candidates[place][0] for place in group] for group in found]
        total, available = sum(map(len, places)), len(_candidates(scopes[-1]))
        raise ArgumentError(
            f"the optimizer's {total} parameters do not fit the checkpoint's {available} by shape"
        )

    def _named(self, names: list[str], what: str, scope: Tensors) -> list[list[str]]:
        sizes = list(map(len, self.numbers))
        if len(names) != sum(sizes) or len(set(names)) != len(names):
            raise ArgumentError(
                f"{what} gives {len(set(names))} names, the optimizer has {sum(sizes)} parameters"
            )
        known = align(names, scope)
        source = (known.get(name, name) for name in names)
        return [[next(source) for _ in range(size)] for size in sizes]

    def state(
        self, places: Sequence[Sequence[str]], ours: Mapping[str, str], kind: str
    ) -> tuple[OptimizerState, list[str]]:
        """The state under the graph's names, and the names of the parameters that the graph does not have."""
        slots: dict[str, dict[str, ir.TensorProtocol]] = {}
        steps: dict[str, float] = {}
        counters: dict[str, ir.TensorProtocol] = {}
        groups, dropped = [], []
        for group, names, numbers in zip(self.groups, places, self.numbers, strict=True):
            members = []
            for name, place in zip(names, numbers, strict=True):
                if name not in ours:
                    dropped.append(name)
                    continue
                members.append(ours[name])
                own = self.states.get(place, {})
                _collect(ours[name], own, slots, steps)
                if isinstance(count := own.get("step"), ir.TensorProtocol):
                    counters[ours[name]] = count
            if members:
                groups.append(ParamGroup(tuple(members), hyper(group)))
        if not groups:
            raise ArgumentError("the optimizer trains no parameter of the graph")
        return OptimizerState(kind, slots, steps, tuple(groups), counters), dropped


def _collect(
    name: str,
    state: Mapping[str, object],
    slots: dict[str, dict[str, ir.TensorProtocol]],
    steps: dict[str, float],
) -> None:
    for slot, value in state.items():
        if slot == "step":
            steps[name] = number(value, f"the step count of '{name}'")
        elif slot in SCALARS:
            continue  # follows from the count
        elif isinstance(value, ir.TensorProtocol):
            slots.setdefault(slot, {})[name] = value
        elif value is not None:
            raise Refused(f"there is no rule for the optimizer's '{slot}' of '{name}', which is not a tensor")


def shape_of_state(state: Mapping[str, object]) -> Shape | None:
    """The shape of the parameter that a PyTorch state belongs to; None if nothing in it tells."""
    for slot, value in state.items():
        if slot not in SCALARS and isinstance(value, ir.TensorProtocol):
            return shape_of(value)
    return None


def _param_names(group: Mapping[str, object]) -> list[str]:
    names = group.get("param_names")
    return [str(name) for name in names] if isinstance(names, list) else []


def told_names(record: Mapping[str, object]) -> list[str]:
    """The names of its parameters that an optimizer's state dict holds."""
    return [name for group in OptimizerRecord.parse(record).groups for name in _param_names(group)]


def _candidates(scope: Tensors) -> list[tuple[str, Shape]]:
    """The trainable tensors of a state dict; one that has several names is listed under the first."""
    seen = set()
    found = []
    for name, tensor in scope.items():
        if not trainable(name, tensor):
            continue
        if (shared := tensor.meta.get(SHARED)) is not None:
            if shared in seen:
                continue
            seen.add(shared)
        found.append((name, shape_of(tensor)))
    return found


def trainable(name: str, tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.is_floating_point() and not name.endswith(_BUFFERS)


def merged(states: Sequence[OptimizerState]) -> OptimizerState:
    """Several optimizers as one, each with groups of its own.

    Raises:
      Refused: they are of several kinds.
    """
    kinds = {state.kind for state in states}
    if len(kinds) > 1:
        raise Refused(
            f"the file has optimizers of several kinds, {', '.join(sorted(kinds))}",
            hint=f"leave them out, and write a graph: {WITHOUT_OPTIMIZER}",
        )
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    for state in states:
        for slot, members in state.slots.items():
            slots.setdefault(slot, {}).update(members)
    steps = {name: step for state in states for name, step in state.steps.items()}
    counters = {name: tensor for state in states for name, tensor in state.counters.items()}
    groups = tuple(group for state in states for group in state.groups)
    return OptimizerState(kinds.pop(), slots, steps, groups, counters)


def slots_of(state: OptimizerState, like: OptimizerState | None = None) -> dict[str, ir.TensorProtocol]:
    """All tensors of a state, keyed `slot/parameter`, step counts that a file keeps as tensors included.

    Args:
      state: of an optimizer.
      like: one that a file holds: only its parameters are taken, and its slots must be those of `state`.

    Raises:
      Refused: the file's optimizer is another.
    """
    if like is not None and (state.kind != like.kind or set(state.slots) != set(like.slots)):
        raise Refused(
            f"the file's optimizer is {like.kind} with {', '.join(like.slots)}, "
            f"the checkpoint's {state.kind} with {', '.join(state.slots)}: one cannot be written over the other",
            hint="an .onnx can have any optimizer state beside it: -o OUT.onnx",
        )
    names = set((like or state).parameters)
    counts = {
        f"step/{name}": _counting(tensor, state.steps[name])
        for name, tensor in (like or state).counters.items()
        if name in state.steps
    }
    return counts | {
        f"{slot}/{name}": tensor
        for slot, members in state.slots.items()
        for name, tensor in members.items()
        if name in names
    }


def _counting(tensor: ir.TensorProtocol, count: float) -> ir.TensorProtocol:
    """A step count in the form that a file has for it; its own tensor if that is what it says."""
    array = tensor.numpy()
    return tensor if (array == count).all() else ir.tensor(np.full_like(array, count), dtype=tensor.dtype)
