"""RLlib's checkpoint folders (new API stack): the default modules of PPO, IMPALA, APPO, DQN and SAC."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.adapters import Parity, Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.files import replacing_folder
from surgery.formats import is_kind
from surgery.interface import Environment
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import merged, slots_of
from surgery.tensors import equal
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.containers.pickled_arrays import write_array
from surgery_adapters.installed import playing_in
from surgery_adapters.networks.trained import Trained, joined
from surgery_adapters.rllib import optimizers
from surgery_adapters.rllib.connectors import Connectors, scales_actions
from surgery_adapters.rllib.folder import STATE, RllibFolder
from surgery_adapters.rllib.networks import Networks, build
from surgery_adapters.rllib.settings import follow, widths
from surgery_adapters.writeback.contract import NAME, Notes, notes_of
from surgery_adapters.writeback.matching import Fit, check_same, checked, fit, followed
from surgery_adapters.writeback.sequences import EVERYWHERE, HINT
from surgery_adapters.writeback.torch_tree import Revision, revise, write


def detect(path: Path) -> bool:
    """Whether a folder is a checkpoint of RLlib."""
    return path.is_dir() and is_kind(path, "rllib")


def training_state(path: Path) -> TrainingState:
    """The module, and the optimizers with the names of what they train."""
    folder = RllibFolder.open(path)
    networks = _networks(folder)
    named = {name: optimizer.named() for name, optimizer in optimizers.trained(folder, networks).items()}
    return TrainingState({folder.module: folder.tensors}, named, {"model_config": folder.config})


def load(path: Path, reading: Reading) -> Checkpoint:
    """All networks of a module in one graph; see `surgery.adapters.Adapter`."""
    folder = RllibFolder.open(path)
    networks, notes = _networks(folder), Notes.parse(folder.notes)
    return Checkpoint(
        checked(networks.layers.graph.model()),
        notes.meaning(networks.interface),
        environment=_environment(folder, notes.environment),
        lineage=notes.lineage,
        optimizer=_optimizer(folder, networks) if reading.optimizer else None,
        source={
            "adapter": "rllib",
            "file": path.name,
            "version": str(folder.about.get("ray_version", "")),
            "policy": folder.module,
            "seen": len(notes.lineage),
        },
        copies=networks.copies,
    )


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a folder with other networks; see `surgery.adapters.Adapter`."""
    part = _fitted(checkpoint, like)
    folder, networks, files = part.folder, part.networks, part.folder.files()
    changed = set(_replace_parameters(folder, part.fit.now)) | set(_replace_slots(folder, part.slots))
    changed |= {*part.followed, *_revise_optimizers(part, checkpoint)}
    if part.fit.numbering.added:
        changed |= set(_add_layers(part))
    written = {name: dump(folder.tree(name)) for name in changed}
    told = _environment(folder, Environment())
    kept = checkpoint.replace(environment=Environment()) if checkpoint.environment == told else checkpoint
    if (notes := notes_of(kept, networks.interface)) is not None:
        written[NAME] = notes
    needed = sum((like / name).stat().st_size for name in files) + sum(map(len, written.values()))
    with replacing_folder(path, owned=detect, force=force, needed=needed, sources=[like]) as out:
        for name in dict.fromkeys([*files, *written]):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            if name in written:
                (out / name).write_bytes(written[name])
            else:
                shutil.copyfile(like / name, out / name)
    return [path]


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a folder can hold other networks; see `surgery.adapters.Checking`."""
    _fitted(checkpoint, like)


def parity(
    path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int = 3, seed: int = 0
) -> Parity:
    """The graph beside the framework's module; see `surgery.adapters.Playing`."""
    with playing_in("RLlib", "pip install 'policy-surgery[rllib]'"):
        from surgery_adapters.rllib import playing
    return playing.parity(path, checkpoint, environment, episodes=episodes, seed=seed)


