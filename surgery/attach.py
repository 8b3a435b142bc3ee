"""Optimizer state for a graph, by parameter name, from the training checkpoint that it was exported from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from surgery.adapters import SHARED, TrainingState, find
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, CorruptFile, Refused, SurgeryError, UnknownName
from surgery.interface import LineageStep
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.parameter_order import Shape, hyper, number, optimizer_kind, shape_of_state, unique_order
from surgery.tensors import equal, shape_of

Tensors = Mapping[str, ir.TensorProtocol]
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_WRAPPER = "_orig_mod."


@dataclass(frozen=True)
class Binding:
    """Optimizer state under the graph's parameter names.

    Attributes:
      state: what the optimizer remembers of the graph's parameters.
      network: which network of the checkpoint the graph is.
      optimizer: which of its optimizers.
      dropped: parameters that the optimizer trains and the graph does not have, by the checkpoint's names.
      stateless: the graph's parameters that the optimizer has no state for.
    """

    state: OptimizerState
    network: str
    optimizer: str
    dropped: tuple[str, ...]
    stateless: tuple[str, ...]


def attach(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    network: str | None = None,
    optimizer: str | None = None,
    order: Sequence[str] | None = None,
    kind: str | None = None,
) -> Checkpoint:
    """Give a checkpoint the optimizer state of the run that its graph was exported from.

    Arguments and errors are those of `bind`; the lineage records what was bound and what was not.
    """
    binding = bind(checkpoint, path, network=network, optimizer=optimizer, order=order, kind=kind)
    step = LineageStep(
        "attach",
        parents=(checkpoint.digest(),),
        versions={"policy-surgery": version("policy-surgery")},
        summary={
            "file": Path(path).name,
            "network": binding.network,
            "optimizer": binding.optimizer,
            "kind": binding.state.kind,
            "dropped": binding.dropped,
            "stateless": binding.stateless,
        },
    )
    return checkpoint.replace(optimizer=binding.state, lineage=(*checkpoint.lineage, step))


def bind(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    network: str | None = None,
    optimizer: str | None = None,
    order: Sequence[str] | None = None,
    kind: str | None = None,
) -> Binding:
    """Find the graph's parameters in a training checkpoint, check them, and collect their optimizer state.

    Args:
      checkpoint: the graph.
      path: the training checkpoint.
      network: which of its networks the graph is; None finds the one with the graph's names and weights.
      optimizer: which of its optimizers; None if there is one, or one is named after the network.
      order: the names of the optimizer's parameters in its order, where the file does not tell.
      kind: the kind of optimizer, where the file does not tell (see `surgery.optimizer.POWERS`).

    Raises:
      UnknownFormat, CorruptFile, FileError: the checkpoint cannot be read.
      UnknownName: no such network or optimizer in it.
      ArgumentError: it has no optimizer state, or other weights or parameters than the graph.
      Refused: more than one binding fits, or there is no rule for the optimizer.
    """
    path = Path(path)
    _, adapter = find(path)
    try:
        training = adapter.training_state(path)
        chosen, names = _find_network(training, checkpoint.tensors, network)
        label = _find_optimizer(training, optimizer, chosen)
        record = _OptimizerRecord.parse(training.optimizers[label])
        found = kind or record.kind()
        places = record.bind(_scopes(training, chosen), order)
        state, dropped = record.state(places, {theirs: ours for ours, theirs in names.items()}, found)
    except SurgeryError as error:
        raise error.within(checkpoint=path, graph=checkpoint.path or "in memory") from error
    _check_shapes(state, checkpoint.tensors)
    known = set().union(*state.slots.values())
    stateless = [
        name for name, tensor in checkpoint.tensors.items() if _trainable(name, tensor) and name not in known
    ]
    return Binding(state, chosen, label, tuple(dropped), tuple(stateless))


def _find_network(
    training: TrainingState, tensors: Tensors, wanted: str | None
) -> tuple[str, dict[str, str]]:
    """The network that the graph is, and its parameter name for each of the graph's."""
    if wanted is not None and wanted not in training.networks:
        raise UnknownName("network", wanted, training.networks)
    candidates = [wanted] if wanted is not None else list(training.networks)
    aligned = {name: align(tensors, training.networks[name]) for name in candidates}
    most = max(map(len, aligned.values()))
    if not most:
        theirs = [name for network in training.networks.values() for name in network]
        raise ArgumentError(
            f"no parameter of the graph is in the checkpoint: {_some(tensors)} against {_some(theirs)}",
            hint="export the graph with optimize=False, so that parameters keep their names",
        )
    best = [name for name in candidates if len(aligned[name]) == most]
    differing = {name: _differing(tensors, training.networks[name], aligned[name]) for name in best}
    for name in best:
        if not differing[name]:
            return name, aligned[name]
    raise ArgumentError(
        f"the graph has other weights than '{best[0]}' of the checkpoint: {_some(differing[best[0]])}",
        hint="it was exported from another step: export it again from this checkpoint",
    )


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


