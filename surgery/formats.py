"""What kind of file or folder this is, from its first bytes or members, and what to do with one of that kind."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from surgery.errors import FileError, UnknownFormat
from surgery.files import check_readable, models_in, read_error


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
      name: `onnx` when nothing speaks against it, otherwise what it is.
      description: in words, for messages.
      hint: the command that takes such a file, `{path}` in its place.
    """

    name: str
    description: str
    hint: str | None = None

    def advice(self, path: Path) -> str | None:
        """The hint for one file."""
        return None if self.hint is None else self.hint.replace("{path}", str(path))


_ATTACH = "surgery attach MODEL.onnx {path} -o OUT adds its optimizer state to the exported MODEL.onnx"
_EXPORT = "export the model: torch.onnx.export(model, example, 'model.onnx', dynamo=True, optimize=False)"
ONNX = Format("onnx", "an ONNX model")
_TORCH = Format("torch", "a PyTorch checkpoint", _ATTACH)
_ADAPTER = "surgery list adapters shows whether its adapter is installed"
_TORCH_OLD = Format(
    "torch-legacy", "a PyTorch checkpoint in the format before 1.6", "load it with torch and save it again"
)
_TORCHSCRIPT = Format("torchscript", "a TorchScript archive", _EXPORT)
_TORCH_EXPORT = Format("torch-export", "an exported program of PyTorch", _EXPORT)
_SB3 = Format("sb3", "a model of Stable-Baselines3", _ADAPTER)
_KERAS = Format("keras", "a model of Keras", _ADAPTER)
_TF_CHECKPOINT = Format(
    "tf-checkpoint",
    "the index of a TensorFlow checkpoint",
    _ADAPTER,
)
_TF_DATA = Format(
    "tf-data", "the numbers of a TensorFlow checkpoint", "name its index: NAME.index, which lies beside it"
)
_TF_FOLDER = Format(
    "tf-folder",
    "a folder of TensorFlow checkpoints",
    "name one of them by its index: {path}/NAME.index",
)
_SAVED_MODEL_PART = Format("savedmodel-part", "a part of a SavedModel", "name the folder that it lies in")
_ORBAX_STEPS = Format(
    "orbax-steps", "a folder of checkpoints of Orbax", "name the folder of one step: {path}/STEP"
)
_TABLE_END = bytes.fromhex("57fb808b247547db")
"""LevelDB's magic number, with which an index ends."""
_MSGPACK = Format("msgpack", "a MessagePack file, such as Flax parameters")
_ZIP = Format("zip", "a zip archive", "surgery list adapters shows the archives that can be read")
_SAFETENSORS = Format("safetensors", "a safetensors file", "it holds weights without a graph; " + _EXPORT)
_SIGNATURES: tuple[tuple[bytes, Format], ...] = (
    (b"\x1f\x8b", Format("gzip", "a gzip archive", "unpack it: gunzip {path}")),
    (b"BZh", Format("bzip2", "a bzip2 archive", "unpack it: bunzip2 {path}")),
    (b"\xfd7zXZ\x00", Format("xz", "an xz archive", "unpack it: unxz {path}")),
    (b"\x28\xb5\x2f\xfd", Format("zstd", "a zstandard archive", "unpack it: unzstd {path}")),
    (b"7z\xbc\xaf\x27\x1c", Format("7z", "a 7-Zip archive", "unpack it: 7z x {path}")),
    (
        b"\x89HDF\r\n\x1a\n",
        Format(
            "hdf5",
            "an HDF5 file, such as Keras models and weights",
            "a .keras file is read, optimizer included: keras.models.load_model('{path}').save('model.keras')",
        ),
    ),
    (b"GGUF", Format("gguf", "a GGUF file", _EXPORT)),
    (b"ORTM", Format("ort", "an onnxruntime flatbuffer", "give the .onnx that it was made from")),
    (b"\x93NUMPY", Format("numpy", "a NumPy array")),
    (b"version https://git-lfs", Format("git-lfs", "a Git LFS pointer, not the file itself", "git lfs pull")),
    (b"\x7fELF", Format("elf", "a program")),
    (b"\x89PNG", Format("png", "a picture")),
    (b"%PDF", Format("pdf", "a PDF document")),
)
_FOLDERS: tuple[tuple[str, Format], ...] = (
    (
        "rllib_checkpoint.json",
        Format("rllib", "a checkpoint of RLlib", _ADAPTER),
    ),
    (
        "saved_model.pb",
        Format(
            "savedmodel",
            "a SavedModel of TensorFlow",
            "python -m tf2onnx.convert --saved-model {path} --output model.onnx",
        ),
    ),
    (
        "_CHECKPOINT_METADATA",
        Format("orbax", "a checkpoint of Orbax", _ADAPTER),
    ),
)
"""What a folder of a kind has in it."""
_GRAPH_DEF = Format(
    "graphdef",
    "a graph of TensorFlow",
    "python -m tf2onnx.convert --graphdef {path} --inputs INPUT:0 --outputs OUTPUT:0 --output model.onnx",
)
_TEXT = Format("text", "a text file")
_HTML = Format(
    "html", "a web page", "the download gave a page instead of the file: open its address in a browser"
)
_JSON = Format("json", "a JSON file")
_PICKLE = Format("pickle", "a Python pickle", "pickles can run any code and are never opened; " + _EXPORT)


