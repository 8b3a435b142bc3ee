"""CleanRL's `.cleanrl_model` files: bare state dicts of PyTorch. (Flax writes the same suffix in another format.)

A state dict holds no activations; the scripts do, and their networks are told by their names.
(https://github.com/vwxyzjn/cleanrl, cleanrl/*.py)
"""

from __future__ import annotations

from pathlib import Path

from surgery.adapters import Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import UnknownFormat
from surgery.formats import sniff
from surgery_adapters import pytorch

SUFFIX = ".cleanrl_model"


def detect(path: Path) -> bool:
    """Whether a file is a model that one of CleanRL's scripts saved."""
    return path.suffix == SUFFIX and (pytorch.detect(path) or _flax(path))


def training_state(path: Path) -> TrainingState:
    """The network; these files hold no optimizer."""
    _check(path)
    state: TrainingState = pytorch.training_state(path)
    return state


def load(path: Path, reading: Reading) -> Checkpoint:
    """The network as a graph, with the activation of the script that has such a network."""
    _check(path)
    network = training_state(path).networks["model"]
    names = {name.partition(".")[0] for name in network}
    # ppo.py and ppo_continuous_action.py are tanh throughout; all other scripts are ReLU
    tanh = "critic" in names and ("actor" in names or "actor_mean" in names) and "network" not in names
    known = reading.activation or ("tanh" if tanh else "relu")
    found: Checkpoint = pytorch.assemble(path, training_state(path), reading, activation=known)
    return found.replace(source={**found.source, "adapter": "cleanrl"})


save = pytorch.save


def _flax(path: Path) -> bool:
    return path.is_file() and sniff(path).name == "msgpack"


def _check(path: Path) -> None:
    if _flax(path):
        raise UnknownFormat(
            f"{path} is a model of one of CleanRL's JAX scripts, which is not read yet",
            hint="export it with jax2onnx, or take the model of the PyTorch script of the same name",
        )
