"""Networks whose code a person names: the code makes the module, the file its parameters, the exporter the graph.

This is the one place where code runs: the person's own, which they named; and, if they trust a file, what it names.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from surgery.adapters import Reading, code_from_here
from surgery.errors import ArgumentError, Refused, missing, some_text
from surgery.interface import Port
from surgery.optimizer_record import align
from surgery.tensors import shape_of
from surgery_adapters.networks.chains import Part
from surgery_adapters.networks.side_by_side import beside
from surgery_adapters.networks.words import kinds_of

if TYPE_CHECKING:
    from torch import nn


def traced(path: Path, parts: Sequence[Part], reading: Reading) -> tuple[ir.Model, list[Port]]:
    """The graph of a module with the parameters of a file, and beside it that of each of the first network's copies.

    Args:
      path: of the file, which is loaded if it is trusted and no code is named.
      parts: the networks of the file; the module is the first one, or the one whose names it has.
      reading: names the code, and the shape of an observation where the first weight does not tell it.

    Returns:
      the graph and its outputs.

    Raises:
      ArgumentError: the code cannot be imported or called, or its module has other parameters than the file.
      Refused: the module looks at the numbers of parameters in a way that the exporter cannot follow.
      MissingDependency: PyTorch is not installed.
    """
    module = _make(reading.module) if reading.module else _loaded(path, parts[0].label)
    whole = Part(
        "", parts[0].label, {name: tensor for part in parts for name, tensor in part.tensors.items()}
    )
    own = next((part for part in (whole, *parts) if _fits(module, part)), None)
    if own is None:
        raise ArgumentError(
            f"the module of '{reading.module or path.name}' does not have the parameters of the file",
            where={"module": _some(module.state_dict()), "file": _some(parts[0].tensors)},
        )
    model = _export(module, own, reading)
    ports = outputs_of(model, own, copy=False)
    for part in parts:
        if part.original == own.prefix and part is not own:
            other = _export(module, part, reading)
            ports += outputs_of(other, part, copy=True)
            beside(model, other, part.prefix)
    return model, ports


def require() -> None:
    """Raises: MissingDependency."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise missing("PyTorch", "torch") from error


def _loaded(path: Path, label: str) -> nn.Module:
    """The whole module of a trusted file, or the one of its entries that is called so."""
    require()
    import torch
    from torch import nn

    try:
        with code_from_here():
            held = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the code that the file names may fail in any way
        raise ArgumentError(
            f"PyTorch cannot load '{path}': {type(error).__name__}: {' '.join(str(error).split())}",
            hint="the classes that it names must be importable: PYTHONPATH=…, or name the code with --module",
        ) from error
    found = (
        next((value for key, value in held.items() if key.removesuffix("_state_dict") == label), None)
        if isinstance(held, dict)
        else held
    )
    if not isinstance(found, nn.Module):
        raise ArgumentError(
            f"'{label}' of the file is not a module", hint="name the code with --module PKG:CALLABLE"
        )
    return found.eval()


def _make(name: str) -> nn.Module:
    require()
    from torch import nn

    package, colon, attribute = name.partition(":")
    if not (package and colon and attribute):
        raise ArgumentError(f"'{name}' is not PACKAGE.MODULE:CALLABLE", hint="--module mygame.networks:Agent")
    try:
        with code_from_here():
            made = getattr(importlib.import_module(package), attribute)()
    except Exception as error:  # the person's own code may fail in any way
        raise ArgumentError(
            f"'{name}' does not make a module: {type(error).__name__}: {' '.join(str(error).split())}",
            hint="name a class or function that can be called without arguments",
        ) from error
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"'{name}' makes a {type(made).__name__}, not a torch.nn.Module")
    return made.eval()


def _bare(part: Part) -> dict[str, ir.TensorProtocol]:
    return {name.removeprefix(part.prefix): tensor for name, tensor in part.tensors.items()}


def _names(module: nn.Module, part: Part) -> dict[str, str]:
    """The module's names -> the network's, which may have one more prefix."""
    return align(module.state_dict(), _bare(part))


def _fits(module: nn.Module, part: Part) -> bool:
    names, tensors = _names(module, part), _bare(part)
    state = module.state_dict()
    return set(names) == set(state) and all(
        tuple(state[ours].shape) == shape_of(tensors[theirs]) for ours, theirs in names.items()
    )


def _export(module: nn.Module, part: Part, reading: Reading) -> ir.Model:
    """The graph of the module with a network's parameters, under the network's names in the graph."""
    import torch

    from surgery.torch import from_module

    tensors = _bare(part)
    names = _names(module, part)
    state = {ours: torch.from_numpy(np.array(tensors[theirs].numpy())) for ours, theirs in names.items()}
    module.load_state_dict(state)
    shape = reading.observation or features_of(module)
    model: ir.Model = from_module(
        module, example_inputs=torch.zeros(2, *shape), input_names=["observation"]
    ).model
    for name, value in list(model.graph.initializers.items()):
        full = f"{part.prefix}{names.get(name, name)}"
        if full != name:
            model.graph.initializers.pop(name)
            value.name = full
            model.graph.register_initializer(value)
        if full in part.tensors:
            value.const_value = part.tensors[full]
    return model


def features_of(module: nn.Module) -> tuple[int, ...]:
    """The shape of an observation that a dense first layer reads."""
    first = next((tensor for tensor in module.state_dict().values() if tensor.ndim > 1), None)
    if first is None or first.ndim != 2:
        raise ArgumentError(
            "the first weight does not give the shape of an observation",
            hint="give it: --observation 4,84,84",
        )
    return (int(first.shape[1]),)


def outputs_of(model: ir.Model, part: Part, *, copy: bool) -> list[Port]:
    """Names and kinds of what comes out, by what the exporter calls it and by the width."""
    suffix = f"_{part.prefix.strip('.').replace('.', '_')}" if copy else ""
    widths: dict[str, int] = {}
    for value in model.graph.outputs:
        width = value.shape[-1] if value.shape is not None and len(value.shape) > 1 else None
        if not isinstance(width, int):
            raise Refused(
                f"the output '{value.name}' of the module is not a table of numbers, one row per observation"
            )
        widths[str(value.name)] = width
    kinds = kinds_of(widths, part.label)
    ports: list[Port] = []
    for value in model.graph.outputs:
        kind = kinds[str(value.name)]
        name = f"{kind}{suffix}"
        value.name = name if name not in {port.name for port in ports} else f"{name}_{len(ports)}"
        ports.append(Port(str(value.name), "other" if copy else kind, declared=True))
    return ports


def _some(names: Mapping[str, Any]) -> str:
    return some_text([f"{name} {list(value.shape)}" for name, value in names.items()], 4)
