"""TensorFlow's checkpoints, `NAME.index` beside `NAME.data-…`: Dopamine's TF agents, or any network with its graph.

They are read without TensorFlow. A checkpoint of Dopamine's agents (`Online/Conv/kernel` …) says what it is by its
names; any other holds arrays only, and is read together with the graph that tf2onnx wrote of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from surgery.adapters import Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import Refused
from surgery.formats import is_kind
from surgery_adapters.array_files import fitted, replaced, with_graph
from surgery_adapters.containers.optax_state import Bound
from surgery_adapters.dopamine.agent import ATARI, agent
from surgery_adapters.tf_checkpoint.bundle import Bundle
from surgery_adapters.tf_checkpoint.slots import bind
from surgery_adapters.writeback.matching import resized

ONLINE, TARGET = "Online/", "Target/"
_SLOTS = ("/.OPTIMIZER_SLOT/", "/Adam", "/RMSProp", "/Momentum")
_OTHERS = ("optimizer/", "save_counter", "global_step")


def detect(path: Path) -> bool:
    """Whether a file is the index of a TensorFlow checkpoint."""
    return is_kind(path, "tf-checkpoint")


def training_state(path: Path) -> TrainingState:
    """The networks; the slots of the optimizer have names of parameters, by which `load` binds them."""
    groups = _groups(Bundle.open(path).tensors())
    return TrainingState({name.rstrip("/") or "model": tensors for name, tensors in groups.items()})


def load(path: Path, reading: Reading) -> Checkpoint:
    """All networks in one graph; see `surgery.adapters.Adapter`."""
    tensors = Bundle.open(path).tensors()
    groups = _groups(tensors)
    if ONLINE in groups and reading.graph is None:
        model, interface = agent(path.name, groups, reading)
        found = Checkpoint(
            model, interface, environment=ATARI, copies={TARGET: ONLINE} if TARGET in groups else {}
        )
    else:
        found = with_graph(path, reading, groups)
    bound = bind(tensors, next(iter(groups.values()))) if reading.optimizer else None
    return found.replace(
        optimizer=bound.state if bound else None,
        source={"adapter": "tensorflow", "file": path.name, "head": reading.head, **found.source},
    )


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a checkpoint with other tensors; see `surgery.adapters.Adapter`."""
    bundle = Bundle.open(like)
    tensors = bundle.tensors()
    bound = bind(tensors, next(iter(_groups(tensors).values())))
    new = replaced(tensors, checkpoint, bound, like)
    _check_numbered(tensors, new, bound)
    return bundle.write(path, new, force=force)


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a checkpoint can hold other networks; see `surgery.adapters.Checking`."""
    tensors = Bundle.open(like).tensors()
    bound = bind(tensors, next(iter(_groups(tensors).values())))
    _check_numbered(tensors, fitted(tensors, checkpoint, bound, like), bound)


def _check_numbered(
    tensors: Mapping[str, ir.TensorProtocol], new: Mapping[str, ir.TensorProtocol], bound: Bound | None
) -> None:
    """Raise Refused if parameters have other shapes, and slots that only have numbers cannot follow them."""
    if resized(tensors, new) and bound is None and any(name.startswith("optimizer/") for name in tensors):
        raise Refused(
            "the file has the state of an optimizer of Keras 3, whose names do not say which parameter it belongs to",
            hint="save the network alone: tf.train.Checkpoint(model)",
        )


def _groups(tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, dict[str, ir.TensorProtocol]]:
    """Prefix -> parameters, slots and counters left out; of Dopamine's agents both networks, else all in one.

    Raises:
      Refused: there are none.
    """
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.dtype.is_floating_point()
        and not any(word in name for word in _SLOTS)
        and not name.startswith(_OTHERS)
        and not name.rpartition("/")[2].startswith(("beta1_power", "beta2_power"))
    }
    agents = {
        prefix: {name: tensor for name, tensor in own.items() if name.startswith(prefix)}
        for prefix in (ONLINE, TARGET)
    }
    found = {prefix: members for prefix, members in agents.items() if members}
    if ONLINE in found:
        return found
    if not own:
        raise Refused("the checkpoint holds no parameters of a network")
    return {"": own}
