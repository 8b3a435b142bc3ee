"""d3rlpy's `.d3` files: DQN, CQL, SAC, TD3, IQL, AWAC, BC and their kin; vector, pixel and SimBa encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import onnx_ir as ir

from surgery.adapters import Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import CorruptFile, FileError, Refused, SurgeryError
from surgery.files import replacing
from surgery.formats import sniff
from surgery.interface import Environment, Interface
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import OptimizerRecord, merged, slots_of
from surgery.tensors import Region
from surgery_adapters.contract import NAME, Notes, notes_of
from surgery_adapters.d3rlpy.file import D3File, read_config, write
from surgery_adapters.d3rlpy.networks import SCOPES, build
from surgery_adapters.d3rlpy.settings import follow, statistics
from surgery_adapters.matching import checked, matched
from surgery_adapters.torch_patch import View, changes, rewritten
from surgery_adapters.trained import Trained

SUFFIX = ".d3"


def detect(path: Path) -> bool:
    """Whether a file is an algorithm that d3rlpy saved."""
    try:
        return path.suffix.lower() == SUFFIX and sniff(path).name == "pickle"
    except FileError:
        return False


def training_state(path: Path) -> TrainingState:
    """All modules as one network, and the optimizers with the names of what they train."""
    file = D3File.open(path)
    optimizers = {name: optimizer.named() for name, optimizer in _trained(file).items()}
    return TrainingState({"modules": file.tensors}, optimizers, {"config": file.config})


def load(path: Path, reading: Reading) -> Checkpoint:
    """All networks of an algorithm in one graph; see `surgery.adapters.Adapter`."""
    file = D3File.open(path)
    networks, notes = build(file.tensors, file.config), Notes.parse(file.notes)
    interface = Interface(tuple(networks.inputs), tuple(networks.outputs))
    return Checkpoint(
        checked(networks.layers.graph.model()),
        notes.meaning(interface),
        environment=Environment(
            notes.environment.id, {**notes.environment.settings, **statistics(file.config)}
        ),
        lineage=notes.lineage,
        optimizer=_optimizer(file) if reading.optimizer else None,
        source={
            "adapter": "d3rlpy",
            "file": path.name,
            "version": str(file.outer["version"]),
            "algorithm": file.config["config"]["type"],
            "seen": len(notes.lineage),
        },
        copies=networks.copies,
    )


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of an algorithm with other networks; see `surgery.adapters.Adapter`."""
    file = D3File.open(like)
    networks = build(file.tensors, file.config)
    tensors = matched(file.tensors, checkpoint, like)
    replaced = changes(file.tensors, tensors) | _changed_slots(file, checkpoint)
    everything = {**file.tensors, **tensors}
    config = follow(file.config, checkpoint, everything, networks)
    _check_loadable(everything, config)
    outer = dict(file.outer)
    if config != file.config:
        outer["config"] = json.dumps(config)
    if replaced:
        outer["torch"] = _content(rewritten(file.archive, replaced))
    found = Interface(tuple(networks.inputs), tuple(networks.outputs))
    if (notes := notes_of(_untold(checkpoint, file), found)) is not None:
        outer[NAME] = notes.decode()
    needed = like.stat().st_size + sum(tensor.nbytes for tensor in replaced.values())
    with replacing([path], force=force, needed=needed, sources=[like]) as [part], part.open("wb") as out:
        if outer == file.outer:
            out.write(like.read_bytes())
        else:
            write(outer, file.protocol, cast(BinaryIO, out))
    return [path]


def _untold(checkpoint: Checkpoint, file: D3File) -> Checkpoint:
    """The checkpoint without that part of its contract which the configuration holds itself."""
    told, environment = statistics(file.config), checkpoint.environment
    settings = {key: value for key, value in environment.settings.items() if key not in told}
    return checkpoint.replace(environment=Environment(environment.id, settings))


def _trained(file: D3File) -> dict[str, Trained]:
    """The optimizers of networks, by name; those of temperatures are carried."""
    return {name: _bound(file, name) for name in SCOPES if name in file.optimizers}


def _bound(file: D3File, name: str) -> Trained:
    record = OptimizerRecord.parse(file.optimizers[name])
    prefixes = tuple(f"{module}." for module in SCOPES[name])
    scope = {key: tensor for key, tensor in file.tensors.items() if key.startswith(prefixes)}
    try:
        return Trained(record, tuple(map(tuple, record.bind([scope], None))))
    except SurgeryError as error:
        raise error.within(optimizer=name) from error


def _optimizer(file: D3File) -> OptimizerState | None:
    """The state of all optimizers of networks, by parameter name."""
    states = [optimizer.state for optimizer in _trained(file).values()]
    return merged(states) if states else None


def _changed_slots(file: D3File, checkpoint: Checkpoint) -> dict[View, ir.TensorProtocol]:
    old = _optimizer(file)
    if old is None:
        return {}
    if checkpoint.optimizer is None:
        raise Refused(
            "the file has optimizer state, and the checkpoint was read without it",
            hint="read it with its optimizer, so that the state can follow",
        )
    found: dict[View, ir.TensorProtocol] = changes(slots_of(old), slots_of(checkpoint.optimizer, like=old))
    return found


def _check_loadable(tensors: Mapping[str, ir.TensorProtocol], config: Mapping[str, Any]) -> None:
    """Refuse what the framework could not load: parameters that do not fit what its configuration makes."""
    try:
        checked(build(tensors, read_config(json.dumps(config))).layers.graph.model())
    except CorruptFile as error:
        raise Refused(
            f"d3rlpy could not load the result: {error.message}",
            hint="where an observation or an action is new, it is new in every network: --observation "
            "critic_action+1 beside --action mean+1 --action action_log_std+1",
        ) from error


def _content(region: Region) -> bytes:
    return b"".join(bytes(block) for block in region.blocks(1 << 22))
