"""SavedModels of TensorFlow: in as a graph through tf2onnx, out as `.onnx` only.

A SavedModel is a program, which TensorFlow loads to convert it: that is done on request alone, by a process of its own.
"""

from __future__ import annotations

import importlib.util
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
from surgery.interface import infer
from surgery.model_file import read_model, replace_tensors

_OPSET = 17
_QUIET = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}


def detect(path: Path) -> bool:
    """Whether a folder is a SavedModel."""
    return is_kind(path, "savedmodel")


def training_state(path: Path) -> TrainingState:
    """Raises: UnknownFormat; what an optimizer of TensorFlow remembers is not read from a SavedModel."""
    raise UnknownFormat(f"{path} is a SavedModel: the state of its optimizer is not read")


def load(path: Path, reading: Reading) -> Checkpoint:
    """The graph of its signature `serving_default`; see `surgery.adapters.Adapter`."""
    model = _converted(path) if reading.graph is None and reading.trust else _exported(path, reading)
    return Checkpoint(model, infer(model), source={"adapter": "saved_model", "file": path.name})


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Raises: Refused."""
    check(checkpoint, like=like)


def check(checkpoint: Checkpoint, *, like: Path) -> NoReturn:
    """No copy of a program can hold other networks; see `surgery.adapters.Checking`."""
    raise Refused(
        f"{like} is a SavedModel, a program with its widths in it, which is not written again",
        hint="write an .onnx: -o OUT.onnx",
    )


def _exported(path: Path, reading: Reading) -> ir.Model:
    command = f"python -m tf2onnx.convert --saved-model {path} --output model.onnx --opset {_OPSET}"
    if reading.graph is None:
        raise Refused(
            f"{path} is a SavedModel, a program of TensorFlow, and is not loaded without being told to",
            hint=f"{command}, and take model.onnx; or --trust, which does that",
        )
    return read_model(reading.graph)


def _converted(path: Path) -> ir.Model:
    """What tf2onnx makes of it.

    Raises:
      MissingDependency: TensorFlow or tf2onnx is not installed. Refused: it fails, in its words.
    """
    if any(importlib.util.find_spec(package) is None for package in ("tensorflow", "tf2onnx")):
        raise MissingDependency(
            "TensorFlow and tf2onnx convert a SavedModel, and are not installed",
            hint="pip install 'policy-surgery[tensorflow]'",
        )
    with tempfile.TemporaryDirectory(prefix="surgery-") as folder:
        target = Path(folder) / "model.onnx"
        command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(path.absolute()), "--output"]
        done = subprocess.run(
            [*command, str(target), "--opset", str(_OPSET)],
            capture_output=True, text=True, env={**os.environ, **_QUIET}, check=False,
        )  # fmt: skip
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
