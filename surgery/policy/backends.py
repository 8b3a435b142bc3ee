"""Two ways to run a graph on tensors: as a torch module, or in onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from surgery.checkpoint import Checkpoint
from surgery.errors import GraphError, SurgeryError, first_line
from surgery.policy.runtime import BATCH, CPU, explained, threads
from surgery.policy.tensors import ONNX_TYPES
from surgery.probes import probes
from surgery.torch import to_module
from surgery.torch.failures import ELSEWHERE, is_of_device
from surgery.verify.outputs import session

Tensors = dict[str, torch.Tensor]
Run = Callable[[Mapping[str, torch.Tensor]], Tensors]

_CUDA = "CUDAExecutionProvider"
_LOG = logging.getLogger(__name__)
_AGREE = 1e-3
"""Relative; a module further than this from onnxruntime is not the same network: rounding is less."""


def as_module(module: nn.Module, checkpoint: Checkpoint) -> Run:
    """A torch module in evaluation, without gradients, on whichever device it lies."""
    module.eval().requires_grad_(False)
    inputs = [port.name for port in checkpoint.interface.inputs]
    outputs = [port.name for port in checkpoint.interface.outputs]

    def run(feeds: Mapping[str, torch.Tensor]) -> Tensors:
        try:
            # Not inference_mode: targets of a loss are saved for its backward pass.
            with torch.no_grad():
                found = module(*(feeds[name] for name in inputs))
        except RuntimeError as error:
            if is_of_device(error):
                raise
            raise GraphError(f"PyTorch cannot run this model: {first_line(error)}", hint=BATCH) from error
        return dict(zip(outputs, found if isinstance(found, tuple) else (found,), strict=True))

    return run


def in_runtime(
    checkpoint: Checkpoint, device: torch.device, *, note: Callable[[str], None] = lambda _: None
) -> Run:
    """The graph in onnxruntime; on a GPU tensors are bound, not copied.

    Args:
      checkpoint: whose graph.
      device: where tensors come from and go to.
      note: told if it runs on the CPU although they lie on a GPU.

    Raises:
      GraphError: onnxruntime cannot run it. RunFailed: the GPU failed.
    """
    with explained(device.type, ELSEWHERE):
        opened, alive = session(
            checkpoint.model, providers=_providers(device), optimise=True, threads=threads()
        )
    names = [port.name for port in checkpoint.interface.outputs]
    bound = _CUDA in opened.get_providers()
    if device.type == "cuda" and not bound:
        note(f"this onnxruntime cannot use the GPU, and runs the model on the CPU: {_advice()}")

    def run(feeds: Mapping[str, torch.Tensor], alive: object = alive) -> Tensors:
        if bound:
            with explained(device.type, ELSEWHERE):
                return _bound(opened, feeds, names, device)
        arrays = {name: tensor.cpu().numpy() for name, tensor in feeds.items()}
        with explained():
            found = opened.run(names, arrays)
        return {
            name: torch.from_numpy(np.asarray(array)).to(device)
            for name, array in zip(names, found, strict=True)
        }

    return run


def _advice() -> str:
    """What lets onnxruntime use the GPU."""
    import onnxruntime

    if _CUDA in onnxruntime.get_available_providers():
        return (
            f"version {onnxruntime.__version__} is made for another CUDA or cuDNN than PyTorch's "
            f"({torch.version.cuda}), or they are not found"
        )
    return "pip uninstall onnxruntime, then pip install onnxruntime-gpu"


def _providers(device: torch.device) -> list[Any]:
    """The execution providers to ask for, only those that there are: onnxruntime warns about others."""
    import onnxruntime

    if device.type != "cuda" or _CUDA not in onnxruntime.get_available_providers():
        return [CPU]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [(_CUDA, {"device_id": index}), CPU]


def _bound(opened: Any, feeds: Mapping[str, torch.Tensor], names: list[str], device: torch.device) -> Tensors:  # noqa: ANN401
    """Inputs are read where they lie, outputs stay on the device and are handed over by DLPack: nothing is copied."""
    binding, where = opened.io_binding(), next(iter(feeds.values())).device
    place, index = where.type, where.index or 0
    for name, tensor in feeds.items():
        binding.bind_input(
            name, place, index, int(ONNX_TYPES[tensor.dtype]), tuple(tensor.shape), tensor.data_ptr()
        )
    for name in names:
        binding.bind_output(name, place, index)
    if place == "cuda":
        torch.cuda.current_stream(device).synchronize()  # what feeds the inputs runs on torch's stream
    opened.run_with_iobinding(binding)
    binding.synchronize_outputs()
    # onnxruntime's own class around them had no DLPack for a long time
    values = [value._ortvalue for value in binding.get_outputs()]
    return {name: torch.from_dlpack(value) for name, value in zip(names, values, strict=True)}  # type: ignore[attr-defined]


def best(
    checkpoint: Checkpoint, device: torch.device, *, note: Callable[[str], None] = lambda _: None
) -> tuple[str, Run]:
    """What runs a graph fastest, with its name: onnxruntime on a CPU, the torch module on a GPU; else the other one.

    On one core of a CPU onnxruntime took a third to four fifths of the module's time (Nature, batches of 1 to 32); on
    a GPU the module works on tensors where they are.

    Raises:
      GraphError: neither can.
    """
    ways: list[tuple[str, Callable[[Checkpoint, torch.device], Run]]] = [
        ("onnxruntime", partial(in_runtime, note=note)),
        ("torch", checked_module),
    ]
    first, second = ways if device.type == "cpu" else ways[::-1]
    try:
        return first[0], first[1](checkpoint, device)
    except SurgeryError as reason:
        _LOG.info("%s runs this model: %s", second[0], reason)
        return second[0], second[1](checkpoint, device)


def checked_module(checkpoint: Checkpoint, device: torch.device) -> Run:
    """The graph as a torch module, compared with onnxruntime where that can run it.

    They are compared on the CPU: whether it is the same network does not depend on how a GPU rounds (TF32).

    Raises:
      SurgeryError: it does not convert, or computes something else.
    """
    module = to_module(checkpoint)
    run = as_module(module, checkpoint)
    try:
        reference = in_runtime(checkpoint, torch.device("cpu"))
    except GraphError:
        reference = None
    if reference is not None and not _agree(checkpoint, run, reference):
        raise GraphError("the torch module of this model does not give what onnxruntime gives")
    module.to(device)
    return run


def _agree(checkpoint: Checkpoint, module: Run, reference: Run) -> bool:
    feeds = {name: torch.from_numpy(array) for name, array in probes(checkpoint, 4, seed=0).items()}
    had = module(feeds)
    return all(
        torch.allclose(had[name].double(), one.double(), rtol=_AGREE, atol=_AGREE * _size(one))
        for name, one in reference(feeds).items()
    )


def _size(tensor: torch.Tensor) -> float:
    return float(tensor.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if tensor.numel() else 0.0
