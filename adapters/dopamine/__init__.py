"""Dopamine's JAX agents: `checkpoints/ckpt.N`, a pickle of both networks and the optimizer's state, with its sentinel.

The pickle is read as data, so that neither JAX nor flax, nor the versions of them that wrote it, are needed; what is
no array of a network or of the optimizer stays as it is. (https://github.com/google/dopamine,
dopamine/discrete_domains/checkpointer.py, dopamine/jax/agents/dqn/dqn_agent.py)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from surgery.adapters import Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import WITHOUT_OPTIMIZER, Refused, SurgeryError
from surgery.files import replacing
from surgery.formats import is_kind
from surgery.interface import Environment, Interface
from surgery.json_values import Json
from surgery.optimizer_record import slots_of
from surgery_adapters.containers import optax_state
from surgery_adapters.containers.optax_state import Bound
from surgery_adapters.containers.pickled_trees import changes, replace
from surgery_adapters.dopamine.agent import agent, check_settings, contract
from surgery_adapters.dopamine.file import TARGET, DopamineFile, holds_agent
from surgery_adapters.writeback.compact import families, renamed
from surgery_adapters.writeback.contract import Notes, notes_of
from surgery_adapters.writeback.matching import followed, matched, resized
from surgery_adapters.writeback.sameness import difference
from surgery_adapters.writeback.sequences import HINT


def detect(path: Path) -> bool:
    """Whether a file is a checkpoint that one of Dopamine's JAX agents saved."""
    return is_kind(path, "pickle") and holds_agent(path)


def training_state(path: Path) -> TrainingState:
    """The networks; the optimizer's state is a tree of optax, which `load` binds."""
    file = DopamineFile.open(path)
    return TrainingState(
        {
            name: {key.removeprefix(f"{name}."): tensor for key, tensor in file.network(name).items()}
            for name in file.networks
        }
    )


def load(path: Path, reading: Reading) -> Checkpoint:
    """Both networks in one graph; see `surgery.adapters.Adapter`."""
    file = DopamineFile.open(path)
    notes = Notes.parse(file.notes)
    model, found = _graph(file, path, reading)
    kept = _optimizer(file) if reading.optimizer else None
    return Checkpoint(
        model,
        notes.meaning(found),
        environment=notes.environment if notes.environment != Environment() else contract(found),
        lineage=notes.lineage,
        optimizer=None if kept is None else kept.state,
        source=_source(file, path, reading),
        copies={f"{TARGET}.": f"{file.acting}."} if TARGET in file.networks else {},
    )


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a checkpoint with other arrays, and its sentinel; see `surgery.adapters.Adapter`."""
    fit = _fitted(DopamineFile.open(like), checkpoint, like)
    file, checkpoint = fit.file, fit.checkpoint
    pairs = changes(file.tensors, fit.now)
    pairs += _changed_slots(file, checkpoint, changed=bool(pairs))
    notes = _notes(fit.interface, checkpoint)
    for old, new in pairs:
        replace(old, new)
    moved = file.reshape_observation(_seen(checkpoint))
    content = file.content(notes) if pairs or moved or notes != file.notes else like.read_bytes()
    marked, sentinel = _sentinel(like), _sentinel(path)
    if marked is None or not marked.is_file() or (sentinel is not None and sentinel.is_file()):
        sentinel = None  # there is none to come with it, or it is there already
    targets = [path, *([sentinel] if sentinel else [])]
    with replacing(targets, force=force, needed=len(content), sources=[like]) as parts:
        parts[0].write_bytes(content)
        if sentinel:
            parts[1].write_bytes(b"done")
    return targets


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a checkpoint can hold other networks; see `surgery.adapters.Checking`."""
    fit = _fitted(DopamineFile.open(like), checkpoint, like)
    _held(fit.file, fit.checkpoint, needed=resized(fit.file.tensors, fit.now))


