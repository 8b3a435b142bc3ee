"""What live surgery needs of modules and optimizers, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, Refused, shape_text
from surgery.optimizer import POWERS, SCALARS
from surgery.torch.optimizer_state import inside, is_sharded, kind_of, parameters_of, plain_name
from surgery.torch.trajectory.follow import DETACH, trajectory_of

_T = TypeVar("_T")
_WRAPPED = {
    "DistributedDataParallel": "operate on its .module on every rank, and wrap it again",
    "DataParallel": "operate on its .module, and wrap it again",
    "FullyShardedDataParallel": "gather the full parameters into a plain module, operate, and shard it again",
}
PLAN = "lambda c: surgery.widen(c, widths={'fc': 1024}), or another verb that makes one"


def several(given: Iterable[_T], word: str) -> list[_T]:
    """What is given as several things; one alone is none of them."""
    if isinstance(given, nn.Module) or not isinstance(given, Iterable):
        raise ArgumentError(f"{word} is one {type(given).__name__}", hint=f"a list: {word}=[…]")
    return list(given)


def check_arguments(
    networks: Sequence[object], inputs: object, plan: object, schedulers: Sequence[object]
) -> None:
    """Refuse what is none of the things that live surgery takes, before anything is looked at."""
    for network in networks:
        if not isinstance(network, nn.Module):
            raise ArgumentError(f"a {type(network).__name__} is not a torch.nn.Module")
    if not isinstance(inputs, Tensor | tuple | list | Mapping):
        raise ArgumentError(
            f"a {type(inputs).__name__} is not an example input",
            hint="a tensor, a tuple of arguments, or a mapping of keyword arguments",
        )
    if not (isinstance(plan, Plan) or callable(plan)):
        raise ArgumentError(f"a {type(plan).__name__} is not a plan", hint=PLAN)
    for scheduler in schedulers:
        if not hasattr(scheduler, "optimizer"):
            raise ArgumentError(f"a {type(scheduler).__name__} is not the schedule of an optimizer")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module behind `torch.compile` or an average of weights.

    Raises:
      Refused: it is wrapped for several processes; says how to go on.
    """
    hint = _WRAPPED.get(type(model).__name__)
    if hint:
        raise Refused(f"the model is wrapped in {type(model).__name__}", hint=hint)
    inner = inside(model)
    return model if inner is None else unwrapped(inner)