def _differing(tensors: Tensors, network: Tensors, names: Mapping[str, str]) -> list[str]:
    return [ours for ours, theirs in names.items() if not equal(tensors[ours], network[theirs])]


def _find_optimizer(training: TrainingState, wanted: str | None, network: str) -> str:
    names = list(training.optimizers)
    if wanted is not None:
        if wanted not in names:
            raise UnknownName("optimizer", wanted, names)
        return wanted
    if not names:
        raise ArgumentError(
            "the checkpoint holds no optimizer state",
            hint="in training: torch.save({'model': net.state_dict(), 'optimizer': optimizer.state_dict()})",
        )
    own = names if len(names) == 1 else [name for name in names if name.startswith(network)]
    if len(own) != 1:
        known = ", ".join(names)
        known = ", ".join(names)
        raise ArgumentError(f"the checkpoint holds several optimizers: {known}", hint="choose: optimizer=...")
    return own[0]


def _scopes(training: TrainingState, network: str) -> list[Tensors]:
    """What an optimizer may train: the network itself, or all networks of the file, in its order."""
    ordered = {
        key if name == network else f"{name}.{key}": tensor
        for name, tensors in training.networks.items()
        for key, tensor in tensors.items()
    }
    return [training.networks[network], ordered]


@dataclass(frozen=True)
class _OptimizerRecord:
    """A PyTorch optimizer's state dict: groups of numbered parameters, and what is kept of each number."""

    groups: Sequence[Mapping[str, object]]
    numbers: Sequence[Sequence[object]]
    states: Mapping[object, Mapping[str, object]]

    @staticmethod
    def parse(record: Mapping[str, object]) -> _OptimizerRecord:
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
        return _OptimizerRecord(groups, numbers, states)

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
        groups, dropped = [], []
        for group, names, numbers in zip(self.groups, places, self.numbers, strict=True):
            members = []
            for name, place in zip(names, numbers, strict=True):
                if name not in ours:
                    dropped.append(name)
                    continue
                members.append(ours[name])
                _collect(ours[name], self.states.get(place, {}), slots, steps)
            if members:
                groups.append(ParamGroup(tuple(members), hyper(group)))
        if not groups:
            raise ArgumentError("the optimizer trains no parameter of the graph")
        return OptimizerState(kind, slots, steps, tuple(groups)), dropped


def _collect(
    name: str,
    state: Mapping[str, object],
    slots: dict[str, dict[str, ir.TensorProtocol]],
    steps: dict[str, float],
) -> None:
    for slot, value in state.items():
        if slot == "step":
            steps[name] = number(value, f"the step count of '{name}'")
        elif isinstance(value, ir.TensorProtocol):
            slots.setdefault(slot, {})[name] = value
        elif value is not None:
            raise Refused(f"there is no rule for the optimizer's '{slot}' of '{name}', which is no tensor")


def _param_names(group: Mapping[str, object]) -> list[str]:
    names = group.get("param_names")
    return [str(name) for name in names] if isinstance(names, list) else []


def _candidates(scope: Tensors) -> list[tuple[str, Shape]]:
    """The trainable tensors of a state dict; one that has several names is listed under the first."""
    seen = set()
    found = []
    for name, tensor in scope.items():
        if not _trainable(name, tensor):
            continue
        if (shared := tensor.meta.get(SHARED)) is not None:
            if shared in seen:
                continue
            seen.add(shared)
        found.append((name, shape_of(tensor)))
    return found


def _trainable(name: str, tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.is_floating_point() and not name.endswith(_BUFFERS)


def _check_shapes(state: OptimizerState, tensors: Tensors) -> None:
    for slot, members in state.slots.items():
        for name, tensor in members.items():
            if shape_of(tensor) != shape_of(tensors[name]):
                raise ArgumentError(
                    f"the {slot} of '{name}' is {list(shape_of(tensor))}, "
                    f"the parameter is {list(shape_of(tensors[name]))}"
                )


def _some(names: Sequence[str] | Tensors) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