@dataclass(frozen=True)
class _Fit:
    """A checkpoint and the file that it goes into.

    Attributes:
      file: with places for new layers. checkpoint: under the names of the file.
      now: what the file's parameters become. interface: what the file will say of itself.
    """

    file: DopamineFile
    checkpoint: Checkpoint
    now: Mapping[str, ir.TensorProtocol]
    interface: Interface


def _fitted(file: DopamineFile, checkpoint: Checkpoint, like: Path) -> _Fit:
    """Find the place of every parameter; the file is not to be used any more.

    Raises:
      ArgumentError: the file is of another network.
      Refused: Dopamine's networks, made of these parameters, would be others.
    """
    old, new = file.tensors, families(checkpoint, list(file.tensors))
    file, checkpoint = file.grown(new), renamed(checkpoint, new)
    now = matched(file.tensors, checkpoint, like)
    head, activation = (
        None if (said := checkpoint.source.get(what)) is None else str(said)
        for what in ("head", "activation")
    )
    reading = Reading(head=head, activation=activation)
    groups = {
        f"{name}.": {key: now.get(key, tensor) for key, tensor in file.network(name).items()}
        for name in file.networks
    }
    try:
        made, found = agent(like.name, groups, reading, _seen(checkpoint))
        reason = difference(checkpoint.model, made, {name: name for name in now})
    except SurgeryError as error:
        reason = error.message
    if reason is not None:
        raise Refused(f"Dopamine's networks cannot hold this one: {reason}", hint=HINT)
    check_settings(old, now)
    return _Fit(file, checkpoint, now, found)


def _seen(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The shape of an observation."""
    shape = checkpoint.model.graph.inputs[0].shape
    return tuple(size for size in shape[1:] if isinstance(size, int)) if shape is not None else ()


def _graph(file: DopamineFile, path: Path, reading: Reading) -> tuple[ir.Model, Interface]:
    """All networks on one observation, and what comes in and out."""
    groups = {f"{name}.": file.network(name) for name in file.networks}
    return agent(path.name, groups, reading, file.observation)


def _source(file: DopamineFile, path: Path, reading: Reading) -> dict[str, Json]:
    said = {"head": reading.head, "activation": reading.activation}
    return {"adapter": "dopamine", "file": path.name, "steps": file.training_steps, **said}


def _notes(found: Interface, checkpoint: Checkpoint) -> bytes | None:
    """What the file is to carry beside what it says itself."""
    if checkpoint.environment == contract(found):
        checkpoint = checkpoint.replace(environment=Environment())
    return notes_of(checkpoint, found)


def _optimizer(file: DopamineFile) -> Bound | None:
    try:
        found: Bound | None = optax_state.bind(file.optimizer, file.network(file.acting))
    except SurgeryError as error:
        raise error.within(without=f"read it without its optimizer: {WITHOUT_OPTIMIZER}") from error
    return found


def _changed_slots(
    file: DopamineFile, checkpoint: Checkpoint, *, changed: bool
) -> list[tuple[ir.TensorProtocol, ir.TensorProtocol]]:
    old, new = _held(file, checkpoint, needed=changed)
    return changes(old, new)


def _held(
    file: DopamineFile, checkpoint: Checkpoint, *, needed: bool
) -> tuple[Mapping[str, ir.TensorProtocol], Mapping[str, ir.TensorProtocol]]:
    """What is kept of the parameters, as the file has it and as it is to be.

    Args:
      needed: whether the state must follow the parameters.

    Raises:
      Refused: the checkpoint has no state to follow them, or that of another optimizer.
    """
    old = _optimizer(file) if needed or checkpoint.optimizer else None
    if old is None:
        return {}, {}
    return slots_of(old.state), slots_of(followed(checkpoint.optimizer), like=old.state)


def _sentinel(path: Path) -> Path | None:
    """The file that says of a numbered checkpoint that it is complete."""
    match = re.fullmatch(r".+\.(\d+)", path.name)
    return path.with_name(f"sentinel_checkpoint_complete.{match[1]}") if match else None
