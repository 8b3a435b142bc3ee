"""Flax and optax: parameters and training states as msgpack files or Orbax folders, with a graph that jax2onnx wrote.

These files hold arrays by name and no network. The graph has the network and no names; its constants are bound to the
arrays by their values, and from then on the arrays are its parameters, under their names and in their layout.
(https://github.com/google/flax, flax/serialization.py; https://github.com/google/orbax)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from surgery.adapters import Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import WITHOUT_OPTIMIZER, SurgeryError
from surgery.formats import is_kind
from surgery.optimizer_record import merged
from surgery_adapters.array_files import fitted, replaced, with_graph
from surgery_adapters.binding.bind import Norm
from surgery_adapters.containers import optax_state
from surgery_adapters.containers.optax_state import Bound, leaves
from surgery_adapters.flax.parts import Parts
from surgery_adapters.flax.stores import Store, holds_orbax, open_store

_EPSILON = 1e-5
"""Of `nn.BatchNorm`, unless it was told otherwise."""


def detect(path: Path) -> bool:
    """Whether it is a file of `flax.serialization`, or a checkpoint of Orbax."""
    try:
        return holds_orbax(path) if path.is_dir() else is_kind(path, "msgpack")
    except OSError:
        return False


def training_state(path: Path) -> TrainingState:
    """The networks; the optimizers' states are trees of optax, which `load` binds."""
    parts = Parts.of(open_store(path).tree)
    copies = {name.rstrip("."): tensors for name, tensors in parts.copies.items()}
    return TrainingState({"model": parts.networks, **copies})


def load(path: Path, reading: Reading) -> Checkpoint:
    """The graph with the arrays of the file as its parameters; see `surgery.adapters.Adapter`."""
    parts = Parts.of(open_store(path).tree)
    groups = {"": parts.networks, **parts.copies}
    found: Checkpoint = with_graph(path, reading, groups, _norms(parts.networks), parts.originals)
    bound = _optimizer(parts) if reading.optimizer else None
    return found.replace(
        optimizer=bound.state if bound else None,
        source={"adapter": "flax", **found.source},
    )


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a file or folder with other arrays; see `surgery.adapters.Adapter`."""
    store = open_store(like)
    arrays = replaced(dict(leaves(store.tree)), checkpoint, _bound(store), like)
    return store.write(path, arrays, force)


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a file or folder can hold other networks; see `surgery.adapters.Checking`."""
    store = open_store(like)
    fitted(dict(leaves(store.tree)), checkpoint, _bound(store), like)


def _bound(store: Store) -> Bound | None:
    return _optimizer(Parts.of(store.tree))


def _norms(arrays: Mapping[str, ir.TensorProtocol]) -> list[Norm]:
    """Batch normalisations, which an exporter may have folded: their statistics lie in another collection."""
    found = []
    for mean in (name for name in arrays if name.endswith(".mean") and "batch_stats" in name):
        module = mean.removesuffix(".mean")
        affine = module.replace("batch_stats", "params", 1)
        scale, shift = (name if name in arrays else None for name in (f"{affine}.scale", f"{affine}.bias"))
        found.append(Norm(scale, shift, mean, f"{module}.var", _EPSILON))
    return found


def _optimizer(parts: Parts) -> Bound | None:
    """The state of all optimizers in the file."""
    found: list[Bound] = []
    for path, tree in parts.optimizers.items():
        try:
            bound = optax_state.bind(tree, parts.trained_by(path))
        except SurgeryError as error:
            raise error.within(
                optimizer=path,
                without=f"read it without its optimizer: {WITHOUT_OPTIMIZER}",
            ) from error
        if bound is not None:
            places = {slot: f"{path}.{place}" for slot, place in bound.places.items()}
            found.append(Bound(bound.state, places))
    if not found:
        return None
    places = {slot: place for bound in found for slot, place in bound.places.items()}
    return Bound(merged([bound.state for bound in found]), places)
