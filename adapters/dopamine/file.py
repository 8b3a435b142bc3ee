"""The pickle of a Dopamine agent, taken apart."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.errors import CorruptFile, Refused, UnknownFormat
from surgery.files import check_readable, read_error
from surgery_adapters.containers.optax_state import leaves
from surgery_adapters.containers.pickle_tree import Tree, dump, parse
from surgery_adapters.containers.pickled_arrays import is_array, read_array, read_integer, write_array
from surgery_adapters.containers.pickled_trees import nested
from surgery_adapters.writeback.contract import NAME

ONLINE, TARGET, OPTIMIZER = "online_params", "target_params", "optimizer_state"
_OTHERS = ("network_params", OPTIMIZER)
"""What PPO and SAC agents keep."""
_MOST = 1 << 31
"""Bytes of a checkpoint: that of full Rainbow, the largest network of the package, has 0.25 GB."""


def holds_agent(path: Path) -> bool:
    """Whether a pickle has the name of an agent's parameters in it; nothing is unpickled."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(
                all(content.find(name.encode()) >= 0 for name in names) for names in ((ONLINE,), _OTHERS)
            )
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class DopamineFile:
    """One checkpoint.

    Attributes:
      tree: the pickle. root: the dict that it is of.
    """

    tree: Tree
    root: dict[str, Any]

    @staticmethod
    def open(path: Path) -> DopamineFile:
        """Read a file.

        Raises:
          FileError: it cannot be read. UnknownFormat: a pickle of something else. Refused: PPO's or SAC's.
          CorruptFile: damaged or hostile.
        """
        check_readable(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise read_error(error, path) from error
        tree = parse(data, _MOST)
        if isinstance(tree.root, dict) and ONLINE not in tree.root and set(_OTHERS) <= set(tree.root):
            raise Refused(
                f"{path} is of an agent with an actor and critics, PPO or SAC, whose networks have no rule here",
                hint="export its network to ONNX with jax2onnx, and take that; value-based agents are read as they are",
            )
        if not isinstance(tree.root, dict) or ONLINE not in tree.root:
            raise UnknownFormat(f"{path} is a pickle, but of no agent of Dopamine: it has no '{ONLINE}'")
        return DopamineFile(tree, tree.root)

    @cached_property
    def tensors(self) -> dict[str, ir.TensorProtocol]:
        """The parameters of all networks by their path in the file."""
        found = {}
        for network in (ONLINE, TARGET):
            for name, tensor in leaves(nested(self.root.get(network)), network):
                tensor.name = name
                found[name] = tensor
        if not found:
            raise CorruptFile(f"the '{ONLINE}' of the file are no arrays")
        return found

    def network(self, name: str) -> dict[str, ir.TensorProtocol]:
        """The parameters of one network."""
        return {key: tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}

    @cached_property
    def optimizer(self) -> Mapping[str, Any]:
        """The optimizer's state as nested dicts; empty if there is none."""
        return nested(self.root.get(OPTIMIZER))

    @property
    def observation(self) -> tuple[int, ...] | None:
        """The shape of an observation, if the file has the last one."""
        state = self.root.get("state")
        return read_array(state).shape if is_array(state) else None

    def reshape_observation(self, shape: tuple[int, ...]) -> bool:
        """Let the last observation have another shape: zeros, as at the start of an episode; whether it has changed."""
        old = self.observation
        if old is not None and len(shape) == 1:  # a vector has axes of size 1 for channels and frames
            shape = (*shape, *old[1:])
        if old in (None, shape):
            return False
        self.root["state"] = write_array(self.root["state"], np.zeros(shape))
        return True

    @property
    def training_steps(self) -> int | None:
        """Steps of the agent."""
        return read_integer(self.root.get("training_steps"))

    @property
    def notes(self) -> bytes | None:
        """Our own entry, which Dopamine does not look at."""
        found = self.root.get(NAME)
        return found.encode() if isinstance(found, str) else None

    def content(self, notes: bytes | None) -> bytes:
        """The file as it is to be, with the arrays that were replaced."""
        entries = {key: value for key, value in self.root.items() if key != NAME}
        if notes is not None:
            entries[NAME] = notes.decode()
        return dump(Tree(entries, self.tree.protocol))
