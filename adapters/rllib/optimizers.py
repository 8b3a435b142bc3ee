"""The optimizers of an RLlib folder: which parameters each trains, and what follows when they are others.

The framework's learners make Adam in their code; its configuration has a learning rate, and the class of the learner.
A folder with another kind names a learner of `learners.py`, which makes what `learner_config_dict` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from surgery.errors import WITHOUT_OPTIMIZER, Refused
from surgery.json_values import Json, thaw
from surgery.optimizer import OptimizerState
from surgery_adapters.containers.pickle_tree import Name, walk
from surgery_adapters.networks.trained import Trained
from surgery_adapters.rllib.folder import RllibFolder, plain
from surgery_adapters.rllib.networks import CLIPS, Networks
from surgery_adapters.writeback.sequences import HINT
from surgery_adapters.writeback.torch_tree import MADE_WITH, Revision

TEMPERATURE = "alpha"
"""SAC's optimizer of one number, which is no part of any network."""
SETTING = "surgery_optimizer"
"""In `learner_config_dict`: kind and settings of the networks' optimizers."""
_LEARNERS = "surgery_adapters.rllib.learners"
_COMPONENT = "learner_group/learner/class_and_ctor_args.pkl"
_OURS = ("PPO", "IMPALA", "APPO", "DQN", "SAC")
_RATES: Mapping[str, str] = {"policy": "actor_lr", "qf": "critic_lr", "qf_twin": "critic_lr"}
"""Optimizer -> its learning rate in the configuration; `lr` of all others."""


def trained(folder: RllibFolder, networks: Networks) -> dict[str, Trained]:
    """The optimizers of networks, by name; that of a temperature is carried.

    Raises:
      Refused: an optimizer that trains what no network has.
    """
    if unknown := set(folder.optimizers) - set(networks.scopes) - {TEMPERATURE}:
        raise Refused(
            f"there is no rule for what the optimizers {', '.join(sorted(unknown))} train",
            hint=f"read the checkpoint without them: {WITHOUT_OPTIMIZER}",
        )
    return {
        name: _bound(folder, name, networks.scopes[name])
        for name in networks.scopes
        if name in folder.optimizers
    }


def _bound(folder: RllibFolder, name: str, prefixes: tuple[str, ...]) -> Trained:
    scope = {
        key: folder.tensors[key]
        for prefix in prefixes
        for key in folder.tensors
        if key.startswith(prefix) and not key.endswith(CLIPS)
    }
    state = plain(folder.optimizers[name])
    assert isinstance(state, dict)
    return Trained.bind(name, state, [scope])


def follow(
    folder: RllibFolder,
    before: Mapping[str, Trained],
    revisions: Mapping[str, Revision],
    state: OptimizerState,
) -> list[str]:
    """Change the configuration so that the framework makes the changed optimizers, in place.

    Args:
      before: the optimizers as they are. revisions: how they change. state: of the checkpoint.

    Returns:
      the pickles that are others now.

    Raises:
      Refused: settings that no configuration can express.
    """
    changed = {name: revision for name, revision in revisions.items() if any(revision.settings)}
    if not changed:
        return []
    settings = {name: revision.common("RLlib", name) for name, revision in changed.items()}
    rates = {
        name: found["lr"]
        for name, found in settings.items()
        if found["lr"] != before[name].state.groups[0].hyper.get("lr")
    }
    touched = []
    for name in folder.files():
        found = list(_configurations(folder, name)) if name.endswith("class_and_ctor_args.pkl") else []
        for config in found:
            _rates(config, rates)
            if (
                any(revision.swapped for revision in changed.values())
                or SETTING in config["learner_config_dict"]
            ):
                _learner(folder, config, settings, state.kind)
        touched += [name] if found else []
    _component(folder)
    return touched


def _component(folder: RllibFolder) -> None:
    """Name the learner that the configuration names as the class of the folder's learner, too."""
    root, own = folder.tree(_COMPONENT).root, folder.algorithm.get("_learner_class")
    if isinstance(own, Name) and own.module == _LEARNERS:
        root["class"] = own


def _configurations(folder: RllibFolder, name: str) -> Iterator[dict[Any, Any]]:
    """The algorithm's configuration, wherever it stands in a pickle."""
    for node in walk(folder.tree(name).root):
        if isinstance(node, dict) and isinstance(node.get("learner_config_dict"), dict):
            yield node


def _rates(config: dict[Any, Any], rates: Mapping[str, Json]) -> None:
    """Change the learning rates of optimizers, which the framework sets before every update."""
    for name, rate in rates.items():
        key = _RATES.get(name, "lr")
        if not isinstance(config.get(key), int | float):
            raise Refused(
                f"the folder's '{key}' is a schedule, which cannot become {rate:.3g}",
                hint="leave it as it is: --match none",
            )
        config[key] = rate


def _learner(
    folder: RllibFolder, config: dict[Any, Any], settings: Mapping[str, Mapping[str, Json]], kind: str
) -> None:
    """Name the learner that makes such optimizers.

    Raises:
      Refused: a kind or settings that it does not make, or an algorithm that it is not for.
    """
    own, algorithm = config.get("_learner_class"), folder.tree("class_and_ctor_args.pkl").root["class"]
    if own is not None and getattr(own, "module", "") != _LEARNERS:
        return  # the user's own, whose code makes the optimizer
    chosen = [
        {key: thaw(found[key]) for key in MADE_WITH.get(kind, ()) if key in found}
        for found in settings.values()
    ]
    if kind not in MADE_WITH or any(other != chosen[0] for other in chosen):
        raise Refused(f"no learner makes '{kind}' with several settings", hint=HINT)
    if not isinstance(algorithm, Name) or algorithm.name not in _OURS:
        raise Refused(
            f"RLlib's learners make Adam in their code, and '{algorithm}' has one of its own",
            hint=f"override its register_optimizer as {_LEARNERS} does, and name it: "
            f"config.learners(learner_class=…); or {HINT}",
        )
    config["_learner_class"] = Name(_LEARNERS, algorithm.name)
    config["learner_config_dict"][SETTING] = {"kind": kind, **chosen[0]}
