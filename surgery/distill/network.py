"""A student as the loop sees it: fast on the machine at hand, always answering in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from surgery.architectures.writer import NOISE
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.distill.frozen import Frozen
from surgery.distill.halves import Halves
from surgery.distill.values import Values
from surgery.errors import ArgumentError
from surgery.policy.feeds import ObservationPort, StatePort
from surgery.policy.tensors import Tensors
from surgery.torch.failures import no_gpu
from surgery.torch.travel import moved

if TYPE_CHECKING:
    Array = Array

IMAGE = 32
"""Height and width from which on an observation is an image: bfloat16 and channels last pay."""


def choose_device(name: str) -> str:
    """`auto`, `cpu` or `cuda` as a device of torch.

    Raises:
      ArgumentError: no such device. MissingDependency: PyTorch sees no GPU.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise no_gpu()
    if name not in ("cpu", "cuda"):
        raise ArgumentError(
            f"unknown device '{name}'", hint="auto, cpu or cuda; CUDA_VISIBLE_DEVICES says which of several"
        )
    return name


def choose_precision(device: str, observation: Sequence[int]) -> torch.dtype:
    """bfloat16 for images where the processor multiplies in it (AVX-512 BF16, AMX, GPUs from Ampere on); else float32.

    Weights, gradients and the optimizer's state are float32 either way: only activations and the operands of
    convolutions and matrix products are rounded.
    """
    if not is_image(observation):
        return torch.float32
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def noise_of(module: nn.Module) -> list[Tensor]:
    """The tensors that hold the noise of noisy layers, by their names."""
    held = [*module.named_parameters(), *module.named_buffers()]
    return [tensor for name, tensor in held if name.rpartition(".")[2] in NOISE]


def is_image(observation: Sequence[int]) -> bool:
    """Whether an observation (C, H, W) is large enough for what pays on images."""
    return len(observation) == 3 and min(observation[1:]) >= IMAGE


