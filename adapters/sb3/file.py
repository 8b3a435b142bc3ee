"""The `.zip` of Stable-Baselines3: its members, and the settings in them, read without executing anything.

`data` is JSON in which what JSON cannot hold is a cloudpickle in base64; each `.pth` is an archive of `torch.save`.
(stable_baselines3/common/save_util.py)
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.errors import CorruptFile, UnknownFormat
from surgery.files import check_readable
from surgery.tensors import MappedFile
from surgery_adapters.containers.pickle_tree import Name, Tree, parse
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.containers.spaces import Space, read_space
from surgery_adapters.containers.torch_archive import StoredZip, TorchArchive
from surgery_adapters.writeback.contract import NAME

SERIALIZED, TYPE = ":serialized:", ":type:"
_MAX_DATA = 1 << 26


@dataclass(frozen=True)
class Sb3File:
    """One saved model.

    Attributes:
      zip: the archive.
      data: the JSON of its settings, as it stands in the file.
      changed: the policy's tensors where they are to be others than in the archive.
    """

    zip: StoredZip
    data: Mapping[str, Any]
    changed: Mapping[str, ir.TensorProtocol] | None = None

    @staticmethod
    def open(path: Path) -> Sb3File:
        """Read the directory and the settings.

        Raises:
          UnknownFormat: not a model of Stable-Baselines3. CorruptFile: damaged or hostile.
        """
        check_readable(path)
        archive = StoredZip.open(MappedFile(path).whole)
        if not {"data", "policy.pth"} <= set(archive.members):
            raise UnknownFormat(
                f"{path} is a zip archive, but not a model of Stable-Baselines3: no 'data', 'policy.pth'"
            )
        if archive.members["data"][1] > _MAX_DATA:
            raise CorruptFile("the settings of the model are larger than 64 MiB")
        try:
            data = json.loads(archive.content("data"))
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"the settings of the model are not JSON: {error}") from error
        if not isinstance(data, dict):
            raise CorruptFile("the settings of the model are not a JSON object")
        return Sb3File(archive, data)

    def archive(self, name: str) -> TorchArchive:
        """An archive in the archive, such as `policy.pth`."""
        try:
            return TorchArchive.open(self.zip.region(name))
        except CorruptFile as error:
            raise error.within(member=name) from error

    def state(self, name: str) -> Mapping[str, Any]:
        """The state dict in a member.

        Raises:
          CorruptFile: it holds something else.
        """
        try:
            content = self.archive(name).read()
        except CorruptFile as error:
            raise error.within(member=name) from error
        if not isinstance(content, dict):
            raise CorruptFile(f"'{name}' holds no state dict")
        return content

    @cached_property
    def policy(self) -> dict[str, ir.TensorProtocol]:
        """The policy's parameters and buffers, in the file's order."""
        if self.changed is not None:
            return dict(self.changed)
        found = self.state("policy.pth")
        if not all(isinstance(k, str) and isinstance(v, ir.TensorProtocol) for k, v in found.items()):
            raise CorruptFile("'policy.pth' holds something other than tensors")
        for name, tensor in found.items():
            tensor.name = name
        return dict(found)

    @property
    def optimizers(self) -> list[str]:
        """The members that hold optimizer state, without their suffix."""
        members = (name.removesuffix(".pth") for name in self.zip.members if name.endswith(".pth"))
        return [name for name in members if name.endswith("optimizer")]

    def tree(self, key: str) -> Tree | None:
        """A setting that is a pickle, as a tree; None if it is plain JSON or not there.

        Raises:
          CorruptFile: damaged.
        """
        item = self.data.get(key)
        if not isinstance(item, dict) or SERIALIZED not in item:
            return None
        try:
            return parse(base64.b64decode(str(item[SERIALIZED]), validate=True))
        except (binascii.Error, CorruptFile) as error:
            raise CorruptFile(f"the setting '{key}' is damaged: {error}") from error

    def space(self, key: str) -> Space:
        """The space of a setting, in a tree of its own."""
        tree = self.tree(key)
        if tree is None:
            raise CorruptFile(f"the file does not say its {key.replace('_', ' ')}")
        return read_space(tree.root)

    @cached_property
    def kwargs(self) -> dict[str, Any]:
        """`policy_kwargs`, classes as names."""
        tree = self.tree("policy_kwargs")
        found = self.data.get("policy_kwargs") if tree is None else tree.root
        if not isinstance(found, dict):
            raise CorruptFile("the file's 'policy_kwargs' are no dict")
        return found

    @property
    def policy_class(self) -> str:
        """Module and name of the policy's class; empty where it is the user's own and pickled by value."""
        tree = self.tree("policy_class")
        return str(tree.root) if tree is not None and isinstance(tree.root, Name) else ""

    @property
    def version(self) -> str:
        """Of the framework that wrote it."""
        name = "_stable_baselines3_version"
        return self.zip.content(name)[:40].decode("utf-8", "replace").strip() if name in self.zip else ""

    @property
    def notes(self) -> bytes | None:
        """Our own member: what the framework's file has no place for."""
        return self.zip.content(NAME) if NAME in self.zip else None


def serialized(tree: Tree, kind: str, shown: Mapping[str, object]) -> dict[str, object]:
    """A setting as the framework stores what JSON cannot hold, with what people may read of it."""
    data = base64.b64encode(dump(tree)).decode()
    return {TYPE: kind, SERIALIZED: data, **{key: str(value) for key, value in shown.items()}}
