"""What follows in the configuration of a file when its optimizers are of another kind, or have other settings."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.errors import Refused
from surgery.json_values import Json
from surgery_adapters.writeback.sequences import HINT
from surgery_adapters.writeback.torch_tree import Revision

_ADAM = ("betas", "eps", "weight_decay", "amsgrad")
FACTORIES: Mapping[str, tuple[str, Sequence[str]]] = {
    "adam": ("adam", _ADAM),
    "adamw": ("adam_w", _ADAM),
    "rmsprop": ("rmsprop", ("alpha", "eps", "weight_decay", "momentum", "centered")),
    "sgd": ("sgd", ("momentum", "dampening", "weight_decay", "nesterov")),
}
"""Kind -> the framework's factory, and the settings that it has (d3rlpy/optimizers/optimizers.py, 2.8)."""
_KEPT = ("clip_grad_norm", "lr_scheduler_factory")


def with_optimizers(
    config: Mapping[str, Any], revisions: Mapping[str, Revision], kind: str
) -> dict[str, Any]:
    """The configuration as it must be for the framework to make the changed optimizers.

    Args:
      config: with everything else that follows. revisions: how the optimizers change, by their names in the file.
      kind: of the checkpoint's.

    Raises:
      Refused: settings that no configuration can express.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    params = changed["config"]["params"]
    for name, revision in revisions.items():
        if not revision.swapped and not any(revision.settings):
            continue
        key = f"{name}_factory"
        old = params.get(key)
        if kind not in FACTORIES or not isinstance(old, dict):
            raise Refused(f"d3rlpy has no factory that makes the optimizer '{kind}'", hint=HINT)
        scheduler = (old.get("params") or {}).get("lr_scheduler_factory") or {}
        if scheduler.get("type", "none") != "none":
            raise Refused(f"the schedule of '{name}' is made for the optimizer that the file has", hint=HINT)
        settings = revision.common("d3rlpy", name)
        factory, names = FACTORIES[kind]
        kept = {setting: value for setting, value in (old.get("params") or {}).items() if setting in _KEPT}
        params[key] = {
            "type": factory,
            "params": {**kept, **{n: _plain(settings[n]) for n in names if n in settings}},
        }
        params[name.replace("optim", "learning_rate")] = settings["lr"]
    return changed


def _plain(value: Json) -> Any:  # noqa: ANN401
    return list(value) if isinstance(value, tuple) else value
