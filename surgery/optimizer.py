"""Optimizer state by parameter name, and how each of its slots follows the gradient."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.json_values import Fields, Json, check_schema, dumps, freeze_mapping, loads
from surgery.tensors import Layout, read_safetensors, write_safetensors

_T = TypeVar("_T")

SCHEMA = 1
_KEY = "surgery"

# A slot with power p is multiplied by a**p when the gradient is multiplied by a. Power 0 means that the slot
# is built from preconditioned gradients, or from none: the scale has cancelled. `step` holds a count per
# element, for parameters whose entries differ in age; common counts are in `OptimizerState.steps`.
_ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "step": 0}
POWERS: Mapping[str, Mapping[str, int]] = {
    "sgd": {"momentum_buffer": 1},
    "adam": _ADAM,
    "adamw": _ADAM,
    "radam": {"exp_avg": 1, "exp_avg_sq": 2, "step": 0},
    "nadam": {"exp_avg": 1, "exp_avg_sq": 2, "step": 0},
    "lamb": {"exp_avg": 1, "exp_avg_sq": 2, "step": 0},
    "adamax": {"exp_avg": 1, "exp_inf": 1, "step": 0},
    "rmsprop": {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0, "step": 0},
    "adagrad": {"sum": 2, "step": 0},
    "adadelta": {"square_avg": 2, "acc_delta": 0, "step": 0},
    "muon": {"momentum_buffer": 1},
}
WHOLE: Mapping[str, str] = {
    "lamb": "LAMB scales the step of a tensor by its norm",
    "muon": "Muon moves a matrix as a whole",
}
"""Optimizers that do not treat elements one by one: a widened network cannot go on exactly as the small one would."""


SCALARS = frozenset({"step", "mu_product"})
"""What PyTorch keeps of a parameter as one number, whatever its size: a count, and what follows from it (NAdam)."""


def momentum_product(steps: float, hyper: Mapping[str, Json]) -> float:
    """NAdam's `mu_product` after so many steps, Π β₁ (1 − ½ · 0.96^(t · momentum_decay)), in float32 as PyTorch has it.

    Source: Dozat, Incorporating Nesterov Momentum into Adam, 2016; torch.optim.NAdam.
    """
    betas, decay = hyper.get("betas"), hyper.get("momentum_decay", 4e-3)
    first = betas[0] if isinstance(betas, list | tuple) else 0.9
    if not isinstance(first, int | float) or not isinstance(decay, int | float):
        raise Refused("the settings of NAdam are not numbers: betas, momentum_decay")
    product = np.float32(1)
    for step in range(1, int(steps) + 1):
        if not product:
            break
        product = np.float32(product * np.float32(first * (1 - 0.5 * 0.96 ** (step * decay))))
    return float(product)


def power(kind: str, slot: str) -> int:
    """The power of the gradient that a slot follows: 1 for a mean of gradients, 2 for one of their squares.

    Raises:
      Refused: there is no rule for this optimizer or slot.
    """
    if kind not in POWERS:
        raise Refused(
            f"there is no rule for the state of the optimizer '{kind}'",
            hint=f"rules exist for {', '.join(POWERS)}; load the model without its optimizer state",
        )
    if slot not in POWERS[kind]:
        raise Refused(
            f"there is no rule for the slot '{slot}' of the optimizer '{kind}'",
            hint=f"rules exist for {', '.join(POWERS[kind])}; load the model without its optimizer state",
        )
    return POWERS[kind][slot]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that are trained with the same settings.

    Attributes:
      parameters: their names, in the optimizer's order.
      hyper: the settings under their usual names (`lr`, `betas`, `eps`, `weight_decay`, `alpha`, `momentum`,
        `centered`, `amsgrad` …), and two of our own for conventions that an optimizer's name does not tell:
        `eps_inside_root` (true: `g / sqrt(v + eps)`; absent or false: `g / (sqrt(v) + eps)`) and
        `buffer_holds_lr` (true: RMSProp's momentum buffer sums whole steps, as TensorFlow's does).
    """

    parameters: tuple[str, ...]
    hyper: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(self.parameters))
        object.__setattr__(self, "hyper", freeze_mapping(self.hyper))


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers, addressed by parameter name.

    Attributes:
      kind: a key of `POWERS`, or another name (then no slot has a rule).
      slots: slot -> parameter -> tensor of the parameter's shape.
      steps: parameter -> number of updates so far; empty for an optimizer that does not count.
      groups: settings; each parameter is in exactly one group.
      counters: parameter -> the tensor in which a framework's file keeps its number of updates, where it is one.

    Raises:
      ArgumentError: a parameter in two groups, or a slot or step of a parameter in none.
    """

    kind: str
    slots: Mapping[str, Mapping[str, ir.TensorProtocol]]
    steps: Mapping[str, float]
    groups: tuple[ParamGroup, ...]
    counters: Mapping[str, ir.TensorProtocol] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        slots = {slot: MappingProxyType(dict(tensors)) for slot, tensors in self.slots.items()}
        object.__setattr__(self, "slots", MappingProxyType(slots))
        object.__setattr__(self, "steps", MappingProxyType(dict(self.steps)))
        object.__setattr__(self, "groups", tuple(self.groups))
        names = self.parameters
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ArgumentError(f"parameters in more than one group: {', '.join(twice[:5])}")
        used = set(self.steps).union(*self.slots.values())
        if stray := sorted(used - set(names)):
            raise ArgumentError(
                f"optimizer state for parameters that are in no group: {', '.join(stray[:5])}"
            )

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters, group by group."""
        return tuple(name for group in self.groups for name in group.parameters)

    def group(self, parameter: str) -> ParamGroup:
        """The group that a parameter is in.

        Raises:
          KeyError: it is in none.
        """
        for group in self.groups:
            if parameter in group.parameters:
                return group
        raise KeyError(parameter)

    def only(self, names: Collection[str]) -> OptimizerState:
        """The state of some parameters; groups that are left without any keep their place."""

        def of(members: Mapping[str, _T]) -> dict[str, _T]:
            return {name: member for name, member in members.items() if name in names}

        return self.replace(
            slots={slot: of(tensors) for slot, tensors in self.slots.items()},
            steps=of(self.steps),
            counters=of(self.counters),
            groups=tuple(
                ParamGroup(tuple(name for name in group.parameters if name in names), group.hyper)
                for group in self.groups
            ),
        )

    def replace(self, **changes: object) -> OptimizerState:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def slots_of_each(state: OptimizerState | None, parameters: Iterable[str]) -> dict[str, int]:
    """How many slots each of some parameters has, where it has any."""
    members = () if state is None else state.slots.values()
    counts = {name: sum(name in held for held in members) for name in parameters}
    return {name: count for name, count in counts.items() if count}


