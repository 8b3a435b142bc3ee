"""PufferLib's own policies, as its trainer saves them: read, widened, written back; it plays and trains on with them.

The fixtures are files of PufferLib 3.0.0 (tests/fixtures/pufferlib/make.py). It needs another numpy than this package:
the test that runs it takes an interpreter that has it from PUFFERLIB_PYTHON, and talks to it by files.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import surgery
from surgery.adapters import Reading
from surgery.errors import ArgumentError, Refused
from surgery.verify.outputs import runtime

FILES = Path(__file__).parent / "fixtures" / "pufferlib"
KINDS = ("default", "continuous", "recurrent")
PYTHON = os.environ.get("PUFFERLIB_PYTHON")
STATES = ("hidden", "cell")


def load(path: Path) -> surgery.Checkpoint:
    return surgery.load(path, reading=Reading(activation="gelu"))


def recorded(kind: str) -> dict[str, np.ndarray]:
    with np.load(FILES / "answers.npz") as archive:
        return {key.partition("/")[2]: archive[key] for key in archive.files if key.startswith(f"{kind}/")}


def wide(path: Path, kind: str) -> Path:
    """A file twice as wide; PufferLib has one width for the policy and what wraps it."""
    checkpoint = load(FILES / f"{kind}.pt")
    surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).save(path)
    return path


def agrees(found: dict[str, np.ndarray], kind: str) -> None:
    for key, value in recorded(kind).items():
        if key in found:
            np.testing.assert_allclose(found[key][:, : value.shape[1]], value, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_says_what_the_policy_said_before_and_after_it_grows(tmp_path, kind):
    known = recorded(kind)
    for path in (FILES / f"{kind}.pt", wide(tmp_path / "wide.pt", kind)):
        checkpoint = load(path)
        feeds = {}
        for value in checkpoint.model.graph.inputs:
            missing = value.shape[1] - known[value.name].shape[1]
            feeds[value.name] = np.pad(known[value.name], ((0, 0), (0, missing)))
        found = runtime(checkpoint.model)(feeds)
        assert {"value", *known} <= {*found, *feeds}
        agrees(found, kind)
    states = [port.name for port in checkpoint.interface.inputs if port.kind == "state"]
    assert states == (list(STATES) if kind == "recurrent" else [])


@pytest.mark.skipif(PYTHON is None, reason="PUFFERLIB_PYTHON names no interpreter")
@pytest.mark.parametrize("kind", KINDS)
def test_pufferlib_says_the_same_with_a_wide_file_and_trains_on(tmp_path, kind):
    path, out = wide(tmp_path / "wide.pt", kind), tmp_path / "answers.npz"
    script = [PYTHON, FILES / "make.py", path, kind, "24", out]
    subprocess.run(list(map(str, script)), cwd=tmp_path, check=True, capture_output=True, timeout=300)
    with np.load(out) as archive:
        assert set(archive.files) >= {"value"}
        agrees(dict(archive), kind)


def test_the_tensors_of_the_cell_stay_those_of_the_lstm(tmp_path):
    content = torch.load(wide(tmp_path / "wide.pt", "recurrent"), weights_only=True)
    for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        assert content[f"cell.{leaf}"].data_ptr() == content[f"lstm.{leaf}_l0"].data_ptr()
    assert content["lstm.weight_hh_l0"].shape == (96, 24)


def test_an_activation_is_asked_for_and_a_recurrent_layer_without_its_cell_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="activation") as caught:
        surgery.load(FILES / "recurrent.pt")
    assert "--activation" in caught.value.hint
    content = torch.load(FILES / "recurrent.pt", weights_only=True)
    torch.save({key: value for key, value in content.items() if "cell" not in key}, tmp_path / "other.pt")
    with pytest.raises(Refused, match="lstm"):
        load(tmp_path / "other.pt")
