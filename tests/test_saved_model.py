"""SavedModels and graphs of TensorFlow: named for what they are, converted only on request, out as ONNX."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.adapters import Reading
from surgery.cli import main
from surgery.errors import ArgumentError, MissingDependency, Refused, SurgeryError
from surgery.verify.outputs import runtime
from tests.fixtures import recording

PROGRAMS = Path(__file__).parent / "fixtures" / "tf_programs"
CONVERTER = all(importlib.util.find_spec(package) for package in ("tensorflow", "tf2onnx"))


@pytest.fixture
def folder(tmp_path):
    """As far as it goes without TensorFlow."""
    path = tmp_path / "saved"
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    return path


def test_a_saved_model_is_not_loaded_without_being_told_to(folder):
    with pytest.raises(Refused, match="a program of TensorFlow") as refused:
        surgery.load(folder)
    assert f"--saved-model {folder} --output model.onnx" in refused.value.hint


@pytest.mark.skipif(CONVERTER, reason="tf2onnx is installed")
def test_the_command_to_install_a_converter_is_named(folder):
    with pytest.raises(MissingDependency) as missing:
        surgery.load(folder, reading=Reading(trust=True))
    assert missing.value.hint == "pip install 'policy-surgery[tensorflow]'"


def test_the_graph_of_a_saved_model_is_taken_and_written_as_onnx(folder, tmp_path):
    graph = recording.read("tf2onnx", "mlp").path
    agent = tmp_path / "agent.onnx"
    assert main(["convert", str(folder), "--graph", str(graph), "-o", str(agent)]) == 0
    checkpoint = surgery.load(agent)
    assert surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).report.ok
    with pytest.raises((Refused, ArgumentError)):
        surgery.save(checkpoint, tmp_path / "again", like=folder)
    assert not (tmp_path / "again").exists()


def test_the_parameters_of_a_saved_model_have_the_names_of_its_variables():
    """Also the bias that is zero, which the exporter dropped."""
    checkpoint = surgery.load(PROGRAMS / "saved", reading=Reading(graph=PROGRAMS / "saved.onnx"))
    assert set(checkpoint.tensors) == {"fc/kernel", "fc/bias", "q_values/kernel", "q_values/bias"}
    with np.load(PROGRAMS / "answers.npz") as recorded:
        [found] = runtime(checkpoint.model)({"observation": recorded["observation"]}).values()
        np.testing.assert_allclose(found, recorded["saved"], atol=1e-6)
    assert surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).report.ok


def test_the_graph_of_another_program_keeps_the_names_that_it_has():
    graph = recording.read("tf2onnx", "mlp").path
    checkpoint = surgery.load(PROGRAMS / "saved", reading=Reading(graph=graph))
    assert set(checkpoint.tensors) == set(surgery.load(graph).tensors)


def test_a_frozen_graph_is_named_with_the_command_that_converts_it(tmp_path):
    """Where something chooses the largest of some numbers, these come out too."""
    with pytest.raises(Refused, match="a frozen graph, a program of TensorFlow") as refused:
        surgery.load(PROGRAMS / "frozen.pb")
    wanted = f"--graphdef {PROGRAMS / 'frozen.pb'} --inputs observation:0 --outputs q_values:0,action:0"
    assert wanted in refused.value.hint


@pytest.mark.parametrize("content", [b"\n\x12\n\x01x\x12\x0bPlaceholder\xff\xfe", b"\n\x05\n\x01x\x12\x00"])
def test_a_damaged_graph_is_an_error(tmp_path, content):
    (tmp_path / "frozen.pb").write_bytes(content)
    with pytest.raises(SurgeryError):
        surgery.load(tmp_path / "frozen.pb", reading=Reading(trust=True))


@pytest.mark.filterwarnings("ignore")
def test_a_frozen_graph_is_converted_on_request():
    pytest.importorskip("tf2onnx")
    pytest.importorskip("tensorflow")
    checkpoint = surgery.load(PROGRAMS / "frozen.pb", reading=Reading(trust=True))
    assert [port.name for port in checkpoint.interface.outputs] == ["q_values", "action"]
    with np.load(PROGRAMS / "answers.npz") as recorded:
        found = runtime(checkpoint.model)({"observation": recorded["observation"]})["q_values"]
        np.testing.assert_allclose(found, recorded["frozen"], atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_tensorflow_and_the_converted_graph_answer_alike(tmp_path):
    pytest.importorskip("tf2onnx")
    tf = pytest.importorskip("tensorflow")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    x = keras.Input((5,), name="observation")
    y = keras.layers.Dense(8, "relu", name="fc")(x)
    keras.Model(x, keras.layers.Dense(3, name="q_values")(y)).export(tmp_path / "saved", verbose=False)
    checkpoint = surgery.load(tmp_path / "saved", reading=Reading(trust=True))
    seen = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    program = tf.saved_model.load(str(tmp_path / "saved"))
    wanted = program.serve(seen).numpy()
    [found] = runtime(checkpoint.model)({checkpoint.model.graph.inputs[0].name: seen}).values()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (found.argmax(1) == wanted.argmax(1)).all()
    assert surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).report.ok


@pytest.mark.filterwarnings("ignore")
def test_a_converter_that_fails_is_quoted(folder):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("tensorflow")
    with pytest.raises(SurgeryError, match="tf2onnx cannot convert"):
        surgery.load(folder, reading=Reading(trust=True))
