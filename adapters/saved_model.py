"""SavedModels and frozen graphs of TensorFlow: in as a graph through tf2onnx, out as `.onnx` only.

Both are programs, which TensorFlow loads to convert them: that is done on request alone, by a process of its own. The
parameters of a SavedModel have the names of its variables, which are found in the graph by their values.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import onnx_ir as ir

from surgery.adapters import Reading, TrainingState
from surgery.checkpoint import Checkpoint
from surgery.errors import MissingDependency, Refused, UnknownFormat
from surgery.formats import is_kind
from surgery.model_file import read_model, replace_tensors
from surgery.port_kinds import infer
from surgery_adapters.binding.bind import native
from surgery_adapters.containers.graph_def import ends
from surgery_adapters.tf_checkpoint.bundle import Bundle
from surgery_adapters.tf_checkpoint.objects import variables

_OPSET = 17
_LOG = logging.getLogger(__name__)
_QUIET = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}


def detect(path: Path) -> bool:
    """Whether a folder is a SavedModel, or a file a frozen graph."""
    return bool(is_kind(path, "savedmodel", "graphdef"))


def training_state(path: Path) -> TrainingState:
    """Raises: UnknownFormat; what an optimizer of TensorFlow remembers is not read from a SavedModel."""
    raise UnknownFormat(f"{path} is {_what(path)}: the state of an optimizer is not read")


def load(path: Path, reading: Reading) -> Checkpoint:
    """The graph of its signature `serving_default`; see `surgery.adapters.Adapter`."""
    model = _converted(path) if reading.graph is None and reading.trust else _exported(path, reading)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = str(value.name).removesuffix(":0")  # the first of what a node makes
    source = {"adapter": "saved_model", "file": path.name}
    return _named(Checkpoint(model, infer(model), source=source), path)


def _named(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """With the names of the variables, if all parameters are found among them; a frozen graph has none left."""
    index = path / "variables" / "variables.index"
    if not index.is_file():
        return checkpoint
    arrays = {
        name: tensor
        for name, tensor in variables(Bundle.open(index)).items()
        if tensor.dtype.is_floating_point()
    }
    try:
        found = native(checkpoint, arrays)
    except Refused as error:
        _LOG.info("the parameters of %s keep the exporter's names: %s", path, error.message)
        return checkpoint
    return found


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Raises: Refused."""
    check(checkpoint, like=like)


def check(checkpoint: Checkpoint, *, like: Path) -> NoReturn:
    """No copy of a program can hold other networks; see `surgery.adapters.Checking`."""
    raise Refused(
        f"{like} is {_what(like)}, a program with its widths in it, which is not written again",
        hint="write an .onnx: -o OUT.onnx",
    )


def _what(path: Path) -> str:
    return "a SavedModel" if path.is_dir() else "a frozen graph"


def _exported(path: Path, reading: Reading) -> ir.Model:
    if reading.graph is None:
        command = " ".join(["python", *_command(path), "--output", "model.onnx"])
        raise Refused(
            f"{path} is {_what(path)}, a program of TensorFlow, which is loaded only with --trust",
            hint=f"run {command}, and use model.onnx; or add --trust, which does that",
        )
    return read_model(reading.graph)


def _command(path: Path) -> list[str]:
    """What has tf2onnx convert it.

    Raises:
      CorruptFile: a frozen graph without inputs or outputs.
    """
    command = ["-m", "tf2onnx.convert", "--opset", str(_OPSET)]
    if path.is_dir():
        return [*command, "--saved-model", str(path)]
    found = ends(path)
    sides = ["--inputs", ",".join(found.inputs), "--outputs", ",".join(found.outputs)]
    return [*command, "--graphdef", str(path), *sides]


def _converted(path: Path) -> ir.Model:
    """What tf2onnx makes of it.

    Raises:
      MissingDependency: TensorFlow or tf2onnx is not installed. Refused: it fails, in its words.
    """
    if any(importlib.util.find_spec(package) is None for package in ("tensorflow", "tf2onnx")):
        raise MissingDependency(
            f"TensorFlow and tf2onnx convert {_what(path)}, and are not installed",
            hint="pip install 'policy-surgery[tensorflow]'",
        )
    with tempfile.TemporaryDirectory(prefix="surgery-") as folder:
        target = Path(folder) / "model.onnx"
        command = [sys.executable, *_command(path.absolute()), "--output"]
        done = subprocess.run(
            [*command, str(target)], capture_output=True, text=True, env={**os.environ, **_QUIET}, check=False
        )
        if done.returncode or not target.is_file():
            words = done.stderr.strip().splitlines() or ["no reason given"]
            raise Refused(
                f"tf2onnx cannot convert {path}: {words[-1]}", hint=" ".join([*command, "model.onnx"])
            )
        model = read_model(target)
        replace_tensors(
            model, lambda tensor: ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
        )
    return model
