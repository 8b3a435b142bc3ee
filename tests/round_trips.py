"""A real file of every framework in docs/adapters.toml, and what is done to it there and back."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

import surgery
from surgery.adapters import Reading
from surgery.ops.actions import NewAction
from surgery.ops.extend import NewObservation
from tests import torch_models

FIXTURES = Path(__file__).parent / "fixtures"

Edit = Callable[[surgery.Checkpoint, "Sample"], surgery.Checkpoint]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A file to try the verbs on.

    Attributes:
      write: puts it into a folder, and returns its path; it may skip the test where the real package is wanted.
      after: the layers that `deepen` puts others behind; behind a ReLU, in a sequence.
      reading: what the file does not say.
    """

    write: Callable[[Path], Path]
    after: str | tuple[str, ...]
    reading: Reading = dataclasses.field(default_factory=Reading)


def _sb3(folder: Path) -> Path:
    sb3 = pytest.importorskip("stable_baselines3")
    settings = {"learning_starts": 10, "buffer_size": 100, "batch_size": 8}
    model = sb3.DQN(
        "MlpPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [12, 9]}, **settings
    )
    model.learn(40)
    model.save(folder / "file.zip")
    return folder / "file.zip"


def _torch(name: str) -> Callable[[Path], Path]:
    return lambda folder: torch_models.ROWS[name].save(folder)[0]


def _safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(torch_models.Sequence().state_dict(), folder / "file.safetensors")
    return folder / "file.safetensors"


def _program(folder: Path) -> Path:
    torch.manual_seed(0)
    net, free = torch_models.Sequence().network, {0: torch.export.Dim("batch")}
    program = torch.export.export(net, (torch.zeros(2, 5),), dynamic_shapes=(free,))
    torch.export.save(program, folder / "file.pt2")
    return folder / "file.pt2"


def _sample_factory(folder: Path) -> Path:
    made = Path(shutil.copytree(FIXTURES / "sample_factory" / "lstm", folder / "experiment"))
    settings = json.loads(
        (made / "config.json").read_text()
    )  # with an activation behind which an identity is exact
    (made / "config.json").write_text(json.dumps({**settings, "nonlinearity": "relu"}, indent=2))
    return made


def _copy(fixture: str) -> Callable[[Path], Path]:
    suffix = Path(fixture).suffix
    return lambda folder: Path(shutil.copy(FIXTURES / fixture, folder / f"file{suffix}"))


def _keras(folder: Path) -> Path:
    pytest.importorskip("h5py")
    packed = FIXTURES / "keras" / "dense.keras.gz"
    (folder / "file.keras").write_bytes(gzip.decompress(packed.read_bytes()))
    return folder / "file.keras"


def _onnx(folder: Path) -> Path:
    made = _torch("model and target")(folder)
    surgery.save(surgery.load(made, reading=Reading(activation="relu")), folder / "file.onnx")
    return folder / "file.onnx"


