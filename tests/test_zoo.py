"""The zoo itself: every exported file is valid ONNX and computes what the torch module computes."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from tests import zoo

ELEMENTWISE = {
    "Abs", "Add", "Cast", "CastLike", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu",
    "Greater", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "PRelu", "Pow",
    "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh", "Where",
}  # fmt: skip
SHAPES = {
    "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad", "Range",
    "Reshape", "SequenceAt", "Shape", "Slice", "Split", "SplitToSequence", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
CONTRACTIONS = {"BatchNormalization", "Conv", "Gemm", "LogSoftmax", "MatMul", "Softmax"}
POOLS = {"AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceSum"}

EXPORTS = [
    pytest.param(
        name, style, id=f"{name}-{style}",
        marks=[pytest.mark.skip(reason=net.impossible[style])] if style in net.impossible else [],
    )
    for name, net in zoo.NETS.items()
    for style in zoo.STYLES
]  # fmt: skip


def _run(path: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _answers(module: nn.Module, net: zoo.Net, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    results: Any = module(*(torch.from_numpy(array) for array in inputs.values()))
    results = results if isinstance(results, tuple) else (results,)
    return {name: result.numpy() for name, result in zip(net.outputs, results, strict=True)}


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_an_exported_net_is_valid_and_computes_what_the_module_computes(
    name: str, style: str, rng: np.random.Generator
) -> None:
    path, net, module = zoo.export(name, style), zoo.NETS[name], zoo.module(name)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    for batch, sizes in ((1, {}), (4, {"time": 3, "entities": 8, "actions": 2})):
        inputs = zoo.sample(name, batch, rng, sizes)
        had, wanted = _run(str(path), inputs), _answers(module, net, inputs)
        assert list(had) == list(net.outputs)
        for output, value in wanted.items():
            scale = max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(had[output], value, rtol=0, atol=1e-5 * scale, err_msg=output)


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_the_row_tells_the_inputs_of_the_file(name: str, style: str) -> None:
    had = {
        value.name: tuple(size if isinstance(size, int) else size.value for size in value.shape or ())
        for value in zoo.load(name, style).graph.inputs
    }
    assert had == dict(zoo.NETS[name].inputs)


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_a_core_net_needs_core_operators_only(name: str, style: str) -> None:
    used = {node.op_type for node in ir.traversal.RecursiveGraphIterator(zoo.load(name, style).graph)}
    beyond = used - ELEMENTWISE - SHAPES - CONTRACTIONS - POOLS
    if "core" in zoo.NETS[name].tags:
        assert not beyond


@pytest.mark.parametrize("name", zoo.NETS)
def test_a_module_looks_trained_and_depends_on_its_seed_only(name: str) -> None:
    state, again, other = (zoo.module(name, seed).state_dict() for seed in (0, 0, 1))
    for key, tensor in state.items():
        assert torch.equal(tensor, again[key])
        if tensor.is_floating_point():
            assert tensor.abs().min() > 0
            assert not torch.equal(tensor, other[key])
            assert tensor.numel() == 1 or tensor.std() > 0


@pytest.mark.parametrize("name", zoo.NETS)
def test_the_row_tells_the_widths_of_the_module(name: str) -> None:
    module, net = zoo.module(name), zoo.NETS[name]
    for path, size in {**net.hidden, **net.frozen}.items():
        producer = operator.attrgetter(path.partition(":")[0])(module)
        width = _width(producer)
        assert 1 < size <= width if ":" in path else size == width


def _width(producer: nn.Module | torch.Tensor) -> int:
    if isinstance(producer, torch.Tensor):
        return producer.shape[-1]
    names = ("out_features", "out_channels", "hidden_size", "embedding_dim", "embed_dim")
    return next(int(vars(producer)[name]) for name in names if name in vars(producer))


@pytest.mark.parametrize("name", zoo.NETS)
def test_every_unit_of_a_net_matters(name: str, rng: np.random.Generator) -> None:
    """A parameter without influence would hide a wrong edit of it."""
    module, inputs = zoo.module(name), zoo.sample(name, 16, rng)
    module.requires_grad_(True)
    results: Any = module(*(torch.from_numpy(array) for array in inputs.values()))
    results = results if isinstance(results, tuple) else (results,)
    sum(result.square().sum() for result in results).backward()
    idle = [key for key, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle


def test_the_default_of_the_exporter_is_the_optimised_style() -> None:
    source = zoo.module("batchnorm_mlp")
    example = tuple(map(torch.from_numpy, zoo.sample("batchnorm_mlp", 3, np.random.default_rng(0)).values()))
    with zoo.quiet():
        program = torch.onnx.export(source, example, dynamo=True, opset_version=20)
    assert program is not None
    had = [node.op_type for node in zoo.load("batchnorm_mlp", "dynamo-optimized").graph]
    assert had == [node.op_type for node in program.model.graph]


def test_fresh_weights_keep_what_exporters_merge() -> None:
    fresh = zoo.load("residual_layernorm", "dynamo-optimized", fresh=True)
    trained = zoo.load("residual_layernorm", "dynamo-optimized")
    assert len(fresh.graph.initializers) < len(trained.graph.initializers)
