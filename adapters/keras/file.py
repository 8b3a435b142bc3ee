"""The `.keras` of Keras 3: a zip archive of `config.json`, `metadata.json` and `model.weights.h5`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.errors import CorruptFile, UnknownFormat
from surgery.files import check_readable
from surgery.tensors import MappedFile, Region
from surgery_adapters.containers import hdf5
from surgery_adapters.containers.torch_archive import StoredZip
from surgery_adapters.keras.config import Layer, places, tree
from surgery_adapters.writeback.contract import NAME

CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
OPTIMIZER = "optimizer/vars/"
_MAX_CONFIG = 1 << 26


@dataclass(frozen=True)
class KerasFile:
    """One saved model.

    Attributes:
      zip: the archive.
      config: the JSON of its layers, as it stands in the file.
    """

    zip: StoredZip
    config: Mapping[str, Any]

    @staticmethod
    def open(path: Path) -> KerasFile:
        """Read the directory and the configuration.

        Raises:
          UnknownFormat: not a model of Keras 3. CorruptFile: damaged or hostile.
        """
        check_readable(path)
        archive = StoredZip.open(MappedFile(path).whole)
        if not {CONFIG, WEIGHTS} <= set(archive.members):
            raise UnknownFormat(
                f"{path} is a zip archive, but not a model of Keras: no '{CONFIG}', '{WEIGHTS}'"
            )
        if archive.members[CONFIG][1] > _MAX_CONFIG:
            raise CorruptFile("the configuration of the model is larger than 64 MiB")
        return KerasFile(archive, _json(archive, CONFIG))

    @cached_property
    def model(self) -> Layer:
        """Its layers."""
        return tree(self.config)

    @property
    def version(self) -> str:
        """The version of Keras that wrote it."""
        return str(_json(self.zip, METADATA).get("keras_version", "")) if METADATA in self.zip else ""

    @property
    def notes(self) -> bytes | None:
        """What we wrote beside it."""
        return self.zip.content(NAME) if NAME in self.zip else None

    @property
    def weights(self) -> Region:
        """The HDF5 file in it."""
        return self.zip.region(WEIGHTS)

    @cached_property
    def stored(self) -> dict[str, ir.TensorProtocol]:
        """Dataset -> tensor."""
        return hdf5.read(self.weights)

    @cached_property
    def places(self) -> Mapping[str, str]:
        """Name of a variable -> its dataset; those of layers that are not known are named after their place."""
        found = {name: place for name, place in places(self.model).items() if place in self.stored}
        stores = {layer.store: layer.name for layer in self.model.walk() if layer.store}
        for place in self.stored.keys() - set(found.values()):
            store = max((s for s in stores if place.startswith(f"{s}/")), key=len, default=None)
            if store is not None:
                found[f"{stores[store]}.{place.removeprefix(f'{store}/').replace('/', '.')}"] = place
            elif not self.model.children and not place.startswith(OPTIMIZER):
                found[place.replace("/", ".")] = place  # of a class of a person's own
        return found

    @property
    def tensors(self) -> dict[str, ir.TensorProtocol]:
        """Name of a variable -> tensor: weights and statistics, no counters."""
        return {
            name: self.stored[place]
            for name, place in self.places.items()
            if self.stored[place].dtype.is_floating_point()
        }


def _json(archive: StoredZip, name: str) -> dict[str, Any]:
    try:
        found = json.loads(archive.content(name))
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"the member '{name}' is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CorruptFile(f"the member '{name}' is not a JSON object")
    return found
