"""PyTorch checkpoints (`.pt`, `.pth`, `.bin` …): state dicts and dicts of them, read without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from surgery.adapters import SHARED, Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, CorruptFile, Refused, SurgeryError, UnknownFormat
from surgery.files import check_readable, replacing
from surgery.formats import is_kind, sniff
from surgery.interface import Environment, Interface, Port, infer
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import OptimizerRecord, slots_of
from surgery.tensors import MappedFile, Region, read_safetensors, write_safetensors
from surgery_adapters.containers import module_tree
from surgery_adapters.containers.module_tree import ModuleNode, ModuleState, modules_in
from surgery_adapters.containers.pickle_tree import parse
from surgery_adapters.containers.torch_archive import TorchArchive
from surgery_adapters.containers.torch_patch import Make, View, changes, rewrite
from surgery_adapters.networks import impala
from surgery_adapters.networks.chains import Chain, Part, custom, declare
from surgery_adapters.networks.layers import Layers
from surgery_adapters.networks.module import traced
from surgery_adapters.networks.named import named
from surgery_adapters.networks.trained import Trained, joined
from surgery_adapters.torch_layout import is_network, networks_in, optimizers_in, parts_of, prefixes
from surgery_adapters.writeback.attention import as_the_code_computes, noted
from surgery_adapters.writeback.contract import NAME, Notes, bare, notes_of
from surgery_adapters.writeback.matching import Fit, Tensors, check_same, checked, fit, followed
from surgery_adapters.writeback.sequences import HINT
from surgery_adapters.writeback.torch_tree import Revision, entries, renumber, revise, write

SAFETENSORS = ".safetensors"
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
        hint = kind.hint.format(path=path) if kind.hint else None
        raise UnknownFormat(f"{path} is not a PyTorch checkpoint: it is {kind.description}", hint=hint)
    try:
        return _content(archive(path))
    except CorruptFile as error:
        raise error.within(file=path) from error


def _content(found: TorchArchive) -> object:
    """What an archive holds; whole modules, which are no data, are read as their state dicts."""
    try:
        return found.read()
    except CorruptFile:
        tree = parse(found.pickle())
        if not modules_in(tree):
            raise
        return module_tree.read(found, tree)


def archive(path: Path) -> TorchArchive:
    """The archive that a file is."""
    file = MappedFile(path)
    return TorchArchive.open(Region(file, 0, file.size))


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
    if not isinstance(content, dict):
        raise UnknownFormat(f"{path} holds a {type(content).__name__}, not a dict of networks")
    if is_network(content):
        return TrainingState({"model": content})
    networks: dict[str, Mapping[str, ir.TensorProtocol]] = {}
    optimizers: dict[str, Mapping[str, object]] = {}
    extra: dict[str, object] = {}
    for key, value in content.items():
        found = dict(optimizers_in(str(key), value))
        if found:
            optimizers.update(found)
        elif inner := dict(networks_in(str(key), value)):
            networks.update(inner)
        else:
            extra[str(key)] = value
    if not networks:
        raise UnknownFormat(
            f"{path} holds no network: its entries are {', '.join(list(extra)[:8]) or 'none'}",
            hint="save the state dict of the network: torch.save({'model': net.state_dict(), ...})",
        )
    return TrainingState(networks, optimizers, extra)


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
            hint=f"surgery attach MODEL.onnx {path} -o OUT takes optimizer state for a graph that was exported",
        )
    model, found = _graph(path, state, parts, reading, activation)
    notes = notes or notes_in(path)
    made = Checkpoint(
        model,
        notes.meaning(found),
        environment=notes.environment if notes.environment != Environment() else _contract(state),
        lineage=notes.lineage,
        optimizer=optimizer_of(state, parts) if reading.optimizer else None,
        source={
            "adapter": "pytorch",
            "file": path.name,
            "activation": activation,
            "networks": list(state.networks),
            **{key: word for key in ("module", "architecture", "trust") if (word := getattr(reading, key))},
        },
        copies={part.prefix: part.original for part in parts if part.original is not None},
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
    else:
        model, outputs = _chained(path, state, parts, reading, activation)
    return model, Interface(infer(model).inputs, tuple(outputs))


def _chained(
    path: Path, state: TrainingState, parts: Sequence[Part], reading: Reading, activation: str | None
) -> tuple[ir.Model, list[Port]]:
    """The graph of networks that are chains of layers, and its outputs."""
    layers = Layers(path.stem, {name: tensor for part in parts for name, tensor in part.tensors.items()})
    outputs: list[Port] = []
    first: Chain | None = None
    seen: ir.Value | None = None
    for part in parts:
        module = _module(state, part)
        chain = Chain(
            layers, part.tensors, activation or custom(part.tensors), module=module, prefix=part.prefix
        )
        if impala.stages(part.tensors):
            chain = Chain(layers, impala.rest(part.tensors), "relu")
            chain.observation, chain.features = impala.build(layers, part.tensors, reading, seen)
        elif first is not None:
            chain.observation, chain.features = first.observation, first.features
        ends = chain.build(reading)
        first, seen = first or chain, seen or layers.graph.model().graph.inputs[0]
        outputs += declare(layers, part, ends, {port.name for port in outputs})
    return checked(layers.graph.model()), outputs


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


def fitted(checkpoint: Checkpoint, like: Path) -> Fitted:
    """Fit a checkpoint into a file, with attention as the file's code computes it.

    Raises:
      ArgumentError, Refused: it does not go into it.
    """
    state = training_state(like)
    old = {name: tensor for part in parts_of(state) for name, tensor in part.tensors.items()}
    return _fitted(as_the_code_computes(checkpoint, old), like, state)


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a checkpoint can hold other networks; see `surgery.adapters.Checking`."""
    _fitted(checkpoint, like, training_state(like))


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
        names = [name for name, revision in self.revisions.items() if not revision.swapped]
        parts = parts_of(self.state)
        return joined([_bound(self.state, name, parts) for name in names])

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


