"""Two ways to run a graph on tensors: as a torch module, or in onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch

from surgery.checkpoint import Checkpoint
from surgery.errors import GraphError, SurgeryError
from surgery.probes import probes
from surgery.verify.outputs import session

Tensors = dict[str, torch.Tensor]
Run = Callable[[Mapping[str, torch.Tensor]], Tensors]

_LOG = logging.getLogger(__name__)
_AGREE = 1e-3
"""Relative; a module further than this from onnxruntime is not the same network. Rounding alone is below 1e-4."""


def as_module(checkpoint: Checkpoint, device: torch.device) -> Run:
    """The graph as a torch module.

    Raises:
      SurgeryError: it has an operator that the conversion does not know.
    """
    module = import_module("surgery.torch").to_module(checkpoint).to(device).eval().requires_grad_(False)
    inputs = [port.name for port in checkpoint.interface.inputs]
    outputs = [port.name for port in checkpoint.interface.outputs]

    def run(feeds: Mapping[str, torch.Tensor]) -> Tensors:
        # Not inference_mode: targets of a loss are saved for its backward pass.
        with torch.no_grad():
            found = module(*(feeds[name] for name in inputs))
        return dict(zip(outputs, found if isinstance(found, tuple) else (found,), strict=True))

    return run


def in_runtime(checkpoint: Checkpoint, device: torch.device) -> Run:
    """The graph in onnxruntime; on a GPU tensors are bound, not copied."""
    cuda = device.type == "cuda"
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider") if cuda else ("CPUExecutionProvider",)
    try:
        opened, alive = session(
            checkpoint.model, providers=providers, optimise=True, threads=torch.get_num_threads()
        )
    except Exception as error:
        # onnxruntime's exceptions have no common base but Exception
        if type(error).__module__.startswith("onnxruntime"):
            raise GraphError(f"onnxruntime cannot run this model: {str(error).splitlines()[0]}") from error
        raise
    names = [port.name for port in checkpoint.interface.outputs]
    bound = cuda and "CUDAExecutionProvider" in opened.get_providers()

    def run(feeds: Mapping[str, torch.Tensor], alive: object = alive) -> Tensors:
        if bound:
            return _bound(opened, feeds, names, device)
        arrays = {name: tensor.cpu().numpy() for name, tensor in feeds.items()}
        found = opened.run(names, arrays)
        return {
            name: torch.from_numpy(np.asarray(array)).to(device)
            for name, array in zip(names, found, strict=True)
        }

    return run


def _bound(opened: Any, feeds: Mapping[str, torch.Tensor], names: list[str], device: torch.device) -> Tensors:  # noqa: ANN401
    """Inputs are read where they lie, outputs are left on the device and handed over by DLPack."""
    index = device.index or 0
    binding = opened.io_binding()
    for name, tensor in feeds.items():
        element = np.dtype(str(tensor.dtype).removeprefix("torch."))
        binding.bind_input(name, "cuda", index, element, tuple(tensor.shape), tensor.data_ptr())
    for name in names:
        binding.bind_output(name, "cuda", index)
    torch.cuda.current_stream(device).synchronize()
    opened.run_with_iobinding(binding)
    values = binding.get_outputs()
    return {
        name: torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack())
        for name, value in zip(names, values, strict=True)
    }


def best(checkpoint: Checkpoint, device: torch.device) -> tuple[str, Run]:
    """The module where there is one and it agrees with onnxruntime, else onnxruntime; with its name."""
    runtime = in_runtime(checkpoint, device)
    try:
        module = as_module(checkpoint, device)
        if _agree(checkpoint, module, runtime, device):
            return "torch", module
        _LOG.warning("the torch module of this model does not give what onnxruntime gives: using the latter")
    except (SurgeryError, ModuleNotFoundError) as reason:
        _LOG.info("onnxruntime runs this model: %s", reason)
    return "onnxruntime", runtime


def _agree(checkpoint: Checkpoint, module: Run, runtime: Run, device: torch.device) -> bool:
    feeds = {
        name: torch.from_numpy(array).to(device) for name, array in probes(checkpoint, 4, seed=0).items()
    }
    had, wanted = module(feeds), runtime(feeds)
    return all(
        torch.allclose(had[name].double(), one.double(), rtol=_AGREE, atol=_AGREE * _size(one))
        for name, one in wanted.items()
    )


def _size(tensor: torch.Tensor) -> float:
    return float(tensor.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if tensor.numel() else 0.0
