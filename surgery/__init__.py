"""Change the architecture of a trained agent while keeping its outputs and its optimizer state.

    checkpoint = surgery.load("agent.onnx")
    plan = surgery.widen(checkpoint, factor=2)        # a description; nothing has changed yet
    result = surgery.apply(plan, checkpoint)          # a new checkpoint, verified
    result.save("wide.onnx")

Every name here is imported on first use, so that `import surgery` loads neither numpy nor onnx.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.annotate import annotate as annotate
    from surgery.attach import attach as attach
    from surgery.checkpoint import Checkpoint as Checkpoint
    from surgery.difference import diff as diff
    from surgery.edits.plan import Plan as Plan
    from surgery.errors import SurgeryError as SurgeryError
    from surgery.graph.spaces import analyse as analyse
    from surgery.operate import Result as Result
    from surgery.operate import apply as apply
    from surgery.ops.actions import NewAction as NewAction
    from surgery.ops.adapt import adapt as adapt
    from surgery.ops.batchnorm import fold_batchnorm as fold_batchnorm
    from surgery.ops.batchnorm import unfold_batchnorm as unfold_batchnorm
    from surgery.ops.deepen import deepen as deepen
    from surgery.ops.extend import NewObservation as NewObservation
    from surgery.ops.extend import extend as extend
    from surgery.ops.features import Retired as Retired
    from surgery.ops.features import reorder as reorder
    from surgery.ops.features import retire as retire
    from surgery.ops.invert import invert as invert
    from surgery.ops.kernel import grow_kernel as grow_kernel
    from surgery.ops.narrow import narrow as narrow
    from surgery.ops.permute import permute as permute
    from surgery.ops.rename import rename as rename
    from surgery.ops.split_fused import split_fused as split_fused
    from surgery.ops.swap_optimizer import swap_optimizer as swap_optimizer
    from surgery.ops.untie import untie as untie
    from surgery.ops.widen import widen as widen
    from surgery.recipe import recipe as recipe
    from surgery.route import migrate as migrate
    from surgery.sidecar import finish as finish
    from surgery.sidecar import sidecar as sidecar
    from surgery.storage import load as load
    from surgery.storage import save as save
    from surgery.verify import Report as Report
    from surgery.verify import verify as verify

    __version__: str

_HOMES = {
    "Checkpoint": "surgery.checkpoint",
    "NewAction": "surgery.ops.actions",
    "NewObservation": "surgery.ops.extend",
    "Plan": "surgery.edits.plan",
    "Report": "surgery.verify",
    "Result": "surgery.operate",
    "Retired": "surgery.ops.features",
    "SurgeryError": "surgery.errors",
    "adapt": "surgery.ops.adapt",
    "analyse": "surgery.graph.spaces",
    "annotate": "surgery.annotate",
    "apply": "surgery.operate",
    "attach": "surgery.attach",
    "deepen": "surgery.ops.deepen",
    "diff": "surgery.difference",
    "extend": "surgery.ops.extend",
    "finish": "surgery.sidecar",
    "grow_kernel": "surgery.ops.kernel",
    "invert": "surgery.ops.invert",
    "load": "surgery.storage",
    "narrow": "surgery.ops.narrow",
    "migrate": "surgery.route",
    "recipe": "surgery.recipe",
    "reorder": "surgery.ops.features",
    "retire": "surgery.ops.features",
    "save": "surgery.storage",
    "sidecar": "surgery.sidecar",
    "split_fused": "surgery.ops.split_fused",
    "swap_optimizer": "surgery.ops.swap_optimizer",
    "verify": "surgery.verify",
    "permute": "surgery.ops.permute",
    "rename": "surgery.ops.rename",
    "fold_batchnorm": "surgery.ops.batchnorm",
    "unfold_batchnorm": "surgery.ops.batchnorm",
    "untie": "surgery.ops.untie",
    "widen": "surgery.ops.widen",
}

_PARTS = ("architectures", "compare", "distill", "envs", "evaluate", "interface", "policy", "replay", "torch")
"""Packages that are used by their own names: `surgery.torch.operate`."""

_NAMING = {
    "deepen": "after",
    "fold_batchnorm": "layer",
    "grow_kernel": "sizes",
    "narrow": "widths",
    "permute": "orders",
    "unfold_batchnorm": "layer",
    "widen": "widths",
}
"""Functions that take names of spaces or layers, those of a recognised architecture too, and where."""

__all__ = [
    "Checkpoint",
    "NewAction",
    "NewObservation",
    "Plan",
    "Report",
    "Result",
    "Retired",
    "SurgeryError",
    "__version__",
    "adapt",
    "analyse",
    "annotate",
    "apply",
    "attach",
    "deepen",
    "diff",
    "extend",
    "finish",
    "fold_batchnorm",
    "grow_kernel",
    "invert",
    "load",
    "migrate",
    "narrow",
    "permute",
    "recipe",
    "rename",
    "reorder",
    "retire",
    "save",
    "sidecar",
    "split_fused",
    "swap_optimizer",
    "unfold_batchnorm",
    "untie",
    "verify",
    "widen",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("policy-surgery")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        if name in _NAMING:
            value = import_module("surgery.aliases").aliased(value, _NAMING[name])
        if isinstance(value, FunctionType):
            value = import_module("surgery.arguments").checked(value)
    elif name in _PARTS:
        return import_module(f"surgery.{name}")
    else:
        raise AttributeError(f"module 'surgery' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PARTS})


class _Facade(ModuleType):
    """Keeps `surgery.verify` the function when the import system binds the submodule of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Facade
