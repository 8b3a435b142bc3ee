"""Graphs as trainable modules: the same outputs, gradients and names, for every network in every export style."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import surgery
from surgery.numeric import Unsupported
from surgery.numeric.kernels import KERNELS
from surgery.torch import to_module
from surgery.torch.operators import TRANSLATIONS
from surgery.torch.operators.recurrent import single_step
from tests import zoo
from tests.numeric_rows import ROWS
from tests.test_numeric import assert_close, feeds_of, model_of, ours

SIZES = ((3, None), (1, {"time": 2, "entities": 3, "actions": 2}))
EXPORTS = [
    pytest.param(name, style, id=f"{name}-{style}")
    for name in zoo.NETS
    for style in zoo.STYLES
    if style not in zoo.NETS[name].impossible
]
UNTIED = {"tied_embedding"}  # other styles than dynamo's write a tied weight twice
FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*/*.onnx"))


def session(data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def outputs(module: torch.nn.Module, feeds: dict[str, np.ndarray]) -> list[torch.Tensor]:
    results = module(*(torch.from_numpy(np.array(x)) for x in feeds.values()))
    return list(results) if isinstance(results, tuple) else [results]


def assert_same(found: list[torch.Tensor], wanted: list[np.ndarray], limit: float = 1e-6):
    for tensor, array in zip(found, wanted, strict=True):
        assert tensor.shape == array.shape
        assert tensor.numpy(force=True).dtype == array.dtype
        if array.size:
            difference = np.abs(tensor.numpy(force=True).astype(np.float64) - array).max()
            assert difference <= limit * max(np.abs(array).max(), 1e-30)


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_outputs_are_those_of_onnxruntime_at_any_size(name, style):
    module = to_module(zoo.load(name, style))
    runtime = session(zoo.export(name, style).read_bytes())
    for batch, sizes in SIZES:
        feeds = zoo.sample(name, batch, np.random.default_rng(batch), sizes)
        assert_same(outputs(module, feeds), runtime.run(None, feeds))


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_gradients_are_those_of_the_source(name, style):
    source, module = zoo.module(name).requires_grad_(True), to_module(zoo.load(name, style))
    feeds = zoo.sample(name, 3, np.random.default_rng(3))
    for net in (source, module):
        results = outputs(net, feeds)
        generator = torch.Generator().manual_seed(0)
        sum((torch.randn(y.shape, generator=generator) * y).sum() for y in results).backward()
    made = dict(module.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in source.parameters() if p.grad is not None)
    compared = 0
    for key, parameter in source.named_parameters(remove_duplicate=False):
        if name in UNTIED and style != "dynamo":
            continue
        if key in made and parameter.grad is not None and torch.equal(parameter, made[key]):
            compared += 1
            torch.testing.assert_close(made[key].grad, parameter.grad, rtol=2e-5, atol=1e-6 * scale)
    assert compared or name in UNTIED


@pytest.mark.parametrize("name", zoo.NETS)
def test_parameters_are_those_of_the_source(name):
    source, module = zoo.module(name), to_module(zoo.load(name, "dynamo"))
    graph = set(zoo.load(name, "dynamo").graph.initializers)
    wanted = {key: p for key, p in source.named_parameters(remove_duplicate=False) if key in graph}
    found = dict(module.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    buffers = {key for key, b in source.named_buffers() if key in graph and b.is_floating_point() and b.dim()}
    assert buffers == set(module.state_dict()) - set(found)


def variants() -> list[tuple]:
    return [(row, fixed) for row in ROWS for fixed in (False, True)]


COMPUTED = {"Squeeze", "Unsqueeze", "Pad", *(row.op for row in ROWS if row.op.startswith("Reduce"))}


@pytest.mark.parametrize(("row", "fixed"), variants(), ids=str)
@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
def test_operators_agree_with_the_evaluator(row, fixed):
    """Each operator, with its operands after the first given to the module, or constants of the graph."""
    proto = model_of(row)
    if fixed:
        names = [f"in{at}" for at, x in enumerate(row.inputs) if at and x is not None]
        for name in names:
            array = row.inputs[int(name[2:])]
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        kept = [value for value in proto.graph.input if value.name not in names]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
    elif row.op in COMPUTED and len(row.inputs) > 1:
        with pytest.raises(Unsupported, match=row.op):
            to_module(ir.from_proto(proto))
        return
    model, feeds = ir.from_proto(proto), feeds_of(row, np.float64)
    module = to_module(model, dtype=torch.float64)
    given = {str(value.name): feeds[str(value.name)] for value in model.graph.inputs}
    found = [x.numpy(force=True) for x in outputs(module, given)]
    wanted = ours(row, feeds)
    assert [x.dtype for x in found] == [x.dtype for x in wanted]
    assert_close(found, wanted, 1e-7 if row.op == "Selu" else 1e-12)


def test_every_operator_of_the_evaluator_is_translated():
    assert set(KERNELS) - {"Constant"} <= set(TRANSLATIONS)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_graphs_of_other_exporters_compute_the_same(path):
    checkpoint = surgery.load(path)
    module, runtime = to_module(checkpoint), session(path.read_bytes())
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.random([n if isinstance(n, int) else 3 for n in value.shape]).astype(
            np.float32 if "float" in value.type else np.int64
        )
        for value in runtime.get_inputs()
    }
    feeds = {value.name: feeds[value.name].astype(onnx_type(value.type)) for value in runtime.get_inputs()}
    assert_same(outputs(module, feeds), runtime.run(None, feeds))


def onnx_type(text: str) -> np.dtype:
    name = text.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("function", [torch.rnn_tanh, torch.gru, torch.lstm])
def test_a_step_of_a_cell_as_gpus_take_it_is_the_layer_over_one_step_in_full_precision(function, bias):
    torch.manual_seed(0)
    gates = {torch.rnn_tanh: 1, torch.gru: 3, torch.lstm: 4}[function]
    shapes = [(gates * 5, 3), (gates * 5, 5), *([(gates * 5,)] * 2 if bias else [])]
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
    x, state = torch.randn(2, 3), [torch.randn(2, 5) for _ in range(2 if function is torch.lstm else 1)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = single_step(x, state, function, weights)
    started = tuple(one[None] for one in state)
    hidden = started if len(started) > 1 else started[0]
    _, *wanted = function(x[None], hidden, weights, bias, 1, 0.0, True, False, False)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(sum(one.sum() for one in some), weights) for some in (found, wanted)]
    torch.testing.assert_close(*gradients)
