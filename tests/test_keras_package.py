"""The real Keras: it loads what is written back, computes the same, and trains on with the carried state."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.adapters import Reading
from surgery.errors import Refused

pytest.importorskip("h5py")
os.environ.setdefault("KERAS_BACKEND", "torch" if importlib.util.find_spec("torch") else "tensorflow")
keras = pytest.importorskip("keras")

from surgery.verify.outputs import runtime  # noqa: E402
from tests.keras_models import NETS, STEPS, given, inputs, write  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=NETS)
def path(request, tmp_path_factory) -> Path:
    return write(request.param, tmp_path_factory.mktemp(request.param))


def predicted(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(keras.saving.load_model(path).predict(given(arrays), verbose=0))


def test_keras_and_the_graph_answer_alike(path):
    model = keras.saving.load_model(path)
    arrays = inputs(model, 9, rows=64)
    wanted = np.asarray(model.predict(given(arrays), verbose=0))
    [found] = runtime(surgery.load(path).model)(arrays).values()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (found.argmax(1) == wanted.argmax(1)).all()


@pytest.mark.parametrize("init", ["auto", "net2net"])
def test_keras_loads_a_wide_file_answers_alike_and_trains_on(path, tmp_path, init):
    checkpoint = surgery.load(path)
    result = surgery.apply(surgery.widen(checkpoint, factor=2, init=init), checkpoint)
    result.save(tmp_path / "wide.keras")
    model = keras.saving.load_model(tmp_path / "wide.keras")
    arrays = inputs(model, 9, rows=64)
    np.testing.assert_allclose(model.predict(given(arrays), verbose=0), predicted(path, arrays), atol=1e-5)
    assert int(model.optimizer.iterations) == STEPS
    state = surgery.load(tmp_path / "wide.keras").optimizer
    ours = sorted(t.numpy().tobytes() for members in state.slots.values() for t in members.values())
    kept = [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.optimizer.variables]
    assert sorted(v.tobytes() for v in kept if v.dtype == np.float32 and v.ndim) == ours
    before = model.get_weights()
    model.train_on_batch(given(inputs(model, 3)), np.zeros((8, *model.output_shape[1:])))
    assert int(model.optimizer.iterations) == STEPS + 1
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "later.keras")
    assert surgery.load(tmp_path / "later.keras").optimizer.kind == checkpoint.optimizer.kind


def test_halves_of_other_widths_load(tmp_path):
    path = write("recurrent", tmp_path)
    checkpoint = surgery.load(path)
    plan = surgery.widen(checkpoint, widths={"bidirectional.forward_lstm.lstm_cell": 5})
    surgery.apply(plan, checkpoint).save(tmp_path / "wide.keras")
    arrays = inputs(keras.saving.load_model(path), 9)
    np.testing.assert_allclose(predicted(tmp_path / "wide.keras", arrays), predicted(path, arrays), atol=1e-5)


def test_copies_take_the_step_of_their_original(tmp_path):
    """Adam's step does not depend on the scale of a gradient: halved moments, gradients and ε give the same one."""
    path = write("dense", tmp_path)
    checkpoint = surgery.load(path)
    plan = surgery.widen(checkpoint, widths={"fc2": 14}, init="net2net")
    surgery.apply(plan, checkpoint).save(tmp_path / "wide.keras")
    steps = []
    for name, share in ((path, 1), (tmp_path / "wide.keras", 2)):
        model = keras.saving.load_model(name)
        model.optimizer.epsilon /= share  # as `widen` says of what makes the copies
        before = model.get_layer("fc2").get_weights()[0]
        model.train_on_batch(given(inputs(model, 5)), np.zeros((8, 3), np.float32))
        steps.append((before, model.get_layer("fc2").get_weights()[0]))
    (old, stepped), (wide, wide_stepped) = steps
    original = [int(np.flatnonzero((old == column[:, None]).all(0))[0]) for column in wide.T]
    assert set(original) == set(range(7))
    assert np.abs(stepped - old).max() > 1e-4
    np.testing.assert_allclose(wide_stepped, stepped[:, original], atol=2e-6)


def test_new_observations_and_actions_load_and_train(tmp_path):
    from surgery.ops.actions import NewAction
    from surgery.ops.extend import NewObservation

    path = write("dense", tmp_path)
    checkpoint = surgery.load(path)
    plan = surgery.extend(checkpoint, [NewObservation("observation", 2)], [NewAction("q_values", 1, "mean")])
    surgery.apply(plan, checkpoint).save(tmp_path / "more.keras")
    model = keras.saving.load_model(tmp_path / "more.keras")
    arrays = inputs(keras.saving.load_model(path), 9, rows=64)
    more = np.concatenate([arrays["observation"], np.ones((64, 2), np.float32)], 1)
    found = np.asarray(model.predict(more, verbose=0))
    np.testing.assert_allclose(found[:, :3], predicted(path, arrays), atol=1e-5)
    model.fit(more, np.zeros((64, 4)), epochs=1, verbose=0)
    assert int(model.optimizer.iterations) > STEPS


