"""Weights in half precision: all of them cast at once, where autocast casts one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Halves:
    """A module under autocast, its weights cast by one kernel a pass, and their gradients by another one.

    Autocast has a kernel for every weight in every pass, and for every gradient: of the 294 kernels of a gradient step
    of IMPALA these are 102, and on a GPU many a small kernel takes as long as one that computes. Rounded is what
    autocast rounds, and the same way. What is used otherwise too (noisy layers, recurrent cells) is left to it.

    Args:
      module: called under autocast only; its first call finds out which weights are cast.
      dtype: that of autocast.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype
        self._cast: list[tuple[dict[str, Any], str]] | None = None

    def __call__(self, *inputs: Tensor) -> Any:  # noqa: ANN401
        """What the module gives."""
        if self._cast is None:
            return self._watched(inputs)
        weights = [table[name] for table, name in self._cast]
        if not weights:
            return self._module(*inputs)
        try:
            halves = _Cast.apply(self._dtype, *weights)  # type: ignore[no-untyped-call]
            for (table, name), half in zip(self._cast, halves, strict=True):
                table[name] = half
            return self._module(*inputs)
        finally:
            for (table, name), weight in zip(self._cast, weights, strict=True):
                table[name] = weight

    def _watched(self, inputs: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
        with _Uses(self._dtype) as uses:
            found = self._module(*inputs)
        self._cast = [
            (part._parameters, name)
            for part in self._module.modules()
            for name, weight in part._parameters.items()
            if id(weight) in uses.cast - uses.other
        ]
        return found


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which tensors are cast to a type, and which are used otherwise: their ids."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype
        self.cast: set[int] = set()
        self.other: set[int] = set()

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        given = {id(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        casts = kernel is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == self._dtype
        (self.cast if casts else self.other).update(given)
        return kernel(*args, **(kwargs or {}))


class _Cast(torch.autograd.Function):
    """Tensors of one type as those of another, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.set_materialize_grads(False)
        ctx.dtype = weights[0].dtype
        return _copied(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        copies = iter(_copied([one for one in gradients if one is not None], ctx.dtype))
        return (None, *(None if one is None else next(copies) for one in gradients))


def _copied(tensors: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:  # noqa: ANN401
    copies = tuple(torch.empty_like(one, dtype=dtype) for one in tensors)
    torch._foreach_copy_(copies, tensors)
    return copies
