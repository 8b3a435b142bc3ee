"""The slots of TensorFlow's optimizers in a checkpoint, by the parameter that their names hold.

`Saver` of TensorFlow 1 writes `NAME/RMSProp`, `NAME/RMSProp_1` … in the order in which an optimizer makes its slots;
checkpoints of objects write `NAME/.OPTIMIZER_SLOT/OPTIMIZER/rms`.
(tensorflow/python/training/rmsprop.py, adam.py, momentum.py; tensorflow/python/checkpoint)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from surgery.errors import WITHOUT_OPTIMIZER, Refused
from surgery.json_values import Json
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.tensors import shape_of
from surgery_adapters.containers.optax_state import Bound

Tensors = Mapping[str, ir.TensorProtocol]

_ORDERS: Mapping[str, tuple[str, Mapping[int, tuple[str, ...]]]] = {
    "Adam": ("adam", {2: ("exp_avg", "exp_avg_sq")}),
    "Momentum": ("sgd", {1: ("momentum_buffer",)}),
    "RMSProp": ("rmsprop", {2: ("square_avg", "momentum_buffer"), 3: ("square_avg", "grad_avg", "momentum_buffer")}),
}  # fmt: skip
"""Name -> kind, and the slots by how many there are: RMSProp has one more where it is centered."""
_OBJECTS: Mapping[str, tuple[str, str]] = {
    "m": ("adam", "exp_avg"),
    "v": ("adam", "exp_avg_sq"),
    "vhat": ("adam", "max_exp_avg_sq"),
    "rms": ("rmsprop", "square_avg"),
    "mg": ("rmsprop", "grad_avg"),
}
_MARK = "/.OPTIMIZER_SLOT/"
_CONVENTIONS: Mapping[str, Mapping[str, Json]] = {
    "rmsprop": {"eps_inside_root": True, "buffer_holds_lr": True},
}


def bind(tensors: Tensors, parameters: Iterable[str]) -> Bound | None:
    """The optimizer's state of some parameters; None if the file has none.

    Raises:
      Refused: slots of several kinds, or of a kind without rules.
    """
    known = list(parameters)
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    places: dict[str, str] = {}
    kinds: set[str] = set()
    for name in known:
        for slot, (kind, place) in {**_listed(tensors, name), **_objects(tensors, name)}.items():
            if shape_of(tensors[place]) != shape_of(tensors[name]):
                raise Refused(f"'{place}' does not have the shape of '{name}', whose slot it is")
            kinds.add(kind)
            slots.setdefault(slot, {})[name] = tensors[place]
            places[f"{slot}/{name}"] = place
    if not slots:
        return None
    if len(kinds) > 1:
        raise Refused(
            f"the file has slots of several optimizers: {', '.join(sorted(kinds))}",
            hint=f"read it without its optimizer: {WITHOUT_OPTIMIZER}",
        )
    kind = kinds.pop()
    members = tuple(name for name in known if any(name in slot for slot in slots.values()))
    return Bound(OptimizerState(kind, slots, {}, (ParamGroup(members, _CONVENTIONS.get(kind, {})),)), places)


def _listed(tensors: Tensors, name: str) -> dict[str, tuple[str, str]]:
    """Slot -> kind and place, where slots are told by their number."""
    for word, (kind, orders) in _ORDERS.items():
        ends = [f"/{name}/{word}" if k == 0 else f"/{name}/{word}_{k}" for k in range(3)]
        found = [next((key for key in tensors if f"/{key}".endswith(end)), None) for end in ends]
        present = [place for place in found if place is not None]
        if present:
            if len(present) not in orders:
                raise Refused(
                    f"'{name}' has {len(present)} slots of {word}, which such an optimizer never makes"
                )
            return {slot: (kind, place) for slot, place in zip(orders[len(present)], present, strict=True)}
    return {}


def _objects(tensors: Tensors, name: str) -> dict[str, tuple[str, str]]:
    """Slot -> kind and place, where slots have names."""
    found: dict[str, tuple[str, str]] = {}
    own = [key for key in tensors if key.startswith(f"{name}{_MARK}")]
    rms = any(key.endswith("/rms") for key in own)
    for key in own:
        word = key.rpartition("/")[2]
        if word == "momentum":
            found["momentum_buffer"] = ("rmsprop" if rms else "sgd", key)
        elif word in _OBJECTS:
            kind, slot = _OBJECTS[word]
            found[slot] = (kind, key)
        else:
            raise Refused(
                f"there is no rule for the optimizer's '{key}'",
                hint=f"leave it out: {WITHOUT_OPTIMIZER}",
            )
    return found
