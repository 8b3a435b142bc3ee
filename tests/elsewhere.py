"""A device that is not there: tensors that say they lie on it, whose numbers are the host's.

What runs there is what runs on a GPU, as far as places go: a kernel that is given tensors of both places is an error,
and so is a tensor of the device that is read as an array. Every wait for the device is counted: a number or an answer
read from it, a copy to the host, a copy that is not `non_blocking`, a kernel whose result's size depends on numbers.
While a step is `captured`, these are errors too, and so is any tensor of the host: a graph would freeze it.

PyTorch has one place for a device of one's own per process, for good: this is for processes of their own.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.elsewhere_cells import gru_cell, gru_cell_backward, lstm_cell, lstm_cell_backward

NAME = "elsewhere"
aten = torch.ops.aten
READING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.allclose.default,
}
SIZED = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.repeat_interleave.Tensor,
    aten.unique_dim.default, aten.unique_consecutive.default,
}  # fmt: skip
"""Kernels whose results have sizes that only the device knows."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
REPLACED = {
    aten._thnn_fused_gru_cell.default: gru_cell,
    aten._thnn_fused_gru_cell_backward.default: gru_cell_backward,
    aten._thnn_fused_lstm_cell.default: lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: lstm_cell_backward,
}
"""Kernels that a CPU does not have."""
TRAVELLING = {aten._to_copy.default, aten.copy_.default}


class Elsewhere(TorchDispatchMode):
    """The device, while it is entered.

    Attributes:
      waits: how often the device was waited for, by what.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._capturing = False

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """What a CUDA graph would record: nothing of the host, and no wait."""
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        wanted = kwargs.get("device")
        lands = None if wanted is None else torch.device(wanted).type == NAME
        if not (lands or any(isinstance(one, There) for one in given)):
            if self._capturing and given:
                raise RuntimeError(f"{kernel} runs on the host, and would not be in a graph")
            return kernel(*args, **kwargs)
        self._check(kernel, args, kwargs, given)
        if wanted is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
        found = REPLACED.get(kernel, kernel)(*plain_args, **plain_kwargs)
        if lands is False or kernel is aten.copy_.default:
            return args[0] if kernel is aten.copy_.default else found
        return tree_map(lambda one: _wrapped(one, given), found)

    def _check(self, kernel: Any, args: Any, kwargs: Mapping[str, Any], given: list[Tensor]) -> None:
        strangers = [one for one in given if not isinstance(one, There)]
        travels = kernel in TRAVELLING and (
            bool(strangers) or torch.device(kwargs.get("device") or NAME).type != NAME
        )
        if strangers and not travels:
            raise RuntimeError(f"{kernel} was given tensors of the host and of the device")
        waits = kernel in READING | SIZED or (kernel in INDEXING and _by_mask(args[1]))
        blocking = travels and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))
        if self._capturing and (waits or travels):
            raise RuntimeError(f"{kernel} is not permitted when a stream is capturing")
        if waits or blocking:
            self.waits[str(kernel)] += 1


class There(Tensor):
    """A tensor on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.held})"

    @classmethod
    def __torch_dispatch__(cls, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{kernel} runs where the device is not entered")


def _held(one: Any) -> Any:
    return one.held if isinstance(one, There) else one


def _wrapped(one: Any, given: list[Tensor]) -> Any:
    """What a kernel gave, on the device: the very tensor where it changed one in place."""
    if not isinstance(one, Tensor):
        return one
    return next((old for old in given if isinstance(old, There) and old.held is one), There(one))


def _by_mask(indices: Any) -> bool:
    return any(one.dtype in (torch.bool, torch.uint8) for one in indices if one is not None)


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> None:
    """Make the name of the device known to PyTorch. Autocast changes nothing on it."""
    backend_registration._setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _KEPT.append(library)
    _KEPT.append(_scalars_through_the_host())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.autograd.set_multithreading_enabled(False)  # a thread of its own would leave the mode behind


_KEPT: list[object] = []
"""A library is forgotten where nobody holds it."""


def _scalars_through_the_host() -> Callable[..., Tensor]:
    """`torch.tensor(…, device=…)` reaches no dispatch mode; it waits for the device as any such copy."""
    plain = torch.tensor

    def made(data: Any, *, device: Any = None, **given: Any) -> Tensor:
        found = plain(data, **given)
        return found if device is None else found.to(device)

    torch.tensor = made  # type: ignore[assignment]
    return plain
