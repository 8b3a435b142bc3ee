"""The pickle of a Dopamine agent, taken apart."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.errors import CorruptFile, Refused, UnknownFormat
from surgery.files import check_readable, read_error
from surgery_adapters.containers.optax_state import leaves
from surgery_adapters.containers.pickle_tree import Tree, parse
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.containers.pickled_arrays import is_array, read_array, read_integer, write_array
from surgery_adapters.containers.pickled_trees import nested, numbered_anew
from surgery_adapters.writeback.compact import Family
from surgery_adapters.writeback.contract import NAME

ONLINE, NETWORK, TARGET, OPTIMIZER = "online_params", "network_params", "target_params", "optimizer_state"
"""What agents keep: those that learn values the first, PPO and SAC the second."""
_MOST = 1 << 31
"""Bytes of a checkpoint: that of full Rainbow, the largest network of the package, has 0.25 GB."""


def holds_agent(path: Path) -> bool:
    """Whether a pickle has the name of an agent's parameters in it; nothing is unpickled."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(
                all(content.find(name.encode()) >= 0 for name in names)
                for names in ((ONLINE,), (NETWORK, OPTIMIZER))
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
          FileError: it cannot be read. UnknownFormat: a pickle of something else.
          CorruptFile: damaged or hostile.
        """
        check_readable(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise read_error(error, path) from error
        tree = parse(data, _MOST)
        if not isinstance(tree.root, dict) or not {ONLINE, NETWORK} & set(tree.root):
            raise UnknownFormat(
                f"{path} is a pickle, but not of a Dopamine agent: it has no '{ONLINE}' or '{NETWORK}'"
            )
        return DopamineFile(tree, tree.root)

    @property
    def acting(self) -> str:
        """The name of the network that acts."""
        return ONLINE if ONLINE in self.root else NETWORK

    @property
    def networks(self) -> list[str]:
        """The names of all networks, the one that acts first."""
        return [name for name in (self.acting, TARGET) if self.network(name)]

    @cached_property
    def tensors(self) -> dict[str, ir.TensorProtocol]:
        """The parameters of all networks by their path in the file."""
        found = {}
        for network in (self.acting, TARGET):
            for name, tensor in leaves(nested(self.root.get(network)), network):
                tensor.name = name
                found[name] = tensor
        if not found:
            raise CorruptFile(f"the '{self.acting}' of the file are not arrays")
        return found

    def network(self, name: str) -> dict[str, ir.TensorProtocol]:
        """The parameters of one network."""
        return {key: tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}

    @cached_property
    def optimizer(self) -> Mapping[str, Any]:
        """The optimizer's state as nested dicts; empty if there is none."""
        return nested(self.root.get(OPTIMIZER))

    def grown(self, families: Sequence[Family]) -> DopamineFile:
        """The file with new layers, of zeros, in its networks and their optimizer; this one has changed with it."""
        trees = {name: [name] for name in self.networks}
        if self.optimizer:  # read, and so known to have an end
            trees[self.acting].append(OPTIMIZER)
        for family in families:
            network, _, module = family.module.partition(".")
            for tree in trees[network]:
                numbered_anew(self.root[tree], module, family.names, family.added)
        return DopamineFile(self.tree, self.root)

    @property
    def observation(self) -> tuple[int, ...] | None:
        """The shape of an observation, if the file has the last one."""
        state = self.root.get("state")
        return read_array(state).shape if is_array(state) else None

    def reshape_observation(self, shape: tuple[int, ...]) -> bool:
        """Let the last observation have another shape: zeros, as at the start of an episode; whether it has changed.

        Args:
          shape: as the graph has it, where the axes of frames and the like are one with the last axis.

        Raises:
          Refused: what is new are no whole frames.
        """
        old = self.observation
        if old is not None and len(shape) < len(old):
            frames = old[len(shape) :]
            count, rest = divmod(shape[-1], prod(frames))
            if rest:
                raise Refused(
                    f"an observation of {shape[-1]} numbers does not fit {' × '.join(map(str, frames))} frames",
                    hint=f"let it grow by a multiple of {prod(frames)}",
                )
            shape = (*shape[:-1], count, *frames)
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
