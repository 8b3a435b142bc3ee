"""Graphs that are not torch's own: Keras and flax, all opsets, other optimisers, other ways to write the same thing.

Each must be read, evaluated as its framework does, analysed down to the last width, and widened exactly.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import version_converter

import surgery
from surgery.graph.spaces import Analysis
from surgery.numeric import run
from surgery.torch import from_module
from surgery.verify.outputs import runtime
from tests import other_sources, zoo
from tests.fixtures import recording

Arrays = Mapping[str, np.ndarray]

RECORDED = [pytest.param(exporter, name, id=f"{exporter}-{name}") for exporter, name in recording.every()]

OPSETS = (9, 11, 13, 15, 17, 18, 20, 21, 22, 23, 24, 25, 26)
CONVERTED = (
    "nature_dqn",
    "dueling",
    "c51",
    "residual_layernorm",
    "batchnorm_resnet",
    "gru_policy",
    "entity_attention",
)
SOURCES = (
    "mlp_relu",
    "nature_nhwc",
    "impala",
    "residual_layernorm",
    "batchnorm_resnet",
    "lstm_policy",
    "c51",
)


def agreement(answers: Arrays, wanted: Arrays) -> float:
    """The largest difference, relative to the outputs where those are larger than 1."""
    gaps = []
    for name, value in wanted.items():
        assert answers[name].shape == value.shape
        gap = np.abs(answers[name].astype(np.float64) - value.astype(np.float64))
        gaps.append(float(gap.max(initial=0.0)) / max(1.0, float(np.abs(value.astype(np.float64)).max())))
    return max(gaps)


def free(analysis: Analysis) -> list[int]:
    """The sizes of what can grow."""
    return sorted(space.size for space in analysis.spaces if space.widenable and space.hidden)


def frozen(analysis: Analysis) -> dict[str, str | None]:
    """What lies inside and cannot grow."""
    return {space.name: space.reason for space in analysis.spaces if space.hidden and not space.widenable}


def check_growth(
    checkpoint: surgery.Checkpoint, inputs: Arrays, limit: float, *, singles: bool = True
) -> None:
    """All spaces by 2, and each alone (by whole multiples where it must): proved, and the same on these inputs."""
    analysis = checkpoint.analysis
    plans = [surgery.widen(checkpoint, factor=2)]
    for space in analysis.spaces if singles else ():
        if space.widenable:
            names = {space.name, *space.alike}
            plans.append(
                surgery.widen(checkpoint, widths={n: 2 * analysis.space(n).size for n in names})
                if space.whole else surgery.widen(checkpoint, widths={space.name: space.size + 1})
            )  # fmt: skip
    before = run(checkpoint.model, inputs, dtype=np.float32)
    for plan in plans:
        result = surgery.apply(plan, checkpoint)
        assert result.report is not None and result.report.ok, plan
        if plan.ports:
            continue
        after = run(result.checkpoint.model, inputs, dtype=np.float32)
        assert agreement(after, before) <= limit, plan
        assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in before.items()}


def written(model: onnx.ModelProto, folder: Path) -> surgery.Checkpoint:
    onnx.save(model, folder / "model.onnx")
    return surgery.load(folder / "model.onnx")


# ---- Keras by tf2onnx, flax by jax2onnx -----------------------------------------------------------------------


@pytest.mark.parametrize(("exporter", "name"), RECORDED)
def test_both_evaluators_agree_with_the_framework(exporter: str, name: str) -> None:
    made = recording.read(exporter, name)
    model = surgery.load(made.path).model
    assert agreement(run(model, made.inputs, dtype=np.float32), made.outputs) <= 1e-5
    assert agreement(runtime(model)(dict(made.inputs)), made.outputs) <= 1e-5


@pytest.mark.parametrize(("exporter", "name"), RECORDED)
def test_every_width_can_grow_or_says_why_not(exporter: str, name: str) -> None:
    made = recording.read(exporter, name)
    analysis = surgery.analyse(surgery.load(made.path).model)
    assert free(analysis) == sorted(made.hidden.values()), frozen(analysis)
    reasons = " ".join(str(reason) for reason in frozen(analysis).values())
    for width, phrase in made.frozen.items():
        assert phrase in reasons, width
    else:
        assert made.frozen or all(
            "indexed at run time" in str(reason) for reason in frozen(analysis).values()
        )


@pytest.mark.parametrize(("exporter", "name"), RECORDED)
def test_a_recorded_network_grows_exactly(exporter: str, name: str) -> None:
    made = recording.read(exporter, name)
    if made.hidden:
        check_growth(surgery.load(made.path), made.inputs, 1e-5)


@pytest.mark.parametrize(("exporter", "name"), RECORDED)
def test_a_space_is_named_after_its_layer(exporter: str, name: str) -> None:
    """Where the exporter keeps the layers' names: no operator of TensorFlow is part of them."""
    analysis = surgery.analyse(surgery.load(recording.read(exporter, name).path).model)
    assert not [space.name for space in analysis.spaces if "ReadVariableOp" in space.name]


