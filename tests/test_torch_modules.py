"""What modules made from graphs are good for: training, copying, compiling, exporting again, reading as source."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import surgery
from surgery.errors import ArgumentError, GraphError, PlanMismatch, Refused
from surgery.numeric import Unsupported
from surgery.port_kinds import infer
from surgery.torch import code, from_module, load_optimizer, read_optimizer, stored, to_module
from tests import zoo
from tests.test_numeric import HEADER, parsed
from tests.test_to_module import outputs

SOME = ["lstm_policy", "batchnorm_resnet", "transformer", "twin_critics"]


def inputs_of(name: str, batch: int = 3) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(x) for x in zoo.sample(name, batch, np.random.default_rng(0)).values())


def listed(results) -> list[torch.Tensor]:
    return list(results) if isinstance(results, tuple) else [results]


@pytest.mark.parametrize("name", ["lstm_policy", "batchnorm_resnet"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_it_compiles_as_one_graph_with_gradients(name):
    torch._dynamo.reset()
    module, x = to_module(zoo.load(name, "dynamo")), inputs_of(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(listed(compiled(*x)), listed(module(*x)), rtol=1e-5, atol=1e-6)
    sum(y.sum() for y in listed(compiled(*x))).backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("name", SOME)
def test_copies_are_independent_and_pickles_compute_the_same(name):
    module, x = to_module(zoo.load(name, "torchscript")), inputs_of(name)
    wanted = listed(module(*x))
    twin, again = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    for other in (module, again):
        assert all(torch.equal(a, b) for a, b in zip(listed(other(*x)), wanted, strict=True))
    assert not torch.equal(listed(twin(*x))[0], wanted[0])
    assert list(again.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize("name", [*SOME, "nature_dqn", "impala"])
def test_half_precision_and_channels_last_are_usable(name):
    module, x = to_module(zoo.load(name, "dynamo")), inputs_of(name)
    wanted = [y.detach() for y in listed(module(*x))]
    with torch.autocast("cpu", torch.bfloat16):
        found = listed(module(*x))
        sum(y.float().sum() for y in found).backward()
    for y, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(y.float(), w, rtol=0.2, atol=0.2 * float(w.abs().max()))
    last = module.to(memory_format=torch.channels_last)
    moved = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in x]
    torch.testing.assert_close(listed(last(*moved)), wanted, rtol=1e-4, atol=1e-5)


def test_batch_norms_train_as_those_of_the_source():
    source, module = (
        zoo.module("batchnorm_resnet").train(),
        to_module(zoo.load("batchnorm_resnet", "dynamo")).train(),
    )
    (x,) = inputs_of("batchnorm_resnet", 6)
    torch.testing.assert_close(module(x), source(x), rtol=1e-5, atol=1e-6)
    for name, buffer in module.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, source.get_buffer(name), rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(module.eval()(x), module.train()(x))


def test_floats_become_what_is_asked_for_everywhere():
    module = to_module(zoo.load("nature_dqn", "dynamo"), dtype=torch.float64)
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    assert module(*inputs_of("nature_dqn")).dtype == torch.float64


def test_without_marks_tensors_can_be_kept_from_training():
    model = zoo.load("c51", "torchscript")
    assert "support" in dict(to_module(model).named_parameters())
    module = to_module(model, buffers=["support"])
    assert "support" in dict(module.named_buffers())
    assert "support" not in dict(module.named_parameters())


@pytest.mark.parametrize("name", ["lstm_cell_loop", "batchnorm_resnet"])
def test_what_is_exported_again_has_lost_nothing(name):
    module, x = to_module(zoo.load(name, "dynamo")), inputs_of(name)
    again = from_module(module, example_inputs=x)
    assert set(module.state_dict()) <= set(again.tensors)
    other = to_module(again)
    assert set(dict(other.named_parameters())) == set(dict(module.named_parameters()))
    torch.testing.assert_close(listed(other(*inputs_of(name, 5))), listed(module(*inputs_of(name, 5))))


def checkpoint_of(name: str) -> surgery.Checkpoint:
    model = zoo.load(name, "dynamo")
    return surgery.Checkpoint(model, infer(model))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, x: tuple[torch.Tensor, ...]) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        sum(y.square().mean() for y in listed(module(*x))).backward()
        optimizer.step()


def test_a_checkpoint_goes_into_training_and_back_with_its_optimizer(tmp_path):
    checkpoint, x = checkpoint_of("dueling"), inputs_of("dueling")
    module = to_module(checkpoint)
    optimizer = torch.optim.Adam([{"params": [p]} for p in module.parameters()], lr=1e-3, betas=(0.8, 0.9))
    train(module, optimizer, x)
    trained = from_module(module, checkpoint, optimizer=optimizer)
    surgery.save(trained, tmp_path / "trained.onnx")
    read = surgery.load(tmp_path / "trained.onnx")
    other = to_module(read)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters(), strict=True))
    resumed = torch.optim.Adam([{"params": [p]} for p in other.parameters()], lr=1e-3, betas=(0.8, 0.9))
    load_optimizer(read.optimizer, resumed, other)
    for net, each in ((module, optimizer), (other, resumed)):
        train(net, each, x)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters(), strict=True))


def test_moments_lie_in_memory_as_their_parameter_does_whatever_the_optimizer_is():
    """Fused optimizers go through memory in order: moments of another format would be those of other entries."""
    checkpoint, x = checkpoint_of("squeeze_excite"), inputs_of("squeeze_excite")
    module = to_module(checkpoint)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, foreach=False)
    train(module, optimizer, x)
    state, found = read_optimizer(optimizer, module), []
    for fused in (False, True):
        other = copy.deepcopy(module).to(memory_format=torch.channels_last)
        resumed = torch.optim.Adam(other.parameters(), lr=1e-3, fused=fused, foreach=False)
        load_optimizer(state, resumed, other)
        train(other, resumed, x)
        found.append(list(other.parameters()))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_the_checkpoint_keeps_what_it_had_when_training_goes_on():
    checkpoint = checkpoint_of("dueling")
    module = to_module(checkpoint)
    made = from_module(module, checkpoint, optimizer=torch.optim.SGD(module.parameters(), 0.1))
    before = made.tensors["fc.weight" if "fc.weight" in made.tensors else "value1.weight"].numpy().copy()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    np.testing.assert_array_equal(made.tensors["value1.weight"].numpy(), before)


def test_wrong_optimizers_and_networks_are_named():
    module, other = to_module(zoo.load("dueling", "dynamo")), nn.Linear(2, 2)
    adam = torch.optim.Adam(module.parameters())
    state = read_optimizer(adam, module)
    with pytest.raises(ArgumentError, match="none of the module's parameters"):
        read_optimizer(torch.optim.Adam(other.parameters()), module)
    with pytest.raises(Refused, match="'adam'"):
        load_optimizer(state, torch.optim.SGD(module.parameters(), 0.1), module)
    train(module, adam, inputs_of("dueling"))
    state = read_optimizer(adam, module)
    with pytest.raises(ArgumentError, match="does not hold"):
        load_optimizer(state, torch.optim.Adam(other.parameters()), module)
    wide = copy.deepcopy(module)
    wide.get_submodule("value1").weight = nn.Parameter(torch.zeros(12, 125))
    with pytest.raises(PlanMismatch, match=r"value1\.weight"):
        load_optimizer(state, torch.optim.Adam(wide.parameters()), wide)
    with pytest.raises(ArgumentError, match=r"value1\.weight"):
        from_module(wide, checkpoint_of("dueling"))
    with pytest.raises(ArgumentError, match="does not have"):
        from_module(other, checkpoint_of("dueling"))
    for both in ({}, {"checkpoint": checkpoint_of("dueling"), "example_inputs": torch.zeros(1)}):
        with pytest.raises(ArgumentError, match="either"):
            from_module(module, **both)


CONTROL = (
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
SCAN = (
    HEADER
    + """
