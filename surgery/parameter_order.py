"""Which parameter an optimizer means by its numbers, and what kind of optimizer it is.

PyTorch numbers parameters by their place in the optimizer's groups, and writes no names (unless it was given
`named_parameters()`). Within a group they come in the order of the state dict; the shapes of their state say
the rest. A binding is accepted only if it is the only one that fits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.json_values import Json

Shape = tuple[int, ...]
_MAX_STATES = 10_000


def unique_order(groups: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]) -> list[list[int]] | None:
    """Assign candidates to the places of each group, keeping their order within every group.

    Args:
      groups: per group, the shape of each place; None where it is not known.
      shapes: the candidates' shapes, in their order; some may be left over.

    Returns:
      per group, the candidate of each place; None if no assignment fits.

    Raises:
      Refused: more than one assignment fits, or there are too many groups to tell.
    """
    # Places filled per group -> (number of ways, at most 2; a predecessor; the group that took the last).
    State = tuple[int, ...]
    total = sum(map(len, groups))
    start: State = (0,) * len(groups)
    layers: list[dict[State, tuple[int, State, int | None]]] = [{start: (1, start, None)}]
    for position, shape in enumerate(shapes):
        layer: dict[State, tuple[int, State, int | None]] = {}
        left = len(shapes) - position - 1
        for state, (ways, _, _) in layers[-1].items():
            for target, taker in _moves(state, shape, groups):
                if total - sum(target) <= left:
                    known, *origin = layer.get(target, (0, state, taker))
                    layer[target] = (min(2, known + ways), *origin)  # type: ignore[assignment]
        if len(layer) > _MAX_STATES:
            raise Refused(
                "the optimizer has too many parameter groups to tell its parameters apart", hint=_HINT
            )
        layers.append(layer)
    end = tuple(map(len, groups))
    if end not in layers[-1]:
        return None
    if layers[-1][end][0] > 1:
        raise Refused("the optimizer's parameters have no names, and more than one order fits", hint=_HINT)
    return _trace(layers, end)


_HINT = "save the optimizer made with model.named_parameters(), or give the names in its order (order=...)"


def _moves(
    state: tuple[int, ...], shape: Shape, groups: Sequence[Sequence[Shape | None]]
) -> list[tuple[tuple[int, ...], int | None]]:
    moves: list[tuple[tuple[int, ...], int | None]] = [(state, None)]
    for number, (filled, places) in enumerate(zip(state, groups, strict=True)):
        if filled < len(places) and places[filled] in (None, shape):
            moves.append(((*state[:number], filled + 1, *state[number + 1 :]), number))
    return moves


def _trace(
    layers: Sequence[Mapping[tuple[int, ...], tuple[int, tuple[int, ...], int | None]]], end: tuple[int, ...]
) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in end]
    state = end
    for position in range(len(layers) - 1, 0, -1):
        _, state, taker = layers[position][state]
        if taker is not None:
            found[taker].insert(0, position - 1)
    return found


def optimizer_kind(groups: Sequence[Mapping[str, object]], slots: set[str]) -> str:
    """The kind of a PyTorch optimizer, from the settings of its groups and the names of its slots.

    Raises:
      Refused: an optimizer without rules, or Adam with weight decay from a version that does not say which.
    """
    kinds = {_kind(group, slots) for group in groups}
    if len(kinds) != 1:
        raise Refused(f"the parameter groups are of several kinds: {', '.join(sorted(kinds)) or 'none'}")
    return kinds.pop()


def _kind(group: Mapping[str, object], slots: set[str]) -> str:
    if "betas" in group:
        return _adam_kind(group, slots)
    signatures = (
        ({"alpha", "centered"}, "rmsprop"),
        ({"lr_decay", "initial_accumulator_value"}, "adagrad"),
        ({"rho"}, "adadelta"),
        ({"momentum", "dampening", "nesterov"}, "sgd"),
        ({"momentum", "ns_steps"}, "muon"),
    )
    for keys, kind in signatures:
        if keys <= set(group):
            return kind
    known = ", ".join(sorted(set(group) - {"params"}))
    raise Refused(
        f"there is no rule for an optimizer with the settings {known}", hint="name it with kind=..."
    )


def _adam_kind(group: Mapping[str, object], slots: set[str]) -> str:
    if "momentum_decay" in group:
        return "nadam"
    if "exp_inf" in slots:
        return "adamax"
    if "min_trust" in group:
        return "lamb"  # Sample Factory's (sample_factory/algo/utils/optimizers.py)
    if "amsgrad" not in group:
        return "radam" if "exp_avg_sq" in slots or "decoupled_weight_decay" in group else "adamax"
    decoupled = group.get("decoupled_weight_decay")
    if decoupled is None and group.get("weight_decay"):
        raise Refused(
            "the file does not say whether its weight decay is Adam's or AdamW's (PyTorch before 2.7)",
            hint="say which with kind='adam' or kind='adamw'",
        )
    return "adamw" if decoupled else "adam"


def hyper(group: Mapping[str, object]) -> dict[str, Json]:
    """The settings of a PyTorch parameter group as JSON; single-element tensors become numbers.

    Raises:
      ArgumentError: a setting that is neither a number, text, nor a list of those.
    """
    settings = {str(key): value for key, value in group.items() if key not in ("params", "param_names")}
    return {key: _plain(key, value) for key, value in settings.items()}


def number(value: object, what: str) -> float:
    """A number that may be stored as a tensor of one element.

    Raises:
      CorruptFile: something else.
    """
    if isinstance(value, ir.TensorProtocol) and value.size == 1:
        value = value.numpy().reshape(()).item()
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CorruptFile(f"{what} is not a number")
    if not math.isfinite(value):
        raise CorruptFile(f"{what} is {value}")
    return float(value)


def _plain(name: str, value: object) -> Json:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, ir.TensorProtocol):
        return number(value, f"the setting '{name}'")
    if isinstance(value, list | tuple) and not any(isinstance(item, list | tuple | dict) for item in value):
        return [_plain(name, item) for item in value]
    raise ArgumentError(f"the optimizer's setting '{name}' is a {type(value).__name__}, which cannot be kept")
