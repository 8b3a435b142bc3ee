"""A graph in onnxruntime."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.errors import GraphError, RunFailed, first_line
from surgery.verify.outputs import session

CPU = "CPUExecutionProvider"
BATCH = "if its batch is fixed, export it with a free one"
_OF_THE_DEVICE = ("CUDA", "CUBLAS", "CUDNN", "Failed to allocate memory")


def on_host(checkpoint: Checkpoint) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """The graph on a CPU, from arrays to arrays.

    Raises:
      GraphError: onnxruntime cannot run it.
    """
    with explained():
        opened, kept = session(checkpoint.model, providers=[CPU], optimise=True, threads=threads())
    names = [port.name for port in checkpoint.interface.outputs]

    def run(feeds: Mapping[str, Array], kept: object = kept) -> dict[str, Array]:
        with explained():
            return dict(zip(names, opened.run(names, dict(feeds)), strict=True))

    return run


def threads() -> int:
    """As many as PyTorch is set to, where it is loaded; else as it would be: `OMP_NUM_THREADS`, or one per core."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else 0


@contextlib.contextmanager
def explained(device: str = "cpu", elsewhere: str | None = None) -> Iterator[None]:
    """What onnxruntime throws in this context as an error of ours; its own have no common base but Exception.

    Args:
      device: what it runs on, `cpu` or `cuda`.
      elsewhere: what to do about a GPU that fails.

    Raises:
      GraphError: it cannot run the model. RunFailed: the GPU failed.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        line = first_line(error)
        if device == "cuda" and any(name in line for name in _OF_THE_DEVICE):
            raise RunFailed(f"the GPU failed: {line}", hint=elsewhere) from error
        raise GraphError(f"onnxruntime cannot run this model: {line}", hint=BATCH) from error
