"""The optimizers of a saved model, and which parameters each of them trains: told by the names in `policy.pth`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.errors import Refused
from surgery.json_values import Json, thaw
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import slots_of
from surgery_adapters.containers.pickle_tree import Name
from surgery_adapters.containers.torch_patch import Content, changes, rewritten
from surgery_adapters.networks.trained import Trained, joined
from surgery_adapters.sb3.file import Sb3File
from surgery_adapters.writeback.matching import followed
from surgery_adapters.writeback.sequences import HINT, Numbering
from surgery_adapters.writeback.torch_tree import MADE_WITH, Revision, revise

TF_LIKE = Name("stable_baselines3.common.sb2_compat.rmsprop_tf_like", "RMSpropTFLike")
"""The framework's own RMSProp, with ε inside the root, whose squares start at one."""
_TF_LIKE: Mapping[str, bool] = {"eps_inside_root": True, "starts_at_one": True}

_CLASSES: Mapping[str, Name] = {
    "adam": Name("torch.optim.adam", "Adam"), "adamw": Name("torch.optim.adamw", "AdamW"),
    "rmsprop": Name("torch.optim.rmsprop", "RMSprop"), "sgd": Name("torch.optim.sgd", "SGD"),
}  # fmt: skip


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
    return joined(trained(file).values())


def _bound(file: Sb3File, name: str, prefixes: tuple[str, ...]) -> Trained:
    choices: list[dict[str, ir.TensorProtocol]] = [
        {key: tensor for key, tensor in file.policy.items() if key.startswith(prefix)} for prefix in prefixes
    ]
    # a critic that shares the actor's features extractor does not train it (sac/sac.py)
    choices.append({key: tensor for key, tensor in choices[0].items() if "features_extractor" not in key})
    bound = Trained.bind(name, file.state(f"{name}.pth"), choices)
    if str(file.kwargs.get("optimizer_class", "")) == str(TF_LIKE):
        groups = [{**group, **_TF_LIKE} for group in bound.record.groups]
        return replace(bound, record=replace(bound.record, groups=groups))
    return bound


@dataclass(frozen=True)
class Revised:
    """One optimizer of the file, and how it becomes that of a checkpoint."""

    trained: Trained
    revision: Revision


def revised(file: Sb3File, checkpoint: Checkpoint, numbering: Numbering) -> dict[str, Revised]:
    """How every optimizer of the file becomes that of a checkpoint.

    Raises:
      Refused: the checkpoint has no optimizer state, or one that the file cannot hold.
    """
    found = {}
    for name, optimizer in trained(file).items():
        state = followed(checkpoint.optimizer)
        conventions = tuple(_TF_LIKE) if state.kind == "rmsprop" else ()
        found[name] = Revised(
            optimizer,
            revise(
                optimizer.record, optimizer.places, state, numbering, file.policy, conventions=conventions
            ),
        )
    return found


def members(file: Sb3File, found: Mapping[str, Revised], state: OptimizerState | None) -> dict[str, Content]:
    """The members of the optimizers that change."""
    changed: dict[str, Content] = {}
    for name, item in found.items():
        assert state is not None  # else `revised` has refused
        old, revision = item.trained.state, item.revision
        replaced = {} if revision.swapped else changes(slots_of(old), slots_of(state, like=old))
        edit = revision.edit(state) if revision.needed else None
        if replaced or edit is not None:
            changed[f"{name}.pth"] = rewritten(file.archive(f"{name}.pth"), replaced, edit)
    return changed


def settings(
    file: Sb3File, found: Mapping[str, Revised], state: OptimizerState | None
) -> tuple[dict[str, object], float | None]:
    """`policy_kwargs` with which the framework makes such optimizers, and the learning rate if it is another.

    Raises:
      Refused: several settings where the framework has one, or a schedule that is a function.
    """
    hypers = [hyper for item in found.values() for hyper in item.revision.settings if hyper is not None]
    if not hypers or state is None:
        return {}, None
    if any(hyper != hypers[0] for hyper in hypers):
        raise Refused(
            "Stable-Baselines3 has one setting for all its optimizers, and theirs now differ",
            hint=f"one learning rate for all: --match all; or {HINT}",
        )
    if state.kind not in _CLASSES:
        raise Refused(f"there is no rule for writing an optimizer of the kind '{state.kind}'", hint=HINT)
    inside = any(group.hyper.get("eps_inside_root") for group in state.groups)
    chosen = {key: thaw(hypers[0][key]) for key in MADE_WITH[state.kind] if key in hypers[0]}
    if isinstance(betas := chosen.get("betas"), list):
        chosen["betas"] = tuple(betas)
    kwargs = {"optimizer_class": TF_LIKE if inside else _CLASSES[state.kind], "optimizer_kwargs": chosen}
    before = next(iter(found.values())).trained.state.groups[0].hyper.get("lr")
    return kwargs, _rate(file, before, hypers[0]["lr"])


def _rate(file: Sb3File, before: Json, after: Json) -> float | None:
    """The learning rate, which the framework sets anew before every update; None if it stays."""
    if before == after or not isinstance(after, int | float):
        return None
    if not isinstance(file.data.get("learning_rate"), int | float):
        raise Refused(
            f"the learning rate of the file is a schedule, a function that cannot go from {before} to {after:.3g}",
            hint="leave it as it is: --match none, and no --set lr",
        )
    return float(after)