def checked(model: nn.Module, also: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules behind what wraps them; those with tensors that cannot be given another shape in place are refused.

    Raises:
      Refused: names the part or the tensor, and says how to go on.
    """
    networks = [unwrapped(network) for network in (model, *also)]
    for at, network in enumerate(networks):
        what = "the model" if at == 0 else f"network {at} of also"
        _check_parts(network, what)
        _check_tensors(network, what)
    return networks


def _check_parts(network: nn.Module, what: str) -> None:
    for path, module in network.named_modules():
        part, kind = f"'{path or '(the model)'}' of {what}", type(module)
        if ".quantized." in f"{kind.__module__}.":
            raise Refused(
                f"{part} is quantised", where={"module": kind.__name__},
                hint="operate before the model is quantised",
            )  # fmt: skip
        if isinstance(module, torch.jit.ScriptModule):
            raise Refused(
                f"{part} is TorchScript, whose code and sizes are fixed",
                hint="operate on the module that it was made from, and script it again",
            )
        if any(parent.__name__ == "FSDPModule" for parent in kind.__mro__):
            raise Refused(f"{part} is sharded (fully_shard)", hint=_WRAPPED["FullyShardedDataParallel"])


def _check_tensors(network: nn.Module, what: str) -> None:
    devices = set()
    for name, tensor in tensors_of(network).items():
        where = {"tensor": f"{name} of {what}"}
        if torch.nn.parameter.is_lazy(tensor):
            raise Refused(f"'{name}' has no size yet", where=where, hint="run the module once on an example")
        if is_sharded(tensor):
            raise Refused(f"'{name}' is sharded", where=where, hint="gather it, operate, and shard it again")
        if tensor.is_quantized or tensor.dtype in (torch.quint8, torch.qint8, torch.qint32):
            raise Refused(f"'{name}' is quantised", where=where, hint="operate before the model is quantised")
        if tensor.layout != torch.strided:
            raise Refused(f"'{name}' is sparse", where=where, hint="make it dense first")
        if not tensor.is_leaf:
            raise Refused(
                f"'{name}' is not a leaf: it is computed from other tensors", where=where,
                hint="operate on the module that owns what it is computed from",
            )  # fmt: skip
        devices.add(tensor.device)
    if len(devices) > 1:
        raise Refused(
            f"{what} is on several devices: {', '.join(sorted(map(str, devices)))}",
            hint="move it to one device, operate, and move it back",
        )
    if devices == {torch.device("meta")}:
        raise Refused(f"{what} has no numbers: it is on the meta device")


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name that the module has for them."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found |= dict(model.named_buffers(remove_duplicate=False))
    return {plain_name(name): tensor for name, tensor in found.items()}


def unused(model: nn.Module, names: Iterable[str], plan: Plan) -> tuple[str, ...]:
    """The parameters that no tensor of the graph is, in the module's order: its `forward` does not use them.

    Args:
      model: the module. names: of the graph's tensors. plan: what is to be done to them.

    Raises:
      Refused: one reads as many units as there were of some that change, and none before it makes so many: the head of
        another method, which would have to follow.
    """
    held = tensors_of(model)
    known = {id(held[name]) for name in names if name in held}
    edits = [(edit.before, edit.after(plan.sizes)) for edit in plan.tensors]
    changed = {n for before, after in edits for n, now in zip(before, after, strict=True) if n != now}
    found: list[str] = []
    for path, part in model.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) in known:
                continue
            found.append(f"{path}.{name}".lstrip("."))
            made, read = set(parameter.shape[:1]), set(parameter.shape[1:2])
            if isinstance(part, nn.Embedding):
                made, read = read, set()
            if changed & read:
                raise Refused(
                    f"'{found[-1]}' ({shape_text(parameter.shape)}) may read units that change, and forward() does not "
                    "use it",
                    where={"module": f"{path or '(the model)'} ({type(part).__name__})"},
                    hint="use it in forward(), so that it changes too; or operate on a module that does not hold it",
                )
            changed -= {n // gates for n in made for gates in (1, 3, 4)}  # GRU, LSTM
    return tuple(found)


def distinct(
    given: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
) -> list[torch.optim.Optimizer]:
    """Optimizers as a list, each once.

    Raises:
      ArgumentError: it is a class, or no optimizer.
    """
    if isinstance(given, type):
        raise ArgumentError(
            f"{given.__name__} is a class, not an optimizer", hint="give the one that is in use"
        )
    if given is not None and not isinstance(given, torch.optim.Optimizer | Iterable):
        raise ArgumentError(
            f"a {type(given).__name__} is not a torch.optim.Optimizer", hint="give the one that it wraps"
        )
    several = [given] if isinstance(given, torch.optim.Optimizer) else given or ()
    return list(dict.fromkeys(several))


def check_optimizers(optimizers: Sequence[torch.optim.Optimizer], networks: Sequence[nn.Module]) -> int:
    """The number of parameters that the optimizers hold besides those of the networks.

    Raises:
      ArgumentError: one holds none of them, or follows a trajectory; no optimizer; one that wraps the one with the
        state. Refused: one that has no state by parameter.
    """
    own = {id(tensor) for network in networks for tensor in network.parameters()}
    others = 0
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ArgumentError(f"a {type(optimizer).__name__} is not a torch.optim.Optimizer")
        if trajectory_of(optimizer) is not None:
            raise ArgumentError(f"the {type(optimizer).__name__} follows a trajectory", hint=DETACH)
        if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
            raise Refused(
                "the LBFGS remembers all parameters as one vector, which no rule carries",
                hint="make a new LBFGS after the operation",
            )
        held = set(map(id, parameters_of(optimizer)))
        for name, inner in vars(optimizer).items():
            if isinstance(inner, torch.optim.Optimizer) and inner.state and inner not in optimizers:
                raise ArgumentError(
                    f"the {type(optimizer).__name__} wraps another optimizer, '{name}', which has the state",
                    hint=f"give that: operate(model, optimizer.{name}, …); what the wrapper remembers does not follow",
                )
        if not own & held:
            raise ArgumentError(
                f"the {type(optimizer).__name__} holds none of the model's parameters",
                hint="give the optimizer that was made with this model's parameters()",
            )
        others += len(held - own)
    return others


def state_without_rules(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, str]:
    """Slots of the named parameters that no rule carries: what to say of each."""
    kind, found = kind_of(optimizer), {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for slot, value in optimizer.state.get(parameter, {}).items():
                if id(parameter) not in names or value is None or slot in SCALARS:
                    continue
                shaped = isinstance(value, Tensor) and value.shape == parameter.shape
                if slot not in POWERS.get(kind, {}) or not shaped:
                    found[slot] = f"'{slot}' of {type(optimizer).__name__}"
    return found
