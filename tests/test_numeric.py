"""Every kernel against onnxruntime, the reference implementation, and its own finite differences."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from surgery.errors import GraphError, UnknownName
from surgery.numeric import Unsupported, compute, dual, run, supported
from tests.numeric_rows import FLOATS, ROWS, Row, f

STEP = 1e-30


def model_of(case: Row) -> onnx.ModelProto:
    names = ["" if x is None else f"in{at}" for at, x in enumerate(case.inputs)]
    node = helper.make_node(
        case.op, names, [f"out{at}" for at in range(case.outputs)], "node", **case.attributes
    )
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in zip(names, case.inputs, strict=True)
        if name
    ]
    results = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "row", given, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10)


def feeds_of(case: Row, dtype=np.float32) -> dict[str, np.ndarray]:
    given = {f"in{at}": x for at, x in enumerate(case.inputs) if x is not None}
    return {name: np.asarray(x, dtype if x.dtype in FLOATS else None) for name, x in given.items()}


def ours(case: Row, feeds, dtype=np.float64):
    return list(run(ir.from_proto(model_of(case)), feeds, dtype=dtype).values())


def assert_close(found, wanted, tolerance):
    for ours_is, theirs in zip(found, wanted, strict=True):
        theirs = np.asarray(theirs)
        assert ours_is.shape == theirs.shape
        if theirs.dtype.kind not in "fc":
            np.testing.assert_array_equal(ours_is, theirs)
            continue
        finite = np.abs(theirs[np.isfinite(theirs)])
        scale = max(1.0, float(finite.max())) if finite.size else 1.0
        np.testing.assert_allclose(ours_is, theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("case", [r for r in ROWS if r.ort], ids=str)
def test_float32_agrees_with_onnxruntime(case):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model_of(case).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = feeds_of(case)
    found = ours(case, feeds, np.float32)
    wanted = session.run(None, feeds)
    assert [x.dtype for x in found] == [x.dtype for x in wanted]
    assert_close(found, wanted, 1e-5)


@pytest.mark.parametrize("case", [r for r in ROWS if r.reference], ids=str)
def test_float64_agrees_with_the_reference(case):
    feeds = feeds_of(case, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = ReferenceEvaluator(model_of(case)).run(None, feeds)
    assert_close(ours(case, feeds), wanted, case.reference)


def moving(case: Row) -> list[str]:
    floats = [at for at, x in enumerate(case.inputs) if x is not None and x.dtype in FLOATS]
    return [f"in{at}" for at in floats if case.moves is None or at in case.moves]


@pytest.mark.parametrize("case", [r for r in ROWS if moving(r)], ids=str)
def test_complex_step_is_the_derivative(case):
    feeds = feeds_of(case, np.float64)
    rng = np.random.default_rng(1)
    direction = {name: rng.standard_normal(feeds[name].shape) for name in moving(case)}
    step = 1e-6

    def shifted(by):
        return ours(case, {n: x + by * direction[n] if n in direction else x for n, x in feeds.items()})

    complex_feeds = {n: x + 1j * STEP * direction[n] if n in direction else x for n, x in feeds.items()}
    found = ours(case, complex_feeds, np.complex128)
    for at, (both, above, below, value) in enumerate(
        zip(found, shifted(step), shifted(-step), ours(case, feeds), strict=True)
    ):
        np.testing.assert_allclose(both.real, value, rtol=1e-13, atol=1e-13, err_msg=f"value of output {at}")
        if both.dtype.kind == "c":
            slope = (above - below) / (2 * step)
            assert_close([both.imag / STEP], [slope], 1e-5)


@pytest.mark.parametrize("case", [r for r in ROWS if r.nan], ids=str)
def test_nan_stays_nan(case):
    for dtype in (np.float64, np.complex128):
        feeds = feeds_of(case, np.float64)
        feeds["in0"][(0,) * feeds["in0"].ndim] = np.nan
        if dtype == np.complex128:
            feeds["in0"] = feeds["in0"] + 1j * STEP
        assert np.isnan(ours(case, feeds, dtype)[0].real).any()


def test_every_kernel_has_a_row():
    from surgery.numeric.kernels import KERNELS

    elsewhere = {"If", "Loop", "Scan", "Constant", *(name for name in KERNELS if "Sequence" in name)}
    assert set(KERNELS) - elsewhere == {case.op for case in ROWS if case.op in KERNELS}


def parsed(text: str, **initializers: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(text)
    for name, array in initializers.items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        for node in model.graph.all_nodes():
            for at, operand in enumerate(node.inputs):
                if operand is not None and operand.name == name:
                    node.replace_input_with(at, value)
    return model


HEADER = '<ir_version: 10, opset_import: ["" : 20, "local" : 1]>\n'


def test_a_loop_with_a_branch_sees_values_from_outside():
    model = parsed(
        HEADER
        + """
        g (int64 n, float[2] x) => (float[2] y, float[N, 2] trace) {
          two = Constant<value = float {2.0}>()
          on = Constant<value = bool {1}>()
          y, trace = Loop(n, on, x) <body =
          b (int64 i, bool c, float[2] s) => (bool c2, float[2] s2, float[2] t) {
            one = Constant<value = int64 {1}>()
            first = Less(i, one)
            s2 = If(first) <then_branch = yes () => (float[2] p) { p = Mul(s, two) },
                            else_branch = no () => (float[2] m) { m = Add(s, x) }>
            c2 = Identity(c)
            t = Identity(s2)
          }>
        }"""
    )
    x = np.array([1.0, 2.0])
    found = run(model, {"n": np.array(3), "x": x + 1j * STEP}, dtype=np.complex128)
    np.testing.assert_array_equal(found["y"].real, 4 * x)
    np.testing.assert_allclose(found["y"].imag, 4 * STEP)
    np.testing.assert_array_equal(found["trace"].real, np.stack([2 * x, 3 * x, 4 * x]))
    assert run(model, {"n": np.array(0), "x": x})["trace"].shape == (0, 2)


def test_a_scan_carries_a_state_over_slices():
    model = parsed(
        HEADER
        + """
        g (float[2] s, float[3, 2] x) => (float[2] last, float[2, 3] sums) {
          last, sums = Scan<num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [1], body =
            b (float[2] a, float[2] e) => (float[2] a2, float[2] o) { a2 = Add(a, e) o = Identity(a2) }>(s, x)
        }"""
    )
    x = np.arange(6.0).reshape(3, 2)
    found = run(model, {"s": np.zeros(2), "x": x})
    np.testing.assert_array_equal(found["sums"], np.cumsum(x[::-1], axis=0).T)
    np.testing.assert_array_equal(found["last"], x.sum(axis=0))


def test_sequences_are_built_taken_apart_and_joined():
    model = parsed(
        HEADER
        + """
        g (float[4, 2] x, int64 at) => (float[3, 2] joined, float[1, 2] one, int64 count) {
          all = SplitToSequence<axis = 0>(x)
          fewer = SequenceErase(all, at)
          one = SequenceAt(fewer, at)
          joined = ConcatFromSequence<axis = 0>(fewer)
          more = SequenceInsert(fewer, one)
          two = SequenceConstruct(one, one)
          count = SequenceLength(more)
        }"""
    )
    x = f(4, 2).astype(np.float64)
    found = run(model, {"x": x, "at": np.array(1)})
    np.testing.assert_array_equal(found["joined"], x[[0, 2, 3]])
    np.testing.assert_array_equal(found["one"], x[2:3])
    assert found["count"] == 4


def test_a_model_local_function_gets_its_attributes():
    model = parsed(
        HEADER
        + """
        g (float[3] x) => (float[3] y, float[3] z) { y = local.leak<alpha = 0.5>(x)  z = local.leak(x) }
        <domain: "local", opset_import: ["" : 20]>
        leak<alpha: float = 0.25>(a) => (b) { b = LeakyRelu<alpha: float = @alpha>(a) }"""
    )
    found = run(model, {"x": np.array([-4.0, 0.0, 4.0])})
    np.testing.assert_array_equal(found["y"], [-2, 0, 4])
    np.testing.assert_array_equal(found["z"], [-1, 0, 4])


CHAIN = HEADER + "g (float[4, 64] x) => (float[4, 64] y) {" + "".join(
    f"h{at} = MatMul({'x' if at == 0 else f'h{at - 1}'}, w{at})\n" for at in range(20)
) + "y = Identity(h19)}"  # fmt: skip


def test_each_initializer_is_read_once_and_then_let_go():
    width, reads = 200, []
    model = parsed(CHAIN, **{f"w{at}": np.zeros((1, 1), np.float32) for at in range(20)})

    def weight(at):
        def read():
            reads.append(at)
            return ir.Tensor(np.full((width, width), 0.01, np.float32))

        return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([width, width]), name=f"w{at}")

    for at in range(20):
        model.graph.initializers[f"w{at}"].const_value = weight(at)
    tracemalloc.start()
    run(model, {"x": np.ones((4, width))})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reads == list(range(20))
    assert peak < 2.5 * width * width * 8, "no more than one weight in both precisions"


def test_only_what_the_asked_values_need_is_evaluated():
    model = parsed(HEADER + "g (float[2] x) => (float[2] y) { a = Relu(x)  y = RandomNormalLike(a) }")
    assert run(model, {"x": np.array([-1.0, 1.0])}, outputs=["a"])["a"].tolist() == [0, 1]
    with pytest.raises(Unsupported, match="RandomNormalLike") as caught:
        run(model, {"x": np.zeros(2)})
    assert caught.value.exit_code == 2
    assert caught.value.where["operator"] == "RandomNormalLike"


def test_parameters_replace_initializers_as_they_are():
    model = parsed(
        HEADER + "g (float[2] x) => (float[2] y) { y = Mul(x, w) }", w=np.array([2, 3], np.float32)
    )
    x = np.array([1.0, 10.0])
    assert run(model, {"x": x})["y"].tolist() == [2, 30]
    found = run(model, {"x": x}, dtype=np.complex128, parameters={"w": np.array([5 + 1e-30j, 7])})["y"]
    assert found.tolist() == [5 + 1e-30j, 70]


def test_floats_keep_the_precision_of_the_run_through_casts():
    model = parsed(
        HEADER
        + """g (float[2] x) => (float16[2] y, int64[2] k) {
        h = Cast<to = 10>(x)  c = Constant<value_float = 0.5>()  y = Add(h, c)  k = Cast<to = 7>(y) }"""
    )
    x = np.array([1 / 3, 2.75])
    found = run(model, {"x": x})
    assert found["y"].dtype == np.float64
    np.testing.assert_array_equal(found["y"], x + 0.5)
    assert found["k"].tolist() == [0, 3]
    assert run(model, {"x": x + 1e-30j}, dtype=np.complex128)["y"][0].imag == 1e-30


def test_an_infinite_mask_leaves_the_derivative_finite():
    model = parsed(
        HEADER + "g (float[1, 3] x, float[3] m) => (float[1, 3] y) { a = Add(x, m)  y = Softmax(a) }"
    )
    mask = np.array([0, -np.inf, 0])
    y = run(model, {"x": np.array([[1 + 1e-30j, 2, 3]]), "m": mask}, dtype=np.complex128)["y"]
    assert np.isfinite(y.real).all()
    assert np.isfinite(y.imag).all()
    assert y[0, 1] == 0


def test_compute_evaluates_one_node_in_its_own_types():
    node = ir.Node("", "Add", [], num_outputs=1)
    (found,) = compute(node, [np.float32(1) * np.ones(2, np.float32), np.ones(2, np.float32)], 20)
    assert found.dtype == np.float32
    constant = ir.Node("", "Constant", [], [ir.AttrInt64("value_int", 3)], num_outputs=1)
    assert compute(constant, [], 20)[0].dtype == np.int64
    cast = ir.Node("", "Cast", [], [ir.AttrInt64("to", ir.DataType.FLOAT16)], num_outputs=1)
    assert compute(cast, [np.ones(2, np.float32)], 20)[0].dtype == np.float16
    with pytest.raises(Unsupported, match="Nonsense"):
        compute(ir.Node("", "Nonsense", [], num_outputs=1), [], 20)


def test_what_is_supported_is_known_beforehand():
    assert supported("Conv")
    assert supported("Unique")
    assert not supported("Nonsense")
    assert not supported("RandomNormal")


def test_what_does_not_fit_is_named():
    model = parsed(HEADER + "g (float[2] x, float[3] z) => (float[2] y) { y = Add(x, z) }")
    with pytest.raises(GraphError, match="Add") as caught:
        run(model, {"x": np.zeros(2), "z": np.zeros(3)})
    assert "float64[2], float64[3]" in caught.value.where["operands"]
    with pytest.raises(GraphError, match="'z'"):
        run(model, {"x": np.zeros(2)})
    for wrong in ({"inputs": {"q": 0}}, {"parameters": {"q": 0}}, {"outputs": ["q"]}):
        with pytest.raises(UnknownName, match="'q'"):
            run(model, **{"inputs": {"x": np.zeros(2), "z": np.zeros(2)}, **wrong})


@pytest.mark.parametrize("dual_rows", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_a_large_dual_matrix_is_multiplied_as_its_parts_and_zeros_stay_zeros(dual_rows, turned):
    rng = np.random.default_rng(0)
    a, b = (
        rng.standard_normal(shape) + 1j * rng.standard_normal(shape) for shape in ((3, 1100), (1100, 1000))
    )
    b.real[:, 7], b.imag[:, 7] = 0, 1e-30
    a, b = a if dual_rows else a.real, np.asfortranarray(b) if turned else b
    assert b.size > dual.LARGE
    found, wanted = dual.matmul(a, b), dual.bilinear(np.matmul, a, b)
    np.testing.assert_allclose(found.real, wanted.real, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.imag, wanted.imag, rtol=1e-12, atol=1e-12)
    assert not found.real[:, 7].any(), "the tangent never reaches the value"
    b[0, 0] = np.inf
    np.testing.assert_array_equal(dual.matmul(a, b), dual.bilinear(np.matmul, a, b))
