"""The optimizers of a saved model, and which parameters each of them trains: told by the names in `policy.pth`."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import OptimizerRecord, merged
from surgery_adapters.sb3.file import Sb3File
from surgery_adapters.trained import Trained

TF_LIKE = "RMSpropTFLike"
"""The framework's own RMSProp, with ε inside the root, whose squares start at one."""


def scopes(names: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Optimizer -> the prefixes that its parameters may have, the likeliest first.

    Args:
      names: of the policy's parameters.
    """
    parts = {name.partition(".")[0] for name in names}
    for net in ("q_net", "quantile_net"):
        if net in parts:
            # before version 2.4 the target network was among the optimizer's parameters
            return {"policy.optimizer": (f"{net}.", "")}
    if {"actor", "critic"} <= parts:
        return {"actor.optimizer": ("actor.",), "critic.optimizer": ("critic.",)}
    return {"policy.optimizer": ("",)}


def trained(file: Sb3File) -> dict[str, Trained]:
    """The optimizers whose parameters the policy has, by name.

    Raises:
      CorruptFile, ArgumentError, Refused: their parameters cannot be told.
    """
    known = scopes(file.policy)
    return {name: _bound(file, name, known[name]) for name in known if name in file.optimizers}


def state_of(file: Sb3File) -> OptimizerState | None:
    """The state of all optimizers, by parameter name."""
    states = [optimizer.state for optimizer in trained(file).values()]
    return merged(states) if states else None


def _bound(file: Sb3File, name: str, prefixes: tuple[str, ...]) -> Trained:
    record = OptimizerRecord.parse(file.state(f"{name}.pth"))
    choices: list[dict[str, ir.TensorProtocol]] = [
        {key: tensor for key, tensor in file.policy.items() if key.startswith(prefix)} for prefix in prefixes
    ]
    # a critic that shares the actor's features extractor does not train it (sac/sac.py)
    choices.append({key: tensor for key, tensor in choices[0].items() if "features_extractor" not in key})
    try:
        places = record.bind(choices, None)
    except SurgeryError as error:
        raise error.within(optimizer=name) from error
    if str(file.kwargs.get("optimizer_class", "")).endswith(TF_LIKE):
        groups = [{**group, "eps_inside_root": True} for group in record.groups]
        record = OptimizerRecord(groups, record.numbers, record.states)
    return Trained(record, tuple(map(tuple, places)))