class Network:
    """A module with one output, beside the state that it may carry, on a device, with its way of reading values.

    Args:
      module: takes (B, *observation), gives (B, A) or (B, A, N), and behind them takes and gives states, in the order
        of `states`; moved and laid out in place.
      values: how its output is read.
      observation: shape of one observation.
      dtype: element type of the module's input.
      device: `cpu` or `cuda`.
      precision: float32, or bfloat16 by autocast.
      states: what it carries from step to step; empty: it has no memory.
      allowed: which actions may be taken; None: all.
      at_once: whether weights are cast to bfloat16 at once; None: on a GPU.
      feed: how observations go into a module that does not take them as they are; None: it does.
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
        states: Sequence[StatePort] = (),
        allowed: Sequence[bool] | None = None,
        at_once: bool | None = None,
        feed: ObservationPort | None = None,
    ) -> None:
        self._image, self._feed = is_image(observation), feed
        layout = torch.channels_last if self._image else torch.preserve_format
        self.module = module.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.values, self.device = values, device
        self._arrays = Tensors(torch.device(device))
        self._dtype, self._precision = dtype, precision
        self.states = tuple(states)
        self._forbidden = None if allowed is None else ~torch.tensor(allowed, device=device)
        self._frozen: Frozen | None = None
        self._half: Callable[..., Any] = self.module
        if precision != torch.float32 and (device != "cpu" if at_once is None else at_once):
            self._half = Halves(self.module, precision)
        self._noise = noise_of(self.module)
        for noise in self._noise:
            noise.requires_grad_(False)

    def there(self, given: Array | Tensor) -> Tensor:
        """Numbers of any element type, on the device."""
        return moved(given, self.device)

    def __call__(self, observation: Tensor) -> Tensor:
        """The output in float32 for observations (B, *observation) of any element type."""
        found = None if self._frozen is None else self._frozen(self._fed(observation))
        return self._run(observation)[0].float() if found is None else found

    def best(self, output: Tensor) -> Tensor:
        """The best action (B,) that may be taken, by an output (B, A, …)."""
        values = self.values.expected(output)
        if self._forbidden is not None:
            values = values.masked_fill(self._forbidden, -torch.inf)
        return values.argmax(dim=1)

    def freeze(self, checkpoint: Checkpoint) -> None:
        """Answer by a copy of the weights, which is made when they have changed: faster where that is rare, and no
        gradients are wanted.

        Only on a CPU in float32, without memory and noise; elsewhere nothing changes.

        Args:
          checkpoint: the graph of the module.
        """
        if self.device == "cpu" and self._precision == torch.float32 and not (self.states or self._noise):
            self._frozen = Frozen(self.module, checkpoint)

    def step(self, observation: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and the state after it."""
        output, *after = self._run(observation, *state)
        return output.float(), tuple(one.float() for one in after)

    def _run(self, observation: Tensor, *state: Tensor) -> Sequence[Tensor]:
        layout = torch.channels_last if self._image else torch.preserve_format
        x = self._fed(observation, layout)
        if self._precision == torch.float32:
            found = self.module(x, *state)
        else:
            with torch.autocast(torch.device(self.device).type, dtype=self._precision):
                found = self._half(x, *state)
        return found if isinstance(found, tuple) else (found,)

    def _fed(self, observation: Tensor, layout: torch.memory_format = torch.preserve_format) -> Tensor:
        if self._feed is not None:
            fed: Tensor = self._feed.feed(observation, self._arrays)
            return fed
        return observation.to(self._dtype, memory_format=layout)

    @property
    def state_size(self) -> int:
        """Numbers in the state of one environment."""
        return sum(math.prod(size for size in state.shape if size is not None) for state in self.states)

    def blank(self, count: int) -> tuple[Tensor, ...]:
        """The state in which `count` episodes begin."""
        return tuple(state.zeros(count, self._arrays) for state in self.states)

    def cleared(self, state: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        """A state with some environments (n,) bool as at the beginning of an episode."""
        return tuple(
            port.cleared(one, rows, self._arrays) for port, one in zip(self.states, state, strict=True)
        )

    def packed(self, state: Sequence[Tensor]) -> Tensor:
        """A state as (n, S)."""
        rows = [one.movedim(port.batch, 0).flatten(1) for port, one in zip(self.states, state, strict=True)]
        return torch.cat(rows, dim=1)

    def unpacked(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What `packed` made rows (n, S) of; of rows without numbers the state at the beginning."""
        if not rows.shape[1]:
            return self.blank(len(rows))
        sizes = [tuple(size for size in port.shape if size is not None) for port in self.states]
        parts = torch.split(rows, [math.prod(size) for size in sizes], dim=1)
        return tuple(
            part.reshape(-1, *size).movedim(0, port.batch)
            for part, size, port in zip(parts, sizes, self.states, strict=True)
        )

    @torch.no_grad()
    def draw_noise(self) -> None:
        """New noise for all noisy layers: sgn(ε)√|ε| of normal ε (Fortunato et al. 2018, arXiv:1706.10295, §3)."""
        for noise in self._noise:
            noise.normal_()
            noise.copy_(noise.sign() * noise.abs().sqrt())

    @torch.no_grad()
    def silence(self) -> None:
        """No noise: the layers' means are left, as in evaluation and in files."""
        for noise in self._noise:
            noise.zero_()

    def copy_from(self, other: Network) -> None:
        """Take over all parameters and buffers, in place."""
        with torch.no_grad():
            for mine, theirs in zip(self._state(), other._state(), strict=True):
                mine.copy_(theirs)
        self._changed()

    def load(self, weights: Mapping[str, Tensor], *, all_of_them: bool = True) -> None:
        """Take over parameters and buffers by their names, in place.

        Raises:
          RuntimeError: a name or a shape that the module does not have, or one that is missing.
        """
        self.module.load_state_dict(weights, strict=all_of_them)
        self._changed()

    def _changed(self) -> None:
        if self._frozen is not None:
            self._frozen.changed()

    def finite(self) -> bool:
        """Whether every parameter is a number."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.module.parameters())

    def _state(self) -> list[Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]
