"""Models that hold more than the network that learns: target networks beside it, outputs of other purposes.

A framework's own file gives all its networks in one graph. The one that learns is cut out of it, and put back with what
it has become; its target network becomes the run's target, and is put back too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from surgery import torch as modules
from surgery.checkpoint import Checkpoint
from surgery.distill.values import KINDS
from surgery.edits.copies import original_name
from surgery.errors import ArgumentError, SurgeryError
from surgery.interface import Port
from surgery.optimizer import OptimizerState
from surgery.policy.cut import cut
from surgery.storage import save

LEARNED = tuple(reversed(KINDS))
"""A distribution is learned where there is one, not the values that are computed from it."""


def cut_out(model: Checkpoint) -> Checkpoint:
    """The network that learns: one output of values, and the state that it carries, without what only others need.

    The model itself where it is nothing else, and its states stand behind the observation and the values.

    Raises:
      ArgumentError: inputs that no environment gives.
    """
    ports = model.interface.outputs
    kind = next((kind for kind in LEARNED if any(port.kind == kind for port in ports)), None)
    if kind is None:
        return model
    others = [port for port in model.interface.inputs if port.kind not in ("observation", "state")]
    if others:
        listed = ", ".join(f"{port.name} ({port.kind})" for port in others)
        raise ArgumentError(
            f"a network that learns takes one observation and, besides it, only states; not {listed}"
        )
    inputs = _states_last(model.interface.inputs)
    outputs = _states_last(tuple(port for port in ports if port.kind in (kind, "state")))
    part = cut(model, inputs, outputs)
    if part is model or model.optimizer is None:
        return part
    return part.replace(optimizer=_of(model.optimizer, frozenset(part.model.graph.initializers)))


def _states_last(ports: tuple[Port, ...]) -> tuple[Port, ...]:
    return tuple(sorted(ports, key=lambda port: port.kind == "state"))


def _of(state: OptimizerState, names: frozenset[str]) -> OptimizerState:
    """The state of some parameters, in the groups that have any of them."""
    some = state.only(names)
    return some.replace(groups=tuple(group for group in some.groups if group.parameters))


def target_of(model: Checkpoint) -> dict[str, Tensor]:
    """The weights of the target network by the names of its originals; empty if the model holds none."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        original = original_name(name, model.copies)
        if original != name and original in model.tensors:
            found.setdefault(original, torch.from_numpy(tensor.numpy().copy()))
    return found


def put_back(model: Checkpoint, learned: Checkpoint, target: nn.Module) -> Checkpoint:
    """The whole model with what its network and that network's target have become.

    Args:
      model: as it was loaded.
      learned: what was cut out of it, trained.
      target: the run's target network.
    """
    module, held = modules.to_module(model), dict(target.state_dict())
    fresh = {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in learned.tensors.items()}
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            original = original_name(name, model.copies)
            new = fresh.get(name) if original == name else held.get(original)
            if new is not None:
                tensor.copy_(new)
    made = modules.from_module(module, model)
    return made.replace(optimizer=learned.optimizer, lineage=learned.lineage, environment=learned.environment)


def native_name(model: Checkpoint) -> str | None:
    """What the student is called in the form of the framework's file that the model came from; None: from none."""
    return None if model.origin is None else f"student{model.origin.suffix}"


def check_native(model: Checkpoint) -> None:
    """Write a model back into its framework's form once, somewhere else, so that a run does not end on what cannot be.

    Raises:
      ArgumentError: it cannot be written, with the reason and the way out.
    """
    name = native_name(model)
    if name is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(model, Path(folder) / name)
        except SurgeryError as error:
            raise ArgumentError(
                f"the result could not be written back into {model.origin}: {error.message}",
                hint="keep the optimizer of that file, or convert it and fine-tune the .onnx: surgery convert",
            ) from error
