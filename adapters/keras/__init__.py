"""Models of Keras 3, `.keras`: weights, the optimizer's state, and a configuration that follows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import onnx_ir as ir

from surgery.adapters import Parity, Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, Refused, SurgeryError
from surgery.files import replacing
from surgery.formats import is_kind
from surgery.optimizer import power
from surgery.port_kinds import infer
from surgery.tensors import Region, equal, shape_of
from surgery.verify import verify
from surgery_adapters.binding.layout import content
from surgery_adapters.binding.rewrite import REST
from surgery_adapters.containers import hdf5
from surgery_adapters.containers.torch_patch import Content, replace_members
from surgery_adapters.installed import playing_in
from surgery_adapters.keras import optimizer
from surgery_adapters.keras.build import bound, build
from surgery_adapters.keras.config import places, tree
from surgery_adapters.keras.file import CONFIG, OPTIMIZER, WEIGHTS, KerasFile
from surgery_adapters.keras.insertion import grown
from surgery_adapters.keras.network import Network
from surgery_adapters.keras.settings import (
    check_reshapes,
    roots,
    with_kernels,
    with_reshapes,
    with_shapes,
    with_widths,
)
from surgery_adapters.writeback.contract import NAME, Notes, bare, notes_of
from surgery_adapters.writeback.dense import NewLayer, new_layers
from surgery_adapters.writeback.sequences import HINT

_EXPORTED = "graph"
Tensors = Mapping[str, ir.TensorProtocol]


def detect(path: Path) -> bool:
    """Whether a file is a model that Keras 3 saved."""
    return is_kind(path, "keras")


def training_state(path: Path) -> TrainingState:
    """The variables of the model, and those of its optimizer by their numbers."""
    file = KerasFile.open(path)
    kept = {
        place.removeprefix(OPTIMIZER): t for place, t in file.stored.items() if place.startswith(OPTIMIZER)
    }
    return TrainingState({"model": file.tensors}, extra={"optimizer": kept})


def load(path: Path, reading: Reading) -> Checkpoint:
    """The model as a graph; see `surgery.adapters.Adapter`."""
    file = KerasFile.open(path)
    notes = Notes.parse(file.notes)
    if reading.graph is None:
        model, constants = build(file.config, file.tensors).graph.model(), dict[str, str]()
    else:
        model = bound(file, reading.graph).model
        constants = _constants(model, file)
    state = optimizer.load(file) if reading.optimizer else None
    return Checkpoint(
        model,
        notes.meaning(infer(model)),
        environment=notes.environment,
        lineage=notes.lineage,
        optimizer=None if state is None else state.only(set(model.graph.initializers)),
        source={
            "adapter": "keras",
            "file": path.name,
            "version": file.version,
            "seen": len(notes.lineage),
            **({_EXPORTED: reading.graph.name, "constants": constants} if reading.graph else {}),
        },
    )


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a saved model with other weights; see `surgery.adapters.Adapter`."""
    file = KerasFile.open(like)
    layers, new, config = _grown(file, checkpoint, like)
    checkpoint, new = _with_roots(file, checkpoint, new)
    config, network = _settings(file, checkpoint, new, config)
    if network is not None:
        _check(checkpoint, network)
    if layers or _swapped(file, checkpoint):
        weights, record = _rearranged(file, checkpoint, new, config, layers)
        config = config if record is None else _with_optimizer(config, record)
        changed: dict[str, Content] = {WEIGHTS: weights}
    else:
        changed = _rewritten(file, checkpoint, new)
    if config != file.config:
        changed[CONFIG] = json.dumps(config).encode()
    told = bare(checkpoint.interface) if network is None else infer(network.graph.model())
    if notes := notes_of(checkpoint, told):
        changed[NAME] = notes
    needed = sum(length for _, length in file.zip.members.values())
    with replacing([path], force=force, needed=needed, sources=[like]) as [part], part.open("wb") as out:
        replace_members(file.zip, changed, cast(BinaryIO, out))
    return [path]


def _rewritten(file: KerasFile, checkpoint: Checkpoint, new: Tensors) -> dict[str, Content]:
    """The weights of a file in which no variable has another place."""
    wanted = {file.places[name]: tensor for name, tensor in new.items()}
    wanted |= optimizer.changed(file, checkpoint.optimizer)
    replaced = {place: tensor for place, tensor in wanted.items() if not equal(tensor, file.stored[place])}
    return {WEIGHTS: hdf5.rewritten(file.weights, replaced)} if replaced else {}


