"""A student as the loop sees it: fast on the machine at hand, always answering in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from surgery.distill.values import Values
from surgery.errors import ArgumentError

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

IMAGE = 32
"""Height and width from which on an observation is an image: bfloat16 and channels last pay."""


def choose_device(name: str) -> str:
    """`auto`, `cpu` or `cuda` as a device of torch.

    Raises:
      ArgumentError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("there is no CUDA device here", hint="--device cpu")
    if name not in ("cpu", "cuda"):
        raise ArgumentError(f"unknown device '{name}'", hint="--device auto, cpu or cuda")
    return name


def choose_precision(device: str, observation: Sequence[int]) -> torch.dtype:
    """bfloat16 for images where the processor multiplies in it (AVX-512 BF16, AMX, any CUDA device); else float32.

    Weights, gradients and the optimizer's state are float32 either way: only activations and the operands of
    convolutions and matrix products are rounded.
    """
    if not is_image(observation):
        return torch.float32
    if device == "cuda":
        return torch.bfloat16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def is_image(observation: Sequence[int]) -> bool:
    """Whether an observation (C, H, W) is large enough for what pays on images."""
    return len(observation) == 3 and min(observation[1:]) >= IMAGE


class Network:
    """A module with one output, on a device, with its way of reading values.

    Args:
      module: takes (B, *observation), gives (B, A) or (B, A, N); moved and laid out in place.
      values: how its output is read.
      observation: shape of one observation.
      dtype: element type of the module's input.
      device: `cpu` or `cuda`.
      precision: float32, or bfloat16 by autocast.
    """

    def __init__(
        self,
        module: nn.Module,
        values: Values,
        observation: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        precision: torch.dtype = torch.float32,
    ) -> None:
        self._image = is_image(observation)
        layout = torch.channels_last if self._image else torch.preserve_format
        self.module = module.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.values, self.device = values, device
        self._dtype, self._precision = dtype, precision

    def tensor(self, observation: Array | Tensor) -> Tensor:
        """Observations (B, *observation) of any element type, as the module takes them."""
        tensor = torch.from_numpy(observation) if isinstance(observation, np.ndarray) else observation
        if self.device == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory().to("cuda", non_blocking=True)
        tensor = tensor.to(self._dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if self._image else tensor

    def __call__(self, observation: Tensor) -> Tensor:
        """The output in float32."""
        if self._precision == torch.float32:
            return self._only(self.module(observation))
        with torch.autocast(self.device, dtype=self._precision):
            output = self._only(self.module(observation))
        return output.float()

    def greedy(self, observation: Array) -> Array:
        """The best action (B,) for each observation."""
        with torch.inference_mode():
            best = self.values.expected(self(self.tensor(observation))).argmax(dim=1)
        actions: Array = best.cpu().numpy()
        return actions

    def copy_from(self, other: Network) -> None:
        """Take over all parameters and buffers, in place."""
        with torch.no_grad():
            for mine, theirs in zip(self._state(), other._state(), strict=True):
                mine.copy_(theirs)

    def finite(self) -> bool:
        """Whether every parameter is a number."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.module.parameters())

    def _state(self) -> list[Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]

    @staticmethod
    def _only(output: Tensor | tuple[Tensor, ...]) -> Tensor:
        return output[0] if isinstance(output, tuple) else output
