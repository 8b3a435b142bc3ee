"""Stable-Baselines3 and sb3-contrib `.zip` files: DQN, QR-DQN, PPO, A2C, RecurrentPPO, SAC, TD3, TQC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO, cast

from surgery.adapters import Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import FileError, Refused
from surgery.files import replacing
from surgery.formats import sniff
from surgery.interface import Environment, Interface
from surgery.optimizer_record import slots_of
from surgery_adapters.contract import NAME, Notes, notes_of
from surgery_adapters.matching import checked, matched
from surgery_adapters.sb3 import normaliser
from surgery_adapters.sb3.file import Sb3File
from surgery_adapters.sb3.networks import build
from surgery_adapters.sb3.optimizers import state_of, trained
from surgery_adapters.sb3.settings import follow, statistics
from surgery_adapters.torch_patch import Content, changes, replace_members, rewritten


def detect(path: Path) -> bool:
    """Whether a file is a model that Stable-Baselines3 saved."""
    try:
        return sniff(path).name == "sb3"
    except FileError:
        return False


def training_state(path: Path) -> TrainingState:
    """The policy, and its optimizers with the names of what they train."""
    file = Sb3File.open(path)
    optimizers = {name: optimizer.named() for name, optimizer in trained(file).items()}
    return TrainingState({"policy": file.policy}, optimizers)


def load(path: Path, reading: Reading) -> Checkpoint:
    """All networks of a saved model in one graph; see `surgery.adapters.Adapter`."""
    file = Sb3File.open(path)
    networks = build(file, reading)
    interface = Interface(tuple(networks.inputs), tuple(networks.outputs))
    notes = Notes.parse(file.notes)
    environment = notes.environment
    if (
        "normaliser" not in environment.settings
        and (beside := normaliser.find(path, file.space("observation_space"))) is not None
    ):
        statistics = normaliser.contract(beside)
        environment = Environment(environment.id, {**environment.settings, "normaliser": statistics})
    return Checkpoint(
        checked(networks.layers.graph.model()),
        notes.meaning(interface),
        environment=environment,
        lineage=notes.lineage,
        optimizer=state_of(file) if reading.optimizer else None,
        source={
            "adapter": "sb3",
            "file": path.name,
            "version": file.version,
            "algorithm": networks.family,
            "activation": reading.activation,
            "steps": file.data.get("num_timesteps"),
            "seen": len(notes.lineage),
        },
        copies=networks.copies,
    )


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a saved model with other networks; see `surgery.adapters.Adapter`."""
    file = Sb3File.open(like)
    tensors = matched(file.policy, checkpoint, like)
    changed: dict[str, Content] = {}
    policy = file.archive("policy.pth")
    if replaced := changes(file.policy, tensors):
        changed["policy.pth"] = rewritten(policy, replaced)
    networks = build(file, Reading(activation="identity"))
    changed |= _optimizers(file, checkpoint)
    settings = follow(file, checkpoint, {**file.policy, **tensors})
    if settings != file.data:
        changed["data"] = json.dumps(settings, indent=4).encode()
    if notes := notes_of(checkpoint, Interface(tuple(networks.inputs), tuple(networks.outputs))):
        changed[NAME] = notes
    needed = sum(length for _, length in file.zip.members.values())
    beside = statistics(file, checkpoint, like)
    targets = [*([normaliser.own(path)] if beside is not None else []), path]
    with replacing(targets, force=force, needed=needed, sources=[like]) as parts:
        if beside is not None:
            parts[0].write_bytes(beside)
        with parts[-1].open("wb") as out:
            replace_members(file.zip, changed, cast(BinaryIO, out))
    return targets


def _optimizers(file: Sb3File, checkpoint: Checkpoint) -> dict[str, Content]:
    """The members of the optimizers whose state changed."""
    members: dict[str, Content] = {}
    state = checkpoint.optimizer
    for name, old in ((name, optimizer.state) for name, optimizer in trained(file).items()):
        if state is None:
            raise Refused(
                "the file has optimizer state, and the checkpoint was read without it",
                hint="read it with its optimizer, so that the state can follow",
            )
        if replaced := changes(slots_of(old), slots_of(state, like=old)):
            members[f"{name}.pth"] = rewritten(file.archive(f"{name}.pth"), replaced)
    return members