@pytest.mark.parametrize(("name", "after"), [("dense", "fc2"), ("dueling", "fv")])
def test_keras_loads_a_deeper_file_answers_alike_and_trains_on(tmp_path, name, after):
    path = write(name, tmp_path)
    checkpoint = surgery.load(path)
    result = surgery.apply(surgery.deepen(checkpoint, after, count=2, kind="identity"), checkpoint)
    result.save(tmp_path / "deep.keras")
    model = keras.saving.load_model(tmp_path / "deep.keras")
    arrays = inputs(model, 9, rows=64)
    np.testing.assert_allclose(model.predict(given(arrays), verbose=0), predicted(path, arrays), atol=1e-5)
    assert int(model.optimizer.iterations) == STEPS
    model.train_on_batch(given(inputs(model, 3)), np.zeros((8, *model.output_shape[1:])))
    model.save(tmp_path / "later.keras")
    assert set(surgery.load(tmp_path / "later.keras").tensors) == set(result.checkpoint.tensors)


def test_keras_trains_on_with_another_optimizer(tmp_path):
    path = write("dense", tmp_path)
    checkpoint = surgery.load(path)
    swapped = surgery.swap_optimizer(checkpoint, "adamw", match="none", lr=0.002).checkpoint
    surgery.save(swapped, tmp_path / "adamw.keras")
    model = keras.saving.load_model(tmp_path / "adamw.keras")
    assert type(model.optimizer).__name__ == "AdamW"
    assert float(model.optimizer.learning_rate) == pytest.approx(0.002)
    moments = [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.optimizer.variables]
    kept = [t.numpy() for members in swapped.optimizer.slots.values() for t in members.values()]
    assert sum(any(np.array_equal(a, b) for b in moments) for a in kept) == len(kept)
    model.train_on_batch(given(inputs(model, 3)), np.zeros((8, 3)))
    assert int(model.optimizer.iterations) == STEPS + 1


@pytest.mark.parametrize("kind", ["Adadelta", "Adamax", "Adagrad"])
def test_what_an_optimizer_keeps_is_of_the_variable_that_keras_says(tmp_path, kind):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(4)])
    model.compile(getattr(keras.optimizers, kind)(), loss="mse")
    model.fit(rng.standard_normal((8, 4)), rng.standard_normal((8, 4)), verbose=0)
    model.save(tmp_path / "m.keras")
    found = surgery.load(tmp_path / "m.keras").optimizer
    ours = sorted(t.numpy().tobytes() for slot in found.slots.values() for t in slot.values())
    kept = [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.optimizer.variables]
    assert sorted(v.tobytes() for v in kept if v.ndim) == ours
    words = {"square_avg": "accumulated_grad", "acc_delta": "accumulated_delta_var", "sum": "accumulator",
             "exp_avg": "momentum", "exp_inf": "norm"}  # fmt: skip
    named = {
        variable.path: np.asarray(keras.ops.convert_to_numpy(variable))
        for variable in model.optimizer.variables
    }
    for slot, members in found.slots.items():
        for name, tensor in members.items():
            ends = name.replace(".", "_")
            [path] = [p for p in named if ends in p and words[slot] in p.replace(ends, "")]
            np.testing.assert_array_equal(tensor.numpy(), named[path], err_msg=f"{slot} of {name}: {path}")


@keras.saving.register_keras_serializable("tests")
class Own(keras.Model):
    """A class of a person's own."""

    width = 5

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.hidden = keras.layers.Dense(self.width, activation="relu")
        self.head = keras.layers.Dense(3)

    def call(self, x: object) -> object:
        return self.head(self.hidden(x))


def test_a_model_of_a_class_of_ones_own_goes_back_with_the_graph_that_keras_exports(tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf2onnx exports for this backend only")
    model, seen = Own(), np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    wanted = np.asarray(model(seen))
    model.save(tmp_path / "own.keras")
    with pytest.raises(Refused, match="'Own' is a class of your own") as caught:
        surgery.load(tmp_path / "own.keras")
    assert "--graph" in caught.value.hint
    model.export(str(tmp_path / "own.onnx"), format="onnx", verbose=False)
    before = surgery.load(tmp_path / "own.keras", reading=Reading(graph=tmp_path / "own.onnx"))
    surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "wide.keras")
    monkeypatch.setattr(Own, "width", 10)
    wide = keras.saving.load_model(tmp_path / "wide.keras")
    np.testing.assert_allclose(np.asarray(wide(seen)), wanted, atol=1e-5)


@pytest.mark.parametrize(("kind", "reason"), [("lora", "low rank"), ("int8", "quantised")])
def test_adapters_of_low_rank_and_whole_numbers_are_refused_with_a_way_on(tmp_path, kind, reason):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(3)])
    model.layers[0].enable_lora(2) if kind == "lora" else model.quantize(kind)
    model.save(tmp_path / "m.keras")
    with pytest.raises(Refused, match=reason) as caught:
        surgery.load(tmp_path / "m.keras")
    assert {"lora": "--graph", "int8": "as it was before"}[kind] in caught.value.hint