def save_optimizer(state: OptimizerState, path: Path) -> Layout:
    """Write the state as safetensors, keyed `slot/parameter`; streams, and is not atomic.

    Raises:
      ArgumentError: a slot name with a slash, or an element type that safetensors cannot hold.
    """
    tensors = {}
    for slot, members in state.slots.items():
        if "/" in slot:
            raise ArgumentError(f"a slot name holds no slash: '{slot}'")
        tensors.update({f"{slot}/{name}": tensor for name, tensor in members.items()})
    record: Json = {
        "schema": SCHEMA,
        "kind": state.kind,
        "slots": list(state.slots),
        "steps": dict(state.steps),
        "groups": [{"parameters": group.parameters, "hyper": group.hyper} for group in state.groups],
    }
    return write_safetensors(path, tensors, {_KEY: dumps(record)})


def load_optimizer(path: Path) -> OptimizerState:
    """Read what `save_optimizer` wrote; the tensors stay in the file.

    Raises:
      FileError: the file is missing, or of a schema that this version does not know.
      CorruptFile: the file is damaged, or is not an optimizer state.
    """
    file = read_safetensors(path)
    if _KEY not in file.metadata:
        raise CorruptFile(f"{path} is not an optimizer state: its header has no '{_KEY}' entry")
    record = loads(file.metadata[_KEY], "optimizer metadata")
    check_schema(record, "optimizer state", SCHEMA)
    fields = Fields(record, "optimizer state")
    slots: dict[str, dict[str, ir.TensorProtocol]] = {slot: {} for slot in fields.texts("slots")}
    for key, tensor in file.tensors.items():
        slot, _, name = key.partition("/")
        if slot not in slots or not name:
            raise CorruptFile(f"{path}: '{key}' is not named after a slot and a parameter")
        slots[slot][name] = tensor
    kind, steps = fields.text("kind"), _steps(fields.mapping("steps"))
    items = fields.items("groups")
    fields.done(ignore=("schema",))
    try:
        return OptimizerState(kind, slots, steps, tuple(_group(item) for item in items))
    except ArgumentError as error:
        raise CorruptFile(f"{path}: {error.message}") from error


def _steps(record: Mapping[str, Json]) -> dict[str, float]:
    steps = {}
    for name, value in record.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise CorruptFile(f"the optimizer's step count of '{name}' is not a number: {value!r}")
        steps[name] = float(value)
    return steps


def _group(record: Json) -> ParamGroup:
    fields = Fields(record, "parameter group")
    group = ParamGroup(fields.texts("parameters"), fields.mapping("hyper"))
    fields.done()
    return group
