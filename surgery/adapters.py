"""Finding the adapters that are installed: readers of training frameworks' own files.

An adapter is a module registered under the entry-point group `surgery.adapters`, with the verbs of `Adapter`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.errors import Refused, UnknownFormat
from surgery.files import check_readable
from surgery.formats import sniff

GROUP = "surgery.adapters"
SHARED = "surgery.shared"
"""Key in the `meta` of an adapter's tensor. Tensors that are equal in it are one tensor with two names."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """What a training run saved.

    Attributes:
      networks: name -> parameter or buffer name -> tensor, in the file's order; a file that is one network's
        state dict and nothing else has the one network `model`.
      optimizers: name -> what `torch.optim.Optimizer.state_dict` gave.
      extra: everything else.
    """

    networks: Mapping[str, Mapping[str, ir.TensorProtocol]]
    optimizers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a person knows of a file that the file itself does not say.

    Attributes:
      activation: between the layers: "relu", "tanh", "elu" …
      observation: the shape of one observation, without the batch.
      module: "package.module:callable" that makes the network, imported from the person's own code.
      architecture: the name of the network's architecture (`surgery.architectures.parse`).
      head: what the architecture says, where sizes do not tell (`surgery.architectures.heads.HEADS`).
      trust: whether code that the file names may be imported and run.
      graph: an ONNX file that an exporter made of the network, where a file holds arrays only.
      optimizer: whether to read the optimizer state too.
    """

    activation: str | None = None
    observation: tuple[int, ...] | None = None
    module: str | None = None
    architecture: str | None = None
    head: str | None = None
    trust: bool = False
    graph: Path | None = None
    optimizer: bool = True


@contextlib.contextmanager
def code_from_here() -> Iterator[None]:
    """Modules that a person names may stand in the folder in which they work, as for `python -m`."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


class Adapter(Protocol):
    """The verbs of an adapter module."""

    def detect(self, path: Path) -> bool:
        """Whether the file or folder is one of the adapter's; never raises on any content."""

    def load(self, path: Path, reading: Reading) -> Checkpoint:
        """All networks of the file in one graph, under the framework's own names, its optimizer state bound to them.

        Nothing in the file is executed.

        Raises:
          FileError, UnknownFormat, CorruptFile: the file cannot be read.
          ArgumentError: something that the file does not say, and `reading` neither.
          Refused: a network that cannot be expressed as a graph, with the reason.
        """

    def save(self, checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
        """Write the checkpoint as a copy of `like` in which only what it changed is another.

        Raises:
          FileError: see `surgery.files.replacing` and, for a folder, `replacing_folder`.
          ArgumentError: `like` has other parameters than the checkpoint.
          Refused: something that the framework could not load, with the reason.
        """

    def training_state(self, path: Path) -> TrainingState:
        """Raises: FileError, UnknownFormat, CorruptFile."""


@runtime_checkable
class Checking(Protocol):
    """What an adapter may have beside its verbs: it says by shapes alone what its files cannot hold."""

    def check(self, checkpoint: Checkpoint, *, like: Path) -> None:
        """Raise what `save` would raise about the networks and the optimizer, before any tensor is computed.

        Raises:
          ArgumentError, Refused: see `Adapter.save`.
        """


@dataclass(frozen=True)
class Parity:
    """How a graph did beside the framework that its file came from, asked at every step of whole episodes.

    Attributes:
      environment: that was played. returns: of each episode, by the framework's actions.
      steps: of all. differing: those at which the two wanted different actions.
      largest: difference of their actions (of choices 0 or 1).
      assumed: what the file does not record and was taken for granted, or what only the framework does, in words.
    """

    environment: str
    returns: tuple[float, ...]
    steps: int
    differing: int
    largest: float
    assumed: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise Refused if any action differed."""
        if self.differing:
            raise Refused(
                f"the graph chooses another action than the framework at {self.differing:,} of {self.steps:,} "
                f"steps of {self.environment} (largest difference {self.largest:.3g})",
                hint="this is a bug of ours: please report it, with the file",
            )


@runtime_checkable
class Playing(Protocol):
    """What an adapter may have beside its verbs: it plays a file in its own framework, and the graph beside it."""

    def parity(
        self, path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int = 3, seed: int = 0
    ) -> Parity:
        """Play whole episodes by the framework's greedy actions, asking the graph at every step.

        The framework loads the file, and so runs what it pickles.

        Raises:
          MissingDependency: the framework is not installed. ArgumentError: an environment that does not fit.
        """


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
    check_readable(path, folder=True)
    found = detect(path)
    if found is not None:
        return found
    kind = sniff(path)
    known = ", ".join(installed()) or "none"
    hint = kind.advice(path) or f"installed adapters: {known}"
    raise UnknownFormat(f"no adapter reads {path}: it is {kind.description}", hint=hint)


def detect(path: Path) -> tuple[str, Adapter] | None:
    """The adapter that takes a file for one of its own, with its name.

    One whose module says `GENERAL = True`, because files like it are of many frameworks, gives way to all others.
    """
    known = sorted(installed().items(), key=lambda item: getattr(item[1], "GENERAL", False))
    return next(((name, adapter) for name, adapter in known if adapter.detect(path)), None)