def test_the_layer_of_a_keras_model_can_be_named() -> None:
    analysis = surgery.analyse(surgery.load(recording.read("tf2onnx", "nature").path).model)
    assert {name: analysis.space(name).size for name in ("conv1_1", "conv3_1", "fc_1")} == {
        "conv1_1": 4, "conv3_1": 6, "fc_1": 8,
    }  # fmt: skip


def test_the_fixtures_are_small() -> None:
    sizes = {path: path.stat().st_size for path in recording.FOLDER.glob("*/*.*")}
    assert max(sizes.values()) < 64_000
    assert sum(sizes.values()) < 2_200_000


# ---- opsets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", CONVERTED)
def test_every_opset_is_read_and_widened(name: str, opset: int, tmp_path: Path) -> None:
    """Up to 15 as the exporter writes it, above by the converter, as far as that goes."""
    inputs = zoo.sample(name, 3, np.random.default_rng(0))
    wanted = runtime(zoo.load(name, "torchscript"))(inputs)
    checkpoint = written(in_opset(name, opset), tmp_path)
    assert checkpoint.model.opset_imports[""] == opset
    assert agreement(runtime(checkpoint.model)(inputs), wanted) <= 1e-5
    assert agreement(run(checkpoint.model, inputs, dtype=np.float32), wanted) <= 1e-5
    analysis = checkpoint.analysis
    assert free(analysis) == sorted(zoo.NETS[name].hidden.values()), frozen(analysis)
    check_growth(checkpoint, inputs, 1e-5, singles=False)


def test_the_operators_of_onnx_are_known_by_both_names_of_their_domain(tmp_path: Path) -> None:
    proto = in_opset("nature_dqn", 17)
    wanted = written(proto, tmp_path).analysis
    for entry in (*proto.opset_import, *proto.graph.node):
        entry.domain = "ai.onnx"
    assert written(proto, tmp_path).analysis.spaces == wanted.spaces


def in_opset(name: str, opset: int) -> onnx.ModelProto:
    if opset > 15:
        model = version_converter.convert_version(onnx.load(zoo.export(name, "torchscript")), opset)
        model.ir_version = min(model.ir_version, 13)
        return model
    net, file = zoo.NETS[name], io.BytesIO()
    arrays = zoo.sample(name, 3, np.random.default_rng(0))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with zoo.quiet():
            torch.onnx.export(
                zoo.module(name), tuple(map(torch.from_numpy, arrays.values())), file,  # type: ignore[arg-type]
                input_names=list(net.inputs), output_names=list(net.outputs), opset_version=opset, dynamo=False,
                dynamic_axes={
                    key: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
                    for key, shape in net.inputs.items()
                },
            )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return onnx.load_from_string(file.getvalue())


# ---- the same network, written otherwise ------------------------------------------------------------------------


