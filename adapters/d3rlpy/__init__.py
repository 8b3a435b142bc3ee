"""d3rlpy's `.d3` files: DQN, CQL, SAC, TD3, IQL, AWAC, BC and their kin; vector, pixel and SimBa encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import onnx_ir as ir

from surgery.adapters import Parity, Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.files import replacing
from surgery.formats import is_kind
from surgery.interface import Environment
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import slots_of
from surgery.tensors import Region
from surgery_adapters.containers.torch_patch import Edit, Make, changes, rewritten
from surgery_adapters.d3rlpy.file import D3File, read_config, write
from surgery_adapters.d3rlpy.networks import SCOPES, Networks, build
from surgery_adapters.d3rlpy.optimizers import with_optimizers
from surgery_adapters.d3rlpy.settings import follow, statistics
from surgery_adapters.installed import playing_in
from surgery_adapters.networks.trained import Trained, joined
from surgery_adapters.writeback.contract import NAME, Notes, notes_of
from surgery_adapters.writeback.matching import Fit, check_same, checked, fit, followed
from surgery_adapters.writeback.sequences import EVERYWHERE
from surgery_adapters.writeback.torch_tree import Revision, entries, renumber, revise
from surgery_adapters.writeback.torch_tree import write as write_optimizer

SUFFIX = ".d3"


def detect(path: Path) -> bool:
    """Whether a file is an algorithm that d3rlpy saved."""
    return path.suffix.lower() == SUFFIX and is_kind(path, "pickle")


def training_state(path: Path) -> TrainingState:
    """All modules as one network, and the optimizers with the names of what they train."""
    file = D3File.open(path)
    optimizers = {name: optimizer.named() for name, optimizer in _trained(file).items()}
    return TrainingState({"modules": file.tensors}, optimizers, {"config": file.config})


def load(path: Path, reading: Reading) -> Checkpoint:
    """All networks of an algorithm in one graph; see `surgery.adapters.Adapter`."""
    file = D3File.open(path)
    networks, notes = build(file.tensors, file.config), Notes.parse(file.notes)
    return Checkpoint(
        checked(networks.layers.graph.model()),
        notes.meaning(networks.interface),
        environment=notes.environment.with_settings(**statistics(file.config)),
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
    part = _fitted(checkpoint, like)
    file = part.file
    replaced = changes(file.tensors, part.fit.now)
    old = _optimizer(file)
    swapped = any(revision.swapped for revision in part.revisions.values())
    if old is not None and checkpoint.optimizer is not None and not swapped:
        replaced |= changes(slots_of(old), slots_of(checkpoint.optimizer, like=old))
    outer = dict(file.outer)
    if part.config != file.config:
        outer["config"] = json.dumps(part.config)
    if replaced or part.edit is not None:
        outer["torch"] = _content(rewritten(file.archive, replaced, part.edit))
    if (notes := notes_of(_untold(checkpoint, file), part.networks.interface)) is not None:
        outer[NAME] = notes.decode()
    needed = like.stat().st_size + sum(tensor.nbytes for tensor in replaced.values())
    with (
        replacing([path], force=force, needed=needed, sources=[like]) as [temporary],
        temporary.open("wb") as out,
    ):
        if outer == file.outer:
            out.write(like.read_bytes())
        else:
            write(outer, file.protocol, cast(BinaryIO, out))
    return [path]


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of an algorithm can hold other networks; see `surgery.adapters.Checking`."""
    _fitted(checkpoint, like)


def parity(
    path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int = 3, seed: int = 0
) -> Parity:
    """The graph beside the framework's `predict`; see `surgery.adapters.Playing`."""
    with playing_in("d3rlpy", "pip install 'policy-surgery[d3rlpy]'"):
        from surgery_adapters.d3rlpy import playing
    return playing.parity(path, checkpoint, environment, episodes=episodes, seed=seed)


