"""PyTorch checkpoints (`.pt`, `.pth`, `.bin` …): state dicts and dicts of them, read without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from surgery.adapters import SHARED, Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, CorruptFile, Refused, UnknownFormat
from surgery.files import check_readable, replacing
from surgery.formats import is_kind, sniff
from surgery.interface import Interface
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import slots_of
from surgery.port_kinds import infer
from surgery.tensors import MappedFile, read_safetensors, write_safetensors
from surgery_adapters.containers import module_tree
from surgery_adapters.containers.module_tree import ModuleNode, ModuleState, check_sizes
from surgery_adapters.containers.pickle_tree import Made
from surgery_adapters.containers.pickled_arrays import is_array
from surgery_adapters.containers.torch_archive import TorchArchive
from surgery_adapters.containers.torch_patch import Make, View, changes, rewrite
from surgery_adapters.networks.agent import chained
from surgery_adapters.networks.chains import Part
from surgery_adapters.networks.module import traced
from surgery_adapters.networks.named import named
from surgery_adapters.networks.trained import joined, trained_in
from surgery_adapters.torch_layout import is_network, optimizers_in, parts_of, prefixes, state_of
from surgery_adapters.writeback.attention import as_the_code_computes, noted
from surgery_adapters.writeback.contract import NAME, Notes, bare, notes_of
from surgery_adapters.writeback.matching import Fit, Tensors, check_same, checked, fit, followed
from surgery_adapters.writeback.sequences import HINT
from surgery_adapters.writeback.torch_tree import Revision, entries, renumber, revise, write

SAFETENSORS = ".safetensors"
CLEANRL = ".cleanrl_model"
_STATE_DICT = "save the state dict of the network: torch.save({'model': net.state_dict(), ...})"
GENERAL = True
"""These files are of many frameworks: an adapter that knows one of them better comes first."""


def detect(path: Path) -> bool:
    """Whether a file is a PyTorch checkpoint in the zip format, or a state dict as safetensors."""
    kinds = ("torch", "safetensors") if path.suffix.lower() == SAFETENSORS else ("torch",)
    return is_kind(path, *kinds)


def read(path: Path) -> object:
    """The object that was saved: containers, numbers, text, and tensors that are still in the file.

    Raises:
      FileError: the file cannot be read.
      UnknownFormat: not a PyTorch checkpoint in the zip format.
      CorruptFile: damaged or hostile, or it holds Python objects other than data; nothing was executed.
    """
    check_readable(path)
    kind = sniff(path)
    if kind.name == "zip" and "damaged" in kind.description:
        raise CorruptFile(f"{path} is {kind.description}")
    if kind.name != "torch":
        raise UnknownFormat(
            f"{path} is not a PyTorch checkpoint: it is {kind.description}", hint=kind.advice(path)
        )
    try:
        return module_tree.read(archive(path))
    except CorruptFile as error:
        raise error.within(file=path) from error


def archive(path: Path) -> TorchArchive:
    """The archive that a file is."""
    return TorchArchive.open(MappedFile(path).whole)


def training_state(path: Path) -> TrainingState:
    """The networks and optimizers of a checkpoint, wherever the common layouts put them.

    A bare state dict; a dict of networks and optimizers (`{model, target, optimizer}`, `{model_state_dict,
    optimizer_state_dict}`, `{policy, value, optimizer}`, `{state_dict, optimizer_states: [...]}` …).

    Raises:
      UnknownFormat: there is no network in it; and all that `read` raises.
    """
    if path.suffix.lower() == SAFETENSORS:
        return TrainingState({"model": read_safetensors(path).tensors})
    content = read(path)
    if isinstance(content, list | tuple):  # (actor.state_dict(), critic.state_dict())
        content = dict(zip(_names(path, len(content)), content, strict=True))
    if not isinstance(content, dict):
        raise UnknownFormat(f"{path} holds {_described(content)}, not a dict of networks", hint=_STATE_DICT)
    if is_network(content):
        return TrainingState({"model": content})
    state = state_of(content)
    if not state.networks:
        entries = ", ".join(f"{key}: {_described(value)}" for key, value in list(state.extra.items())[:8])
        raise UnknownFormat(f"{path} holds no network: its entries are {entries or 'none'}", hint=_STATE_DICT)
    return state


def _described(value: object) -> str:
    """What something is that is no network."""
    if is_array(value):
        return "an array of NumPy"
    if isinstance(value, Made):
        return f"an object of the class {value.called}"
    return f"a {'tensor' if isinstance(value, ir.TensorProtocol) else type(value).__name__}"


def _names(path: Path, count: int) -> list[str]:
    """What networks are called that a file holds one after the other."""
    if path.suffix == CLEANRL and count in (2, 3):  # ddpg_continuous_action.py, td3_continuous_action.py
        return ["actor", "qf1", "qf2"][:count]
    return [f"network{k}" for k in range(count)]


def load(path: Path, reading: Reading) -> Checkpoint:
    """The networks of a checkpoint in one graph; see `surgery.adapters.Adapter`."""
    return assemble(path, training_state(path), reading, activation=reading.activation)


def assemble(
    path: Path, state: TrainingState, reading: Reading, *, activation: str | None, notes: Notes | None = None
) -> Checkpoint:
    """A graph of all networks of a training state.

    Args:
      path: of the file. state: what it holds. reading: what a person says of it.
      activation: between layers, where it is known.
      notes: that surgery has made in the file, where they are not where `notes_in` looks.

    Raises:
      ArgumentError, Refused: what follows what is not told by names and sizes.
    """
    parts = parts_of(state)
    if not parts:
        raise UnknownFormat(
            f"{path} is a PyTorch checkpoint without a network: no tensor in it is the weight of a layer",
            hint=f"surgery attach MODEL.onnx {path} -o OUT adds optimizer state to an exported graph",
        )
    model, found = _graph(path, state, parts, reading, activation)
    notes = notes or notes_in(path)
    made = Checkpoint(
        model,
        notes.meaning(found),
        environment=notes.environment,
        lineage=notes.lineage,
        optimizer=optimizer_of(state, parts) if reading.optimizer else None,
        source={
            "adapter": "pytorch",
            "file": path.name,
            "activation": activation,
            "networks": list(state.networks),
            **{key: word for key in ("module", "architecture", "trust") if (word := getattr(reading, key))},
        },
        copies={part.beginning: part.original for part in parts if part.original is not None},
    )
    return noted(made)


def _graph(
    path: Path, state: TrainingState, parts: Sequence[Part], reading: Reading, activation: str | None
) -> tuple[ir.Model, Interface]:
    """The graph of the networks, and what its inputs and outputs mean, by what a person said of them."""
    if reading.architecture and reading.module:
        raise ArgumentError("both an architecture and code are named", hint="name one of them")
    if reading.architecture:
        return named(parts, reading)
    whole = any(isinstance(network, ModuleState) for network in state.networks.values())
    if reading.module or (reading.trust and whole):
        model, outputs = traced(path, parts, reading)
        return model, Interface(infer(model).inputs, tuple(outputs))
    model, interface = chained(path.stem, parts, reading, activation, lambda part: _module(state, part))
    return checked(model), interface


def _module(state: TrainingState, part: Part) -> ModuleNode | None:
    """The whole module that a network is, or the part of one, if the file has it."""
    network = state.networks.get(part.label)
    if isinstance(network, ModuleState):
        return network.module
    alone = next(iter(state.networks.values()))
    return alone.module.at(part.prefix.rstrip(".")) if isinstance(alone, ModuleState) else None


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a checkpoint with other tensors; see `surgery.adapters.Adapter`."""
    part = fitted(checkpoint, like)
    if like.suffix.lower() == SAFETENSORS:
        return _save_safetensors(part.fit.tensors, path, like, force=force)
    with (
        replacing([path], force=force, needed=part.needed, sources=[like]) as [temporary],
        temporary.open("wb") as out,
    ):
        part.write(out)
    return [path]


