"""CleanRL's `.cleanrl_model` files: bare state dicts of PyTorch, or parameters of flax under the same suffix.

A state dict holds no activations; the scripts do, and their networks are told by their names.
(https://github.com/vwxyzjn/cleanrl, cleanrl/*.py)
"""

from __future__ import annotations

from pathlib import Path

from surgery.adapters import Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.formats import is_kind
from surgery_adapters import cleanrl_flax, pytorch


def detect(path: Path) -> bool:
    """Whether a file is a model that one of CleanRL's scripts saved."""
    return path.suffix == pytorch.CLEANRL and (pytorch.detect(path) or _flax(path))


def training_state(path: Path) -> TrainingState:
    """The network; these files hold no optimizer."""
    if _flax(path):
        return TrainingState(cleanrl_flax.networks(path))
    return pytorch.training_state(path)


def load(path: Path, reading: Reading) -> Checkpoint:
    """The network as a graph, with the activation of the script that has such a network."""
    if _flax(path):
        return cleanrl_flax.load(path, reading)
    state = training_state(path)
    names = {name.partition(".")[0] for network in state.networks.values() for name in network}
    # ppo.py and ppo_continuous_action.py are tanh throughout; all other scripts are ReLU
    tanh = "critic" in names and ("actor" in names or "actor_mean" in names) and "network" not in names
    known = reading.activation or ("tanh" if tanh else "relu")
    found: Checkpoint = pytorch.assemble(path, state, reading, activation=known)
    return found.replace(source={**found.source, "adapter": "cleanrl"})


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a model with other tensors; see `surgery.adapters.Adapter`."""
    write = cleanrl_flax.save if _flax(like) else pytorch.save
    return write(checkpoint, path, like=like, force=force)


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a model can hold other networks; see `surgery.adapters.Checking`."""
    (cleanrl_flax if _flax(like) else pytorch).check(checkpoint, like=like)


def _flax(path: Path) -> bool:
    return path.is_file() and is_kind(path, "msgpack")