_DATA = re.compile(r".+\.data-\d{5}-of-\d{5}")


def sniff(path: Path) -> Format:
    """The kind of a file or of a folder, judged by its content.

    Raises:
      FileError: missing, empty, or not readable.
    """
    check_readable(path, folder=True)
    if path.is_dir():
        known = (kind for member, kind in _FOLDERS if (path / member).exists())
        return next(known, None) or _folder_kind(path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise read_error(error, path) from error
    if not head:
        raise FileError(f"{path} is empty")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(path)
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if path.suffix == ".index" and _ends_with(path, _TABLE_END):
        return _TF_CHECKPOINT
    if _DATA.fullmatch(path.name):
        return _TF_DATA
    if path.name == "saved_model.pb":
        return _SAVED_MODEL_PART
    return _by_content(head, path)


def _folder_kind(path: Path) -> Format:
    """What a folder is that holds several checkpoints; else just a folder."""
    if any(path.glob("*.index")):
        return _TF_FOLDER
    if any(path.glob("*/_CHECKPOINT_METADATA")):
        return _ORBAX_STEPS
    return Format("folder", "a folder", models_in(path))


def is_kind(path: Path, *names: str) -> bool:
    """Whether a file or folder is of one of these kinds, by `Format.name`; false of what cannot be read."""
    try:
        return sniff(path).name in names
    except FileError:
        return False


def _ends_with(path: Path, end: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(end)))
        return file.read() == end


def unknown(path: Path, kind: Format) -> UnknownFormat:
    """The error for a file that is not an ONNX model."""
    return UnknownFormat(f"{path} is not an ONNX model: it is {kind.description}", hint=kind.advice(path))


def _by_content(head: bytes, path: Path) -> Format:
    if _is_legacy_torch(head):
        return _TORCH_OLD
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return _PICKLE
    # a map of few entries whose first key is a short text; no field of an ONNX model has such a number
    if 0x81 <= head[0] <= 0x8F and len(head) > 1 and (0xA1 <= head[1] <= 0xBF or head[1] == 0xD9):
        return _MSGPACK
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length <= path.stat().st_size:
        return _SAFETENSORS
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return _HTML
    if text[:1] in (b"{", b"[") and _is_text(head):
        return _JSON
    if _is_text(head):
        return _TEXT
    # the first field of a GraphDef is a message, its first node; that of an ONNX model is a number
    return _GRAPH_DEF if head[0] == 0x0A and path.suffix.lower() == ".pb" else ONNX


def _is_text(head: bytes) -> bool:
    # A cut may fall into a character, hence the tolerance at the end. ONNX begins with the field number 8, a
    # control character, so it never passes.
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)


def _is_legacy_torch(head: bytes) -> bool:
    # The magic number 0x1950a86a20f9469cfc6c, pickled, is how torch.save began before the zip format.
    return (
        head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04")
        and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:64]
    )


def _zip_kind(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return Format("zip", "a damaged zip archive, perhaps a PyTorch checkpoint that was cut short")
    if any(name.endswith("/constants.pkl") for name in names):
        return _TORCHSCRIPT
    if any(name.endswith("/models/model.json") for name in names):
        return _TORCH_EXPORT
    if any(name.endswith("/data.pkl") for name in names):
        return _TORCH
    if {"data", "policy.pth"} <= set(names):
        return _SB3
    if {"config.json", "model.weights.h5"} <= set(names):
        return _KERAS
    return _ZIP
