"""Training and surgery meet here: graphs as trainable modules, and surgery on modules and optimizers that are in use.

Every name is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from surgery.errors import MissingDependency

if TYPE_CHECKING:
    from surgery.torch.module import to_module as to_module
    from surgery.torch.swap import swap_optimizer as swap_optimizer

_HOMES = {
    "swap_optimizer": "surgery.torch.swap",
    "to_module": "surgery.torch.module",
}

__all__ = ["swap_optimizer", "to_module"]


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
