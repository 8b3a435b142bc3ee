"""Archives of `torch.save` with some tensors replaced, and everything else as it was.

A tensor is addressed by its view (storage, offset, shape, strides), so that all names of one tensor follow together.
Of whole modules the sizes that PyTorch's layers remember (`out_features` …) follow, too.
Members that no replaced tensor lies in are copied byte for byte; the pickle is written again from its tree.
"""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.errors import CorruptFile, Refused
from surgery.tensors import MappedFile, Region, blocks, equal, shape_of
from surgery_adapters.containers.module_tree import modules_in, resize, weights_in
from surgery_adapters.containers.pickle_tree import Made, Name, Persistent, Tree, parse, walk
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.containers.torch_archive import StoredZip, TorchArchive, storage_class

View = tuple[str, int, tuple[int, ...], tuple[int, ...]]
"""Storage key, offset, shape, strides: `tensor.meta[SHARED]` of a tensor that was read."""

Content = bytes | Region | ir.TensorProtocol
"""What a member of an archive is made of."""

_ALIGNMENT = 64
_MAKERS = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))


def changes(
    old: Mapping[str, ir.TensorProtocol], new: Mapping[str, ir.TensorProtocol]
) -> dict[View, ir.TensorProtocol]:
    """The tensors of a file that are no longer what they were, by view.

    Args:
      old: name -> tensor as it was read from the file. new: what it is to be; names that are missing stay.

    Raises:
      Refused: one tensor of the file would become two, or another element type.
    """
    wanted: dict[View, list[tuple[str, ir.TensorProtocol]]] = {}
    for name, tensor in old.items():
        if name in new:
            wanted.setdefault(cast(View, tensor.meta[SHARED]), []).append((name, new[name]))
    replaced = {}
    for view, ((name, now), *others) in wanted.items():
        for other, tensor in others:
            if tensor is not now and not equal(tensor, now):
                raise Refused(f"'{name}' and '{other}' are one tensor in the file, and they now differ")
        if now.dtype != old[name].dtype:
            raise Refused(
                f"'{name}' is {old[name].dtype.name} in the file, and would become {now.dtype.name}"
            )
        if now is not old[name] and not equal(old[name], now):
            replaced[view] = now
    return replaced


Make = Callable[[ir.TensorProtocol], Made]
"""Gives a tensor a storage of its own, and the node of a tree that reads it."""

Edit = Callable[[Any, Make], None]
"""Changes the root of a tree in place."""


def rewrite(
    archive: TorchArchive,
    replaced: Mapping[View, ir.TensorProtocol],
    out: BinaryIO,
    extra: Mapping[str, bytes] | None = None,
    groups: Mapping[View, int] | None = None,
    edit: Edit | None = None,
) -> None:
    """Write an archive with some tensors replaced.

    Args:
      archive: the original; left as it is.
      replaced: view -> the tensor that takes its place, of the same element type.
      out: where to write; it can seek.
      extra: members to add or replace, their names without the prefix.
      groups: weight of a grouped convolution -> how many groups it now has, which no shape tells.
      edit: changes the tree before tensors are replaced: other keys, other tensors.

    Raises:
      CorruptFile: a view that the archive does not have.
    """
    tree = parse(archive.pickle())
    before = _storages(tree)
    storages = _Storages({name.rpartition("/")[2] for name in archive.zip.members}, _device(tree))
    modules = modules_in(tree) if replaced else []
    weights = [(node, view_of(weight)) for module in modules for node, weight in weights_in(module)]
    if edit is not None:
        edit(tree.root, storages.make)
    _retarget(tree, replaced, storages)
    for node, view in weights:
        resize(node, (groups or {}).get(view))
    used = _storages(tree)
    members: dict[str, Content] = {}
    for name in archive.zip.members:
        key = (
            name.removeprefix(f"{archive.prefix}data/") if name.startswith(f"{archive.prefix}data/") else None
        )
        if name == f"{archive.prefix}data.pkl" and (replaced or edit is not None):
            members[name] = dump(tree)
        elif key is None or key not in before or (key in used and key not in storages.content):
            members[name] = kept(archive.zip, name)
        elif key in storages.content:
            members[name] = storages.content.pop(key)
    members |= {f"{archive.prefix}data/{key}": tensor for key, tensor in storages.content.items()}
    write_zip(out, members | {f"{archive.prefix}{name}": content for name, content in (extra or {}).items()})