def _rearranged(
    file: KerasFile,
    checkpoint: Checkpoint,
    new: Tensors,
    config: Mapping[str, Any],
    layers: Sequence[NewLayer],
) -> tuple[Region, dict[str, Any] | None]:
    """The weights of a file whose layers are counted anew, and what it says of an optimizer of another kind."""
    model = tree(config)
    after = {layer.name: layer.store for layer in model.walk() if layer.store}
    moved = {layer.store: after[layer.name] for layer in file.model.walk() if layer.store}
    datasets = {
        hdf5.moved_to(place, moved): t for place, t in file.stored.items() if not place.startswith(OPTIMIZER)
    }
    datasets |= {hdf5.moved_to(file.places[name], moved): t for name, t in new.items() if name in file.places}
    own = places(model)
    datasets |= {own[name]: new[name] for layer in layers for name in layer.parameters}
    kept, record = optimizer.rebuilt(file, model, {*new}, checkpoint.optimizer)
    named = {f"{after[layer.name]}/vars": layer.name.rpartition(".")[2] for layer in layers}
    return hdf5.rearranged(file.weights, {**datasets, **kept}, moved, named), record


def _swapped(file: KerasFile, checkpoint: Checkpoint) -> bool:
    """Whether the optimizer is of another kind than the file's."""
    old = optimizer.load(file)
    return old is not None and checkpoint.optimizer is not None and checkpoint.optimizer.kind != old.kind


def _with_optimizer(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "compile_config": {**(config.get("compile_config") or {}), "optimizer": record}}


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a saved model can hold other networks; see `surgery.adapters.Checking`."""
    file = KerasFile.open(like)
    layers, new, config = _grown(file, checkpoint, like)
    config, _ = _settings(file, checkpoint, new, config)
    if layers or _swapped(file, checkpoint):
        optimizer.rebuilt(file, tree(config), {*new}, checkpoint.optimizer)
    else:
        optimizer.changed(file, checkpoint.optimizer)


def _grown(
    file: KerasFile, checkpoint: Checkpoint, like: Path
) -> tuple[list[NewLayer], dict[str, ir.TensorProtocol], Mapping[str, Any]]:
    """The layers that the file does not have, all variables of the model, and the configuration with those layers.

    Raises:
      ArgumentError, Refused: see `_new_layers` and `_matched`.
    """
    layers = _new_layers(file, checkpoint)
    new = {**file.tensors, **_matched(file, checkpoint, like, layers)}
    return layers, new, grown(file.config, layers) if layers else file.config


def _resized(file: KerasFile, tensors: Tensors) -> list[str]:
    """The variables of the file that have another shape now."""
    return [name for name, old in file.tensors.items() if shape_of(old) != shape_of(tensors[name])]


def _new_layers(file: KerasFile, checkpoint: Checkpoint) -> list[NewLayer]:
    """The layers that the file does not have; none of an exported graph, whose names are not the file's.

    Raises:
      Refused: a new parameter of something else than a dense layer.
    """
    if _EXPORTED in checkpoint.source or not set(checkpoint.tensors) & set(file.tensors):
        return []
    strange = [
        name
        for name, tensor in checkpoint.tensors.items()
        if name not in file.tensors and _is_variable(name, tensor)
    ]
    return new_layers(checkpoint.model, strange)


def _is_variable(name: str, tensor: ir.TensorProtocol) -> bool:
    """Whether a parameter of a graph is one of a layer, not a number that the graph computes with."""
    stray = REST in name or name.endswith(".none") or ".operand" in name
    return tensor.dtype.is_floating_point() and not stray


def parity(
    path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int = 3, seed: int = 0
) -> Parity:
    """The graph beside Keras' own predictions; see `surgery.adapters.Playing`."""
    with playing_in("Keras", "pip install keras torch gymnasium, and again with KERAS_BACKEND=torch"):
        from surgery_adapters.keras import playing
    return playing.parity(path, checkpoint, environment, episodes=episodes, seed=seed)


def _constants(model: ir.Model, file: KerasFile) -> dict[str, str]:
    """The numbers that an exported graph computes with beside the file's variables: name -> which values occur."""
    return {
        name: _values(value.const_value)
        for name, value in model.graph.initializers.items()
        if name not in file.tensors
        and value.const_value is not None
        and value.const_value.dtype.is_floating_point()
    }


def _values(tensor: ir.TensorProtocol) -> str:
    return str(content(np.unique(tensor.numpy())).hex())


