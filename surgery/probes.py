"""Inputs to compare two models on: random ones in the declared range, or recorded ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array, Arrays
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, UnknownName, shape_text
from surgery.graph.chosen import rows_to_choose
from surgery.graph.symbols import symbol
from surgery.graph.walk import lengths
from surgery.interface import Port
from surgery.numeric.bounds import spread

_INNER = 3
"""Size given to symbolic dimensions other than the batch."""


def probes(
    checkpoint: Checkpoint,
    count: int,
    seed: int,
    recorded: Mapping[str, Array] | None = None,
) -> Arrays:
    """Inputs for a model.

    Args:
      checkpoint: its declared ranges are used; an undeclared floating input is standard normal, an undeclared number
        of a row any of those that there are.
      count: number of rows, where the first dimension is symbolic.
      seed: of the random inputs, and of the choice among recorded ones.
      recorded: input name -> array, rows first; an array of another name is taken if the model has one input.

    Returns:
      name -> array of the input's shape and type.

    Raises:
      UnknownName, ArgumentError: recorded arrays that do not fit the inputs.
    """
    rng = np.random.default_rng(seed)
    graph = checkpoint.model.graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    found = _match(inputs, recorded or {})
    for name, array in found.items():
        _refuse_vacuous(name, array, checkpoint.interface.input(name))
    rows = min([count, *(len(array) for array in found.values())])
    sizes = lengths(checkpoint.model, checkpoint.interface, _wanted(inputs, found, rows))
    rows_of = rows_to_choose(checkpoint.model)
    out: Arrays = {}
    for value in inputs:
        name = value.name or ""
        shape = tuple(
            d if isinstance(d, int) else sizes[symbol(value, k)] for k, d in enumerate(value.shape or ())
        )
        if name in found:
            out[name] = _choose(found[name], shape, value, rng)
        else:
            out[name] = _draw(value, checkpoint.interface.input(name), shape, rows_of.get(name), rng)
    return out


def _match(inputs: list[ir.Value], recorded: Mapping[str, Array]) -> Arrays:
    names = [value.name or "" for value in inputs]
    if len(names) == 1 and len(recorded) == 1:
        return {names[0]: next(iter(recorded.values()))}
    for name in recorded:
        if name not in names:
            raise UnknownName("input", name, names)
    return dict(recorded)


def _refuse_vacuous(name: str, array: Array, port: Port) -> None:
    """What would prove nothing: no rows, or NaN and infinity, of which every network makes NaN."""
    if array.dtype.kind not in "biuf":
        raise ArgumentError(f"recorded observations are real numbers; '{name}' is of type {array.dtype}")
    if not array.size:
        raise ArgumentError(f"recorded observations '{name}' of shape {shape_text(array.shape)} are empty")
    if array.ndim and array.dtype.kind == "f" and port.kind != "mask" and not np.isfinite(array).all():
        rows = int((~np.isfinite(array)).reshape(len(array), -1).any(-1).sum())
        raise ArgumentError(
            f"recorded observations '{name}' hold NaN or infinity in {rows:,} of {len(array):,} rows, which proves "
            "nothing",
            hint="leave these rows out",
        )


def _wanted(inputs: list[ir.Value], found: Arrays, rows: int) -> dict[str, int]:
    """A size for every symbolic dimension: the rows for a batch, what recordings have for the others."""
    sizes: dict[str, int] = {}
    for value in inputs:
        assert value.shape is not None
        recorded = found.get(value.name or "")
        for k, dim in enumerate(value.shape):
            if isinstance(dim, int):
                continue
            name = symbol(value, k)
            if (k == 0 and not sizes) or name.startswith(("batch", "N")):
                sizes.setdefault(name, rows)
            elif recorded is not None and recorded.ndim == len(value.shape):
                sizes.setdefault(name, recorded.shape[k])
            else:
                sizes.setdefault(name, _INNER)
    return sizes


def _choose(array: Array, shape: tuple[int, ...], value: ir.Value, rng: np.random.Generator) -> Array:
    if array.ndim != len(shape) or array.shape[1:] != shape[1:] or len(array) < shape[0]:
        raise ArgumentError(
            f"recorded observations of shape {shape_text(array.shape)} do not fit input '{value.name}' of "
            f"{shape_text(shape)}"
        )
    rows = np.sort(rng.choice(len(array), shape[0], replace=False))
    return array[rows].astype(_dtype(value))


def _draw(
    value: ir.Value, port: Port, shape: tuple[int, ...], rows: int | None, rng: np.random.Generator
) -> Array:
    """Random numbers of an input; where nothing is declared, those of `rows` that it chooses from."""
    dtype = _dtype(value)
    if dtype.kind == "b" or (port.kind == "mask" and port.low is port.high is None):
        return (rng.random(shape) < 0.5).astype(dtype)
    if dtype.kind in "iu":
        rows = rows or (256 if dtype == np.uint8 else 2)
        low, high = _ends(port, shape, 0, min(rows - 1, np.iinfo(dtype).max))
        return rng.integers(low, high, shape, endpoint=True).astype(dtype)
    low, high = _ends(port, shape, -np.inf, np.inf)
    bounded = np.isfinite(low) & np.isfinite(high)
    if bounded.all():
        return rng.uniform(low, high, shape).astype(dtype)
    within = (
        rng.uniform(np.where(bounded, low, 0), np.where(bounded, high, 1), shape) if bounded.any() else 0.0
    )
    drawn = np.clip(rng.standard_normal(shape), low, high)
    return np.where(bounded, within, drawn).astype(dtype)


def _ends(port: Port, shape: tuple[int, ...], lowest: float, highest: float) -> tuple[Array, Array]:
    """The declared range, or the given one where there is none."""
    low = spread(lowest if port.low is None else port.low, shape, lowest)
    return low, spread(highest if port.high is None else port.high, shape, highest)


def _dtype(value: ir.Value) -> np.dtype[Any]:
    return (value.dtype or ir.DataType.FLOAT).numpy()
