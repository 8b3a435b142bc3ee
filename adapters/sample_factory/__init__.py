"""Sample Factory's experiments: `checkpoint_p0/checkpoint_*.pth`, and `config.json` in the folder above.

A checkpoint is a dict of the actor-critic's state dict (normalisers are modules of it), the optimizer's, and progress;
the sizes of the networks are in the configuration. (sample_factory/algo/learning/learner.py, 2.1)
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from surgery.adapters import Parity, Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import Refused, SurgeryError, UnknownFormat
from surgery.files import replacing, replacing_folder
from surgery.interface import Environment
from surgery_adapters import pytorch
from surgery_adapters.containers.folders import copy_files, files
from surgery_adapters.networks.chains import Part
from surgery_adapters.networks.layers import Layers
from surgery_adapters.sample_factory import playing
from surgery_adapters.sample_factory.networks import Networks, channels_are_the_codes
from surgery_adapters.sample_factory.settings import NAME, Settings
from surgery_adapters.writeback.matching import Fit, checked

_FOLDER = "checkpoint_p"


def detect(path: Path) -> bool:
    """Whether a path is a checkpoint of Sample Factory, or the folder of an experiment."""
    try:
        file = _file(path)
        Settings.read(_config(file))
    except SurgeryError:
        return False
    return file.suffix == ".pth" and bool(pytorch.detect(file))


def training_state(path: Path) -> TrainingState:
    """The network and its optimizer."""
    return pytorch.training_state(_file(path))


def load(path: Path, reading: Reading) -> Checkpoint:
    """The actor-critic as one graph; see `surgery.adapters.Adapter`."""
    file = _file(path)
    settings, state = Settings.read(_config(file)), training_state(file)
    if reading.module:
        made: Checkpoint = pytorch.assemble(file, state, reading, activation=None)
        return made.replace(source={**made.source, "adapter": "sample_factory"})
    part = _network(state, file)
    networks = Networks(Layers(path.stem, part.tensors), settings=settings, reading=reading)
    networks.build()
    notes, name = pytorch.notes_in(file), settings.values.get("env")
    contract = Environment(name if isinstance(name, str) else None)
    return Checkpoint(
        checked(networks.layers.graph.model()),
        notes.meaning(networks.interface),
        environment=contract if notes.environment == Environment() else notes.environment,
        lineage=notes.lineage,
        optimizer=pytorch.optimizer_of(state, [part]) if reading.optimizer else None,
        source={
            "adapter": "sample_factory",
            "file": path.name,
            **{
                key: count
                for key in ("train_step", "env_steps")
                if isinstance(count := state.extra.get(key), int)
            },
        },
    )


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a checkpoint and its configuration, or an experiment; see `surgery.adapters.Adapter`.

    Of an experiment the newest checkpoint of the first policy is the one that changes; older ones, which the new
    configuration does not fit, stay behind.
    """
    file = _file(like)
    copy, settings = _fitted(checkpoint, file)
    text = settings.text()
    if not like.is_dir():
        targets = [_beside(path), path]
        with replacing(targets, force=force, needed=copy.needed, sources=[like, _config(file)]) as parts:
            parts[0].write_text(text, encoding="utf-8")
            with parts[1].open("wb") as out:
                copy.write(out)
        return targets
    if len(list(like.glob(f"{_FOLDER}*/checkpoint_*.pth"))) > len(list(file.parent.glob("checkpoint_*.pth"))):
        raise Refused(
            f"{like} holds several policies, whose networks have one configuration",
            hint=f"take one checkpoint into an experiment of its own: {file}",
        )
    with replacing_folder(path, owned=detect, force=force, needed=copy.needed, sources=[like]) as folder:
        copy_files(like, folder, [name for name in files(like) if not name.endswith(".pth")])
        (folder / NAME).write_text(text, encoding="utf-8")
        place = folder / file.relative_to(like)
        place.parent.mkdir(exist_ok=True)
        with place.open("wb") as out:
            copy.write(out)
    return [path]


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a checkpoint can hold other networks; see `surgery.adapters.Checking`."""
    _fitted(checkpoint, _file(like))


def parity(
    path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int = 3, seed: int = 0
) -> Parity:
    """The graph beside the framework's network, which plays in a process of its own; see `surgery.adapters.Playing`."""
    file = _file(path)
    return playing.parity(file, _config(file), checkpoint, environment, episodes=episodes, seed=seed)


def _fitted(checkpoint: Checkpoint, file: Path) -> tuple[pytorch.Fitted, Settings]:
    """A checkpoint fitted into a file by shapes alone, and the settings that make its networks.

    Raises:
      ArgumentError, Refused: it does not go into it, or the framework could not load it.
    """
    settings = Settings.read(_config(file))
    _check_optimizer(checkpoint, settings)
    copy = pytorch.fitted(checkpoint, file, lambda fit: _again(fit, settings, checkpoint))
    layers = Layers(file.stem, copy.fit.tensors)
    channels_are_the_codes(layers, settings)
    return copy, settings.following(layers)


def _again(fit: Fit, settings: Settings, checkpoint: Checkpoint) -> ir.Model:
    """The graph that the framework will make of what is written."""
    layers = Layers("file", fit.read_again)
    seen = [list(value.shape or ())[1:] for value in checkpoint.model.graph.inputs]
    image = next((tuple(n for n in shape if isinstance(n, int)) for shape in seen if len(shape) == 3), None)
    gaussian = any(port.kind == "mean" for port in checkpoint.interface.outputs)
    reading = Reading(observation=image, head="gaussian" if gaussian else None)
    networks = Networks(layers, settings=settings.following(layers), reading=reading)
    networks.build()
    return checked(networks.layers.graph.model())


def _check_optimizer(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raise Refused for an optimizer that the framework does not make of its configuration."""
    state, known = checkpoint.optimizer, settings.values.get("optimizer", "adam")
    if state is not None and state.kind != known:
        raise Refused(
            f"Sample Factory trains this experiment with '{known}', not with {state.kind}",
            hint="keep its optimizer (--optimizer of its configuration knows adam and lamb); a graph holds any beside "
            "it: -o OUT.onnx",
        )


def _network(state: TrainingState, file: Path) -> Part:
    """Raises: UnknownFormat if there is none."""
    tensors = state.networks.get("model", {})
    if "critic_linear.weight" not in tensors:
        raise UnknownFormat(f"{file} holds no actor-critic of Sample Factory")
    for name, tensor in tensors.items():
        tensor.name = name
    return Part("", "model", tensors)


def _file(path: Path) -> Path:
    """The checkpoint that a path means.

    Raises:
      UnknownFormat: a folder without one.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"{_FOLDER}0/checkpoint_*.pth"))
    if not found:
        raise UnknownFormat(f"{path} holds no {_FOLDER}0/checkpoint_*.pth")
    return found[-1]


def _config(file: Path) -> Path:
    """The configuration of the experiment that a checkpoint is of.

    Raises:
      UnknownFormat: there is none.
    """
    for place in (file.parent.parent / NAME, file.with_name(NAME)):
        if place.is_file():
            return place
    raise UnknownFormat(f"there is no {NAME} beside {file}, or in the folder above it")


def _beside(file: Path) -> Path:
    """Where the configuration of a checkpoint is written."""
    inside = file.parent.name.startswith(_FOLDER)
    return (file.parent.parent if inside else file.parent) / NAME
