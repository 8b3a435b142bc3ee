"""Models of Keras 3 that are trained for three steps, for the fixtures and for tests of the real package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

STEPS, ROWS_PER_STEP = 3, 8


@dataclass(frozen=True)
class Net:
    """One model and the optimizer that trains it."""

    build: Callable[[], keras.Model]
    optimizer: Callable[[], keras.optimizers.Optimizer]


def dense() -> keras.Model:
    """Two hidden layers."""
    x = observation = keras.Input((6,), name="observation")
    x = layers.Dense(10, activation="relu", name="fc1")(x)
    x = layers.Dense(7, activation="relu", name="fc2")(x)
    return keras.Model(observation, layers.Dense(3, name="q_values")(x))


def dueling() -> keras.Model:
    """Wang et al. (2016) on pixels, with TensorFlow's padding."""
    pixels = keras.Input((12, 12, 2), dtype="uint8", name="observation")
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(4, 4, 2, padding="same", activation="relu", name="conv1")(x)
    x = layers.Conv2D(5, 3, name="conv2")(layers.ZeroPadding2D(1)(x))
    x = layers.Flatten()(layers.MaxPooling2D(2, padding="same")(layers.LeakyReLU(0.1)(x)))
    advantage = layers.Dense(4, name="advantage")(layers.Dense(6, activation="elu", name="fc")(x))
    value = layers.Dense(1, name="value")(
        layers.Dropout(0.1)(layers.Dense(7, activation="relu", name="fv")(x))
    )
    q_values = layers.Add(name="q_values")([value, advantage - ops.mean(advantage, axis=1, keepdims=True)])
    return keras.Model(pixels, q_values)


def recurrent() -> keras.Model:
    """A Sequential model over sequences."""
    return keras.Sequential(
        [
            keras.Input((5, 4), name="observation"),
            layers.TimeDistributed(layers.Dense(6, activation="relu", name="encoder")),
            layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
            layers.GRU(5, return_sequences=True, go_backwards=True),
            layers.SimpleRNN(4, name="rnn"),
            layers.Dense(3, name="q_values"),
        ]
    )


def convolutional() -> keras.Model:
    """Batch normalisation, depthwise, separable and transposed convolutions, a layer that is not trained."""
    pixels = keras.Input((8, 8, 2), name="observation")
    x = layers.Conv2D(4, 3, use_bias=False, padding="same", trainable=False, name="conv1")(pixels)
    x = layers.ReLU(6)(layers.BatchNormalization(name="bn1")(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="tanh", name="depthwise")(x)
    x = layers.SeparableConv2D(6, 3, strides=2, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(3, 3, 2, padding="same", activation="silu", name="up")(x)
    x = layers.BatchNormalization(scale=False, name="bn2")(layers.Permute((2, 1, 3))(x))
    x = layers.Conv1D(4, 2, padding="causal", name="time")(layers.Reshape((-1, 3))(x))
    return keras.Model(pixels, layers.Dense(3, name="q_values")(layers.GlobalAveragePooling1D()(x)))


def attention() -> keras.Model:
    """Entities that attend to one another."""
    entities = keras.Input((4, 3), name="observation")
    x = layers.Dense(6, name="encoder")(entities)
    x = layers.LayerNormalization(name="ln")(
        x + layers.MultiHeadAttention(2, 5, value_dim=4, name="attention")(x, x)
    )
    x = ops.max(layers.Dense(7, activation="gelu", name="feed")(x), axis=1)
    return keras.Model(entities, layers.Dense(3, name="q_values")(x))


def atoms() -> keras.Model:
    """C51 (Bellemare et al., 2017) on a table of vectors and normalised numbers, with a model within the model."""
    tiles, numbers = keras.Input((3,), dtype="int32", name="tiles"), keras.Input((2,), name="numbers")
    normal = layers.Normalization(name="normal")
    normal.adapt(np.random.default_rng(0).normal(2, 3, (50, 2)).astype(np.float32))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5, "relu", name="inside")], name="inner")
    x = layers.Dense(4, activation="softplus", name="scalars")(normal(numbers))
    x = layers.Concatenate()([layers.Flatten()(layers.Embedding(7, 4, name="table")(tiles)), inner(x)])
    x = layers.Activation("tanh")(layers.Dense(6, name="fc")(x))
    x = layers.Softmax()(layers.Reshape((3, 5), name="atoms")(layers.Dense(15, name="logits")(x)))
    support = np.linspace(-1, 1, 5, dtype=np.float32)
    return keras.Model([tiles, numbers], ops.sum(x * support, axis=-1))


NETS = {
    "dense": Net(dense, lambda: keras.optimizers.Adam(1e-3)),
    "dueling": Net(dueling, lambda: keras.optimizers.Adam(1e-3, amsgrad=True)),
    "recurrent": Net(recurrent, lambda: keras.optimizers.RMSprop(1e-3, momentum=0.9, centered=True)),
    "convolutional": Net(convolutional, lambda: keras.optimizers.SGD(1e-2, momentum=0.9)),
    "attention": Net(attention, lambda: keras.optimizers.AdamW(1e-3)),
    "atoms": Net(atoms, lambda: keras.optimizers.Adagrad(1e-2)),
}


def inputs(model: keras.Model, seed: int, rows: int = ROWS_PER_STEP) -> dict[str, np.ndarray]:
    """Random inputs by name, rounded, so that they pack well."""
    rng = np.random.default_rng(seed)
    found = {}
    for tensor in model.inputs:
        shape = (rows, *tensor.shape[1:])
        top = {"uint8": 256, "int32": 7}.get(tensor.dtype)
        draw = rng.integers(0, top, shape) if top else np.round(rng.standard_normal(shape), 1)
        found[tensor.name] = draw.astype(tensor.dtype)
    return found


def given(arrays: dict[str, np.ndarray]) -> Any:
    """Inputs as a model takes them."""
    return list(arrays.values()) if len(arrays) > 1 else next(iter(arrays.values()))


def trained(name: str) -> keras.Model:
    """A model after three steps on random targets."""
    keras.backend.clear_session()  # layers are named by a count of all that were made
    keras.utils.set_random_seed(0)
    net = NETS[name]
    model = net.build()
    model.compile(net.optimizer(), "mse")
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        x = given(inputs(model, step))
        model.train_on_batch(x, rng.standard_normal((ROWS_PER_STEP, *model.output_shape[1:])))
    return model


def write(name: str, folder: Path) -> Path:
    """The file of a trained model."""
    trained(name).save(folder / f"{name}.keras")
    return folder / f"{name}.keras"
