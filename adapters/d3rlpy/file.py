"""The `.d3` of d3rlpy: a pickle of an archive of `torch.save`, a configuration as JSON, and a version.

(d3rlpy/base.py `dump_learnable`, d3rlpy/torch_utility.py `Checkpointer`)
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir

from surgery.errors import CorruptFile, UnknownFormat
from surgery.tensors import MappedFile, Region
from surgery_adapters.containers.data_pickle import load_pickle
from surgery_adapters.containers.torch_archive import TorchArchive
from surgery_adapters.writeback.contract import NAME

TRAINED = ("optim", "_optim")
"""How the names of optimizers end."""


@dataclass(frozen=True)
class D3File:
    """One saved algorithm.

    Attributes:
      outer: what the pickle holds; its entries that we do not know are carried.
      protocol: of the pickle.
      archive: the modules' state dicts.
      config: the configuration.
    """

    outer: Mapping[str, object]
    protocol: int
    archive: TorchArchive
    config: Mapping[str, Any]

    @staticmethod
    def open(path: Path) -> D3File:
        """Raises: UnknownFormat: not a file of d3rlpy. CorruptFile: damaged or hostile."""
        file = MappedFile(path)
        data = b"".join(bytes(block) for block in file.blocks(0, file.size, 1 << 22))
        outer = load_pickle(data, {}, _nothing)
        if not isinstance(outer, dict) or not {"torch", "config", "version"} <= set(outer):
            raise UnknownFormat(f"{path} is a pickle, but not an algorithm that d3rlpy saved")
        content, text = outer["torch"], outer["config"]
        if not isinstance(content, bytes) or not isinstance(text, str):
            raise CorruptFile("the parameters or the configuration of the file have the wrong type")
        archive = TorchArchive.open(Region(file, data.index(content), len(content)))
        return D3File(outer, data[1], archive, read_config(text))

    @cached_property
    def modules(self) -> Mapping[str, Mapping[str, Any]]:
        """Module or optimizer -> its state dict.

        Raises:
          CorruptFile: the archive holds something else.
        """
        found = self.archive.read()
        if not isinstance(found, dict) or not all(isinstance(state, dict) for state in found.values()):
            raise CorruptFile("the file holds something other than state dicts")
        return found

    @cached_property
    def tensors(self) -> dict[str, ir.TensorProtocol]:
        """`MODULE.NAME` -> parameter or buffer of every module, in the file's order."""
        found: dict[str, ir.TensorProtocol] = {}
        for module, state in self.modules.items():
            if module.endswith(TRAINED):
                continue
            for key, tensor in state.items():
                if not isinstance(tensor, ir.TensorProtocol):
                    raise CorruptFile(f"'{module}' holds something other than tensors")
                tensor.name = f"{module}.{key}"
                found[tensor.name] = tensor
        return found

    @property
    def optimizers(self) -> dict[str, Mapping[str, object]]:
        """Optimizer -> the state dict of PyTorch's; the scheduler beside it is carried."""
        inner = {name: state.get("optim") for name, state in self.modules.items() if name.endswith(TRAINED)}
        return {name: state for name, state in inner.items() if isinstance(state, dict)}

    @property
    def notes(self) -> bytes | None:
        """Our own entry: what the framework's file has no place for."""
        found = self.outer.get(NAME)
        return found.encode() if isinstance(found, str) else None


def read_config(text: str) -> Mapping[str, Any]:
    """Raises: CorruptFile: no configuration of an algorithm and its shapes."""
    try:
        config = json.loads(text)
        shape, size = config["observation_shape"], config["action_size"]
        algorithm, params = config["config"]["type"], config["config"]["params"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptFile(f"the configuration of the file is damaged: {error}") from error
    flat = isinstance(shape, list) and all(type(n) is int and 0 < n < 1 << 24 for n in shape)
    if not (isinstance(algorithm, str) and isinstance(params, dict) and type(size) is int and flat):
        raise CorruptFile(
            f"the configuration of the file is not supported: observations {shape}, actions {size}"
        )
    for key, part in params.items():
        if key.endswith(("_factory", "_scaler")) and part is not None and not _is_part(part):
            raise CorruptFile(f"the configuration's '{key}' is damaged")
    return dict(config)


def _is_part(part: object) -> bool:
    """Whether it is a part of a configuration, {"type", "params"}."""
    return (
        isinstance(part, dict)
        and isinstance(part.get("type"), str)
        and isinstance(part.get("params", {}), dict)
    )


def write(outer: Mapping[str, object], protocol: int, out: BinaryIO) -> None:
    """Write the pickle of a file; its entries are text and bytes."""
    pickle.dump(dict(outer), out, protocol=protocol)


def _nothing(reference: object) -> object:
    raise CorruptFile(f"the pickle refers to '{reference}', which is not in it")