@dataclass(frozen=True)
class _Slots:
    """What the optimizers of a folder keep of the parameters.

    Attributes:
      trained: the optimizers, as they are. old, new: their slots as they are and as they will be.
      counted: the steps of the parameters for which they are others.
    """

    trained: Mapping[str, Trained]
    old: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    new: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    counted: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Fitted:
    """What is written into a folder.

    Attributes:
      folder: the original, its settings as they will be. networks: that it made before.
      fit: what goes where in it. slots: what those of its optimizers become.
      revisions: how its optimizers change, beyond the numbers in their slots.
      followed: the pickles whose settings or spaces are others.
    """

    folder: RllibFolder
    networks: Networks
    fit: Fit
    slots: _Slots
    revisions: Mapping[str, Revision]
    followed: Sequence[str]


def _fitted(checkpoint: Checkpoint, like: Path) -> _Fitted:
    """Fit a checkpoint into a folder, by shapes alone.

    Raises:
      ArgumentError, Refused: it does not go into it, or the framework could not load it.
    """
    folder = RllibFolder.open(like)
    networks = _networks(folder)
    found = fit(folder.tensors, checkpoint, like, dict.fromkeys(networks.padded, 3))
    new, had = widths(networks, found.tensors, found.numbering), widths(networks, folder.tensors)
    resized = {key: _whole(key, value, had[key], networks) for key, value in new.items() if value != had[key]}
    trained = optimizers.trained(folder, networks)
    revisions = _revisions(folder, trained, checkpoint, found)
    slots = _slots(trained, revisions, checkpoint)
    others = follow(folder, checkpoint, resized)
    if checkpoint.optimizer is not None:
        others += optimizers.follow(folder, trained, revisions, checkpoint.optimizer)
    made = _loadable(folder, found)
    if found.numbering.added or checkpoint.source.get("adapter") == "rllib":
        check_same(checkpoint, lambda: made, found, folder.tensors, "RLlib")
    return _Fitted(folder, networks, found, slots, revisions, others)


def _whole(setting: str, now: object, had: object, networks: Networks) -> object:
    """A setting with the widths at its end that are no layer's: of an action's encoder the last is another's."""
    if not isinstance(now, list) or not isinstance(had, list):
        return now
    return [*now, *networks.config.get(setting, ())[len(had) :]] if setting != "conv_filters" else now


def _revisions(
    folder: RllibFolder, trained: Mapping[str, Trained], checkpoint: Checkpoint, found: Fit
) -> Mapping[str, Revision]:
    """How the optimizers become those of the checkpoint.

    Raises:
      Refused: the checkpoint has no state of them, or one that the folder cannot hold.
    """
    return {
        name: revise(
            item.record, item.places, followed(checkpoint.optimizer), found.numbering, folder.tensors
        )
        for name, item in trained.items()
    }


def _add_layers(part: _Fitted) -> list[str]:
    """Put new layers into the tree of the module; the pickle."""
    folder, numbering, nodes = part.folder, part.fit.numbering, dict(part.folder.nodes)
    moved = {numbering.moved(name): node for name, node in nodes.items()}
    moved |= {
        new: write_array(nodes[item.behind], part.fit.tensors[new].numpy())
        for new, item in numbering.added.items()
    }
    folder.nodes.clear()
    folder.nodes.update({name: moved[name] for name in numbering.order(nodes)})
    return [folder.state_file]


def _revise_optimizers(part: _Fitted, checkpoint: Checkpoint) -> list[str]:
    """Give the optimizers that take in new layers, or become others, their new state; the pickle, if there were any."""
    like = next(iter(part.folder.nodes.values()))
    needed = {name: revision for name, revision in part.revisions.items() if revision.needed}
    for name, revision in needed.items():
        state = followed(checkpoint.optimizer)
        write(part.folder.optimizers[name], revision, state, lambda tensor: write_array(like, tensor.numpy()))
    return [STATE] if needed else []


