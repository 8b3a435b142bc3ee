"""The swap of a live optimizer: `surgery.swap_optimizer` without a file in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from surgery.errors import ArgumentError, Refused
from surgery.json_values import Json
from surgery.ops.optimizer_settings import CONVENTIONS
from surgery.ops.swap_optimizer import Match, SwapReport, swap_state
from surgery.optimizer import OptimizerState, ParamGroup

_CLASSES: Mapping[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
_TF_LIKE = {"eps_inside_root": True, "starts_at_one": True}
_OTHERS: Mapping[str, tuple[str, Mapping[str, Json]]] = {"RMSpropTFLike": ("rmsprop", _TF_LIKE)}
"""Classes of other libraries, by name: what they are, and their conventions."""


def swap_optimizer(
    optimizer: torch.optim.Optimizer,
    to: str,
    *,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    match: Match | None = None,
    was: Mapping[str, Json] | None = None,
    use_gradients: bool = True,
    report: Callable[[SwapReport], None] | None = None,
    seed: int = 0,
    **options: Json,
) -> torch.optim.Optimizer:
    """A new optimizer for the same parameters that knows what the old one knew.

    Args:
      optimizer: of class Adam, AdamW, RMSprop, SGD, or Stable-Baselines3's RMSpropTFLike; it is left as it is.
      to: "adam", "adamw", "rmsprop" or "sgd".
      named_parameters: of the model, for the report; numbers otherwise.
      match, was, seed, options: see `surgery.swap_optimizer`.
      use_gradients: measure on the gradients that the parameters hold, where all do.
      report: is called with what is carried, what is not, and what was measured.

    Returns:
      The new optimizer, with a group for each setting. Hooks of the old one, and schedulers made for it, are not
      carried over: make new ones (`initial_lr` is there for them).

    Raises:
      Refused: a class or state that cannot be carried over. ArgumentError, UnknownName: see `surgery.swap_optimizer`.
    """
    kind, conventions = _kind(optimizer)
    names = _names(optimizer, named_parameters)
    state = _state(optimizer, kind, names)
    weights = {name: _tensor(weight) for weight, name in names.items()}
    gradients = _gradients(names) if use_gradients else None
    new, found = swap_state(
        state, to, weights=weights, match=match, was={**conventions, **(was or {})}, gradients=gradients, seed=seed,
        options=options,
    )  # fmt: skip
    made = _make(new, {name: weight for weight, name in names.items()})
    if report is not None:
        report(found)
    return made


def _kind(optimizer: torch.optim.Optimizer) -> tuple[str, Mapping[str, Json]]:
    """The kind of an optimizer by its very class: a subclass may step otherwise."""
    for kind, known in _CLASSES.items():
        if type(optimizer) is known:
            return kind, {}
    name = type(optimizer).__name__
    if name in _OTHERS:
        return _OTHERS[name]
    if type(optimizer).__module__.startswith("torch.optim"):
        return name.lower(), {}
    raise Refused(
        f"nothing is known of the optimizer class '{name}'",
        hint=f"known are {', '.join(known.__name__ for known in _CLASSES.values())}, {', '.join(_OTHERS)}",
    )


def _names(optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, Tensor]] | None) -> dict[Tensor, str]:
    """Every parameter's name: the model's, else the group's own, else its numbers."""
    known = {weight: name for name, weight in named or ()}
    found: dict[Tensor, str] = {}
    for number, group in enumerate(optimizer.param_groups):
        own = group.get("param_names") or [f"{number}.{place}" for place in range(len(group["params"]))]
        for weight, name in zip(group["params"], own, strict=True):
            if known and weight not in known:
                raise ArgumentError(
                    f"the optimizer holds a parameter of shape {list(weight.shape)} that the model does not have",
                    hint="give the named_parameters() of everything that it trains",
                )
            found[weight] = known.get(weight, name)
    return found


def _state(optimizer: torch.optim.Optimizer, kind: str, names: Mapping[Tensor, str]) -> OptimizerState:
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    steps: dict[str, float] = {}
    for weight, name in names.items():
        for slot, value in optimizer.state.get(weight, {}).items():
            if slot == "step":
                steps[name] = float(value)
            elif isinstance(value, Tensor):
                slots.setdefault(slot, {})[name] = _tensor(value)
            elif value is not None:
                raise Refused(
                    f"there is no rule for the optimizer's '{slot}' of '{name}', which is no tensor"
                )
    groups = [
        ParamGroup(
            tuple(names[weight] for weight in group["params"]),
            {key: _plain(value) for key, value in group.items() if key not in ("params", "param_names")},
        )
        for group in optimizer.param_groups
    ]
    return OptimizerState(kind, slots, steps, tuple(groups))


def _plain(value: object) -> Json:
    if isinstance(value, Tensor):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Refused(f"a setting of the optimizer is a {type(value).__name__}, which cannot be carried over")


def _tensor(value: Tensor) -> ir.TensorProtocol:
    if value.is_sparse or value.is_complex() or value.is_quantized:
        raise Refused("sparse, complex and quantised parameters have no swap")
    return ir.tensor(value.detach().to("cpu", torch.float64).contiguous().numpy())


def _gradients(names: Mapping[Tensor, str]) -> dict[str, np.ndarray[Any, np.dtype[Any]]] | None:
    """The gradients at hand, one batch of them; None unless every parameter has one and some are not zero."""
    held = {name: weight.grad for weight, name in names.items()}
    if any(grad is None for grad in held.values()):
        return None
    arrays = {
        name: grad.detach().to("cpu", torch.float64).numpy()[None]
        for name, grad in held.items()
        if grad is not None
    }
    usable = all(np.isfinite(array).all() for array in arrays.values()) and any(
        array.any() for array in arrays.values()
    )
    return arrays if usable else None


def _make(state: OptimizerState, weights: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    groups = []
    for group in state.groups:
        for name in CONVENTIONS:
            if group.hyper.get(name):
                raise Refused(
                    f"PyTorch's {_CLASSES[state.kind].__name__} has no '{name}'", hint=f"leave out {name}"
                )
        hyper = {name: _native(value) for name, value in group.hyper.items() if name not in CONVENTIONS}
        groups.append({**hyper, "params": [weights[name] for name in group.parameters]})
    made = _CLASSES[state.kind](groups, lr=groups[0]["lr"])  # type: ignore[call-arg]
    for name, weight in weights.items():
        held = {
            slot: torch.tensor(members[name].numpy(), dtype=weight.dtype, device=weight.device).reshape(
                weight.shape
            )
            for slot, members in state.slots.items()
            if name in members
        }
        if name in state.steps and held:
            on_device = any(made.param_groups[0].get(key) for key in ("capturable", "fused"))
            held["step"] = torch.tensor(state.steps[name], device=weight.device if on_device else "cpu")
        if held:
            made.state[weight] = held
    return made


def _native(value: Json) -> object:
    return tuple(value) if isinstance(value, list | tuple) else value
