"""A network as a policy: every kind of output, every way of feeding it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, GraphError, SurgeryError, UnknownName
from surgery.interface import Environment, Port, PortPatch
from surgery.port_kinds import infer
from surgery.probes import probes

torch = pytest.importorskip("torch")
from surgery.policy import load  # noqa: E402  after torch is known to be there

TEACHERS = Path(__file__).parent.parent / "examples" / "teachers"
RNG = np.random.default_rng(0)


def weights(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def linear(output, shape, kind, *, actions=3, environment=None, inputs=(4,), dtype="float32", **port):
    """A dense layer from the observation to one output of that shape."""
    graph = GraphBuilder("linear")
    x = graph.input("observation", inputs, dtype)
    y = graph.op("Flatten", graph.op("Cast", x, to=1), axis=1)
    y = graph.linear(
        y, "head", weights(int(np.prod(shape)), int(np.prod(inputs))), weights(int(np.prod(shape)))
    )
    y = graph.op("Reshape", y, graph.constant([-1, *shape])) if len(shape) > 1 else y
    graph.output(y, output, shape)
    return checkpoint(graph.model(), environment, **{output: PortPatch(kind, **port)})


def checkpoint(model, environment=None, **outputs):
    made = Checkpoint(model, infer(model), environment or Environment())
    return surgery.annotate(made, outputs=outputs, environment=made.environment)


def reference(made: Checkpoint, observation, output):
    """The output as onnxruntime computes it from the saved file's bytes."""
    import onnx_ir as ir

    session = onnxruntime.InferenceSession(ir.serde.serialize_model(made.model).SerializeToString())
    return session.run([output], {"observation": observation})[0]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def chances():
    graph = GraphBuilder("chances")
    x = graph.linear(graph.input("observation", (4,)), "head", weights(3, 4), weights(3))
    graph.output(graph.op("Softmax", x, axis=1), "pi", (3,))
    return checkpoint(graph.model(), pi=PortPatch("probabilities"))