def _matched(
    file: KerasFile, checkpoint: Checkpoint, like: Path, layers: Sequence[NewLayer]
) -> dict[str, ir.TensorProtocol]:
    """The checkpoint's variables of the model, those of new layers among them.

    Raises:
      ArgumentError: it has others. Refused: something that the file has no place for is no longer what it was.
    """
    old, known = file.tensors, checkpoint.source.get("constants")
    constants = known if isinstance(known, Mapping) else {}
    added = {name for layer in layers for name in layer.parameters}
    found: dict[str, ir.TensorProtocol] = {name: checkpoint.tensors[name] for name in added}
    strange = []
    for name, tensor in checkpoint.tensors.items():
        if name in added:
            continue
        if name in old:
            if tensor.dtype != old[name].dtype:
                raise Refused(
                    f"'{name}' is {old[name].dtype.name} in the file, and would become {tensor.dtype.name}"
                )
            found[name] = tensor
        elif REST in name and tensor.numpy().any():
            raise Refused(f"'{name}' is no longer zero, and the file has no place for it")
        elif _EXPORTED in checkpoint.source and (name in constants or ".operand" in name):
            if (
                tensor.dtype.is_floating_point()
                and REST not in name
                and _values(tensor) not in constants.values()
            ):
                raise Refused(
                    f"'{name}' of the exported graph holds other numbers now, and the file has no place for them"
                )
        elif _is_variable(name, tensor):
            strange.append(name)
    if strange and not found:
        raise ArgumentError(
            f"the checkpoint has a variable '{strange[0]}', the file does not",
            where={"like": like},
            hint="write a checkpoint into the file that it came from",
        )
    if strange:
        raise Refused(f"the file has no place for the new variable '{strange[0]}'", hint=HINT)
    return found


def _with_roots(
    file: KerasFile, checkpoint: Checkpoint, tensors: dict[str, ir.TensorProtocol]
) -> tuple[Checkpoint, dict[str, ir.TensorProtocol]]:
    """Queries, and their slots, rescaled where Keras would divide by the root of another size."""
    before, after = ({name: shape_of(t) for name, t in found.items()} for found in (file.tensors, tensors))
    factors = roots(before, after, file.model)
    if not factors:
        return checkpoint, tensors
    new = {name: _scaled(t, factors[name]) if name in factors else t for name, t in tensors.items()}
    state = checkpoint.optimizer
    if state is not None:
        slots = {
            slot: {
                name: _scaled(t, factors[name] ** -power(state.kind, slot)) if name in factors else t
                for name, t in members.items()
            }
            for slot, members in state.slots.items()
        }
        checkpoint = checkpoint.replace(optimizer=state.replace(slots=slots))
    return checkpoint, new


def _scaled(tensor: ir.TensorProtocol, factor: float) -> ir.TensorProtocol:
    array = tensor.numpy()
    return ir.tensor((array.astype(np.float64) * factor).astype(array.dtype), name=tensor.name)


def _settings(
    file: KerasFile, checkpoint: Checkpoint, tensors: Tensors, config: Mapping[str, Any]
) -> tuple[Any, Network | None]:
    """The configuration of a model with these variables, and what it describes; None where that has no graph of ours.

    Args:
      config: the file's, with new layers in it.

    Raises:
      Refused: it cannot say what the model is.
    """
    resized = _resized(file, tensors)
    config = with_widths(config, tensors, checkpoint, resized)
    if _EXPORTED in checkpoint.source:
        _check_followed(file, checkpoint, resized)
        check_reshapes(file.config, config)
        with_kernels(config, {name: shape_of(tensor) for name, tensor in tensors.items()})
        return config, None
    with_reshapes(config, build(file.config, file.tensors).literals, checkpoint)
    try:
        network = build(config, tensors)
    except SurgeryError as error:
        raise Refused(f"Keras could not build the changed model: {error.message}") from error
    with_shapes(config, network.shapes, network.calls)
    return config, network


def _check_followed(file: KerasFile, checkpoint: Checkpoint, resized: list[str]) -> None:
    """Variables that the exporter left out of the graph cannot have followed."""
    layers = {name.rpartition(".")[0] for name in resized}
    for name in file.tensors.keys() - set(checkpoint.tensors):
        if name.rpartition(".")[0] in layers:
            raise Refused(
                f"'{name}' is not in the exported graph, so it was not changed with its layer",
                hint="train for a step before the export: exporters leave out a bias that is all zeros",
            )


def _check(checkpoint: Checkpoint, network: Network) -> None:
    """The file describes the function that the checkpoint is."""
    model = network.graph.model()
    report = verify(checkpoint, checkpoint.replace(model=model, optimizer=None))
    if not report.ok:
        raise Refused(
            f"Keras's configuration cannot express this graph: {report.summary()}",
            hint="edits that add operations (new layers, a sidecar) stay in an .onnx",
        )
