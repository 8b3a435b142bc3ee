"""Stable-Baselines3 and sb3-contrib `.zip` files: DQN, QR-DQN, PPO, A2C, RecurrentPPO, SAC, TD3, TQC."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from surgery.adapters import Parity, Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.files import replacing
from surgery.formats import is_kind
from surgery_adapters.containers.torch_patch import Content, Edit, changes, replace_members, rewritten
from surgery_adapters.installed import playing_in
from surgery_adapters.sb3 import normaliser, optimizers
from surgery_adapters.sb3.file import Sb3File
from surgery_adapters.sb3.networks import Networks, build
from surgery_adapters.sb3.settings import follow, statistics
from surgery_adapters.writeback.contract import NAME, Notes, notes_of
from surgery_adapters.writeback.matching import Fit, check_same, checked, fit
from surgery_adapters.writeback.torch_tree import renumber


def detect(path: Path) -> bool:
    """Whether a file is a model that Stable-Baselines3 saved."""
    return is_kind(path, "sb3")


def training_state(path: Path) -> TrainingState:
    """The policy, and its optimizers with the names of what they train."""
    file = Sb3File.open(path)
    named = {name: optimizer.named() for name, optimizer in optimizers.trained(file).items()}
    return TrainingState({"policy": file.policy}, named)


def load(path: Path, reading: Reading) -> Checkpoint:
    """All networks of a saved model in one graph; see `surgery.adapters.Adapter`."""
    file = Sb3File.open(path)
    networks = build(file, reading)
    notes = Notes.parse(file.notes)
    environment = notes.environment
    if (
        "normaliser" not in environment.settings
        and (beside := normaliser.find(path, file.space("observation_space"))) is not None
    ):
        statistics = normaliser.contract(beside)
        environment = environment.with_settings(normaliser=statistics)
    return Checkpoint(
        checked(networks.layers.graph.model()),
        notes.meaning(networks.interface),
        environment=environment,
        lineage=notes.lineage,
        optimizer=optimizers.state_of(file) if reading.optimizer else None,
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
    part = _fitted(checkpoint, like)
    file, changed = part.file, dict[str, Content]()
    replaced = changes(file.policy, part.fit.now)
    if replaced or part.fit.numbering.added:
        changed["policy.pth"] = rewritten(file.archive("policy.pth"), replaced, part.renumber)
    changed |= optimizers.members(file, part.revised, checkpoint.optimizer)
    if part.settings != file.data:
        changed["data"] = json.dumps(part.settings, indent=4).encode()
    if notes := notes_of(checkpoint, part.networks.interface):
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


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a saved model can hold other networks; see `surgery.adapters.Checking`."""
    _fitted(checkpoint, like)


def parity(
    path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int = 3, seed: int = 0
) -> Parity:
    """The graph beside the framework's `predict`; see `surgery.adapters.Playing`."""
    with playing_in(
        "Stable-Baselines3", "pip install stable-baselines3 sb3-contrib ale-py opencv-python-headless"
    ):
        from surgery_adapters.sb3.playing import play
    return play(path, checkpoint, environment, episodes=episodes, seed=seed)


@dataclass(frozen=True)
class _Fitted:
    """What is written into a file.

    Attributes:
      file: the original. fit: what goes where in it.
      revised: how its optimizers change. settings: as they will be.
      networks: that the original's settings make.
    """

    file: Sb3File
    fit: Fit
    revised: Mapping[str, optimizers.Revised]
    settings: Mapping[str, object]
    networks: Networks

    @property
    def renumber(self) -> Edit | None:
        """The change of the names in the policy's state dict; None if there are no new layers."""
        if not self.fit.numbering.added:
            return None
        old, numbering, tensors = self.file.policy, self.fit.numbering, self.fit.tensors
        return lambda root, make: renumber(root, old, numbering, tensors, [""], make)


def _fitted(checkpoint: Checkpoint, like: Path) -> _Fitted:
    """Fit a checkpoint into a file, by shapes alone.

    Raises:
      ArgumentError, Refused: it does not go into it, or the framework could not load it.
    """
    file = Sb3File.open(like)
    found = fit(file.policy, checkpoint, like)
    activation = checkpoint.source.get("activation")
    reading = Reading(str(activation) if activation else None)
    networks = build(file, reading)
    revised = optimizers.revised(file, checkpoint, found.numbering)
    kwargs, rate = optimizers.settings(file, revised, checkpoint.optimizer)
    names = found.numbering.of_graph(file.policy)
    settings = follow(file, checkpoint, found.tensors, kwargs, names)
    if rate is not None:
        settings["learning_rate"] = rate
    if checkpoint.source.get("adapter") == "sb3" or found.numbering.added:
        later = replace(file, data=settings, changed=found.read_again)
        check_same(
            checkpoint,
            lambda: build(later, reading).layers.graph.model(),
            found,
            file.policy,
            "Stable-Baselines3",
        )
    return _Fitted(file, found, revised, settings, networks)