def _networks(folder: RllibFolder, tensors: Mapping[str, ir.TensorProtocol] | None = None) -> Networks:
    found: Networks = build(
        folder.making["class"].name,
        folder.tensors if tensors is None else tensors,
        folder.config,
        folder.space("observation_space"),
        folder.space("action_space"),
    )
    if scales_actions(folder):
        found.outputs[:] = [
            replace(port, low=-1.0, high=1.0) if port.kind == "mean" else port for port in found.outputs
        ]
    return found


def _environment(folder: RllibFolder, noted: Environment) -> Environment:
    """The contract, with the environment that the algorithm's configuration names and the filter's statistics.

    Training goes on and changes these, while what was noted stays: they are the folder's, unless it was noted that
    there are to be none.
    """
    settings = dict(noted.settings)
    if settings.get("normaliser", {}) is not None and (found := Connectors.read(folder).normaliser):
        settings["normaliser"] = found
    named = folder.algorithm.get("env")
    return Environment(noted.id or (named if isinstance(named, str) else None), settings)


def _optimizer(folder: RllibFolder, networks: Networks) -> OptimizerState | None:
    """The state of all optimizers of networks, by parameter name."""
    return joined(optimizers.trained(folder, networks).values())


def _replace_parameters(folder: RllibFolder, tensors: Mapping[str, ir.TensorProtocol]) -> list[str]:
    """Put new parameters into the module's tree; the pickle, if there were any."""
    changed = {name: tensor for name, tensor in tensors.items() if not equal(tensor, folder.tensors[name])}
    for name, tensor in changed.items():
        folder.nodes[name] = write_array(folder.nodes[name], tensor.numpy())
    return [folder.state_file] if changed else []


def _slots(
    trained: Mapping[str, Trained], revisions: Mapping[str, Revision], checkpoint: Checkpoint
) -> _Slots:
    """What changes in the numbers of optimizers that stay of their kind."""
    if not trained or any(revision.swapped for revision in revisions.values()):
        return _Slots(trained)
    state, old = followed(checkpoint.optimizer), merged([optimizer.state for optimizer in trained.values()])
    counted = {name: n for name, n in state.steps.items() if n != old.steps.get(name, n)}
    return _Slots(trained, slots_of(old), slots_of(state, like=old), counted)


def _replace_slots(folder: RllibFolder, slots: _Slots) -> list[str]:
    """Put new slots into the trees of the optimizers; the pickle, if there were any."""
    changed = {key: tensor for key, tensor in slots.new.items() if not equal(tensor, slots.old[key])}
    for optimizer, bound in slots.trained.items():
        states: dict[Any, dict[str, Any]] = folder.optimizers[optimizer]["state"]
        for names, numbers in zip(bound.places, bound.record.numbers, strict=True):
            for name, number in zip(names, numbers, strict=True):
                _update(states.get(number, {}), name, changed, slots.counted)
    return [STATE] if changed or slots.counted else []


def _update(
    state: dict[str, Any], name: str, changed: Mapping[str, ir.TensorProtocol], counted: Mapping[str, float]
) -> None:
    """Put what changed of one parameter's slots and step count into the tree, in the form that they have there."""
    for slot, node in state.items():
        if (tensor := changed.get(f"{slot}/{name}")) is not None:
            state[slot] = write_array(node, tensor.numpy())
        elif slot == "step" and name in counted:
            state[slot] = float(counted[name])


def _loadable(folder: RllibFolder, found: Fit) -> ir.Model:
    """The graph of what the framework makes of the changed configuration; Refused if the parameters do not fit it."""
    try:
        return checked(_networks(folder, found.read_again).layers.graph.model())
    except (ArgumentError, CorruptFile) as error:
        raise Refused(
            f"RLlib could not load the result: {error.message}",
            hint=HINT if found.numbering.added else EVERYWHERE,
        ) from error