def write_zip(out: IO[bytes], members: Mapping[str, Content]) -> None:
    """Write a zip archive of stored members, each at a multiple of 64 bytes, as `torch.save` does."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(
                name
            )  # dated 1980, as torch.save does: the same input gives the same bytes
            header = 30 + len(name.encode()) + 4
            padding = -(out.tell() + header) % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            info.file_size = _length(content)
            with archive.open(info, "w", force_zip64=info.file_size >= 1 << 31) as member:
                for block in _pieces(content):
                    member.write(block)


def kept(original: StoredZip, name: str) -> Content:
    """A member as it is, or unpacked if it is compressed."""
    if name in original.packed:
        return original.content(name)
    return original.region(name)


def replace_members(original: StoredZip, changed: Mapping[str, Content], out: BinaryIO) -> None:
    """Write an archive in which some members are new or changed; the others are copied byte for byte."""
    members: dict[str, Content] = {
        name: changed[name] if name in changed else kept(original, name) for name in original.members
    }
    write_zip(out, {**members, **changed})


def rewritten(
    archive: TorchArchive, replaced: Mapping[View, ir.TensorProtocol], edit: Edit | None = None
) -> Region:
    """A rewritten archive as a region of a temporary file, which lives as long as the region does."""
    with tempfile.NamedTemporaryFile(prefix="surgery-", suffix=".part") as file:
        rewrite(archive, replaced, cast(BinaryIO, file), edit=edit)
        file.flush()
        return MappedFile(Path(file.name)).whole


@dataclass(eq=False)
class _Use:
    """One place of the tree where a tensor is made."""

    node: Made
    view: View


@dataclass
class _Storages:
    """The storages of an archive.

    Attributes:
      taken: keys of all. device: that new ones are on.
      content: key -> what a new or changed one is made of.
    """

    taken: set[str]
    device: str
    content: dict[str, ir.TensorProtocol] = field(default_factory=dict)

    def fresh(self) -> str:
        """A key that is free."""
        number = len(self.taken)
        while str(number) in self.taken:
            number += 1
        self.taken.add(str(number))
        return str(number)

    def make(self, tensor: ir.TensorProtocol) -> Made:
        """See `Make`."""
        key, shape = self.fresh(), shape_of(tensor)
        self.content[key] = tensor
        kind = Name("torch", storage_class(tensor.dtype))
        reference = Persistent(("storage", kind, key, self.device, math.prod(shape)))
        hooks = Made(Name("collections", "OrderedDict"), ())
        return Made(
            Name("torch._utils", "_rebuild_tensor_v2"), (reference, 0, shape, _steps(shape), False, hooks)
        )


def _retarget(tree: Tree, replaced: Mapping[View, ir.TensorProtocol], storages: _Storages) -> None:
    """Point the tree at new storages."""
    uses = [_Use(node, view_of(node)) for node in tensors_in(tree.root)]
    views: dict[str, set[View]] = {}
    for use in uses:
        views.setdefault(use.view[0], set()).add(use.view)
    missing = [view for view in replaced if view not in views.get(view[0], ())]
    if missing:
        raise CorruptFile(
            f"the file has no tensor of shape {list(missing[0][2])} in the storage '{missing[0][0]}'"
        )
    keys: dict[View, str] = {}
    for view, tensor in replaced.items():
        keys[view] = view[0] if views[view[0]] == {view} else storages.fresh()
        storages.content[keys[view]] = tensor
    for use in uses:
        if use.view in replaced:
            _point(use.node, keys[use.view], replaced[use.view])


def _storages(tree: Tree) -> set[str]:
    return {view_of(node)[0] for node in tensors_in(tree.root)}


def _device(tree: Tree) -> str:
    node = next(tensors_in(tree.root), None)
    return "cpu" if node is None else str(node.arguments[0].identity[3])


def view_of(node: Made) -> View:
    """The view that a node makes a tensor of."""
    reference, offset, size, stride = node.arguments[:4]
    identity = reference.identity if isinstance(reference, Persistent) else None
    if not isinstance(identity, tuple) or len(identity) < 5:
        raise CorruptFile("a tensor has no storage")
    return str(identity[2]), int(offset), tuple(_plain(size)), tuple(_plain(stride))


def _plain(value: Any) -> Iterable[int]:  # noqa: ANN401
    return cast(Iterable[int], value.arguments[0] if isinstance(value, Made) else value)


def _point(node: Made, key: str, tensor: ir.TensorProtocol) -> None:
    shape = shape_of(tensor)
    kind, name, _, device, *rest = node.arguments[0].identity
    count = tensor.nbytes if str(name).endswith("UntypedStorage") else math.prod(shape)
    reference = Persistent((kind, name, key, device, count, *rest[1:]))
    node.arguments = (reference, 0, shape, _steps(shape), *node.arguments[4:])


def _steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor without gaps."""
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))


def tensors_in(root: object) -> Iterator[Made]:
    """Every node of a tree that makes a tensor."""
    return (node for node in walk(root) if isinstance(node, Made) and node.is_a(*_MAKERS))


def _length(content: Content) -> int:
    if isinstance(content, bytes):
        return len(content)
    return content.length if isinstance(content, Region) else content.nbytes


def _pieces(content: Content) -> Iterator[bytes | memoryview]:
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Region):
        yield from content.blocks(1 << 22)
    else:
        yield from blocks(content)
