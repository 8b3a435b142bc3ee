"""A live optimizer's state by parameter name, and back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from surgery.errors import ArgumentError, PlanMismatch, Refused, shape_text
from surgery.json_values import Json
from surgery.optimizer import SCALARS, OptimizerState, ParamGroup, momentum_product
from surgery.tensors import shape_of
from surgery.torch.stored import laid_out, to_numpy, to_torch

KINDS: Mapping[str, str] = {
    "AdamW": "adamw",
    "Adam": "adam",
    "RAdam": "radam",
    "NAdam": "nadam",
    "Adamax": "adamax",
    "RMSprop": "rmsprop",
    "RMSpropTFLike": "rmsprop",
    "Adagrad": "adagrad",
    "Adadelta": "adadelta",
    "SGD": "sgd",
    "Muon": "muon",
}
"""Classes whose state has rules, by name, the most special first."""
_INSIDE_ROOT = {"RMSpropTFLike"}
_OF_THE_MACHINE = {"capturable", "differentiable", "foreach", "fused"}
"""How an optimizer computes where it runs, and not what: it may go on elsewhere, where it cannot compute so."""
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    """A key of `surgery.optimizer.POWERS`, by the class or the one it is derived from; else the class's own name."""
    for parent in type(optimizer).__mro__:
        if parent.__name__ in KINDS:
            return KINDS[parent.__name__]
    return type(optimizer).__name__


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """All that an optimizer trains, group by group."""
    for group in optimizer.param_groups:
        yield from group["params"]


_HOOKED: Any = getattr(torch.optim.Optimizer, "profile_hook_step", None)
_STEP = None if _HOOKED is None else _HOOKED(len).__code__
"""The code of what PyTorch makes of the `step` of every class: hooks before and after."""