@dataclass(frozen=True)
class _Fitted:
    """What is written into a file.

    Attributes:
      file: the original. networks: that its configuration makes.
      fit: what goes where in it. config: as it will be.
      checkpoint: what is written. revisions: how its optimizers change.
    """

    file: D3File
    networks: Networks
    fit: Fit
    config: Mapping[str, Any]
    checkpoint: Checkpoint
    revisions: Mapping[str, Revision]

    @property
    def edit(self) -> Edit | None:
        """The change of names in the state dicts, and of optimizers; None if only numbers change."""
        revised = any(revision.needed for revision in self.revisions.values())
        return self._edited if self.fit.numbering.added or revised else None

    def _edited(self, root: object, make: Make) -> None:
        fitted, items = self.fit, entries(root) or {}
        if fitted.numbering.added:
            prefixes = [f"{module}." for module in items]
            renumber(root, self.file.tensors, fitted.numbering, fitted.tensors, prefixes, make)
        for name, revision in self.revisions.items():
            if revision.needed and self.checkpoint.optimizer is not None:
                holder = entries(items[name]) or {}
                write_optimizer(holder.get("optim"), revision, self.checkpoint.optimizer, make)


def _fitted(checkpoint: Checkpoint, like: Path) -> _Fitted:
    """Fit a checkpoint into a file, by shapes alone.

    Raises:
      ArgumentError, Refused: it does not go into it, or the framework could not load it.
    """
    file = D3File.open(like)
    networks = build(file.tensors, file.config)
    found = fit(file.tensors, checkpoint, like)
    config = follow(file.config, checkpoint, found.tensors, networks)
    again = _loadable(found.read_again, config)
    check_same(checkpoint, lambda: again, found, file.tensors, "d3rlpy")
    revisions = _revisions(file, checkpoint, found)
    if checkpoint.optimizer is not None:
        config = with_optimizers(config, revisions, checkpoint.optimizer.kind)
    return _Fitted(file, networks, found, config, checkpoint, revisions)


def _revisions(file: D3File, checkpoint: Checkpoint, found: Fit) -> dict[str, Revision]:
    trained = _trained(file)
    if not trained:
        return {}
    state = followed(checkpoint.optimizer)
    return {
        name: revise(item.record, item.places, state, found.numbering, file.tensors)
        for name, item in trained.items()
    }


def _untold(checkpoint: Checkpoint, file: D3File) -> Checkpoint:
    """The checkpoint without that part of its contract which the configuration holds itself."""
    told, environment = statistics(file.config), checkpoint.environment
    settings = {key: value for key, value in environment.settings.items() if key not in told}
    return checkpoint.replace(environment=Environment(environment.id, settings))


def _trained(file: D3File) -> dict[str, Trained]:
    """The optimizers of networks, by name; those of temperatures are carried."""
    return {name: _bound(file, name) for name in SCOPES if name in file.optimizers}


def _bound(file: D3File, name: str) -> Trained:
    prefixes = tuple(f"{module}." for module in SCOPES[name])
    scope = {key: tensor for key, tensor in file.tensors.items() if key.startswith(prefixes)}
    return Trained.bind(name, file.optimizers[name], [scope])


def _optimizer(file: D3File) -> OptimizerState | None:
    """The state of all optimizers of networks, by parameter name."""
    return joined(_trained(file).values())


def _loadable(tensors: Mapping[str, ir.TensorProtocol], config: Mapping[str, Any]) -> ir.Model:
    """The graph of what the framework makes of the result; Refused if its parameters do not fit its configuration."""
    try:
        return checked(build(tensors, read_config(json.dumps(config))).layers.graph.model())
    except (ArgumentError, CorruptFile) as error:
        raise Refused(
            f"d3rlpy could not load the result: {error.message}",
            hint=EVERYWHERE,
        ) from error


def _content(region: Region) -> bytes:
    return b"".join(bytes(block) for block in region.blocks(1 << 22))