SCORES = {
    "probabilities": (chances(), 1.0, np.log),
    "q_values": (linear("q", (3,), "q_values"), 0.1, lambda y: y),
    "logits": (linear("pi", (3,), "logits"), 1.0, lambda y: y),
    "atom_logits": (
        linear("atoms", (3, 51), "atom_logits", low=-10.0, high=10.0),
        0.1,
        lambda y: softmax(y) @ np.linspace(-10, 10, 51),
    ),
    "quantiles": (linear("taus", (3, 20), "quantiles"), 0.1, lambda y: y.mean(-1)),
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_scores_are_what_the_kind_of_output_means(kind, backend):
    made, temperature, meaning = SCORES[kind]
    policy = load(made, backend=backend)
    observation = weights(7, 4)
    output = made.interface.outputs[0].name
    wanted = meaning(reference(made, observation, output))
    assert policy.kind == kind
    assert policy.temperature == temperature
    assert policy.draws == (kind in ("logits", "probabilities"))
    assert np.allclose(policy.scores(observation).numpy(), wanted, rtol=1e-5, atol=1e-5)
    greedy = policy.act(observation, generator=np.random.default_rng(0))
    assert np.array_equal(greedy, wanted.argmax(-1))


def test_an_output_that_only_names_an_action_is_one_hot():
    graph = GraphBuilder("greedy")
    x = graph.input("observation", (4,))
    y = graph.op("ArgMax", graph.linear(x, "head", weights(3, 4), weights(3)), axis=1, keepdims=0)
    graph.output(y, "action", (), "int64")
    made = checkpoint(graph.model(), action=PortPatch("action", labels=["a", "b", "c"]))
    policy = load(made)
    observation = weights(9, 4)
    wanted = reference(made, observation, "action")
    scores = policy.scores(observation)
    assert scores.shape == (9, 3)
    assert np.array_equal(scores.argmax(-1).numpy(), wanted)
    assert scores.sum() == 9
    assert np.array_equal(policy.act(observation, generator=np.random.default_rng(0)), wanted)


@pytest.mark.parametrize("name", ["breakout-ppo", "minatar-breakout-dqn", "cartpole-dqn"])
def test_a_real_teacher_is_asked_as_it_was_trained(name):
    made = surgery.load(TEACHERS / f"{name}.onnx")
    policy = load(made)
    observation = probes(made, 5, seed=0)["observation"]
    other = load(made, backend="torch").scores(observation)
    assert torch.allclose(policy.scores(observation), other, rtol=1e-4, atol=1e-5)
    assert policy.kind in ("logits", "q_values")
    assert np.allclose(
        policy.scores(observation).numpy(), reference(made, observation, policy.head.output), atol=1e-5
    )
    assert policy.actions == {"breakout-ppo": 4, "minatar-breakout-dqn": 3, "cartpole-dqn": 2}[name]


def test_an_actor_is_asked_before_its_critic():
    graph = GraphBuilder("both")
    x = graph.input("observation", (4,))
    graph.output(graph.linear(x, "critic", weights(3, 4), weights(3)), "q_values", (3,))
    graph.output(graph.linear(x, "actor", weights(3, 4), weights(3)), "logits", (3,))
    made = checkpoint(graph.model())
    assert load(made).kind == "logits"
    assert load(made, output="q_values").kind == "q_values"


def test_sampling_follows_the_softmax_and_epsilon_its_share():
    made = linear("pi", (3,), "logits")
    policy = load(made)
    observation = np.repeat(weights(1, 4), 20_000, axis=0)
    p = softmax(policy.scores(observation[:1]).numpy()[0])
    rng = np.random.default_rng(0)
    share = np.bincount(policy.act(observation, mode="sample", generator=rng), minlength=3) / 20_000
    assert np.allclose(share, p, atol=4 * np.sqrt(0.25 / 20_000))
    actions = policy.act(observation, mode="epsilon", epsilon=0.3, generator=rng)
    assert (actions != p.argmax()).mean() == pytest.approx(0.2, abs=0.015)  # two thirds of 0.3
    sharp = load(made, temperature=1e-3).act(observation, mode="sample", generator=rng)
    assert (sharp == p.argmax()).all()


def test_actions_are_repeated_by_the_seed():
    policy = load(linear("pi", (3,), "logits"))
    observation = weights(50, 4)
    first, again, other = (
        policy.act(observation, mode="sample", generator=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("mode", ["greedy", "sample", "epsilon"])
@pytest.mark.parametrize("mask", [(True, False, True), (False, False, True)])
def test_no_forbidden_action_is_ever_taken(mode, mask):
    contract = Environment(None, {"action_mask": {"q": mask}})
    policy = load(linear("q", (3,), "q_values", environment=contract))
    observation = weights(2000, 4)
    assert torch.isneginf(policy.scores(observation)[:, [k for k, one in enumerate(mask) if not one]]).all()
    actions = policy.act(observation, mode=mode, epsilon=0.9, generator=np.random.default_rng(0))
    assert set(np.unique(actions)) == set(np.flatnonzero(mask))


def test_an_input_that_masks_actions_is_fed_by_the_contract():
    graph = GraphBuilder("masked")
    x, mask = graph.input("observation", (4,)), graph.input("action_mask", (3,), "bool")
    y = graph.linear(x, "head", weights(3, 4), weights(3))
    graph.output(graph.op("Where", mask, y, graph.constant(-1e9, "float32")), "q_values", (3,))
    made = checkpoint(graph.model())
    observation = weights(50, 4)
    assert load(made).scores(observation).min() > -1e3
    allowed = Environment(None, {"action_mask": [True, True, False]})
    masked = load(made, environment=allowed)
    assert torch.isneginf(masked.scores(observation)[:, 2]).all()
    assert masked.act(observation, mode="sample", generator=np.random.default_rng(0)).max() == 1


def test_a_network_that_gives_nan_is_said_to_be_broken():
    graph = GraphBuilder("broken")
    x = graph.input("observation", (4,))
    graph.output(graph.linear(x, "head", np.full((3, 4), np.nan, np.float32), weights(3)), "q_values", (3,))
    with pytest.raises(GraphError, match="NaN"):
        load(checkpoint(graph.model())).act(weights(2, 4), generator=np.random.default_rng(0))


def test_an_extended_teacher_never_takes_its_new_action():
    teacher = surgery.load(TEACHERS / "minatar-breakout-dqn.onnx")
    plan = surgery.extend(teacher, actions=[surgery.NewAction("q_values", 2)])
    wide = surgery.apply(plan, teacher).checkpoint
    observation = probes(teacher, 200, seed=0)["observation"]
    rng = np.random.default_rng(0)
    policy = load(wide)
    assert policy.actions == 5
    for mode in ("greedy", "sample", "epsilon"):
        assert policy.act(observation, mode=mode, epsilon=1.0, generator=rng).max() < 3
    assert torch.allclose(policy.scores(observation)[:, :3], load(teacher).scores(observation), atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_recurrent_state_is_carried_and_forgotten_per_environment(cell, backend):
    made, step = recurrent(cell)
    policy = load(made, backend=backend)
    assert policy.recurrent
    observations = weights(6, 3, 4)  # steps, environments, features
    states = [np.zeros((1, 3, 5), np.float32) for _ in range(2 if cell == "LSTM" else 1)]
    for t, observation in enumerate(observations):
        if t == 3:
            ended = np.array([False, True, False])
            policy.reset(ended)
            for state in states:
                state[:, ended] = 0
        wanted, *states = step(observation, *states)
        assert np.allclose(policy.scores(observation).numpy(), wanted, atol=1e-5)
        states = [state.copy() for state in states]
    policy.reset()
    first, *_ = step(observations[0], *[np.zeros_like(state) for state in states])
    assert np.allclose(policy.scores(observations[0]).numpy(), first, atol=1e-5)


def recurrent(cell):
    """A recurrent policy with its state as input and output, and a function that runs one step of it."""
    import onnx_ir as ir

    gates = {"LSTM": 4, "GRU": 3}[cell]
    graph = GraphBuilder(cell)
    x = graph.input("observation", (4,))
    names = ["hidden", "cell"][: 2 if cell == "LSTM" else 1]
    states = []
    for name in names:
        value = graph.input(name, (5,))
        value.shape = ir.Shape([1, "batch", 5])
        states.append(value)
    w, r = graph.parameter("w", weights(1, gates * 5, 4)), graph.parameter("r", weights(1, gates * 5, 5))
    b = graph.parameter("b", weights(1, 2 * gates * 5))
    steps = graph.op("Unsqueeze", x, graph.constant([0]))
    out, *after = graph.ops(cell, steps, w, r, b, None, *states, outputs=1 + len(names), hidden_size=5)
    y = graph.op("Reshape", out, graph.constant([-1, 5]))
    graph.output(graph.linear(y, "head", weights(3, 5), weights(3)), "q_values", (3,))
    for name, value in zip(names, after, strict=True):
        graph.output(value, f"new_{name}", (5,))
        graph._graph.outputs[-1].shape = ir.Shape([1, "batch", 5])
    model = graph.model()
    made = checkpoint(model, **{f"new_{name}": PortPatch("state") for name in names})
    made = surgery.annotate(made, inputs={name: PortPatch("state") for name in names})
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())

    def step(observation, *carried):
        return session.run(None, {"observation": observation, **dict(zip(names, carried, strict=True))})

    return made, step


def test_a_recurrent_policy_refuses_another_number_of_environments():
    policy = load(recurrent("GRU")[0])
    policy.scores(weights(3, 4))
    with pytest.raises(ArgumentError, match="recurrent state is for 3"):
        policy.scores(weights(2, 4))


def test_channels_last_and_scaled_frames_are_made_as_the_contract_says():
    frames = RNG.integers(0, 256, (3, 2, 5, 6), dtype=np.uint8)
    contract = Environment(None, {"preprocessing": {"layout": "HWC", "scale": 1 / 255}})
    made = linear("q", (3,), "q_values", inputs=(5, 6, 2), environment=contract)
    wanted = reference(made, (frames.transpose(0, 2, 3, 1) / 255).astype(np.float32), "q")
    assert np.allclose(load(made).scores(frames).numpy(), wanted, atol=1e-5)


def test_bytes_for_an_input_that_is_declared_to_end_at_1_are_scaled():
    frames = RNG.integers(0, 256, (3, 4), dtype=np.uint8)
    plain = linear("q", (3,), "q_values")
    unit = surgery.annotate(plain, inputs={"observation": PortPatch(low=0.0, high=1.0)})
    assert np.allclose(
        load(unit).scores(frames), reference(plain, (frames / 255).astype(np.float32), "q"), atol=1e-5
    )
    assert np.allclose(
        load(plain).scores(frames), reference(plain, frames.astype(np.float32), "q"), rtol=1e-5
    )


def test_bytes_stay_bytes_for_a_graph_that_takes_them():
    made = linear("q", (3,), "q_values", dtype="uint8")
    frames = RNG.integers(0, 256, (3, 4), dtype=np.uint8)
    assert np.allclose(load(made).scores(frames), reference(made, frames, "q"), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_graph_with_a_fixed_batch_is_asked_as_often_as_it_takes(count):
    import onnx_ir as ir

    made = linear("q", (3,), "q_values")
    wanted = reference(made, observation := weights(count, 4), "q")
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        value.shape = ir.Shape([2, *list(value.shape)[1:]])
    assert np.allclose(load(made).scores(observation), wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [[2, 1, 4], [1, 2, 4]], ids=["time second", "time first"])
@pytest.mark.parametrize("count", [2, 5])
def test_a_fixed_batch_may_have_a_step_of_time_beside_it(count, shape):
    import onnx_ir as ir

    graph = GraphBuilder("timed")
    rows = graph.op("Reshape", graph.input("observation", (1, 4)), graph.constant([-1, 4]))
    graph.output(graph.linear(rows, "head", weights(3, 4), weights(3)), "q", (3,))
    made, observation = checkpoint(graph.model(), q=PortPatch("q_values")), weights(count, 4)
    wanted = reference(made, observation[:, None], "q")
    made.model.graph.inputs[0].shape, made.model.graph.outputs[0].shape = ir.Shape(shape), ir.Shape([2, 3])
    assert np.allclose(load(made).scores(observation), wanted, atol=1e-5)


def masked():
    contract = Environment(None, {"action_mask": {"q": [True, False, True]}})
    return linear("q", (3,), "q_values", environment=contract)


def framed():
    contract = Environment(None, {"preprocessing": {"layout": "HWC", "scale": 1 / 255}})
    return linear("q", (3,), "q_values", inputs=(5, 6, 2), environment=contract)


def fixed():
    import onnx_ir as ir

    made = linear("q", (3,), "q_values")
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        value.shape = ir.Shape([2, *list(value.shape)[1:]])
    return made


def named():
    graph = GraphBuilder("greedy")
    x = graph.input("observation", (4,))
    y = graph.op("ArgMax", graph.linear(x, "head", weights(3, 4), weights(3)), axis=1, keepdims=0)
    graph.output(y, "action", (), "int64")
    return checkpoint(graph.model(), action=PortPatch("action", labels=["a", "b", "c"]))


HOSTED = {
    **{kind: (lambda made=made: made, (4,)) for kind, (made, _, _) in SCORES.items()},
    "an action": (named, (4,)),
    "a mask": (masked, (4,)),
    "frames": (framed, (2, 5, 6)),
    "a fixed batch": (fixed, (4,)),
    "LSTM": (lambda: recurrent("LSTM")[0], (4,)),
}


@pytest.mark.parametrize("case", HOSTED)
def test_in_numpy_it_says_what_it_says_in_pytorch(case):
    make, shape = HOSTED[case]
    made = make()
    tensors, arrays = load(made), load(made, host=True)
    for step in range(4):
        observation = weights(3, *shape)
        if step == 2:
            tensors.reset(np.array([True, False, False])), arrays.reset(np.array([True, False, False]))
        wanted, had = tensors.scores(observation), arrays.scores(observation)
        assert isinstance(had, np.ndarray) and had.dtype == np.float32
        np.testing.assert_allclose(had, wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_a_tensor_is_taken_as_an_array_is():
    policy = load(linear("q", (3,), "q_values"))
    observation = weights(4, 4)
    assert torch.equal(policy.scores(observation), policy.scores(torch.from_numpy(observation)))
    backwards = np.ascontiguousarray(observation[::-1])
    backwards.flags.writeable = False
    assert torch.equal(policy.scores(observation), policy.scores(backwards[::-1]))
    assert torch.equal(policy.scores(backwards), policy.scores(observation).flip(0))
    assert not policy.scores(observation).requires_grad
    assert not policy.scores(observation).is_inference()  # a loss may save it


@pytest.mark.parametrize(
    ("broken", "left"), [("in_runtime", "torch"), ("checked_module", "onnxruntime")], ids=str
)
def test_where_one_backend_cannot_run_a_model_the_other_does(broken, left, monkeypatch):
    from surgery.policy import backends

    made, observation = linear("q", (3,), "q_values"), weights(5, 4)
    wanted = reference(made, observation, "q")

    def refuse(*_, **__):
        raise GraphError("no kernel for this operator")

    monkeypatch.setattr(backends, broken, refuse)
    policy = load(made)
    assert policy.backend == left
    assert np.allclose(policy.scores(observation), wanted, rtol=1e-5)


def test_tensors_bound_where_they_lie_give_what_copied_ones_give():
    """The path of a GPU, on the CPU."""
    from surgery.policy import backends
    from surgery.verify.outputs import session

    for made in (
        linear("q", (3,), "q_values"),
        linear("q", (3,), "q_values", dtype="uint8"),
        recurrent("LSTM")[0],
    ):
        feeds = {name: torch.from_numpy(array) for name, array in probes(made, 5, seed=0).items()}
        names = [port.name for port in made.interface.outputs]
        wanted = backends.in_runtime(made, torch.device("cpu"))(feeds)
        opened, _ = session(made.model, optimise=True)
        found = backends._bound(opened, feeds, names, torch.device("cpu"))
        del opened
        for name in names:
            assert torch.equal(found[name], wanted[name])


def test_an_onnxruntime_without_cuda_says_that_it_plays_on_the_cpu_and_what_to_install(monkeypatch):
    """And asks for no provider that is not there, of which onnxruntime would warn on every start."""
    from surgery.policy import backends

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this one has it")
    said: list[str] = []
    backends.in_runtime(linear("q", (3,), "q_values"), torch.device("cuda"), note=said.append)
    [text] = said
    assert "on the CPU" in text
    assert "pip install onnxruntime-gpu" in text
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert "another CUDA" in backends._advice()  # which is then the reason, and not that it has none


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_graph_that_cannot_be_run_as_it_is_played_is_an_error_of_one_line(backend: str):
    """Its batch is free at its door, and fixed inside."""
    graph = GraphBuilder("fixed")
    x = graph.op("Reshape", graph.input("observation", (4,), "float32"), graph.constant([1, 4]))
    graph.output(graph.linear(x, "head", weights(2, 4), weights(2)), "q", (2,))
    made = checkpoint(graph.model(), q=PortPatch("q_values"))
    with pytest.raises(GraphError, match="cannot run this model"):
        load(made, backend=backend).scores(np.zeros((3, 4), np.float32))


def test_a_device_that_pytorch_was_not_built_for_is_refused():
    with pytest.raises(ArgumentError, match="there is no device 'xpu'"):
        load(linear("q", (3,), "q_values"), device="xpu")


def test_a_module_that_computes_something_else_is_refused(monkeypatch):
    from surgery.policy import backends
    from surgery.torch import to_module

    made = linear("q", (3,), "q_values")
    right = backends.as_module(to_module(made), made)
    factor = -1.01
    monkeypatch.setattr(backends, "as_module", lambda *_: lambda feeds: {"q": right(feeds)["q"] * factor})
    with pytest.raises(GraphError, match="does not give what"):
        load(made, backend="torch")
    factor = 1.00001
    assert load(made, backend="torch").backend == "torch"


def two_heads():
    graph = GraphBuilder("two")
    x = graph.input("observation", (4,))
    graph.output(graph.linear(x, "a", weights(3, 4), weights(3)), "q1", (3,))
    graph.output(graph.linear(x, "b", weights(3, 4), weights(3)), "q2", (3,))
    return checkpoint(graph.model(), q1=PortPatch("q_values"), q2=PortPatch("q_values"))


REFUSED = {
    "nothing": (lambda: linear("y", (3,), "other"), ArgumentError, "surgery annotate"),
    "value only": (lambda: linear("v", (1,), "value"), ArgumentError, "no output can be a policy"),
    "two critics": (two_heads, ArgumentError, "q1, q2"),
    "one action": (lambda: linear("q", (1,), "q_values"), ArgumentError, "1 action"),
    "no support": (lambda: linear("z", (3, 51), "atom_logits"), ArgumentError, "low=-10,high=10"),
    "flat atoms": (lambda: linear("z", (153,), "atom_logits", low=-1.0, high=1.0), ArgumentError, "actions×atoms"),
    "mask": (
        lambda: linear("q", (3,), "q_values", environment=Environment(None, {"action_mask": {"q": [True]}})),
        ArgumentError,
        "does not fit its 3 actions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_policy_says_why(case):
    make, error, says = REFUSED[case]
    with pytest.raises(error) as caught:
        load(make())
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_an_unknown_output_and_a_wrong_shape_are_refused():
    made = linear("q", (3,), "q_values")
    with pytest.raises(UnknownName):
        load(made, output="p")
    with pytest.raises(ArgumentError, match=r"takes observations of shape 4, got 5"):
        load(made).scores(weights(2, 5))
    with pytest.raises(ArgumentError, match="temperature"):
        load(made, temperature=0.0)
    with pytest.raises(ArgumentError, match="device"):
        load(made, device="abacus")


def test_an_output_that_is_not_what_it_was_taken_for_is_refused():
    made = linear("q_values", (3, 11), "q_values")
    with pytest.raises(ArgumentError, match=r"gives 2×3×11 for 2 observations: not q_values"):
        load(made).scores(weights(2, 4))


FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*/*.onnx"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_foreign_model_is_played_or_refused_in_words(path):
    made = surgery.load(path)
    try:
        policy = load(made)
        if not policy.head.scored:  # numbers, which tests/test_continuous.py plays
            return
        inputs = probes(made, 3, seed=0)
        observation = next(port.name for port in made.interface.inputs if port.kind == "observation")
        scores = policy.scores(inputs[observation])
    except SurgeryError as error:
        assert error.hint
        return
    assert scores.shape == (3, policy.actions)
    assert torch.isfinite(scores).all()


def test_an_input_that_nothing_feeds_is_refused():
    graph = GraphBuilder("goal")
    x, goal = graph.input("observation", (4,)), graph.input("goal", (4,))
    graph.output(graph.linear(graph.op("Add", x, goal), "h", weights(3, 4), weights(3)), "q_values", (3,))
    made = checkpoint(graph.model())
    assert [port.kind for port in made.interface.inputs] == ["observation", "other"]
    assert Port("goal", "other") in made.interface.inputs
    with pytest.raises(ArgumentError, match="goal"):
        load(made)