def is_nested(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a hook runs inside another step of the same optimizer.

    A derived class whose `step` calls that of its base class has the hooks around both.
    """
    steps, frame = 0, sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        steps += frame.f_code is _STEP and frame.f_locals.get("self") is optimizer
    return steps > 1


def inside(model: nn.Module) -> nn.Module | None:
    """What a wrapper holds: of `torch.compile`, averages of weights, data parallelism; None of other modules."""
    inner = model.module if isinstance(model, _WRAPPERS) else getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def bare(model: nn.Module) -> nn.Module:
    """The module behind all wrappers."""
    inner = inside(model)
    return model if inner is None else bare(inner)


@contextlib.contextmanager
def uncompiled(*models: nn.Module) -> Iterator[None]:
    """Modules without `torch.compile` around parts of them, and with it again afterwards."""
    found = [
        (part._modules, name, child, bare(child))
        for model in models
        for part in model.modules()
        for name, child in part._modules.items()
        if child is not None and hasattr(child, "_orig_mod")
    ]
    try:
        for children, name, _, inner in found:
            children[name] = inner
        yield
    finally:
        for children, name, child, inner in found:
            if children[name] is inner:  # else new layers have taken its place
                children[name] = child


def plain_name(name: str) -> str:
    """A parameter's name without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes (a DTensor)."""
    return type(tensor).__name__ == "DTensor" or hasattr(tensor, "placements")


def named(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter under every name that the module has for it."""
    return {plain_name(name): p for name, p in bare(model).named_parameters(remove_duplicate=False)}


def read_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module | Mapping[str, Tensor],
    *,
    only: Iterable[str] | None = None,
) -> OptimizerState:
    """What a live optimizer remembers of a module's parameters, by name.

    The tensors share memory with the optimizer's where they are on the CPU: copy what has to last.

    Args:
      optimizer: of any class; slots of one without rules are read, too, but no edit can carry them.
      model: the module, or its parameters by name; parameters that it does not have are left out.
      only: names to prefer where a parameter has several, and to keep; None keeps all.

    Raises:
      ArgumentError: the optimizer holds none of the parameters.
    """
    parameters = named(model) if isinstance(model, nn.Module) else dict(model)
    kept = set(parameters if only is None else only)
    names: dict[int, str] = {}
    for name, parameter in parameters.items():
        if name in kept:
            names.setdefault(id(parameter), name)
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    steps: dict[str, float] = {}
    groups = []
    for group in optimizer.param_groups:
        members = [parameter for parameter in group["params"] if id(parameter) in names]
        for parameter in members:
            _read(optimizer.state.get(parameter, {}), parameter, names[id(parameter)], slots, steps)
        if members:
            groups.append(ParamGroup(tuple(names[id(p)] for p in members), _hyper(optimizer, group)))
    if not groups:
        raise ArgumentError(
            f"the {type(optimizer).__name__} holds none of the module's parameters",
            hint="give the optimizer that was made with this module's parameters()",
        )
    return OptimizerState(kind_of(optimizer), slots, steps, tuple(groups))


def _read(
    state: Mapping[str, Any],
    parameter: Tensor,
    name: str,
    slots: dict[str, dict[str, ir.TensorProtocol]],
    steps: dict[str, float],
) -> None:
    for slot, value in state.items():
        if slot == "step" and _single(value):
            steps[name] = float(value)
        elif slot not in SCALARS and isinstance(value, Tensor) and value.shape == parameter.shape:
            slots.setdefault(slot, {})[name] = ir.tensor(to_numpy(value), name=name)


def _single(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _hyper(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Json]:
    left_out = {"params", "param_names"} | _OF_THE_MACHINE
    settings = {str(key): plain(value) for key, value in group.items() if key not in left_out}
    settings = {key: value for key, value in settings.items() if value is not NotImplemented}
    if type(optimizer).__name__ in _INSIDE_ROOT:
        settings["eps_inside_root"] = True
    return settings


def plain(value: object) -> Any:  # noqa: ANN401
    """A setting as JSON; NotImplemented for what JSON cannot hold."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, tuple | list):
        parts = [plain(part) for part in value]
        return NotImplemented if NotImplemented in parts else parts
    return value if value is None or isinstance(value, bool | int | float | str) else NotImplemented


def load_optimizer(
    state: OptimizerState, optimizer: torch.optim.Optimizer, model: nn.Module | Mapping[str, Tensor]
) -> None:
    """Put state into a live optimizer of the same kind, parameter by parameter; its groups and settings stay.

    Args:
      state: by the names of the model's parameters.
      optimizer: made with them; what it remembers of them is replaced.
      model: the module, or its parameters by name.

    Raises:
      Refused: the state is of another kind of optimizer.
      ArgumentError: the optimizer does not hold a parameter that the state has.
      PlanMismatch: a slot has another shape than its parameter.
    """
    parameters = named(model) if isinstance(model, nn.Module) else dict(model)
    if kind_of(optimizer) != state.kind:
        raise Refused(
            f"the state is of the optimizer '{state.kind}', this is a '{kind_of(optimizer)}'",
            hint="surgery.torch.swap_optimizer carries state from one kind to another",
        )
    held = set(map(id, parameters_of(optimizer)))
    used = {name for members in state.slots.values() for name in members} | set(state.steps)
    missing = sorted(name for name in used if name not in parameters or id(parameters[name]) not in held)
    if missing:
        raise ArgumentError(f"the optimizer does not hold {', '.join(missing[:5])}, of which there is state")
    made = {name: made_state(state, name, parameters[name], optimizer) for name in used}
    for name, members in made.items():
        optimizer.state[parameters[name]] = members


def made_state(
    state: OptimizerState, name: str, parameter: Tensor, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """What the optimizer keeps of one parameter: tensors where the parameter is, and the step as PyTorch keeps it."""
    members: dict[str, Any] = {}
    if name in state.steps:
        group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        on_device = bool(group.get("capturable") or group.get("fused"))
        counts = {"step": state.steps[name]}
        if state.kind == "nadam":
            counts["mu_product"] = momentum_product(state.steps[name], _hyper(optimizer, group))
        for slot, count in counts.items():
            number = torch.tensor(count, dtype=torch.float32)
            members[slot] = number.to(parameter.device) if on_device else number
    for slot, tensors in state.slots.items():
        if name in tensors:
            if shape_of(tensors[name]) != tuple(parameter.shape):
                raise PlanMismatch(
                    f"the {slot} of '{name}' is {list(shape_of(tensors[name]))}, "
                    f"the parameter is {shape_text(parameter.shape)}"
                )
            moment = to_torch(tensors[name].numpy()).to(parameter.device, parameter.dtype)
            members[slot] = laid_out(moment, parameter)
    return members