@pytest.mark.parametrize("change", other_sources.SAME, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", SOURCES)
def test_another_form_of_a_network_has_the_same_widths(
    name: str, change: other_sources.Change, tmp_path: Path
) -> None:
    inputs = zoo.sample(name, 3, np.random.default_rng(0))
    source = onnx.load(zoo.export(name, "dynamo"))
    wanted = runtime(ir.from_proto(source))(inputs)
    with zoo.quiet():
        checkpoint = written(change(source), tmp_path)
    assert agreement(runtime(checkpoint.model)(inputs), wanted) <= 1e-5
    assert agreement(run(checkpoint.model, inputs, dtype=np.float32), wanted) <= 1e-5
    analysis = checkpoint.analysis
    assert free(analysis) == sorted(zoo.NETS[name].hidden.values()), frozen(analysis)
    check_growth(checkpoint, inputs, 1e-5, singles=name != "impala")


@pytest.mark.parametrize(
    ("change", "limit"), other_sources.PRECISIONS, ids=lambda p: getattr(p, "__name__", "")
)
@pytest.mark.parametrize("name", ["mlp_relu", "nature_nhwc", "residual_layernorm"])
def test_other_precisions_are_widened(
    name: str, change: other_sources.Change, limit: float, tmp_path: Path
) -> None:
    inputs = zoo.sample(name, 3, np.random.default_rng(0))
    # bfloat16 convolutions exist from opset 22 on
    source = version_converter.convert_version(onnx.load(zoo.export(name, "dynamo")), 22)
    wanted = runtime(ir.from_proto(source))(inputs)
    checkpoint = written(change(source), tmp_path)
    typed = {
        value.name: inputs[value.name].astype(value.dtype.numpy()) for value in checkpoint.model.graph.inputs
    }
    assert agreement(run(checkpoint.model, typed, dtype=np.float64), wanted) <= limit
    analysis = checkpoint.analysis
    assert free(analysis) == sorted(zoo.NETS[name].hidden.values()), frozen(analysis)
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
    result = surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint)
    assert result.report is not None and result.report.ok
    assert {name: tensor.dtype for name, tensor in result.checkpoint.tensors.items()} == dtypes


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(6, 24), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_scale_that_attention_computes_keeps_its_type(dtype: torch.dtype) -> None:
    """The exporter notes no type where it takes the roots of 1/√d."""
    torch.manual_seed(0)
    made = from_module(Attention().to(dtype), example_inputs=torch.randn(3, 5, 6).to(dtype))
    result = surgery.apply(surgery.widen(made, widths={"qkv[1]": 7}), made)
    assert result.report is not None
    assert result.report.ok


@pytest.mark.parametrize("name", ["mlp_relu", "impala"])
def test_bytes_as_observations_are_cast_in_the_graph(name: str, tmp_path: Path) -> None:
    source = other_sources.integer_input(onnx.load(zoo.export(name, "torchscript")))
    checkpoint, rng = written(source, tmp_path), np.random.default_rng(0)
    (value,) = checkpoint.model.graph.inputs
    shape = tuple(d if isinstance(d, int) else 3 for d in value.shape)
    inputs = {value.name: rng.integers(0, 256, shape).astype(np.uint8)}
    check_growth(checkpoint, inputs, 1e-5)


@pytest.mark.parametrize("name", SOURCES)
def test_weights_in_another_file_are_widened(name: str, tmp_path: Path) -> None:
    onnx.save_model(
        onnx.load(zoo.export(name, "dynamo")), tmp_path / "model.onnx",
        save_as_external_data=True, location="weights.bin", size_threshold=0,
    )  # fmt: skip
    checkpoint = surgery.load(tmp_path / "model.onnx")
    inputs = zoo.sample(name, 3, np.random.default_rng(0))
    check_growth(checkpoint, inputs, 1e-5, singles=False)
    result = surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint, verify=False)
    files = result.save(tmp_path / "wide.onnx")
    wide = surgery.load(files[-1])
    if not result.plan.ports:
        assert agreement(runtime(wide.model)(inputs), runtime(checkpoint.model)(inputs)) <= 1e-5
