"""What goes wrong on a GPU, as errors that say what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from surgery.errors import RunFailed, SurgeryError

ELSEWHERE = "CUDA_VISIBLE_DEVICES=N chooses another GPU, --device cpu does without"
"""What to do about a GPU that fails."""
_SAID = re.compile(r"Tried to allocate [\d.]+ \w+|[\d.]+ \w+ is free")


def is_of_device(error: BaseException) -> bool:
    """Whether it is the device that failed, for lack of memory or otherwise, and not what was asked of it."""
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith(("CUDA error", "cuDNN error"))


def explanation(
    error: RuntimeError, hint: str, *, kind: type[SurgeryError] = RunFailed
) -> SurgeryError | None:
    """A device that failed, in one line; None if it is not the device that did.

    Args:
      error: as PyTorch raised it.
      hint: what to do next.
      kind: of the result.
    """
    if not is_of_device(error):
        return None
    line = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return kind(_sentence("the GPU is out of memory", ", ".join(_SAID.findall(line))), hint=hint)
    return kind(_sentence("the GPU failed", line), hint=hint)


@contextlib.contextmanager
def explained(hint: str) -> Iterator[None]:
    """In this context a device that fails stops the run with the reason.

    Raises:
      RunFailed: it failed.
    """
    try:
        yield
    except RuntimeError as error:
        found = explanation(error, hint)
        if found is None:
            raise
        raise found from error


def _sentence(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