def _unpacked(fixture: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with zipfile.ZipFile(FIXTURES / fixture) as archive:
            archive.extractall(folder / "run")
        return folder / "run"

    return write


def _dopamine(folder: Path) -> Path:
    (folder / "ckpt.3").write_bytes(gzip.decompress((FIXTURES / "dopamine" / "dqn.ckpt.3.gz").read_bytes()))
    return folder / "ckpt.3"


def _bundle(folder: Path) -> Path:
    data = "data-00000-of-00001"
    shutil.copy(FIXTURES / "tf_checkpoint" / f"dqn.{data}", folder / f"file.{data}")
    return _copy("tf_checkpoint/dqn.index")(folder)


SAMPLES: Mapping[str, Sample] = {
    "sb3": Sample(_sb3, "q_net.q_net.2"),
    "d3rlpy": Sample(_copy("d3rlpy/dqn.d3"), "q_funcs.0._encoder._layers.2"),
    "rllib": Sample(_unpacked("rllib/dqn.zip"), ("af.net.mlp.0", "vf.net.mlp.0")),
    "dopamine": Sample(_dopamine, "online_params.params.Dense_0"),
    "flax": Sample(
        _copy("flax_state/adam.msgpack"),
        "params.Dense_0",
        Reading(graph=FIXTURES / "flax_state" / "adam.onnx"),
    ),
    "tensorflow": Sample(_bundle, "Online/fully_connected/kernel"),
    "pytorch": Sample(_torch("model and target"), "network.2", Reading(activation="relu")),
    "safetensors": Sample(_safetensors, "network.2", Reading(activation="relu")),
    "torch_exported": Sample(_program, "2", Reading(trust=True)),
    "cleanrl": Sample(_torch("cleanrl dqn"), "network.2"),
    "cleanrl-flax": Sample(_copy("flax/dqn.cleanrl_model"), "Dense_1"),
    "keras": Sample(_keras, "fc2"),
    "sample_factory": Sample(_sample_factory, "decoder.mlp.0"),
    "onnx": Sample(_onnx, "network.2"),
}
"""By the names of docs/adapters.toml."""


def _hidden(checkpoint: surgery.Checkpoint) -> tuple[str, int]:
    """The first hidden space: neither observations nor actions."""
    found = next(s for s in checkpoint.analysis.spaces if s.widenable)
    return found.name, found.size


def _head(checkpoint: surgery.Checkpoint) -> str:
    return next(p.name for p in checkpoint.interface.outputs if p.kind in ("q_values", "logits", "mean"))


def _widen(checkpoint: surgery.Checkpoint, sample: Sample) -> surgery.Checkpoint:
    return _done(surgery.widen(checkpoint, factor=2), checkpoint)


def _narrow(checkpoint: surgery.Checkpoint, sample: Sample) -> surgery.Checkpoint:
    name, size = _hidden(checkpoint)
    return _done(surgery.narrow(checkpoint, widths={name: size - 1}, by="l1"), checkpoint)


def _extend(checkpoint: surgery.Checkpoint, sample: Sample) -> surgery.Checkpoint:
    seen = [NewObservation(checkpoint.interface.inputs[0].name, 1)]
    return _done(surgery.extend(checkpoint, seen, [NewAction(_head(checkpoint), 1, "mean")]), checkpoint)


def _retire(checkpoint: surgery.Checkpoint, sample: Sample) -> surgery.Checkpoint:
    gone = surgery.Retired(checkpoint.interface.inputs[0].name, 1, 0.5)
    return _done(surgery.retire(checkpoint, [gone]), checkpoint)


def _reorder(checkpoint: surgery.Checkpoint, sample: Sample) -> surgery.Checkpoint:
    size = checkpoint.model.graph.inputs[0].shape[-1]  # features, or the channels of an image with them last
    order = list(reversed(range(size)))
    return _done(surgery.reorder(checkpoint, {checkpoint.interface.inputs[0].name: order}), checkpoint)


def _invert(checkpoint: surgery.Checkpoint, sample: Sample) -> surgery.Checkpoint:
    plan = surgery.widen(checkpoint, factor=2)
    wide = _done(plan, checkpoint)
    return _done(surgery.invert(plan, wide), wide)


def _deepen(checkpoint: surgery.Checkpoint, sample: Sample) -> surgery.Checkpoint:
    return _done(surgery.deepen(checkpoint, sample.after, kind="identity"), checkpoint)


def _optimizer(checkpoint: surgery.Checkpoint, sample: Sample) -> surgery.Checkpoint:
    return surgery.swap_optimizer(checkpoint, "rmsprop", match="all").checkpoint


def _done(plan: surgery.Plan, checkpoint: surgery.Checkpoint) -> surgery.Checkpoint:
    return surgery.apply(plan, checkpoint).checkpoint


EDITS: Mapping[str, Edit] = {
    "widen": _widen,
    "narrow": _narrow,
    "extend": _extend,
    "retire": _retire,
    "reorder": _reorder,
    "invert": _invert,
    "deepen": _deepen,
    "optimizer": _optimizer,
}
"""Verb -> the checkpoint after it."""
