"""Optimizer state for a graph, by parameter name, from the training checkpoint that it was exported from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from surgery.adapters import TrainingState, find
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, SurgeryError, UnknownName, some_text
from surgery.interface import LineageStep
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import OptimizerRecord, align, merged, told_names, trainable
from surgery.tensors import equal, shape_of

Tensors = Mapping[str, ir.TensorProtocol]


@dataclass(frozen=True)
class Binding:
    """Optimizer state under the graph's parameter names.

    Attributes:
      state: what the optimizer remembers of the graph's parameters.
      network: which network of the checkpoint the graph is.
      optimizer: which of its optimizers; several, with commas between them, where each says what it trains.
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
      optimizer: which of its optimizers; None if there is one, or one is named after the network, or all say by name
        what they train.
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
        ours = {theirs: mine for mine, theirs in names.items()}
        labels = _find_optimizers(training, optimizer, chosen, ours)
        found = [_state(training, label, chosen, ours, order, kind) for label in labels]
        state = merged([part for part, _ in found])
    except SurgeryError as error:
        raise error.within(checkpoint=path, graph=checkpoint.path or "in memory") from error
    _check_shapes(state, checkpoint.tensors)
    known = set().union(*state.slots.values())
    stateless = [
        name for name, tensor in checkpoint.tensors.items() if trainable(name, tensor) and name not in known
    ]
    dropped = tuple(name for _, names in found for name in names)
    return Binding(state, chosen, ", ".join(labels), dropped, tuple(stateless))


def _state(
    training: TrainingState,
    label: str,
    network: str,
    ours: Mapping[str, str],
    order: Sequence[str] | None,
    kind: str | None,
) -> tuple[OptimizerState, list[str]]:
    """What one optimizer remembers of the graph's parameters, and the names of the others that it trains."""
    record = OptimizerRecord.parse(training.optimizers[label])
    chosen = kind or record.kind()
    return record.state(record.bind(_scopes(training, network), order), ours, chosen)


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
            f"no parameter of the graph is in the checkpoint: {some_text(tensors, 5)} against {some_text(theirs, 5)}",
            hint="export the graph with optimize=False, so that parameters keep their names",
        )
    best = [name for name in candidates if len(aligned[name]) == most]
    differing = {name: _differing(tensors, training.networks[name], aligned[name]) for name in best}
    for name in best:
        if not differing[name]:
            return name, aligned[name]
    raise ArgumentError(
        f"the graph's weights are not those of '{best[0]}' in the checkpoint: {some_text(differing[best[0]], 5)}",
        hint="the graph was exported at another step: export it again from this checkpoint",
    )


def _differing(tensors: Tensors, network: Tensors, names: Mapping[str, str]) -> list[str]:
    return [ours for ours, theirs in names.items() if not equal(tensors[ours], network[theirs])]


def _find_optimizers(
    training: TrainingState, wanted: str | None, network: str, ours: Mapping[str, str]
) -> list[str]:
    """The one optimizer that there is, or that the network's name tells, or those that name parameters of the graph."""
    names = list(training.optimizers)
    if wanted is not None:
        if wanted not in names:
            raise UnknownName("optimizer", wanted, names)
        return [wanted]
    if not names:
        raise ArgumentError(
            "the checkpoint holds no optimizer state",
            hint="in training: torch.save({'model': net.state_dict(), 'optimizer': optimizer.state_dict()})",
        )
    own = names if len(names) == 1 else [name for name in names if name.startswith(network)]
    if len(own) == 1:
        return own
    if told := [name for name in names if not set(ours).isdisjoint(told_names(training.optimizers[name]))]:
        return told
    raise ArgumentError(
        f"the checkpoint holds several optimizers: {', '.join(names)}", hint="choose: optimizer=..."
    )


def _scopes(training: TrainingState, network: str) -> list[Tensors]:
    """What an optimizer may train: the network itself, or all networks of the file, in its order."""
    ordered = {
        key if name == network else f"{name}.{key}": tensor
        for name, tensors in training.networks.items()
        for key, tensor in tensors.items()
    }
    return [training.networks[network], ordered]


def _check_shapes(state: OptimizerState, tensors: Tensors) -> None:
    for slot, members in state.slots.items():
        for name, tensor in members.items():
            if shape_of(tensor) != shape_of(tensors[name]):
                raise ArgumentError(
                    f"the {slot} of '{name}' is {list(shape_of(tensor))}, "
                    f"the parameter is {list(shape_of(tensors[name]))}"
                )
