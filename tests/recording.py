"""What a CUDA graph does, on the CPU: kernels and their arguments are recorded once and replayed as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default}
"""Kernels that wait for the device (`.item()`, `if tensor`), and numbers that would travel there (`torch.tensor`)."""


class Tape(TorchDispatchMode):
    """Every kernel that runs, with the very tensors and the Python numbers that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kernel in FORBIDDEN:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = kernel(*args, **(kwargs or {}))
        self.calls.append((kernel, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Run the kernels again; what they made goes where it went."""
        with torch.no_grad():
            for kernel, args, kwargs, out in self.calls:
                again = tree_leaves(kernel(*args, **kwargs))
                for place, new in zip(tree_leaves(out), again, strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != new.data_ptr():
                        place.copy_(new)


class Recording:
    """A `Recorder` on the CPU.

    As with CUDA graphs before PyTorch 2.13, what was recorded before a recording that fails cannot be replayed.

    Args:
      state: gives the tensors that a step changes; recording leaves them as they were, as capturing does.
      failing: which recordings fail in their last kernel, counted from 0.
    """

    def __init__(self, state: Callable[[], Sequence[Tensor]], *, failing: Sequence[int] = ()) -> None:
        self._state, self._failing, self._recordings, self.replays = state, failing, 0, 0
        self.failures = 0

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        return step()

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        before, random, tape = [one.clone() for one in self._state()], torch.get_rng_state(), Tape()
        try:
            with tape:
                output = step()
                if self._recordings in self._failing:
                    output.sum().item()
        except RuntimeError:
            self.failures += 1
            raise
        finally:
            self._recordings += 1
            with torch.no_grad():
                for one, was in zip(self._state(), before, strict=True):
                    one.copy_(was)
            torch.set_rng_state(random)
        failures = self.failures

        def replay() -> None:
            if failures != self.failures:
                raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
            self.replays += 1
            tape.replay()

        return replay, output
