"""Folders of Orbax: a tree of zarr arrays, each in files of its own or all in one OCDBT database.

`_METADATA` lists the tree; the arrays are read and written by tensorstore, as Orbax does. A folder of a
`CheckpointManager` holds one such folder per step and item, such as `1000/default`; a step is taken, too.
(https://github.com/google/orbax, orbax/checkpoint; https://google.github.io/tensorstore)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.errors import CorruptFile, missing
from surgery.files import read_error, replacing_folder
from surgery.tensors import shape_of
from surgery_adapters.containers.folders import copy_files, files

_TREE, _SHAPES, _DATABASE = "_METADATA", "array_metadatas", "manifest.ocdbt"


def item_of(path: Path) -> Path | None:
    """The folder with the tree: the one that is named, or the only one in it."""
    if (path / _TREE).is_file():
        return path
    found = [folder for folder in sorted(path.iterdir()) if (folder / _TREE).is_file()]
    return found[0] if len(found) == 1 else None


def read(path: Path) -> dict[str, Any]:
    """The tree as nested dicts by name; arrays are read when they are used.

    Raises:
      CorruptFile: damaged, or of another layout.
      MissingDependency: tensorstore is not installed.
    """
    item = _item(path)
    files(item, linked=True)
    tree: dict[str, Any] = {}
    for keys, value in _entries(_record(item / _TREE)):
        if value.get("skip_deserialize") or value.get("value_type") == "None":
            continue
        inner = tree
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise CorruptFile(f"'{'.'.join(keys)}' lies in an array")
        if keys[-1] in inner:
            raise CorruptFile(f"the tree holds '{'.'.join(keys)}' twice")
        inner[keys[-1]] = _tensor(item, ".".join(keys))
    return tree


def write(source: Path, target: Path, arrays: Mapping[str, ir.TensorProtocol], *, force: bool) -> list[Path]:
    """Write a copy of a folder with other arrays at some paths.

    Raises:
      FileError: see `surgery.files.replacing_folder`. CorruptFile: there are links in the folder.
    """
    inside = _item(source).relative_to(source)
    kept = files(source)
    needed = sum((source / name).stat().st_size for name in kept)
    needed += sum(tensor.nbytes for tensor in arrays.values())

    def owned(path: Path) -> bool:
        return item_of(path) is not None

    with replacing_folder(target, owned=owned, force=force, needed=needed, sources=[source]) as part:
        copy_files(source, part, kept)
        for name, tensor in arrays.items():
            _replace(part / inside, name, tensor)
        shapes = {name: list(shape_of(tensor)) for name, tensor in arrays.items()}
        if arrays:
            _note_shapes(part / inside, shapes)
    return [target]


def _item(path: Path) -> Path:
    found = item_of(path)
    if found is None:
        raise CorruptFile(
            f"{path} holds no tree of Orbax, or several", hint="name the folder of one step or item"
        )
    return found


def _record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise read_error(error, path) from error
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CorruptFile(f"{path} is not a JSON object")
    return found


def _entries(record: Mapping[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The path of every leaf, and what is said of its value."""
    tree = record.get("tree_metadata")
    for entry in tree.values() if isinstance(tree, dict) else [None]:
        keys = entry.get("key_metadata") if isinstance(entry, dict) else None
        value = entry.get("value_metadata") if isinstance(entry, dict) else None
        if not isinstance(keys, list) or not keys or not isinstance(value, dict):
            raise CorruptFile(f"the tree in '{_TREE}' is damaged")
        names = [str(key.get("key")) if isinstance(key, dict) else "" for key in keys]
        if not all(name and "/" not in name and "." not in name and name.isprintable() for name in names):
            raise CorruptFile(f"a name in '{_TREE}' is none: {names!r}"[:200])
        yield names, value


def _tensorstore() -> Any:  # noqa: ANN401
    try:
        import tensorstore
    except ImportError as error:
        raise missing("tensorstore", "orbax") from error
    return tensorstore


def _spec(item: Path, name: str) -> dict[str, Any]:
    """Where an array is, as tensorstore has it."""
    driver = "zarr3" if _record(item / _TREE).get("use_zarr3") else "zarr"
    if (item / _DATABASE).is_file():
        store = {"driver": "ocdbt", "base": f"file://{item.absolute()}/", "path": f"{name}/"}
    else:
        store = {"driver": "file", "path": f"{item.absolute() / name}/"}
    return {"driver": driver, "kvstore": store}


def _open(item: Path, name: str) -> Any:  # noqa: ANN401
    store = _tensorstore()
    try:
        return store.open(_spec(item, name), open=True, read=True).result()
    except ValueError as error:
        raise CorruptFile(f"the array '{name}' is damaged: {str(error)[:160]}") from error


def _tensor(item: Path, name: str) -> ir.TensorProtocol:
    array = _open(item, name)
    dtype = ir.DataType.from_numpy(array.dtype.numpy_dtype)

    def content() -> ir.TensorProtocol:
        try:
            return ir.Tensor(array.read().result(), dtype=dtype, name=name)
        except ValueError as error:
            raise CorruptFile(f"the array '{name}' is damaged: {str(error)[:160]}") from error

    return ir.LazyTensor(content, dtype=dtype, shape=ir.Shape(array.shape), name=name, cache=False)


def _replace(item: Path, name: str, tensor: ir.TensorProtocol) -> None:
    """Write an array over another one; it is one chunk, as on a single device."""
    spec = _open(item, name).spec().to_json()
    shape = list(shape_of(tensor))
    metadata = dict(spec["metadata"])
    metadata["shape"] = shape
    if spec["driver"] == "zarr3":
        metadata["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": shape}}
        metadata["codecs"] = [_in_one_chunk(codec, shape) for codec in metadata.get("codecs", ())]
    else:
        metadata["chunks"] = shape
    # Orbax takes a chunk that is not there for damage: those of zeros are written too
    wanted = {**_spec(item, name), "metadata": metadata, "store_data_equal_to_fill_value": True}
    array = _tensorstore().open(wanted, create=True, delete_existing=True).result()
    array.write(tensor.numpy()).result()


def _in_one_chunk(codec: dict[str, Any], shape: list[int]) -> dict[str, Any]:
    """A codec whose own chunks, if it has some, are as large as the array."""
    settings = codec.get("configuration")
    if not isinstance(settings, dict) or "chunk_shape" not in settings:
        return codec
    return {**codec, "configuration": {**settings, "chunk_shape": shape}}


def _note_shapes(item: Path, shapes: Mapping[str, list[int]]) -> None:
    """Tell Orbax's own records of the new shapes."""
    record = _record(item / _TREE)
    for keys, value in _entries(record):
        if ".".join(keys) in shapes and "write_shape" in value:
            value["write_shape"] = shapes[".".join(keys)]
    (item / _TREE).write_text(json.dumps(record))
    for path in sorted((item / _SHAPES).glob("*")):
        found = _record(path)
        for entry in found.get("array_metadatas", []):
            inner = entry.get("array_metadata", {})
            if inner.get("param_name") in shapes:
                inner["write_shape"] = inner["chunk_shape"] = shapes[inner["param_name"]]
        path.write_text(json.dumps(found))
