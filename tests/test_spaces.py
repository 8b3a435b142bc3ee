"""The spaces of known networks, and of graphs that are hostile to guessing."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from surgery.errors import GraphError, UnknownName
from surgery.graph import rules, walk
from surgery.graph.layout import text
from surgery.graph.spaces import Analysis, Space, analyse
from tests import zoo

MORE = {
    "shufflenet": {3: "groups: channels of both convolutions are in groups, and whole groups can be added"},
    "groupnorm_cnn": {4: "channels of a group, by whole multiples", 5: "the same in the second layer"},
    "multihead_pool": {
        5: "the head size of the values, apart from that of queries and keys",
        10: "of the output",
    },
    "spatial_softmax": {2: "a buffer: coordinates that are averaged"},
    "iqn": {8: "a buffer: frequencies"},
}
"""What can grow besides the widths that the zoo tells, by size."""

UNTIED = {
    ("tied_embedding", "dynamo-optimized"): (11, 11),
    ("tied_embedding", "torchscript"): (11, 11),
}
"""Exporters that write the transposed weight a second time: in the file, nothing is tied."""

LACKING: dict[tuple[str, str], str] = {}
"""(net, style) -> the reason why not all its widths are found yet; this list shrinks."""

EXPORTS = [
    pytest.param(
        name, style, id=f"{name}-{style}",
        marks=[pytest.mark.xfail(strict=True, reason=LACKING[name, style])] if (name, style) in LACKING else [],
    )
    for name, net in zoo.NETS.items()
    for style in zoo.STYLES
    if style not in net.impossible
]  # fmt: skip


@functools.cache
def analysed(name: str, style: str) -> Analysis:
    return analyse(zoo.load(name, style))


def free(analysis: Analysis) -> list[Space]:
    return [space for space in analysis.spaces if space.widenable and space.hidden]


# ---- the zoo ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_what_can_grow_is_what_a_user_would_want_to_widen(name: str, style: str):
    analysis = analysed(name, style)
    wanted = [*zoo.NETS[name].hidden.values(), *MORE.get(name, ()), *UNTIED.get((name, style), ())]
    frozen = {space.name: space.reason for space in analysis.spaces if space.hidden and not space.widenable}
    assert sorted(space.size for space in free(analysis)) == sorted(wanted), frozen


@pytest.mark.parametrize(("name", "count"), [("nature_dqn", 4), ("impala", 10)])
@pytest.mark.parametrize("style", zoo.STYLES)
def test_known_networks_have_their_number_of_spaces(name: str, count: int, style: str):
    assert len(free(analysed(name, style))) == count


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_every_frozen_space_gives_its_reasons(name: str, style: str):
    """Interfaces by the name of the input or output, everything else by a node or a tensor."""
    analysis = analysed(name, style)
    names = {value.name for value in (*analysis.model.graph.inputs, *analysis.model.graph.outputs)}
    names |= {output.name for node in analysis.model.graph for output in node.outputs}
    names |= {node.name for node in analysis.model.graph} | set(analysis.trace.tensors)
    for space in analysis.spaces:
        assert bool(space.reasons) == bool(space.kinds)
        for reason in space.reasons:
            assert any(f"'{known}'" in reason for known in names if known), reason


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_names_are_unique_and_the_same_every_time(name: str, style: str):
    names = [space.name for space in analysed(name, style).spaces]
    assert all(count == 1 for count in Counter(names).values())
    assert names == [space.name for space in analyse(zoo.load(name, style)).spaces]


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_layouts_have_the_sizes_of_their_tensors(name: str, style: str):
    analysis = analysed(name, style)
    for tensor, axes in analysis.trace.tensors.items():
        sizes = tuple(analysis.resize({})(axis) for axis in axes)
        assert sizes == analysis.trace.facts.shapes[_value(analysis.model, tensor)]


def _value(model: ir.Model, name: str) -> ir.Value:
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    return next(value for node in model.graph for value in node.outputs if value.name == name)


@pytest.mark.parametrize(
    "name", [name for name, net in zoo.NETS.items() if "dynamo-optimized" not in net.impossible]
)
def test_styles_agree_on_the_widths(name: str):
    styles = [style for style in zoo.STYLES if style not in zoo.NETS[name].impossible]
    found = {style: sorted(space.size for space in free(analysed(name, style))) for style in styles}
    plain = [sizes for style, sizes in found.items() if (name, style) not in {*LACKING, *UNTIED}]
    assert all(sizes == plain[0] for sizes in plain), found


def test_names_are_module_paths_where_the_exporter_keeps_them():
    assert [space.name for space in free(analysed("nature_dqn", "dynamo"))] == list(
        zoo.NETS["nature_dqn"].hidden
    )
    for name in ("impala", "simba_v2"):
        assert {space.name for space in free(analysed(name, "dynamo"))} == set(zoo.NETS[name].hidden)


@pytest.mark.parametrize(("name", "style"), EXPORTS)
def test_matrices_get_random_entries_and_no_copies(name: str, style: str):
    """Whatever an exporter computes from them first: of an LSTM, gates in another order, cut at sizes of its state."""
    analysis = analysed(name, style)
    stored = analysis.model.graph.initializers.items()
    weights = {tensor for tensor, value in stored if ".weight" in tensor and len(value.shape or ()) > 1}
    assert {tensor: analysis.fills[tensor] for tensor in weights} == dict.fromkeys(weights, "random")


@pytest.mark.parametrize("first", ["b = Relu(bias)", "e = Gather<axis = 0>(table.weight, x)"])
def test_spaces_of_one_module_are_counted_by_axis_whatever_comes_first_in_the_file(first: str):
    nodes = sorted(
        ["b = Relu(bias)", "e = Gather<axis = 0>(table.weight, x)"], key=lambda node: node != first
    )
    model = graph("\n".join([*nodes, "y = Add(e, b)"]), {"table.weight": (9, 5), "bias": (5,)}, x=("batch",))
    model.graph.inputs[0].dtype = ir.DataType.INT64
    sizes = {space.name: space.size for space in analyse(model).spaces}
    assert sizes == {"table[0]": 9, "table[1]": 5}


def test_a_space_is_found_by_the_end_of_its_name_and_a_wrong_one_is_corrected():
    analysis = analysed("actor_critic", "dynamo")
    name = free(analysis)[0].name
    assert analysis.space(name).name == name
    with pytest.raises(UnknownName, match=name):
        analysis.space(name + "x")


def test_a_space_of_an_input_is_found_by_the_inputs_name_where_it_is_the_only_one():
    analysis = analysed("actor_critic", "dynamo")
    (name,) = zoo.NETS["actor_critic"].inputs
    assert analysis.space(name).name == f"{name}[1]"
    with pytest.raises(UnknownName) as caught:  # entities or their features
        analysed("transformer", "dynamo").space("entities")
    assert "entities[2]" in (caught.value.hint or "")


# ---- small graphs -------------------------------------------------------------------------------------------


def graph(
    lines: str,
    weights: dict[str, tuple[int, ...]],
    *,
    x: tuple[int | str, ...] = ("batch", 4),
    more: tuple = (),
) -> ir.Model:
    """A model from `x` to `y`, its nodes in the ONNX text form; `custom.…` operators are of another domain."""
    nodes = [onnx.parser.parse_node(line.replace(".weight", "_weight")) for line in lines.splitlines()]
    for node in nodes:  # the text form knows no dots
        node.input[:] = [name.replace("_weight", ".weight") for name in node.input]
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    made = helper.make_graph(
        [*nodes, *more], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("custom", 1)]
    return ir.serde.deserialize_model(helper.make_model(made, ir_version=9, opset_imports=opsets))


def sizes(analysis: Analysis) -> dict[str, int]:
    return {space.name: space.size for space in free(analysis)}


MLP = "a = MatMul(x, one.weight)\nb = Relu(a)\nc = MatMul(b, two.weight)\nd = Relu(c)\ny = MatMul(d, three.weight)"
WEIGHTS = {"one.weight": (4, 5), "two.weight": (5, 7), "three.weight": (7, 2)}


def test_an_mlp_has_its_hidden_layers():
    analysis = analyse(graph(MLP, WEIGHTS))
    assert sizes(analysis) == {"one": 5, "two": 7}
    assert [space.kinds for space in analysis.spaces if not space.hidden] == [("input",), ("output",)]
    assert {name: [text(axis) for axis in axes] for name, axes in analysis.tensors.items()} == {
        "one.weight": ["x[1]", "one"], "two.weight": ["one", "two"], "three.weight": ["two", "three"],
    }  # fmt: skip


def test_an_opaque_operator_freezes_only_what_it_touches():
    lines = MLP.replace("b = Relu(a)", "b = custom.Magic(a)")
    model = graph(lines, WEIGHTS)
    for node in model.graph:
        if node.op_type == "Magic":
            node.outputs[0].shape = ir.Shape(["batch", 5])
            node.name = "magic"
    analysis = analyse(model)
    assert list(sizes(analysis).values()) == [7]
    reasons = [space.reasons for space in analysis.spaces if space.size == 5]
    assert reasons and all(any("'magic'" in reason for reason in some) for some in reasons)


def test_behind_a_value_of_unknown_shape_nothing_is_free_but_what_came_before_is():
    analysis = analyse(graph(MLP.replace("d = Relu(c)", "d = custom.Magic(c)"), WEIGHTS))
    assert sizes(analysis) == {"one": 5}


def test_a_symbolic_batch_stays_symbolic():
    lines = MLP.replace("b = Relu(a)", "f = Shape(a)\nr = Relu(a)\nb = Reshape(r, f)")
    analysis = analyse(graph(lines, WEIGHTS))
    assert sizes(analysis) == {"one": 5, "two": 7}
    value = _value(analysis.model, "d")
    batch, _ = analysis.trace.axes(value)
    assert [why.kind for atom in batch for why in atom.frozen] == ["symbolic", "output"]
    assert all("batch" not in space.name and space.size < 1000 for space in analysis.spaces)


def test_an_operator_of_another_domain_is_opaque_whatever_its_name():
    """Also where its operands are known numbers."""
    for operator in ("Relu", "Tile", "Shape", "Concat", "Constant", "SequenceAt"):
        made = f"b = custom.{operator}(n)\nc = custom.{operator}(x)"
        lines = f"n = Constant<value=int64[1] {{1}}>()\n{made}\ny = Add(b, c)"
        assert set(analyse(graph(lines, {})).trace.opaque) >= {"b", "c"}


def test_symbols_of_one_name_are_one_size_and_others_are_where_a_node_needs_it():
    lines = "t = Transpose<perm=[1,0,2]>(x)\ny = Add(x, t)"
    square = analyse(graph(lines, {}, x=("n", "n", 3)))
    other = analyse(graph(lines, {}, x=("n", "m", 3)))
    alone = analyse(graph("y = Relu(x)", {}, x=("n", "m", 3)))
    assert not square.trace.opaque and not other.trace.opaque
    assert [a.trace.facts.sizes for a in (square, other, alone)] == [
        {},
        {"m": other.trace.facts.symbols["n"]},
        {},
    ]


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_a_subgraph_freezes_the_values_that_it_captures(kind: str):
    inner = [helper.make_node("Relu", ["a"], ["inside"])]
    result = [helper.make_tensor_value_info("inside", TensorProto.FLOAT, ["batch", 5])]
    if kind == "If":
        body = helper.make_graph(inner, "body", [], result)
        node = helper.make_node("If", ["flag"], ["b"], name="branch", then_branch=body, else_branch=body)
    else:
        info = [
            helper.make_tensor_value_info(n, t, [])
            for n, t in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))
        ]
        kept = helper.make_node("Identity", ["c"], ["go"])
        out = [helper.make_tensor_value_info("go", TensorProto.BOOL, []), *result]
        state = helper.make_tensor_value_info("s", TensorProto.FLOAT, ["batch", 5])
        body = helper.make_graph([kept, *inner], "body", [*info, state], out)
        node = helper.make_node("Loop", ["count", "flag", "a"], ["b"], name="branch", body=body)
    model = graph(MLP.replace("\nb = Relu(a)", ""), WEIGHTS)
    proto = ir.serde.serialize_model(model)
    proto.graph.node.insert(1, node)
    proto.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2, np.int64), "count"))
    analysis = analyse(ir.serde.deserialize_model(proto))
    assert 5 not in sizes(analysis).values()
    places = {(ref.tensor, ref.axis): space for space in analysis.spaces for ref in space.axes}
    assert "'branch'" in " ".join(places["one.weight", 1].reasons)


def test_a_size_that_is_computed_with_and_used_as_data_cannot_change():
    lines = MLP.replace(
        "b = Relu(a)",
        "f = Shape(a)\ni = Constant<value=int64[1] {1}>()\nn = Gather(f, i)\nr = Constant<value=int64[1] {1}>()\n"
        "m = Expand(n, r)\nq = Cast<to=1>(m)\ne = Relu(a)\nb = Mul(e, q)",
    )
    analysis = analyse(graph(lines, WEIGHTS))
    five = next(space for space in analysis.spaces if space.size == 5)
    if five.widenable:  # the number is pinned instead: the plan must then write it down
        assert any(operand.node.outputs[0].name in ("q", "b", "e", "m") for operand in analysis.literals)
    else:
        assert "used as a number" in " ".join(five.reasons)


def test_an_initializer_that_is_an_output_is_frozen():
    model = graph(MLP, WEIGHTS)
    model.graph.outputs.append(model.graph.initializers["two.weight"])
    analysis = analyse(model)
    assert sizes(analysis) == {}
    assert all("output" in space.kinds for space in analysis.spaces if space.size in (5, 7))


def test_an_input_of_size_zero_or_without_a_shape_is_an_error():
    with pytest.raises(GraphError, match="size 0"):
        analyse(graph("y = Relu(x)", {}, x=(0, 3)))
    model = graph("y = Relu(x)", {})
    model.graph.inputs[0].shape = None
    with pytest.raises(GraphError, match="shape"):
        analyse(model)


def test_shared_zero_biases_do_not_tie_layers():
    lines = "a = Gemm(x, one.weight, zero)\nb = Relu(a)\ny0 = Gemm(b, two.weight, zero)\ny = MatMul(y0, three.weight)"
    model = graph(lines, {"one.weight": (4, 5), "two.weight": (5, 5), "three.weight": (5, 2)})
    zero = numpy_helper.from_array(np.zeros(5, np.float32), "zero")
    proto = ir.serde.serialize_model(model)
    proto.graph.initializer.append(zero)
    assert sizes(analyse(ir.serde.deserialize_model(proto))) == {"one": 5, "two": 5}


def test_a_zero_bias_that_is_cut_into_pieces_is_one_tensor():
    lines = (
        "i = Constant<value_ints=[0]>()\nj = Constant<value_ints=[5]>()\nk = Constant<value_ints=[8]>()\n"
        "p = Slice(zero, i, j)\nq = Slice(zero, j, k)\na = Gemm(x, one.weight, p)\nb = Gemm(x, two.weight, q)\n"
        "c = Relu(a)\nd = Relu(b)\ne = Concat<axis=1>(c, d)\ny = MatMul(e, three.weight)"
    )
    model = graph(lines, {"one.weight": (4, 5), "two.weight": (4, 3), "three.weight": (8, 2)})
    proto = ir.serde.serialize_model(model)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.float32), "zero"))
    analysis = analyse(ir.serde.deserialize_model(proto))
    assert sizes(analysis) == {"one": 5, "two": 3}
    assert sorted(analysis.tensors) == ["one.weight", "three.weight", "two.weight", "zero"]


@pytest.mark.parametrize(
    "lines",
    [
        "a,ha = GRU<hidden_size=5>(x, one.weight, first.weight,,, zero)\nb = Squeeze(a, k)\n"
        "c,hc = GRU<hidden_size=5>(b, two.weight, second.weight,,, zero)\nd = Squeeze(hc, i)",
        "w = Squeeze(one.weight, i)\nv = Squeeze(two.weight, i)\np = Gemm<transB=1>(x, w)\na = Sub(zero, p)\n"
        "q = Gemm<transB=1>(a, v)\nd = Sub(zero, q)",
    ],
    ids=["operator", "written out"],
)
def test_a_shared_first_state_of_zeros_does_not_tie_layers(lines: str):
    written_out = "Sub" in lines
    gates, state = (5, (2, 5)) if written_out else (15, (1, 2, 5))
    weights = {"one.weight": (1, gates, 4), "two.weight": (1, gates, 5), "three.weight": (5, 3)}
    weights |= {} if written_out else {"first.weight": (1, 15, 5), "second.weight": (1, 15, 5)}
    numbers = "k = Constant<value=int64[1] {1}>()\ni = Constant<value=int64[1] {0}>()\n"
    model = graph(
        f"{numbers}{lines}\ny = MatMul(d, three.weight)", weights, x=(2, 4) if written_out else (3, 2, 4)
    )
    proto = ir.serde.serialize_model(model)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(state, np.float32), "zero"))
    analysis = analyse(ir.serde.deserialize_model(proto))
    free = [space.size for space in analysis.spaces if space.hidden and space.widenable]
    assert free == [5, 5]
    assert not analysis.trace.opaque


def deep(blocks: int) -> ir.Model:
    """A residual network: 4 nodes a block, all blocks on one stream."""
    lines = ["s0 = MatMul(x, stem.weight)"]
    weights: dict[str, tuple[int, ...]] = {"stem.weight": (4, 6), "head.weight": (6, 2)}
    for k in range(blocks):
        weights |= {f"block{k}_up.weight": (6, 3), f"block{k}_down.weight": (3, 6)}
        lines += [f"u{k} = MatMul(s{k}, block{k}_up.weight)", f"r{k} = Relu(u{k})",
                  f"d{k} = MatMul(r{k}, block{k}_down.weight)", f"s{k + 1} = Add(s{k}, d{k})"]  # fmt: skip
    return graph("\n".join([*lines, f"y = MatMul(s{blocks}, head.weight)"]), weights)


def test_the_work_grows_linearly_with_the_graph(monkeypatch: pytest.MonkeyPatch):
    """2,000 nodes: one rule call each, and a number of atoms in proportion."""
    found = {}
    for blocks in (125, 500):
        model = deep(blocks)
        counts = _count(model, monkeypatch)
        assert counts[0] == len(model.graph) == 4 * blocks + 2
        found[blocks] = counts
    assert found[500][1] <= 4.2 * found[125][1]


def _count(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    from surgery.graph import atoms

    calls, count, make = [0], [0], atoms.Atom.__init__

    def counting(rule: rules.Rule) -> rules.Rule:
        def describe(trace, node) -> None:
            calls[0] += 1
            rule.describe(trace, node)

        return rules.Rule(describe, rule.axes)

    def made(self, size: int, **more) -> None:
        count[0] += 1
        make(self, size, **more)

    with monkeypatch.context() as patch:
        patch.setattr(walk, "RULES", {name: counting(rule) for name, rule in rules.RULES.items()})
        patch.setattr(atoms.Atom, "__init__", made)
        analysis = analyse(model)
    assert sizes(analysis)["stem"] == 6
    return calls[0], count[0]
