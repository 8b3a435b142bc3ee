"""Graphs whose exporter lost the names: the framework's arrays are found by value, and become the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.errors import Refused
from surgery.numeric import run
from surgery.port_kinds import infer
from surgery_adapters.binding.bind import Norm, bind, native
from surgery_adapters.binding.blocks import Arrays
from surgery_adapters.binding.layout import layouts
from tests.fixtures import recording
from tests.test_exporters import agreement, check_growth, free

Tensors = Mapping[str, np.ndarray]
NETS = sorted(path.stem for path in (recording.FOLDER / "tf2onnx").glob("*.npz"))
DROPPED = {"gru_step": {"gru/gru_cell/bias"}}
"""Zeros that the exporter left out, of a layer with several operators."""


def weights(name: str) -> dict[str, ir.TensorProtocol]:
    with np.load(recording.FOLDER / "tf2onnx" / f"{name}.npz") as archive:
        return {key: ir.tensor(array, name=key) for key, array in archive.items()}


def norms(arrays: Mapping[str, object]) -> list[Norm]:
    layers = [key.removesuffix("/moving_mean") for key in arrays if key.endswith("/moving_mean")]
    leaves = ("gamma", "beta", "moving_mean", "moving_variance")
    return [Norm(*(f"{layer}/{leaf}" for leaf in leaves), epsilon=1e-3) for layer in layers]


def tensors(**arrays: np.ndarray) -> dict[str, ir.TensorProtocol]:
    return {key.replace("__", "."): ir.tensor(np.float32(array)) for key, array in arrays.items()}


def checkpoint(graph: GraphBuilder) -> surgery.Checkpoint:
    model = graph.model()
    return surgery.Checkpoint(model, infer(model))


@pytest.mark.parametrize("name", NETS)
def test_the_parameters_of_a_keras_graph_are_its_own_arrays_and_the_function_stays(name):
    made, arrays = recording.read("tf2onnx", name), weights(name)
    found = native(surgery.load(made.path), arrays, norms(arrays))
    assert set(arrays) - set(found.tensors) == DROPPED.get(name, set())
    assert all(found.tensors[key] is arrays[key] for key in arrays if key in found.tensors)
    assert agreement(run(found.model, made.inputs, dtype=np.float32), made.outputs) <= 1e-5
    assert free(surgery.analyse(found.model)) == sorted(made.hidden.values())


@pytest.mark.parametrize(
    "name", ["attention", "batchnorm_cnn", "batchnorm_first", "conv1d", "lstm", "separable"]
)
def test_edits_change_the_arrays_in_their_own_layout(name):
    made, arrays = recording.read("tf2onnx", name), weights(name)
    found = native(surgery.load(made.path), arrays, norms(arrays))
    check_growth(found, made.inputs, 1e-5, singles=False)
    wide = surgery.apply(surgery.widen(found, factor=2), found).checkpoint
    ranks = {key: len(tensor.shape) for key, tensor in wide.tensors.items() if key in arrays}
    assert ranks == {key: len(arrays[key].shape) for key in ranks}
    assert any(tuple(wide.tensors[key].shape) != tuple(arrays[key].shape) for key in ranks)


@pytest.mark.parametrize("name", NETS)
def test_what_a_constant_is_said_to_be_made_of_makes_it(name):
    made, arrays = recording.read("tf2onnx", name), weights(name)
    values = {key: tensor.numpy() for key, tensor in arrays.items()}
    model = surgery.load(made.path)
    for constant, bound in bind(model, values, norms(arrays)).items():
        stored = model.tensors[constant.partition("@use")[0]].numpy()
        np.testing.assert_array_equal(bound.apply(values), stored)


@pytest.mark.parametrize("seed", range(20))
def test_any_permutation_reshape_and_flip_is_found(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 5, rng.integers(2, 5)))
    array = rng.standard_normal(shape).astype(np.float32)
    flipped = tuple(np.flatnonzero(rng.random(array.ndim) < 0.3))
    wanted = np.flip(array, flipped).transpose(rng.permutation(array.ndim))
    if seed % 2:
        wanted = wanted.reshape(-1, *wanted.shape[2:])
    [layout] = layouts(array, wanted)
    np.testing.assert_array_equal(layout.apply(array), wanted)
    other = rng.standard_normal(shape).astype(np.float32)  # the same map, not only the same values
    again = np.flip(other, flipped).transpose(layout.permutation).reshape(wanted.shape)
    np.testing.assert_array_equal(layout.apply(other), again)


def test_stacked_cut_and_reordered_arrays_are_told_apart():
    rng = np.random.default_rng(0)
    arrays = {f"{k}.kernel": rng.standard_normal((5, 12)).astype(np.float32) for k in "ab"}
    a, b = arrays.values()
    rows = {
        "stacked": np.concatenate([a, b], 1),
        "transposed": np.concatenate([a.T, b.T], 0),
        "gates": np.concatenate([a[:, 6:9], a[:, :3], a[:, 3:6], a[:, 9:]], 1),
        "part": b[:, 4:9],
        "padded": np.concatenate([a, np.zeros((5, 3), np.float32)], 1),
    }
    for name, constant in rows.items():
        bound = Arrays(arrays).joined(constant)
        np.testing.assert_array_equal(bound.apply(arrays), constant, err_msg=name)
    assert Arrays(arrays).joined(np.concatenate([a[:, :4], rows["padded"][:, 10:]], 1)) is None


def dense_net(rng: np.random.Generator, names: tuple[str, ...], kernels: list[np.ndarray], bias: np.ndarray):
    graph = GraphBuilder("net")
    x = graph.input("observation", (4,))
    for name, kernel in zip(names, kernels, strict=True):
        x = graph.op("MatMul", x, graph.parameter(f"{name}0", kernel.astype(np.float32)))
        x = graph.op("Tanh", graph.op("Add", x, graph.parameter(f"{name}1", bias.astype(np.float32))))
    graph.output(x, "q_values", (4,))
    return checkpoint(graph)


def test_equal_biases_are_told_apart_by_the_kernels_before_them():
    rng = np.random.default_rng(0)
    kernels, zeros = [rng.standard_normal((4, 4)) for _ in range(3)], np.zeros(4)
    arrays = tensors(
        **{f"fc{k}__kernel": kernel for k, kernel in enumerate(kernels)},
        **{f"fc{k}__bias": zeros for k in range(3)},
    )
    found = native(dense_net(rng, ("c", "d", "e"), kernels, zeros), arrays)
    order = [
        value.name for node in found.model.graph for value in node.inputs if value and "fc" in str(value.name)
    ]
    assert order == [f"fc{k}.{leaf}" for k in range(3) for leaf in ("kernel", "bias")]


def test_one_zero_bias_that_an_exporter_merged_becomes_one_for_each_layer():
    rng = np.random.default_rng(0)
    kernels, zeros = [rng.standard_normal((4, 4)) for _ in range(2)], np.zeros(4)
    merged = dense_net(rng, ("c", "c"), [kernels[0], kernels[0]], zeros)
    graph = merged.model.graph
    second = ir.Value(name="k", const_value=ir.tensor(np.float32(kernels[1]), name="k"))
    second.shape, second.type = ir.Shape([4, 4]), ir.TensorType(ir.DataType.FLOAT)
    graph.register_initializer(second)
    next(node for node in reversed(graph) if node.op_type == "MatMul").replace_input_with(1, second)
    arrays = tensors(a__kernel=kernels[0], a__bias=zeros, b__kernel=kernels[1], b__bias=zeros)
    assert set(native(merged, arrays).tensors) == set(arrays)


@pytest.mark.parametrize("kind", ["Conv", "MatMul"])
def test_a_zero_bias_that_an_exporter_left_out_is_there_again(kind):
    rng, graph = np.random.default_rng(0), GraphBuilder("net")
    shape, size = ((4, 3, 2, 2), (3, 5, 5)) if kind == "Conv" else ((3, 4), (3,))
    kernel = rng.standard_normal(shape).astype(np.float32)
    x = graph.op(kind, graph.input("observation", size), graph.parameter("k", kernel))
    graph.output(graph.op("Flatten", graph.op("Relu", x), axis=1), "q_values", (64 if kind == "Conv" else 4,))
    net, arrays = checkpoint(graph), tensors(a__kernel=kernel, a__bias=np.zeros(4))
    found = native(net, arrays)
    assert set(arrays) <= set(found.tensors)
    x = {"observation": rng.standard_normal((2, *size)).astype(np.float32)}
    assert agreement(run(found.model, x, dtype=np.float32), run(net.model, x, dtype=np.float32)) <= 1e-6
    assert found.model.graph.initializers["a.bias"].uses()


def test_equal_layers_are_refused_by_name():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((4, 4))
    net = dense_net(rng, ("c", "d"), [kernel, kernel], rng.standard_normal(4))
    bias = net.tensors["c1"].numpy()
    arrays = tensors(a__kernel=kernel, a__bias=bias, b__kernel=kernel, b__bias=bias)
    with pytest.raises(Refused, match=r"'c0' \[4, 4\] is equal to 'a\.kernel', as b\.kernel"):
        native(net, arrays)


def test_a_weight_of_another_training_step_is_refused_by_name():
    rng = np.random.default_rng(0)
    kernels = [rng.standard_normal((4, 4)) for _ in range(2)]
    net = dense_net(rng, ("c", "d"), kernels, rng.standard_normal(4))
    arrays = tensors(a__kernel=kernels[0], b__kernel=kernels[1] + 1e-3)
    with pytest.raises(
        Refused, match=r"'d0' \[4, 4\] matches none of the file's arrays \(unmatched: b\.kernel"
    ):
        native(net, arrays)


def test_a_constant_factor_stays_in_the_graph():
    rng = np.random.default_rng(0)
    kernels = [rng.standard_normal((4, 4)), rng.standard_normal((4, 4))]
    net = dense_net(rng, ("c", "d"), [np.float32(kernels[0]) / np.float32(255), kernels[1]], np.zeros(4))
    arrays = tensors(a__kernel=kernels[0], b__kernel=kernels[1], a__bias=np.zeros(4), b__bias=np.zeros(4))
    found = native(net, arrays)
    x = {"observation": rng.standard_normal((8, 4)).astype(np.float32)}
    assert set(arrays) <= set(found.tensors)
    assert agreement(run(found.model, x, dtype=np.float32), run(net.model, x, dtype=np.float32)) <= 1e-6


def test_an_untrained_recurrent_layer_has_the_gates_of_its_bias_where_its_weights_have_them():
    rng, h = np.random.default_rng(0), 3
    kernel, recurrent = rng.standard_normal((2, 4 * h)), rng.standard_normal((h, 4 * h))
    bias = np.concatenate([np.zeros(h), np.ones(h), np.zeros(2 * h)])  # the forget gate starts open

    def onnx(array: np.ndarray) -> np.ndarray:  # ifco to iofc, as tf2onnx does it
        i, f, c, o = np.split(array, 4, -1)
        return np.concatenate([i, o, f, c], -1).astype(np.float32)

    graph = GraphBuilder("net")
    x = graph.op("Transpose", graph.input("observation", (5, 2)), perm=[1, 0, 2])
    w, r = (graph.parameter(name, onnx(array).T[None]) for name, array in (("w", kernel), ("r", recurrent)))
    b = graph.parameter("b", np.concatenate([onnx(bias), np.zeros(4 * h, np.float32)])[None])
    state = graph.ops("LSTM", x, w, r, b, outputs=2, hidden_size=h)[1]
    head = rng.standard_normal((h, 4)).astype(np.float32)
    features = graph.op("Squeeze", state, graph.constant([0]))
    graph.output(graph.op("MatMul", features, graph.parameter("k", head)), "q_values", (4,))
    net = checkpoint(graph)
    arrays = tensors(lstm__kernel=kernel, lstm__recurrent_kernel=recurrent, lstm__bias=bias, q__kernel=head)
    bound = bind(net, {key: tensor.numpy() for key, tensor in arrays.items()})
    places = {"lstm.bias": np.arange(1, 4 * h + 1, dtype=np.float32)}
    np.testing.assert_array_equal(bound["b"].apply(places)[0, : 4 * h], onnx(places["lstm.bias"]))
    check_growth(
        native(net, arrays), {"observation": rng.standard_normal((2, 5, 2)).astype(np.float32)}, 1e-5
    )


@pytest.mark.parametrize("fresh", [False, True])
def test_both_directions_of_a_recurrent_layer_are_found_in_one_constant(fresh):
    rng, h = np.random.default_rng(0), 3
    arrays: dict[str, np.ndarray] = {}
    for side in ("forward", "backward"):
        arrays[f"{side}.kernel"] = rng.standard_normal((2, 4 * h)).astype(np.float32)
        arrays[f"{side}.recurrent_kernel"] = rng.standard_normal((h, 4 * h)).astype(np.float32)
        bias = np.concatenate([np.zeros(h), np.ones(h), np.zeros(2 * h)])
        arrays[f"{side}.bias"] = (bias if fresh else rng.standard_normal(4 * h)).astype(np.float32)

    def onnx(leaf: str) -> np.ndarray:
        gates = (np.split(arrays[f"{side}.{leaf}"], 4, -1) for side in ("forward", "backward"))
        return np.stack([np.concatenate([i, o, f, c], -1).T for i, f, c, o in gates])

    graph = GraphBuilder("net")
    x = graph.op("Transpose", graph.input("observation", (5, 2)), perm=[1, 0, 2])
    w, r = graph.parameter("w", onnx("kernel")), graph.parameter("r", onnx("recurrent_kernel"))
    b = graph.parameter("b", np.concatenate([onnx("bias"), np.zeros((2, 4 * h), np.float32)], 1))
    state = graph.ops("LSTM", x, w, r, b, outputs=2, hidden_size=h, direction="bidirectional")[1]
    joined = graph.op(
        "Concat", *(graph.op("Gather", state, graph.constant(k), axis=0) for k in (0, 1)), axis=1
    )
    graph.output(joined, "features", (2 * h,))
    net = checkpoint(graph)
    bound = bind(net, arrays)
    for name in ("w", "r", "b"):
        np.testing.assert_array_equal(bound[name].apply(arrays), net.tensors[name].numpy())
        assert set(bound[name].keys) <= {
            key for key in arrays if key.endswith(bound[name].key.partition(".")[2])
        }
    found = native(net, {key: ir.tensor(array) for key, array in arrays.items()})
    seen = {"observation": rng.standard_normal((2, 5, 2)).astype(np.float32)}
    assert agreement(run(found.model, seen, dtype=np.float32), run(net.model, seen, dtype=np.float32)) == 0
    assert set(arrays) <= set(found.tensors)