def _fitted(checkpoint: Checkpoint, like: Path, state: TrainingState) -> Fitted:
    """Fit a checkpoint into a file that holds some state, by shapes alone.

    Raises:
      ArgumentError, Refused: it does not go into it.
    """
    parts = parts_of(state)
    old = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    found = fit(old, checkpoint, like)
    whole = any(isinstance(network, ModuleState) for network in state.networks.values())
    if found.numbering.added and whole:
        raise Refused("the file is a whole module, whose code makes no new layers", hint=HINT)
    told = not {"module", "trust", "architecture"}.isdisjoint(checkpoint.source)
    own = checkpoint.source.get("adapter") in ("pytorch", "cleanrl") and not told and not whole
    if own or found.numbering.added:
        check_same(checkpoint, lambda: _again(checkpoint, state, found), found, old, "the file")
    return Fitted(like, state, old, found, checkpoint, _revisions(state, parts, checkpoint, found, old))


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
        name: revise(item.record, item.places, wanted, found.numbering, old)
        for name in state.optimizers
        for item in [_bound(state, name, parts)]
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
    return joined([_bound(state, name, parts) for name in state.optimizers])


def _bound(state: TrainingState, name: str, parts: Sequence[Part]) -> Trained:
    """One optimizer: of the network that it is named after, of the first, or of all."""
    everything = {key: tensor for part in parts for key, tensor in part.tensors.items()}
    own = [part.tensors for part in parts if part.label and name.startswith(part.label.rstrip("."))]
    originals = {k: t for part in parts if part.original is None for k, t in part.tensors.items()}
    try:
        record = OptimizerRecord.parse(state.optimizers[name])
        record.kind()
        places = record.bind([*own, parts[0].tensors, originals, everything], None)
        return Trained(record, tuple(map(tuple, places)))
    except SurgeryError as error:
        raise error.within(optimizer=name, without="read it without its optimizer: --no-optimizer") from error


def _contract(state: TrainingState) -> Environment:
    """Statistics of a normaliser that the file holds beside its networks: observations reach the network normalised."""
    for name, members in state.networks.items():
        if {"running_mean", "running_variance"} <= set(members) and name.startswith(("observation", "state")):
            mean, variance = (members[f"running_{key}"].numpy().tolist() for key in ("mean", "variance"))
            statistics = {"mean": mean, "variance": variance}
            return Environment(settings={"normaliser": {"observation": statistics}})
    return Environment()
