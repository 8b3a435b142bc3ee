"""Training and surgery meet here: graphs as trainable modules, and surgery on modules and optimizers that are in use.

Every name is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from surgery.errors import MissingDependency

if TYPE_CHECKING:
    from surgery.torch.code import code as code
    from surgery.torch.export import from_module as from_module
    from surgery.torch.export import from_program as from_program
    from surgery.torch.live.operate import operate as operate
    from surgery.torch.live.report import Operation as Operation
    from surgery.torch.live.states import grow_states as grow_states
    from surgery.torch.module import to_module as to_module
    from surgery.torch.optimizer_state import load_optimizer as load_optimizer
    from surgery.torch.optimizer_state import read_optimizer as read_optimizer
    from surgery.torch.settle import settle as settle
    from surgery.torch.settle_moments import warm_moments as warm_moments
    from surgery.torch.swap import swap_optimizer as swap_optimizer
    from surgery.torch.trajectory.breaking import break_symmetry as break_symmetry
    from surgery.torch.trajectory.follow import Trajectory as Trajectory
    from surgery.torch.trajectory.follow import follow as follow

_HOMES = {
    "Operation": "surgery.torch.live.report",
    "Trajectory": "surgery.torch.trajectory.follow",
    "code": "surgery.torch.code",
    "break_symmetry": "surgery.torch.trajectory.breaking",
    "follow": "surgery.torch.trajectory.follow",
    "from_module": "surgery.torch.export",
    "from_program": "surgery.torch.export",
    "grow_states": "surgery.torch.live.states",
    "load_optimizer": "surgery.torch.optimizer_state",
    "operate": "surgery.torch.live.operate",
    "read_optimizer": "surgery.torch.optimizer_state",
    "settle": "surgery.torch.settle",
    "swap_optimizer": "surgery.torch.swap",
    "to_module": "surgery.torch.module",
    "warm_moments": "surgery.torch.settle_moments",
}

__all__ = [
    "Operation",
    "Trajectory",
    "break_symmetry",
    "code",
    "follow",
    "from_module",
    "from_program",
    "grow_states",
    "load_optimizer",
    "operate",
    "read_optimizer",
    "settle",
    "swap_optimizer",
    "to_module",
    "warm_moments",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgery.torch' has no attribute '{name}'")
    try:
        import_module("torch")
    except ImportError as error:
        raise MissingDependency("this needs PyTorch", hint="pip install 'policy-surgery[torch]'") from error
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
