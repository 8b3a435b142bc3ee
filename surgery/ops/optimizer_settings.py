"""Settings of an optimizer that takes over from another: carried where they mean the same, else PyTorch's defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.json_values import Json
from surgery.ops.optimizer_moments import ADAMS, Hyper, betas, number

_ADAM: Mapping[str, Json] = {
    "lr": None, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False,
    "foreach": None, "capturable": False, "differentiable": False, "fused": None,
}  # fmt: skip
DEFAULTS: Mapping[str, Mapping[str, Json]] = {
    "adam": {**_ADAM, "decoupled_weight_decay": False},
    "adamw": {**_ADAM, "decoupled_weight_decay": True},
    "rmsprop": {
        "lr": None, "momentum": 0.0, "alpha": 0.99, "eps": 1e-8, "centered": False, "weight_decay": 0.0,
        "capturable": False, "foreach": None, "maximize": False, "differentiable": False,
    },
    "sgd": {
        "lr": None, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False,
        "foreach": None, "differentiable": False, "fused": None,
    },
}  # fmt: skip
"""Kinds that can be swapped to and from, with PyTorch's settings; weight decay is 0 unless it is carried or given."""

CONVENTIONS = ("eps_inside_root", "buffer_holds_lr", "starts_at_one")
"""What an optimizer's name does not tell: √(v + ε), a momentum buffer of whole steps, squares that start at one."""

_REASONS: Mapping[str, str] = {
    "nadam": "its momentum follows a schedule of products that no other optimizer keeps",
    "radam": "its step is rectified by a schedule that no other optimizer keeps",
    "lamb": "the length of a step is that of its tensor's weights, whatever the gradients are",
    "adamax": "it keeps the largest gradient and no mean of squares",
    "adagrad": "it sums the squares of all gradients since the start, and its steps shrink forever",
    "adadelta": "it has no learning rate: it chooses the length of its steps itself",
    "lbfgs": "it keeps no statistics of single weights",
}
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda x: x > 0, "a finite number greater than 0"),
    "eps": (lambda x: x >= 0, "a finite number, 0 or more"),
    "weight_decay": (lambda x: x >= 0, "a finite number, 0 or more"),
    **dict.fromkeys(("alpha", "momentum", "dampening"), (lambda x: 0 <= x < 1, "0 or more, and less than 1")),
}


def check_pair(kind: str, old: Hyper, to: str, options: Mapping[str, Json], was: Mapping[str, Json]) -> None:
    """Refuse what cannot be swapped.

    Args:
      kind, old: of the optimizer there is. to, options: of the one that is asked for.
      was: conventions of the old one, as given.

    Raises:
      Refused: a kind without a rule, or weight decay that means another thing in the new optimizer.
      UnknownName: a kind or setting that does not exist. ArgumentError: a setting out of its range, or nothing to do.
    """
    for name in (kind, to):
        if name in _REASONS:
            raise Refused(f"there is no swap from or to '{name}': {_REASONS[name]}",
                          hint=f"swaps exist between {', '.join(DEFAULTS)}")  # fmt: skip
    if to not in DEFAULTS:
        raise UnknownName("optimizer", to, DEFAULTS)
    if kind not in DEFAULTS:
        raise Refused(f"there is no swap from '{kind}'", hint=f"swaps exist between {', '.join(DEFAULTS)}")
    for name in was:
        if name not in CONVENTIONS:
            raise UnknownName("convention", name, CONVENTIONS)
        if not isinstance(was[name], bool):
            raise ArgumentError(f"{name} = {was[name]!r} is not possible", hint=f"{name} is true or false")
    _check_options(to, options)
    if kind == to and not options:
        raise ArgumentError(f"the optimizer is '{to}' already", hint="to change its settings, name them")
    if number(old, "weight_decay") and _decoupled(kind, old) != _decoupled(to, options):
        if "weight_decay" in options:
            return
        raise Refused(
            f"the weight decay {number(old, 'weight_decay'):g} of '{kind}' means something else in '{to}': one is "
            "divided by √v with the gradient, the other is not",
            hint="say which to use: weight_decay=0, or the number for the new optimizer",
        )


def _decoupled(kind: str, hyper: Mapping[str, Json]) -> bool:
    return kind == "adamw" or bool(hyper.get("decoupled_weight_decay"))


def _check_options(to: str, options: Mapping[str, Json]) -> None:
    known = [*(name for name in DEFAULTS[to] if name != "decoupled_weight_decay"), *_conventions(to)]
    for name, value in options.items():
        if name not in known:
            raise UnknownName(f"setting of '{to}'", name, known)
        wanted = _wanted(name, value)
        if wanted:
            raise ArgumentError(f"{name} = {value!r} is not possible", hint=f"{name} is {wanted}")


def _conventions(to: str) -> tuple[str, ...]:
    return CONVENTIONS if to == "rmsprop" else CONVENTIONS[:1] if to in ADAMS else ()


def _wanted(name: str, value: Json) -> str | None:
    """What a setting would have to be; None if it is."""
    if name == "betas":
        pair = isinstance(value, list | tuple) and len(value) == 2
        good = pair and all(_is_number(b) and 0 <= b < 1 for b in value)  # type: ignore[union-attr, operator]
        return None if good else "two numbers, 0 or more and less than 1"
    if name in _RANGES:
        fits, text = _RANGES[name]
        return None if _is_number(value) and fits(value) else text  # type: ignore[arg-type]
    return None if isinstance(value, bool | None) else "true or false"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def settings(kind: str, old: Hyper, to: str, options: Mapping[str, Json]) -> dict[str, Json]:
    """The new optimizer's settings; its learning rate is the old one's until it is matched.

    ε keeps its place in the floor of the divisor, √ε inside the root being ε outside; the decay of the first moment is
    the momentum of RMSProp and SGD, and the other way round. The decay of squares is not carried: the window of the
    old one is matched, and grows to that of the new one.
    """
    new: dict[str, Json] = {**DEFAULTS[to], "lr": old.get("lr")}
    for name in ("weight_decay", "maximize"):
        new[name] = old.get(name, new[name])
    if kind in ADAMS and to in ADAMS:
        new |= {"betas": list(betas(old)), "amsgrad": bool(old.get("amsgrad"))}
    elif to in ADAMS:
        new["betas"] = [number(old, "momentum") or 0.9, 0.999]
    else:
        new["momentum"] = betas(old)[0] if kind in ADAMS else number(old, "momentum")
    if kind == to:
        new |= {name: value for name, value in old.items() if name in new or name in CONVENTIONS}
    if "eps" in new and kind != "sgd":
        inside = bool(options.get("eps_inside_root", new.get("eps_inside_root")))
        new["eps"] = _moved_eps(number(old, "eps"), bool(old.get("eps_inside_root")), inside)
    if "initial_lr" in old:
        new["initial_lr"] = old["initial_lr"]
    return {**new, **options}


def _moved_eps(eps: float, was_inside: bool, inside: bool) -> float:
    if was_inside == inside:
        return eps
    return math.sqrt(eps) if was_inside else eps**2


def at_rate(kind: str, old: Hyper, new: Hyper, lr: float) -> dict[str, Json]:
    """The settings with their final learning rate: a schedule's start follows, and decoupled decay keeps lr · λ."""
    factor = lr / number(old, "lr") if number(old, "lr") > 0 else 1.0
    found = {**new, "lr": lr}
    if "initial_lr" in new:
        found["initial_lr"] = number(new, "initial_lr") * factor
    if _decoupled(kind, new) and new.get("weight_decay") == old.get("weight_decay"):
        found["weight_decay"] = number(new, "weight_decay") / factor
    return found