def fitted(checkpoint: Checkpoint, like: Path, made: Callable[[Fit], ir.Model] | None = None) -> Fitted:
    """Fit a checkpoint into a file, with attention as the file's code computes it.

    Args:
      made: the graph that a framework will make of what is written; None where only the file's names tell it.

    Raises:
      ArgumentError, Refused: it does not go into it.
    """
    state = training_state(like)
    parts = parts_of(state)
    old = {name: tensor for part in parts for name, tensor in part.known.items()}
    checkpoint = as_the_code_computes(checkpoint, old)
    found = fit(old, checkpoint, like)
    whole = any(isinstance(network, ModuleState) for network in state.networks.values())
    if found.numbering.added and whole:
        raise Refused("the file is a whole module, whose code makes no new layers", hint=HINT)
    for label, prefix in prefixes(state).items():
        if isinstance(network := state.networks[label], ModuleState):
            check_sizes(network.module, prefix, old, found.now)
    told = not {"module", "trust", "architecture"}.isdisjoint(checkpoint.source)
    own = checkpoint.source.get("adapter") in ("pytorch", "cleanrl") and not told and not whole
    if own or found.numbering.added:
        again = made or (lambda found: _again(checkpoint, state, found))
        check_same(checkpoint, lambda: again(found), found, old, "the file")
    return Fitted(like, state, old, found, checkpoint, _revisions(state, parts, checkpoint, found, old))


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a checkpoint can hold other networks; see `surgery.adapters.Checking`."""
    fitted(checkpoint, like)


@dataclass(frozen=True)
class Fitted:
    """What is written into a copy of a file.

    Attributes:
      like: the file. state: what it holds. old: its networks' tensors, by the graph's names.
      fit: what goes where in it. checkpoint: what is written.
      revisions: how its optimizers change, by their names.
    """

    like: Path
    state: TrainingState
    old: Tensors
    fit: Fit
    checkpoint: Checkpoint
    revisions: Mapping[str, Revision]

    @cached_property
    def replaced(self) -> Mapping[View, ir.TensorProtocol]:
        """The tensors that change."""
        found: dict[View, ir.TensorProtocol] = changes(self.old, self.fit.now)
        state = self.checkpoint.optimizer
        if state is not None and self.kept is not None:
            found |= changes(slots_of(self.kept), slots_of(state, like=self.kept))
        return found

    @property
    def needed(self) -> int:
        """Bytes of the copy, at most."""
        return self.like.stat().st_size + sum(tensor.nbytes for tensor in self.replaced.values())

    def write(self, out: BinaryIO) -> None:
        """Write the copy, which is no safetensors file, to one that can seek."""
        notes = notes_of(self.checkpoint, bare(self.checkpoint.interface))
        extra = {} if notes is None else {NAME: notes}
        edit = self.edit if self.edits else None
        rewrite(archive(self.like), self.replaced, out, extra, _groups(self.checkpoint, self.old), edit)

    @property
    def edits(self) -> bool:
        """Whether more changes than numbers."""
        revised = any(revision.needed for revision in self.revisions.values())
        return bool(self.fit.numbering.added) or revised

    @property
    def kept(self) -> OptimizerState | None:
        """The state of the optimizers whose slots stay what they are; None if there are none."""
        bound = trained_in(self.state.optimizers, parts_of(self.state))
        return joined(bound[name] for name, revision in self.revisions.items() if not revision.swapped)

    def edit(self, root: object, make: Make) -> None:
        """Change the tree of the file: names, new parameters, optimizers."""
        fitted, items = self.fit, entries(root) or {}
        if fitted.numbering.added:
            chosen = set(prefixes(self.state).values())
            renumber(root, self.old, fitted.numbering, fitted.tensors, chosen, make)
        nodes = {name: node for key, value in items.items() for name, node in optimizers_in(str(key), value)}
        for name, revision in self.revisions.items():
            if revision.needed and self.checkpoint.optimizer is not None:
                write(nodes[name], revision, self.checkpoint.optimizer, make)


def _again(checkpoint: Checkpoint, state: TrainingState, found: Fit) -> ir.Model:
    """The graph that will be made of the file."""
    networks: dict[str, Tensors] = dict(state.networks)
    for label, prefix in prefixes(state).items():
        names = found.numbering.order({f"{prefix}{key}": t for key, t in state.networks[label].items()})
        networks[label] = {name.removeprefix(prefix): found.read_again[name] for name in names}
    activation = checkpoint.source.get("activation")
    seen = checkpoint.model.graph.inputs[0].shape
    reading = Reading(observation=tuple(n for n in list(seen or ())[1:] if isinstance(n, int)))
    later = TrainingState(networks, state.optimizers, state.extra)
    return _graph(Path("file"), later, parts_of(later), reading, str(activation) if activation else None)[0]


def _revisions(
    state: TrainingState, parts: Sequence[Part], checkpoint: Checkpoint, found: Fit, old: Tensors
) -> dict[str, Revision]:
    changed = any(found.now.get(name, tensor) is not tensor for name, tensor in old.items())
    if not state.optimizers or not (changed or checkpoint.optimizer):
        return {}
    wanted = followed(checkpoint.optimizer)
    return {
        name: revise(item.record, item.places, wanted, found.numbering, old, carried=item.carried)
        for name, item in trained_in(state.optimizers, parts).items()
    }


def _groups(checkpoint: Checkpoint, old: Mapping[str, ir.TensorProtocol]) -> dict[View, int]:
    """How many groups the convolutions of a checkpoint have, by where the file has their weights."""
    return {
        old[name].meta[SHARED]: node.attributes.get_int("group", 1)
        for node in checkpoint.model.graph
        if node.op_type in ("Conv", "ConvTranspose") and (name := _name(node)) in old
    }


def _name(convolution: ir.Node) -> str:
    weight = convolution.inputs[1]
    return "" if weight is None else str(weight.name)


def notes_in(path: Path) -> Notes:
    """What surgery has noted in a file."""
    if path.suffix.lower() == SAFETENSORS:
        return Notes()
    found = archive(path)
    return Notes.parse(found.content(NAME) if NAME in found else None)


def _save_safetensors(
    tensors: Mapping[str, ir.TensorProtocol], path: Path, like: Path, *, force: bool
) -> list[Path]:
    needed = sum(tensor.nbytes for tensor in tensors.values())
    with replacing([path], force=force, needed=needed, sources=[like]) as [part]:
        write_safetensors(part, tensors, read_safetensors(like).metadata)
    return [path]


def optimizer_of(state: TrainingState, parts: Sequence[Part]) -> OptimizerState | None:
    """The state of all optimizers of a file under the names of its networks; None if it has none.

    Raises:
      ArgumentError, Refused: parameters that the networks do not have, or more than one way to bind them.
    """
    return joined(trained_in(state.optimizers, parts).values())
