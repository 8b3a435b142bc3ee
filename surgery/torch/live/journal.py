"""Changes to live objects that can be taken back: all of them happen, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

_ABSENT = object()


class Journal:
    """Changes things, and knows how to undo every change."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def data(self, tensor: Tensor, new: Tensor) -> None:
        """Give a tensor other numbers, in another shape; it stays the same object, with its hooks."""
        self.no_gradient(tensor)
        old = tensor.data
        self._undo.append(lambda: _set(tensor, old))
        _set(tensor, new)

    def no_gradient(self, tensor: Tensor) -> None:
        """tensor.grad = None."""
        old = tensor.grad
        self._undo.append(lambda: setattr(tensor, "grad", old))
        tensor.grad = None

    def item(self, mapping: MutableMapping[Any, Any], key: Any, new: Any) -> None:  # noqa: ANN401
        """mapping[key] = new."""
        old = mapping.get(key, _ABSENT)

        def back() -> None:
            if old is _ABSENT:
                mapping.pop(key, None)
            else:
                mapping[key] = old

        self._undo.append(back)
        mapping[key] = new

    def attribute(self, owner: object, name: str, new: Any) -> None:  # noqa: ANN401
        """owner.name = new."""
        old = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, old))
        setattr(owner, name, new)

    def contents(self, sequence: list[Any], new: list[Any]) -> None:
        """A list with other members; it stays the same object."""
        old = list(sequence)
        self._undo.append(lambda: sequence.__setitem__(slice(None), old))
        sequence[:] = new

    def hook(self, handle: RemovableHandle) -> None:
        """A hook that was registered."""
        self._undo.append(handle.remove)

    def back(self) -> None:
        """Undo everything, the last change first."""
        while self._undo:
            self._undo.pop()()


def _set(tensor: Tensor, data: Tensor) -> None:
    if tensor.shape != data.shape:
        # Autograd keeps a node for the parameter as long as someone refers to it, and with it the old shape. It lets
        # go when the type changes, and only then.
        other = torch.float16 if data.dtype != torch.float16 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data


@contextlib.contextmanager
def all_or_nothing() -> Iterator[Journal]:
    """A journal whose changes are undone when the block fails, whatever the reason."""
    journal = Journal()
    try:
        with torch.no_grad():
            yield journal
    except BaseException:
        with torch.no_grad():
            journal.back()
        raise
