"""A trained module back in its graph, with the optimizer's state by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from surgery.checkpoint import Checkpoint
from surgery.json_values import Json
from surgery.optimizer import OptimizerState, ParamGroup

_KINDS = {torch.optim.Adam: "adam", torch.optim.AdamW: "adamw", torch.optim.RMSprop: "rmsprop"}
_HYPER = ("lr", "betas", "eps", "weight_decay", "amsgrad", "alpha", "momentum", "centered", "maximize")


def with_weights(
    checkpoint: Checkpoint, module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Checkpoint:
    """The checkpoint with the module's tensors in its graph, and the optimizer's state beside it."""
    model = checkpoint.model.clone()
    for name, tensor in module.state_dict().items():
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    return checkpoint.replace(model=model, optimizer=_state(module, optimizer))


def _state(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    steps: dict[str, float] = {}
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        for slot, value in state.items():
            if slot == "step":
                steps[name] = float(value)
            elif isinstance(value, torch.Tensor):
                array = np.ascontiguousarray(value.detach().cpu().numpy())
                slots.setdefault(slot, {})[name] = ir.Tensor(array, name=name)
    groups = tuple(
        ParamGroup(tuple(names[id(one)] for one in group["params"]), _hyper(group))
        for group in optimizer.param_groups
    )
    return OptimizerState(_KINDS[type(optimizer)], slots, steps, groups)


def _hyper(group: Mapping[str, Any]) -> dict[str, Json]:
    found = {name: group[name] for name in _HYPER if name in group}
    return {name: float(value) if isinstance(value, torch.Tensor) else value for name, value in found.items()}


def load_state(optimizer: torch.optim.Optimizer, module: torch.nn.Module, state: OptimizerState) -> None:
    """Give a fresh optimizer of the same kind the state that a checkpoint carries; its settings stay its own."""
    for name, parameter in module.named_parameters():
        if name not in state.steps:
            continue
        slots: dict[str, torch.Tensor] = {
            slot: torch.from_numpy(np.array(tensors[name].numpy())).to(parameter)
            for slot, tensors in state.slots.items()
            if name in tensors
        }
        device = (
            parameter.device
            if optimizer.defaults.get("capturable") or optimizer.defaults.get("fused")
            else "cpu"
        )
        optimizer.state[parameter] = {
            "step": torch.tensor(state.steps[name], dtype=torch.float32, device=device), **slots,
        }  # fmt: skip
