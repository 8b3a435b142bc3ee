"""An optimizer of Keras 3 under the names of the variables that it trains.

The file has its variables in the order in which its code makes them (keras/src/optimizers/): the iteration, the
learning rate (unless it is a schedule), and what is kept of each trained variable, in the order of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.errors import WITHOUT_OPTIMIZER, ArgumentError, Refused
from surgery.json_values import Json
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.parameter_order import number
from surgery.tensors import shape_of
from surgery_adapters.keras.config import Layer, as_written, trainable
from surgery_adapters.keras.file import OPTIMIZER, KerasFile
from surgery_adapters.keras.optimizer_record import keras_optimizer
from surgery_adapters.writeback.matching import followed

_LEAVE_OUT = f"leave it out: {WITHOUT_OPTIMIZER}"


def load(file: KerasFile) -> OptimizerState | None:
    """The state; None if the file has none, or one that has not been used.

    Raises:
      Refused: an optimizer without rules. ArgumentError: its variables do not fit those of the model.
    """
    with as_written():
        return _load(file)


def _load(file: KerasFile) -> OptimizerState | None:
    slots = places(file)
    if slots is None:
        return None
    names = list(dict.fromkeys(name for members in slots.values() for name in members)) or trainable(
        file.model
    )
    steps = number(file.stored[f"{OPTIMIZER}0"], "the optimizer's iteration")
    kind, hyper = _settings(file)
    tensors = {
        slot: {name: file.stored[place] for name, place in members.items()} for slot, members in slots.items()
    }
    return OptimizerState(kind, tensors, dict.fromkeys(names, steps), (ParamGroup(tuple(names), hyper),))


def places(file: KerasFile) -> dict[str, dict[str, str]] | None:
    """Slot -> name of a variable -> the dataset in which it is kept; None if there is no state."""
    if f"{OPTIMIZER}0" not in file.stored:
        return None
    kind, config = _kind(file), _config(file)
    names = [name for name in trainable(file.model) if name in file.places]
    at = 1 + isinstance(config.get("learning_rate"), int | float)
    found: dict[str, dict[str, str]] = {}
    for group in _layout(kind, config):
        for name in names:
            for slot in group:
                found.setdefault(slot, {})[name] = f"{OPTIMIZER}{at}"
                at += 1
    total = sum(place.startswith(OPTIMIZER) for place in file.stored)
    if total <= 2:
        return None  # compiled, and never trained
    if total != at:
        raise ArgumentError(
            f"the file has {total} variables of the optimizer {kind}, {len(names)} trained variables ask for {at}",
            hint=_LEAVE_OUT,
        )
    for slot, members in found.items():
        for name, place in members.items():
            had, wanted = shape_of(file.stored[place]), shape_of(file.stored[file.places[name]])
            if had != wanted:
                raise ArgumentError(
                    f"the optimizer's {slot} of '{name}' is {list(had)}, the variable is {list(wanted)}",
                    hint=_LEAVE_OUT,
                )
    return found


def changed(file: KerasFile, state: OptimizerState | None) -> dict[str, ir.TensorProtocol]:
    """Dataset -> tensor for all that is kept of a model's variables.

    Raises:
      Refused: the checkpoint's state is none that the file's optimizer could hold.
    """
    where, old = places(file), load(file)
    if where is None or old is None:
        return {}
    state = followed(state)
    if state.kind != old.kind or set(state.slots) != set(old.slots):
        raise Refused(
            f"the file's optimizer is {old.kind} with {', '.join(old.slots) or 'nothing'}, "
            f"the checkpoint's {state.kind} with {', '.join(state.slots)}: one cannot be written over the other",
            hint="an .onnx can have any optimizer state beside it: -o OUT.onnx",
        )
    return {
        place: state.slots[slot][name]
        for slot, members in where.items()
        for name, place in members.items()
        if name in state.slots[slot]
    }


def rebuilt(
    file: KerasFile, model: Layer, names: Collection[str], state: OptimizerState | None
) -> tuple[dict[str, ir.TensorProtocol], dict[str, Any] | None]:
    """All that is kept of an optimizer whose variables are others, of new layers or of another kind.

    Args:
      model: the layers, as they will be. names: of their variables. state: what is to be remembered.

    Returns:
      dataset -> tensor, none if the file has no state; and what the configuration says of an optimizer of another kind.

    Raises:
      Refused: an optimizer that Keras does not have.
    """
    if (old := load(file)) is None:
        return {}, None
    state, config = followed(state), _config(file)
    record = keras_optimizer(state) if state.kind != old.kind else None
    settings = config if record is None else record["config"]
    iteration = file.stored[f"{OPTIMIZER}0"]
    steps = max(state.steps.values(), default=0.0)  # Keras keeps one count for all
    found: dict[str, ir.TensorProtocol] = {
        f"{OPTIMIZER}0": ir.Tensor(np.asarray(steps, iteration.dtype.numpy()))
    }
    if record is not None:
        found[f"{OPTIMIZER}1"] = ir.Tensor(np.asarray(settings["learning_rate"], np.float32))
    elif isinstance(settings.get("learning_rate"), int | float):
        found[f"{OPTIMIZER}1"] = file.stored[f"{OPTIMIZER}1"]
    members = [name for name in trainable(model) if name in names]
    for group in _layout(state.kind, settings):
        for name in members:
            for slot in group:
                if name not in state.slots.get(slot, {}):
                    raise Refused(f"the optimizer's {slot} of '{name}' is missing", hint=_LEAVE_OUT)
                found[f"{OPTIMIZER}{len(found)}"] = state.slots[slot][name]
    return found, record


def _config(file: KerasFile) -> Mapping[str, Any]:
    record = (file.config.get("compile_config") or {}).get("optimizer")
    if not isinstance(record, Mapping) or not isinstance(record.get("config"), Mapping):
        raise Refused(
            "the file has the state of an optimizer, but does not name the optimizer", hint=_LEAVE_OUT
        )
    return {**record["config"], "class": str(record.get("class_name"))}


def _kind(file: KerasFile) -> str:
    config = _config(file)
    kinds = {"Adam": "adam", "AdamW": "adamw", "RMSprop": "rmsprop", "SGD": "sgd", "Adagrad": "adagrad",
             "Adadelta": "adadelta", "Adamax": "adamax"}  # fmt: skip
    name = config["class"]
    if name not in kinds:
        raise Refused(f"there is no rule for the optimizer {name}", hint=_LEAVE_OUT)
    for setting in ("use_ema", "gradient_accumulation_steps", "loss_scale_factor"):
        if config.get(setting):
            raise Refused(f"there is no rule for an optimizer with {setting}", hint=_LEAVE_OUT)
    return kinds[name]


def _layout(kind: str, config: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """Slots as they follow each other: those of a group for one variable after the other."""
    if kind in ("adam", "adamw"):
        return [("exp_avg", "exp_avg_sq"), *([("max_exp_avg_sq",)] if config.get("amsgrad") else [])]
    if kind == "rmsprop":
        more = {"momentum_buffer": config.get("momentum"), "grad_avg": config.get("centered")}
        return [("square_avg",), *((slot,) for slot, wanted in more.items() if wanted)]
    if kind == "sgd":
        return [("momentum_buffer",)] if config.get("momentum") else []
    others: Mapping[str, Sequence[tuple[str, ...]]] = {
        "adagrad": [("sum",)],
        "adadelta": [("square_avg", "acc_delta")],
        "adamax": [("exp_avg", "exp_inf")],
    }
    return others[kind]


def _settings(file: KerasFile) -> tuple[str, dict[str, Json]]:
    """The kind, and the settings under their usual names."""
    kind, config = _kind(file), _config(file)
    rate = config.get("learning_rate")
    stored = file.stored.get(f"{OPTIMIZER}1")
    hyper: dict[str, Json] = {"lr": None if stored is None else float(np.ravel(stored.numpy())[0])}
    if not isinstance(rate, int | float):
        hyper = {"lr": None}  # a schedule
    hyper["weight_decay"] = config.get("weight_decay") or 0.0
    if "epsilon" in config:
        hyper["eps"] = config["epsilon"]
    if kind in ("adam", "adamw", "adamax"):
        hyper["betas"] = [config["beta_1"], config["beta_2"]]
        hyper["amsgrad"] = bool(config.get("amsgrad"))
    if kind == "rmsprop":
        hyper |= {
            "alpha": config["rho"],
            "momentum": config["momentum"],
            "centered": bool(config["centered"]),
        }
        hyper |= {"eps_inside_root": True, "buffer_holds_lr": True}
    if kind == "sgd":
        hyper |= {
            "momentum": config["momentum"],
            "nesterov": bool(config["nesterov"]),
            "buffer_holds_lr": True,
        }
    if kind == "adadelta":
        hyper["rho"] = config["rho"]
    return kind, hyper
