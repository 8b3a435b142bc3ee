"""The swap of a live optimizer: `surgery.swap_optimizer` without a file in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from surgery.arrays import Array
from surgery.errors import ArgumentError, Refused, shape_text
from surgery.json_values import Json
from surgery.ops.optimizer_moments import number
from surgery.ops.optimizer_settings import CONVENTIONS
from surgery.ops.swap_optimizer import Match, SwapReport, swap_state
from surgery.optimizer import OptimizerState
from surgery.torch.optimizer_state import load_optimizer, read_optimizer
from surgery.torch.stored import to_numpy

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
      named_parameters: of the model, for the report and the new groups; those of the old groups or numbers otherwise.
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
    named = None if named_parameters is None else list(named_parameters)
    weights = _named(optimizer, named)
    state = read_optimizer(optimizer, weights).replace(kind=kind)
    gradients = _gradients(weights) if use_gradients else None
    new, found = swap_state(
        state, to, weights={name: ir.tensor(to_numpy(weight)) for name, weight in weights.items()}, match=match,
        was={**conventions, **(was or {})}, gradients=gradients, seed=seed, options=options,
    )  # fmt: skip
    called = bool(named) or all("param_names" in group for group in optimizer.param_groups)
    made = _CLASSES[to](_groups(new, weights, called), lr=number(new.groups[0].hyper, "lr"))  # type: ignore[call-arg]
    load_optimizer(new, made, weights)
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


def _named(optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, Tensor]] | None) -> dict[str, Tensor]:
    """All parameters by name: the model's, else the group's own, else their numbers."""
    known = {weight: name for name, weight in named or ()}
    found: dict[str, Tensor] = {}
    for place, group in enumerate(optimizer.param_groups):
        own = group.get("param_names") or [f"{place}.{k}" for k in range(len(group["params"]))]
        for weight, name in zip(group["params"], own, strict=True):
            if known and weight not in known:
                raise ArgumentError(
                    f"the optimizer holds a parameter of shape {shape_text(weight.shape)} that the model does not have",
                    hint="give the named_parameters() of everything that it trains",
                )
            if weight.is_sparse or weight.is_complex() or weight.is_quantized:
                raise Refused(f"'{known.get(weight, name)}' is sparse, complex or quantised: it has no swap")
            found[known.get(weight, name)] = weight
    return found


def _gradients(weights: Mapping[str, Tensor]) -> dict[str, Array] | None:
    """The gradients at hand, one batch of them; None unless every parameter has one and some are not zero."""
    held = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    arrays = {name: to_numpy(grad.double())[None] for name, grad in held.items()}
    usable = len(arrays) == len(weights) and all(np.isfinite(array).all() for array in arrays.values())
    return arrays if usable and any(array.any() for array in arrays.values()) else None


def _groups(state: OptimizerState, weights: Mapping[str, Tensor], called: bool) -> list[dict[str, Any]]:
    """The groups of the new optimizer; with `called`, its `state_dict` names their parameters."""
    groups = []
    for group in state.groups:
        for name in CONVENTIONS:
            if group.hyper.get(name):
                raise Refused(
                    f"PyTorch's {_CLASSES[state.kind].__name__} has no '{name}'", hint=f"leave out {name}"
                )
        hyper = {name: _native(value) for name, value in group.hyper.items() if name not in CONVENTIONS}
        members = [(name, weights[name]) if called else weights[name] for name in group.parameters]
        groups.append({**hyper, "params": members})
    return groups


def _native(value: Json) -> object:
    return tuple(value) if isinstance(value, list | tuple) else value