g (float[2] s, float[3, 2] x) => (float[2] last, float[2, 3] sums) {
  last, sums = Scan<num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [1], body =
    b (float[2] a, float[2] e) => (float[2] a2, float[2] o) { a2 = Add(a, e) o = Identity(a2) }>(s, x)
}"""
)
SEQUENCES = (
    HEADER
    + """
g (float[4, 2] x) => (float[3, 2] joined, float[1, 2] one, int64 count) {
  at = Constant<value = int64 {1}>()
  all = SplitToSequence<axis = 0>(x)
  fewer = SequenceErase(all, at)
  one = SequenceAt(fewer, at)
  joined = ConcatFromSequence<axis = 0>(fewer)
  more = SequenceInsert(fewer, one)
  count = SequenceLength(more)
}"""
)
FUNCTIONS = (
    HEADER
    + """
g (float[3] x) => (float[3] y, float[3] z) { y = local.leak<alpha = 0.5>(x)  z = local.leak(x) }
<domain: "local", opset_import: ["" : 20]>
leak<alpha: float = 0.25>(a) => (b) { b = LeakyRelu<alpha: float = @alpha>(a) }"""
)


def test_a_loop_with_a_branch_runs_as_often_as_it_is_told_and_has_gradients():
    module = to_module(parsed(CONTROL))
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y, trace = module(torch.tensor(3), x)
    assert y.tolist() == [4, 8]
    assert trace.tolist() == [[2, 4], [3, 6], [4, 8]]
    y.sum().backward()
    assert x.grad.tolist() == [4, 4]
    assert module(torch.tensor(0), x)[1].shape == (0, 2)


def test_a_scan_sequences_and_functions_of_the_file():
    x = torch.arange(6.0).reshape(3, 2)
    last, sums = to_module(parsed(SCAN))(torch.zeros(2), x)
    assert last.tolist() == x.sum(0).tolist()
    assert sums.tolist() == x.flip(0).cumsum(0).T.tolist()
    x = torch.arange(8.0).reshape(4, 2)
    joined, one, count = to_module(parsed(SEQUENCES))(x)
    assert (joined.tolist(), one.tolist(), int(count)) == (x[[0, 2, 3]].tolist(), x[2:3].tolist(), 4)
    y, z = to_module(parsed(FUNCTIONS))(torch.tensor([-4.0, 0.0, 4.0]))
    assert (y.tolist(), z.tolist()) == ([-2, 0, 4], [-1, 0, 4])


RANDOM = (
    HEADER
    + """
