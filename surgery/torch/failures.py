"""What goes wrong on a GPU, as errors that say what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from surgery.errors import MissingDependency, RunFailed, first_line

ELSEWHERE = "CUDA_VISIBLE_DEVICES=N chooses another GPU, --device cpu uses none"
"""What to do about a GPU that fails."""
_SAID = re.compile(r"Tried to allocate [\d.]+ \w+|[\d.]+ \w+ is free")
_OF_THE_DEVICE = re.compile(
    r"(CUDA( driver)?|cuDNN( Frontend)?) error|\w+ was unable to find an engine to execute"
)
"""How messages of a device begin; of an engine cuDNN finds none where it lacks memory to work in."""


def is_of_device(error: BaseException) -> bool:
    """Whether it is the device that failed, for lack of memory or otherwise, and not what was asked of it."""
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and _OF_THE_DEVICE.match(str(error)) is not None


@contextlib.contextmanager
def explained(hint: str) -> Iterator[None]:
    """Turn a failure of the device in this context into an error with the reason.

    Raises:
      RunFailed: it failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_of_device(error):
            raise
        what, why = "the GPU failed", first_line(error)
        if isinstance(error, torch.OutOfMemoryError):
            what, why = "the GPU is out of memory", ", ".join(_SAID.findall(str(error)))
        raise RunFailed(f"{what}: {why}" if why else what, hint=hint) from error


def no_gpu() -> MissingDependency:
    """A GPU was asked for, and PyTorch sees none."""
    return MissingDependency(
        "torch sees no GPU", hint="--device cpu, or a torch with CUDA: https://pytorch.org"
    )
