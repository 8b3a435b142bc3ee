"""The checkpoint folder of RLlib's new API stack: components, each a pickle of its state and one of its making.

(ray/rllib/utils/checkpoints.py `Checkpointable`, ray/rllib/core/learner/torch/torch_learner.py)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.errors import CorruptFile, FileError, Refused, UnknownFormat
from surgery.files import check_readable, read_error
from surgery_adapters.containers.folders import files
from surgery_adapters.containers.pickle_tree import Made, Name, Tree, parse
from surgery_adapters.containers.pickled_arrays import is_array, read_array, read_scalar
from surgery_adapters.containers.spaces import Space, read_space
from surgery_adapters.writeback.contract import NAME

MARK = "rllib_checkpoint.json"
_LEARNER = "learner_group/learner"
_MODULES = f"{_LEARNER}/rl_module"
STATE = f"{_LEARNER}/state.pkl"
_MOST = 1 << 31
_CONFIG = "ray.rllib.core.rl_module.default_model_config.DefaultModelConfig"


@dataclass(frozen=True)
class RllibFolder:
    """One checkpoint.

    Attributes:
      path: the folder.
      about: `rllib_checkpoint.json`.
      module: the identifier of its one module, such as `default_policy`.
    """

    path: Path
    about: Mapping[str, Any]
    module: str
    _trees: dict[str, Tree] = field(default_factory=dict)

    @staticmethod
    def open(path: Path) -> RllibFolder:
        """Raises: UnknownFormat, Refused: a checkpoint of another kind. CorruptFile: damaged or hostile."""
        about = _about(path / MARK)
        modules = path / _MODULES
        if not modules.is_dir():
            raise UnknownFormat(
                f"{path} is not a checkpoint of an algorithm on RLlib's new API stack: it has no '{_MODULES}'",
                hint="the old stack exports its policies: policy.export_model(FOLDER, onnx=17)",
            )
        found = sorted(inside.name for inside in modules.iterdir() if inside.is_dir())
        if len(found) != 1:
            raise Refused(
                f"the checkpoint has {len(found)} modules ({', '.join(found[:5])}); only one can be read",
                hint="save one policy by itself, or export its module to ONNX",
            )
        return RllibFolder(path, about, found[0])

    @property
    def module_folder(self) -> Path:
        """The folder of the module, which is a checkpoint by itself."""
        return self.path / _MODULES / self.module

    @property
    def state_file(self) -> str:
        """The file of the module's parameters."""
        return f"{_MODULES}/{self.module}/module_state.pkl"

    def tree(self, name: str) -> Tree:
        """A pickle of the folder; a tree that is changed is another one to all who ask later.

        Raises:
          FileError: missing. CorruptFile: damaged.
        """
        if name not in self._trees:
            try:
                self._trees[name] = parse(_content(self.path / name), _MOST)
            except CorruptFile as error:
                raise error.within(member=name) from error
        return self._trees[name]

    def files(self) -> list[str]:
        """Every file of the folder, relative to it.

        Raises:
          CorruptFile: there is something else than files and folders.
        """
        return files(self.path)

    @cached_property
    def nodes(self) -> dict[str, Any]:
        """Parameter or buffer -> the node of its array."""
        root = self.tree(self.state_file).root
        found: object = root.keyed if isinstance(root, Made) else root
        if not isinstance(found, dict) or not found or not all(map(is_array, found.values())):
            raise CorruptFile(f"'{self.state_file}' holds something other than arrays")
        return found

    @cached_property
    def tensors(self) -> dict[str, ir.TensorProtocol]:
        """Parameter or buffer -> its values, in the file's order."""
        return {str(name): ir.Tensor(read_array(node), name=str(name)) for name, node in self.nodes.items()}

    @cached_property
    def making(self) -> Mapping[str, Any]:
        """What the module is made from: "class" and its keywords."""
        name = f"{_MODULES}/{self.module}/class_and_ctor_args.pkl"
        root = self.tree(name).root
        try:
            kind, keywords = root["class"], root["ctor_args_and_kwargs"][1]
        except (KeyError, TypeError, IndexError) as error:
            raise CorruptFile(f"'{name}' does not say how the module is made") from error
        if not isinstance(kind, Name) or not isinstance(keywords, dict):
            raise CorruptFile(f"'{name}' does not say how the module is made")
        return {**keywords, "class": kind}

    @property
    def config(self) -> dict[str, Any]:
        """The module's `model_config`, defaults included."""
        found = fields_of(self.making.get("model_config"))
        if found is None:
            raise CorruptFile("the checkpoint does not hold the model_config of its module")
        return found

    @property
    def algorithm(self) -> Mapping[str, Any]:
        """The algorithm's configuration; empty where the folder does not hold it as data."""
        root = self.tree("class_and_ctor_args.pkl").root
        try:
            found = root["ctor_args_and_kwargs"][0][0]
        except (KeyError, TypeError, IndexError):
            return {}
        return found if isinstance(found, dict) else {}

    def space(self, key: str) -> Space:
        """The module's observation or action space."""
        return read_space(self.making.get(key))

    @cached_property
    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        """Optimizer, without the module in its name -> where its state stands in the tree."""
        root = self.tree(STATE).root
        every = root.get("optimizer", {}) if isinstance(root, dict) else None
        if not isinstance(every, dict):
            raise CorruptFile(f"'{STATE}' holds something other than optimizers")
        found: dict[str, Mapping[str, Any]] = {}
        for name, holder in every.items():
            state = holder.get("state") if isinstance(holder, dict) else None
            if not isinstance(name, str) or not isinstance(state, dict):
                raise CorruptFile(f"the optimizer '{name}' is damaged")
            found[name.removeprefix(f"{self.module}_")] = state
        return found

    @property
    def notes(self) -> bytes | None:
        """Our own file: what the framework's have no place for."""
        return _content(self.path / NAME) if (self.path / NAME).is_file() else None


def fields_of(config: object) -> dict[str, Any] | None:
    """The fields of a model_config, which is a dict or the framework's dataclass."""
    if isinstance(config, Made) and config.is_a(_CONFIG):
        config = config.state
    return config if isinstance(config, dict) else None


def plain(node: object) -> object:
    """A part of a tree as data: arrays as tensors, NumPy's numbers as Python's.

    Raises:
      CorruptFile: it holds something else.
    """
    if isinstance(node, dict) and all(isinstance(key, str | int) for key in node):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(plain, node))
    if is_array(node):
        return ir.Tensor(read_array(node))
    if (number := read_scalar(node)) is not None:
        return number
    if node is None or isinstance(node, str | int | float):
        return node
    what = node if isinstance(node, Made) else type(node).__name__
    raise CorruptFile(f"the state of an optimizer holds '{what}', which is not data")


def _about(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_content(path))
        version = str(found["checkpoint_version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(f"'{path.name}' is damaged: {error}") from error
    if not version.startswith("2."):
        raise Refused(
            f"the checkpoint is of version {version}, which RLlib wrote before its new API stack",
            hint="load and save it with a newer Ray, or export its policies: policy.export_model(FOLDER, onnx=17)",
        )
    return dict(found)


def _content(path: Path) -> bytes:
    packed = path.with_suffix(".msgpack")
    if path.suffix == ".pkl" and not path.exists() and packed.exists():
        raise Refused(
            f"'{packed.name}' is MessagePack: only checkpoints of pickles are read",
            hint="save it without use_msgpack",
        )
    check_readable(path)
    try:
        if path.stat().st_size > _MOST:
            raise FileError(f"{path} is larger than 2 GiB")
        return path.read_bytes()
    except OSError as error:
        raise read_error(error, path) from error