g (float[2, 3] x) => (float[2, 3] y, int32[2, 4] k) {
  y = RandomNormalLike(x)
  k = Multinomial<sample_size = 4>(x)
}"""
)


def test_what_is_random_comes_from_torchs_generator():
    module, x = to_module(parsed(RANDOM)), torch.zeros(2, 3)
    torch.manual_seed(5)
    first = module(x)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(module(x), first, strict=True))
    assert first[1].dtype == torch.int32 and int(first[1].max()) < 3


HOSTILE = [
    "w",
    'x"); import os; os.abort(); ("',
    "a\nraise SystemExit\n#",
    "self.forward",
    "type",
    "",
    ".",
    "a..b",
    "a",
    "a.b",
    "0.weight",
    "class.def",
    "__class__",
    "_parameters.x",
    "ﬀ",
]


def test_names_reach_the_state_dict_and_never_the_interpreter():
    text = HEADER + "g (float[2] x) => (float[2] y) {\n h0 = Identity(x)\n"
    text += (
        "".join(f"h{at + 1} = Add(h{at}, w{at})\n" for at in range(len(HOSTILE)))
        + f"y = Identity(h{len(HOSTILE)}) }}"
    )
    arrays = {f"w{at}": np.full(2, 2.0**at, np.float32) for at in range(len(HOSTILE))}
    model = parsed(text, **arrays)
    for at, name in enumerate(HOSTILE):
        value = model.graph.initializers.pop(f"w{at}")
        value.name = name or "empty"
        value.const_value = ir.tensor(arrays[f"w{at}"], name=value.name)
        model.graph.register_initializer(value)
        next(iter(value.uses())).node.outputs[0].name = f"{name}\n; import os"
    module = to_module(model)
    assert set(module.state_dict()) == {name or "empty" for name in HOSTILE}
    assert module(torch.zeros(2)).tolist() == [2.0 ** len(HOSTILE) - 1] * 2
    assert set(copy.deepcopy(module).state_dict()) == set(module.state_dict())
    module.load_state_dict(to_module(model).state_dict())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[2] x) => (float[2] y) { y = Nonsense(x) }", "Nonsense"),
        ("g (float[2] x) => (float[2] y) { y = local.f(x) }", "'local'"),
        ("g (float[2, 2] x) => (float y) { y = Det(x) }", "Det"),
        ("g (float[1, 1, 2, 2, 2, 2] x) => (float y) { y = MaxPool<kernel_shape = [1, 1, 1, 1]>(x) }", "1 to 3"),
    ],
)  # fmt: skip
def test_what_has_no_translation_is_refused_by_the_nodes_name(text, reason):
    with pytest.raises(Unsupported, match=reason) as caught:
        to_module(parsed(HEADER + text))
    assert caught.value.where["operator"]


def test_a_tensor_that_is_called_as_the_mode_is_refused():
    with pytest.raises(GraphError, match="training"):
        stored.place(nn.Module(), "a.training", torch.zeros(1), parameter=True)


def test_quantised_weights_are_refused():
    model = parsed(HEADER + "g (float[2] x) => (float[2] y) { y = Add(x, w) }", w=np.zeros(2, np.float32))
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(np.zeros(2, ir.DataType.FLOAT8E4M3FN.numpy()), name="w")
    with pytest.raises(GraphError, match="cannot be trained") as caught:
        to_module(model)
    assert "dequantise" in caught.value.hint


@pytest.mark.parametrize("name", [name for name in zoo.NETS if "dynamo" not in zoo.NETS[name].impossible])
def test_the_class_computes_the_same_and_its_state_dict_fits(name):
    model = zoo.load(name, "dynamo")
    source = code(model, name="Agent")
    namespace: dict[str, type[nn.Module]] = {}
    exec(compile(source, "net.py", "exec"), namespace)
    module, net = to_module(model), namespace["Agent"]().eval()
    net.load_state_dict(module.state_dict())
    feeds = zoo.sample(name, 3, np.random.default_rng(0))
    torch.testing.assert_close(outputs(net, feeds), outputs(module, feeds), rtol=1e-5, atol=1e-6)
    assert "surgery" not in source.partition("\n")[2]
    assert {key for key, _ in net.named_parameters()} == {key for key, _ in module.named_parameters()}


def test_constants_that_are_not_finite_are_written_out():
    model = parsed(
        HEADER
        + "g (float[2] x) => (float[2] y) { m = Constant<value = float[2] {0.0, 0.0}>() z = Log(m) y = Max(x, z) }"
    )
    namespace: dict[str, type[nn.Module]] = {}
    exec(code(model), namespace)
    assert torch.equal(namespace["Network"]()(torch.ones(2)), torch.ones(2))


def test_layers_of_the_source_are_layers_again():
    source = code(zoo.load("nature_dqn", "dynamo"))
    assert "self.conv1 = nn.Conv2d(4, 32, 8, stride=4)" in source
    assert "self.fc = nn.Linear(3136, 512)" in source
    assert "getattr" not in source and "del " not in source


def _agent(name: str) -> nn.Module:
    """Modules of an engineer's own, with gaps that export leaves: dropout, an activation of another kind, two uses."""
    torch.manual_seed(0)

    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(6, 8), nn.Dropout(), nn.LeakyReLU(0.1), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 5)
            )
            self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 2)])

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = torch.sin(self.body(x))
            return (self.heads[0](y), self.heads[1](y)) if name == "heads" else (self.body(x), self.body(-x))

    return Agent().eval()


