"""Finding the adapters that are installed: readers of training frameworks' own files.

An adapter is a module registered under the entry-point group `surgery.adapters`, with the verbs of `Adapter`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast

import onnx_ir as ir

from surgery.errors import UnknownFormat
from surgery.files import check_readable
from surgery.formats import sniff

GROUP = "surgery.adapters"
SHARED = "surgery.shared"
"""Key in the `meta` of an adapter's tensor. Tensors that are equal in it are one tensor with two names."""
_LOG = logging.getLogger(__name__)


class TrainingState(Protocol):
    """What a training run saved: see `surgery_adapters.pytorch.TrainingState`."""

    @property
    def networks(self) -> Mapping[str, Mapping[str, ir.TensorProtocol]]: ...
    @property
    def optimizers(self) -> Mapping[str, Mapping[str, object]]: ...


class Adapter(Protocol):
    """The verbs of an adapter module."""

    def detect(self, path: Path) -> bool:
        """Whether the file is one of the adapter's; never raises on any content."""

    def training_state(self, path: Path) -> TrainingState:
        """Raises: FileError, UnknownFormat, CorruptFile."""


def installed() -> dict[str, Adapter]:
    """The adapters that are installed and can be imported, by name."""
    adapters = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            adapters[entry.name] = cast(Adapter, entry.load())
        except ImportError as error:
            _LOG.warning("the adapter '%s' cannot be imported: %s", entry.name, error)
    return adapters


def find(path: Path) -> tuple[str, Adapter]:
    """The adapter that reads a file, with its name.

    Raises:
      FileError: the file is missing or cannot be read.
      UnknownFormat: no adapter reads it; says what it is.
    """
    check_readable(path)
    adapters = installed()
    for name, adapter in adapters.items():
        if adapter.detect(path):
            return name, adapter
    kind = sniff(path)
    known = ", ".join(adapters) or "none"
    hint = kind.hint.format(path=path) if kind.hint else f"installed adapters: {known}"
    raise UnknownFormat(f"no adapter reads {path}: it is {kind.description}", hint=hint)
