"""Real networks of the field as ONNX files, in each style that an exporter writes.

    load("impala", "dynamo") -> the graph      module("impala") -> the torch module it came from
    sample("impala", 5, rng) -> inputs         NETS["impala"].hidden -> what a user would want to widen

Files are made once and kept in the temporary folder, under a key of the sources and the exporter's version.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxscript
import torch
from torch import Tensor, nn

from tests.zoo_base import Net, Range, Shape
from tests.zoo_convolutional import CONVOLUTIONAL
from tests.zoo_dense import DENSE
from tests.zoo_mixing import MIXING
from tests.zoo_nets import RL_SUITE

__all__ = ["NETS", "STYLES", "Net", "Range", "Shape", "export", "load", "module", "quiet", "sample"]

NETS: dict[str, Net] = {net.name: net for net in (*RL_SUITE, *DENSE, *CONVOLUTIONAL, *MIXING)}
STYLES = ("dynamo", "dynamo-optimized", "torchscript")
SYMBOLS = {"time": 5, "entities": 6, "actions": 4}

# Contended OpenMP threads spin: with two of them a batch of 8 takes a thousand times longer.
torch.set_num_threads(1)


def module(name: str, seed: int = 0, *, fresh: bool = False) -> nn.Module:
    """The network in evaluation mode, with weights that look trained: none is zero, one or equal to another.

    Args:
      name: a row of `NETS`.
      seed: of the initialisation and of what is added to it.
      fresh: keep the initialisation, with its zero biases and unit scales.
    """
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        net = NETS[name].build().eval()
        if not fresh:
            _train_like(net)
    finally:
        torch.random.set_rng_state(state)
    return net.requires_grad_(False)


def _train_like(net: nn.Module) -> None:
    """Perturb every parameter and buffer in place; what is a variance stays positive."""
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith("var"):
                tensor.copy_(0.5 + torch.rand_like(tensor))
            else:
                spread = float(tensor.std()) if tensor.dim() > 1 else 1.0
                tensor.add_(0.3 * (spread or 1.0) * torch.randn_like(tensor))


def sample(
    name: str, batch: int, rng: np.random.Generator, sizes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Inputs of a network: input -> array of the row's shape.

    Args:
      name: a row of `NETS`.
      batch: the size of the symbol of that name.
      rng: where the values come from.
      sizes: symbol -> size, where it shall differ from `SYMBOLS`.
    """
    net, symbols = NETS[name], {**SYMBOLS, **(sizes or {}), "batch": batch}
    shapes = {
        key: tuple(symbols[size] if isinstance(size, str) else size for size in shape)
        for key, shape in net.inputs.items()
    }
    return {key: _draw(shape, net.ranges.get(key), rng) for key, shape in shapes.items()}


def _draw(shape: tuple[int, ...], values: Range | None, rng: np.random.Generator) -> np.ndarray:
    if values is None:
        return rng.standard_normal(shape).astype(np.float32)
    if np.dtype(values.dtype).kind == "f":
        return rng.uniform(values.low, values.high, shape).astype(values.dtype)
    return rng.integers(int(values.low), int(values.high), shape).astype(values.dtype)


def load(name: str, style: str, seed: int = 0, *, fresh: bool = False) -> ir.Model:
    """The exported graph; its tensors are read from the file on use."""
    return ir.load(export(name, style, seed, fresh=fresh))


def export(name: str, style: str, seed: int = 0, *, fresh: bool = False) -> Path:
    """The ONNX file of a network in a style of `STYLES`, written when it does not exist yet.

    Raises:
      ValueError: the style is none of `STYLES`, or the row says that it is impossible.
    """
    net = NETS[name]
    if style not in STYLES or style in net.impossible:
        reason = net.impossible.get(style, "no such style")
        raise ValueError(f"{name} cannot be exported as {style}: {reason}")
    path = _path(net, style, seed, fresh)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with quiet():
            _export(net, style, seed, fresh)
    return path


def _path(net: Net, style: str, seed: int, fresh: bool) -> Path:
    return _folder() / f"{net.name}-{seed}{'-fresh' if fresh else ''}.{style}.onnx"


@functools.cache
def _folder() -> Path:
    text = "".join(file.read_text() for file in sorted(Path(__file__).parent.glob("zoo*.py")))
    versions = f"{torch.__version__} {onnxscript.__version__}"
    key = hashlib.sha256(f"{text}{versions}".encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"policy-surgery-zoo-{key}"


def _export(net: Net, style: str, seed: int, fresh: bool) -> None:
    source = module(net.name, seed, fresh=fresh)
    arrays = sample(net.name, 3, np.random.default_rng(seed))
    example = tuple(torch.from_numpy(array) for array in arrays.values())
    symbols = {
        key: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
        for key, shape in net.inputs.items()
    }
    exporter = _torchscript if style == "torchscript" else _dynamo
    for made, data in exporter(net, source, example, symbols).items():
        _write(_path(net, made, seed, fresh), data)


def _dynamo(
    net: Net, source: nn.Module, example: tuple[Tensor, ...], symbols: Mapping[str, dict[int, str]]
) -> dict[str, bytes]:
    """Both dynamo styles from one trace: `optimize=True` is this `optimize` after the same trace."""
    for recurrent in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        # The exporter swaps their decompositions but not this: a second export would fix the sequence length.
        recurrent._dispatch_cache.clear()
    program = torch.onnx.export(
        source, example, input_names=list(net.inputs), output_names=list(net.outputs),
        dynamic_shapes=tuple(symbols.values()), dynamo=True, optimize=False, opset_version=20,
    )  # fmt: skip
    if program is None:
        raise RuntimeError(f"the exporter returned no program for {net.name}")
    files = {"dynamo": program.model_proto.SerializeToString()}
    program.optimize()
    return {**files, "dynamo-optimized": program.model_proto.SerializeToString()}


def _torchscript(
    net: Net, source: nn.Module, example: tuple[Tensor, ...], symbols: Mapping[str, dict[int, str]]
) -> dict[str, bytes]:
    file, fast = io.BytesIO(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operators have no ONNX form
    try:
        torch.onnx.export(
            source, example, file,  # type: ignore[arg-type]
            input_names=list(net.inputs), output_names=list(net.outputs),
            dynamic_axes=dict(symbols), dynamo=False, opset_version=17,
        )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return {"torchscript": file.getvalue()}


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: two test processes may write the same file."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    Path(partial).replace(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters print, warn and log on success."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