@pytest.mark.parametrize(
    ("name", "words", "without"),
    [
        ("heads", ["self.body = nn.Sequential(", "nn.LeakyReLU(0.1),", "nn.GELU(),", "self.heads[1]("], "Dict"),
        ("twice", ['self.body["0"](', "ModuleDict"], "Sequential"),
    ],
)  # fmt: skip
def test_numbered_layers_are_a_sequence_again_where_they_are_one(name, words, without):
    agent, x = _agent(name), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    made = from_module(agent, example_inputs=x)
    source = code(made)
    assert [word for word in words if word not in source] == []
    assert without not in source
    assert ("nn.Identity()," in source) == (name == "heads")  # where the dropout was
    namespace: dict[str, type[nn.Module]] = {}
    exec(source, namespace)
    net = namespace["Network"]()
    net.load_state_dict(to_module(made).state_dict())
    assert net.state_dict().keys() <= agent.state_dict().keys()
    torch.testing.assert_close(net(x), agent(x))


def test_a_helper_whose_own_variable_is_called_like_a_function_needs_no_import():
    depth, values = "d = Constant<value = int64 {3}>()", "v = Constant<value = float[2] {0.0, 1.0}>()"
    source = code(
        parsed(HEADER + f"g (int64[n] x) => (float[n, 3] y) {{ {depth} {values} y = OneHot(x, d, v) }}")
    )
    assert "def marked(" in source
    assert "import surgery" not in source and "from surgery" not in source


RECURRENT = {
    "lstm_policy": ["nn.LSTM(11, 13)"],
    "gru_policy": ["num_layers=2)", "self.gru.all_weights[1]"],
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_of_the_source_are_modules_again(name):
    source = code(zoo.load(name, "dynamo"))
    assert all(text in source for text in RECURRENT[name])
    assert "weight_ih_l0" not in source


def test_the_verb_writes_a_file_that_runs(tmp_path, teachers, capsys):
    from surgery.cli import main

    target = tmp_path / "net.py"
    assert main(["code", str(teachers / "breakout-ppo.onnx"), "--name", "Agent", "-o", str(target)]) == 0
    assert "wrote" in capsys.readouterr().out
    namespace: dict[str, type[nn.Module]] = {}
    exec(compile(target.read_text(), target, "exec"), namespace)
    module = to_module(surgery.load(teachers / "breakout-ppo.onnx"))
    net = namespace["Agent"]()
    net.load_state_dict(module.state_dict())
    assert main(["code", str(teachers / "breakout-ppo.onnx"), "-o", str(target)]) == 2
    assert main(["code", str(teachers / "breakout-ppo.onnx"), "--name", "1x"]) == 2
    capsys.readouterr()
    assert main(["code", str(teachers / "breakout-ppo.onnx")]) == 0
    assert capsys.readouterr().out.startswith('"""A network')


def test_a_module_is_exported_whatever_cudnn_was_told_about_rounding():
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    cudnn.conv.fp32_precision = "ieee"
    try:
        made = from_module(nn.Linear(2, 3), example_inputs=torch.zeros(4, 2))
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", before[1])
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before
    assert [node.op_type for node in made.model.graph][-1] == "Gemm"
    assert cudnn.allow_tf32
    assert torch._C._get_mkldnn_enabled()
