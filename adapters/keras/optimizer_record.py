"""An optimizer of another kind as Keras writes it into a configuration."""

from __future__ import annotations

from typing import Any

from surgery.errors import Refused
from surgery.json_values import thaw
from surgery.optimizer import OptimizerState

_GRAPH = "an .onnx can have any optimizer state beside it: -o OUT.onnx"
_CLASSES = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}


def keras_optimizer(state: OptimizerState) -> dict[str, Any]:
    """The entry of `compile_config` for an optimizer that steps as a state says.

    Raises:
      Refused: Keras has none that does.
    """
    settings: list[Any] = [thaw(group.hyper) for group in state.groups if group.parameters]
    if any(other != settings[0] for other in settings[1:]):
        raise Refused("Keras has one learning rate for all variables", hint="--match all, or --match none")
    hyper: dict[str, Any] = dict(settings[0])
    if state.kind not in _CLASSES:
        why = {"rmsprop": ": its RMSprop has ε inside the root, which makes other steps"}.get(state.kind, "")
        raise Refused(f"Keras has no optimizer that steps as this {state.kind} does{why}", hint=_GRAPH)
    decay = hyper.get("weight_decay") or 0.0
    if decay and state.kind != "adamw":
        raise Refused(
            "weight decay is taken from the weights in Keras, and from the gradients here", hint=_GRAPH
        )
    if state.kind == "sgd" and hyper.get("momentum"):
        raise Refused(
            "Keras's momentum keeps whole steps, and this one gradients", hint=f"--set momentum=0; {_GRAPH}"
        )
    config: dict[str, Any] = {
        "name": state.kind, "learning_rate": hyper["lr"], "weight_decay": None, "clipnorm": None,
        "global_clipnorm": None, "clipvalue": None, "use_ema": False, "ema_momentum": 0.99,
        "ema_overwrite_frequency": None, "loss_scale_factor": None, "gradient_accumulation_steps": None,
    }  # fmt: skip
    if state.kind == "adamw":
        config["weight_decay"] = float(decay)
    if state.kind == "sgd":
        config |= {"momentum": 0.0, "nesterov": False}
    else:
        first, second = hyper["betas"]
        config |= {
            "beta_1": first,
            "beta_2": second,
            "epsilon": hyper["eps"],
            "amsgrad": bool(hyper.get("amsgrad")),
        }
    name = _CLASSES[state.kind]
    return {"module": "keras.optimizers", "class_name": name, "config": config, "registered_name": None}
