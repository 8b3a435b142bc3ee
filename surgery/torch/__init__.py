"""Training and surgery meet here: graphs as trainable modules, and surgery on modules that are being trained."""

from __future__ import annotations

from surgery.errors import MissingDependency

try:
    import torch  # noqa: F401
except ImportError as error:
    raise MissingDependency("this needs PyTorch", hint="pip install 'policy-surgery[torch]'") from error

from surgery.torch.module import to_module

__all__ = ["to_module"]
