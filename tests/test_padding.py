"""Units under a layer norm or RMS norm grow by any number: new ones vanish there, and learn from the first step."""

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.builder import GraphBuilder
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.port_kinds import infer

WIDTH, HIDDEN = 6, 10
KINDS = ["layer", "layer written out", "rms", "rms written out"]


class _Net:
    """A residual stream with normalised branches, written in the builder."""

    def __init__(
        self,
        kind: str,
        *,
        last_norm: bool = True,
        relu: bool = False,
        post: bool = False,
        size: float = 1.0,
        epsilon: float | None = 1e-2,
    ) -> None:
        """Args: size: of the weights. epsilon: of the operator; None leaves it to the standard."""
        self.kind, self.rng, self.size = kind, np.random.default_rng(0), np.float32(size)
        self.attributes = {} if epsilon is None else {"epsilon": epsilon}
        self.graph = GraphBuilder("net")
        x = self.linear(self.graph.input("observation", (4,)), "embed", WIDTH, 4)
        if relu:
            x = self.graph.op("Relu", x)
        for k in range(2):
            branch = self.linear(x if post else self.norm(x, f"norm{k}"), f"up{k}", HIDDEN, WIDTH)
            branch = self.linear(self.graph.op("Relu", branch), f"down{k}", WIDTH, HIDDEN)
            x = self.graph.op("Add", x, branch)
            x = self.norm(x, f"norm{k}") if post else x
        x = self.norm(x, "last") if last_norm else x
        self.graph.output(self.linear(x, "head", 3, WIDTH), "q_values", (3,))

    def weights(self, *shape: int) -> np.ndarray:
        return self.size * self.rng.standard_normal(shape, dtype=np.float32)

    def linear(self, x: ir.Value, name: str, out: int, inputs: int) -> ir.Value:
        return self.graph.linear(x, name, self.weights(out, inputs), self.weights(out))

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        op = self.graph.op
        gamma = self.graph.parameter(f"{name}.weight", self.weights(WIDTH))
        beta = self.graph.parameter(f"{name}.bias", self.weights(WIDTH)) if "layer" in self.kind else None
        if self.kind == "layer":
            return op("LayerNormalization", x, gamma, beta, axis=-1, **self.attributes)
        axes = self.graph.constant([-1])
        if beta is not None:
            x = op("Sub", x, op("ReduceMean", x, axes, keepdims=1))
        square = op("Mul", x, x) if beta is not None else op("Pow", x, self.graph.constant(2.0, "float32"))
        mean = op("ReduceMean", square, self.graph.constant([-1]), keepdims=1)
        root = op("Sqrt", op("Add", mean, self.graph.constant(1e-2, "float32")))
        if beta is not None:
            return op("Add", op("Mul", op("Div", x, root), gamma), beta)
        return op("Mul", op("Mul", x, op("Reciprocal", root)), gamma)

    def checkpoint(self) -> surgery.Checkpoint:
        model = self.graph.model()
        names = tuple(model.graph.initializers)
        slots = {
            slot: {
                name: ir.Tensor(self.rng.standard_normal(model.graph.initializers[name].shape) ** 2)
                for name in names
            }
            for slot in ("exp_avg", "exp_avg_sq")
        }
        state = OptimizerState("adam", slots, {}, (ParamGroup(names, {"lr": 1e-3}),))
        return surgery.Checkpoint(model, infer(model), optimizer=state)


FORMS = [
    pytest.param(kind, last, id=f"{kind}, {'' if last else 'no '}norm before the head")
    for kind in KINDS
    for last in (True, False)
]


@pytest.mark.parametrize("width", [WIDTH + 1, 11, 2 * WIDTH])
@pytest.mark.parametrize(("kind", "last"), FORMS)
def test_padding_is_exact_for_any_width_slots_included(kind: str, last: bool, width: int):
    before = _Net(kind, last_norm=last).checkpoint()
    assert surgery.analyse(before.model).space("embed").padding == kind.split()[0]
    plan = surgery.widen(before, widths={"embed": width, "up0": 13}, init="zero")
    result = surgery.apply(surgery.Plan.from_json(plan.to_json()), before)
    values = {check.name: check.value for check in result.report.checks}
    assert values["outputs, float64"] < 1e-13 and values["optimizer slots"] < 1e-12
    again = surgery.apply(surgery.widen(result.checkpoint, widths={"embed": width + 3}), result.checkpoint)
    assert again.report.ok


def test_an_epsilon_that_the_node_does_not_say_is_the_standards():
    """A float32 number; beside variances of a millionth the difference shows."""
    before = _Net("layer", size=1e-3, epsilon=None).checkpoint()
    result = surgery.apply(surgery.widen(before, widths={"embed": 9}, init="zero"), before)
    assert result.report.check("outputs, float64").value < 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_epsilon_follow_the_statistic(kind: str):
    before = _Net(kind).checkpoint()
    plan = surgery.widen(before, widths={"embed": 9}, init="zero")
    after = surgery.apply(plan, before).checkpoint
    old, new = (c.tensors["norm0.weight"].numpy() for c in (before, after))
    np.testing.assert_allclose(new[:WIDTH], old * np.sqrt(WIDTH / 9), rtol=1e-6)
    moments = (c.optimizer.slots["exp_avg"]["norm0.weight"].numpy() for c in (before, after))
    old, new = moments
    np.testing.assert_allclose(new[:WIDTH], old / np.sqrt(WIDTH / 9), rtol=1e-12)
    epsilons = [edit.value[0] for edit in plan.operands if edit.where == "epsilon" or "Add" in edit.node]
    np.testing.assert_allclose(epsilons, 1e-2 * WIDTH / 9, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_new_units_vanish_and_are_read_at_once(kind: str):
    before = _Net(kind).checkpoint()
    after = surgery.apply(surgery.widen(before, widths={"embed": 9}, init="zero"), before).checkpoint
    tensors = {name: tensor.numpy() for name, tensor in after.tensors.items()}
    made = tensors["down0.weight"]
    expected = (
        np.broadcast_to(made[:WIDTH].mean(0), (3, HIDDEN)) if "layer" in kind else np.zeros((3, HIDDEN))
    )
    np.testing.assert_allclose(made[WIDTH:], expected, atol=1e-7)
    assert np.abs(tensors["up0.weight"][:, WIDTH:]).min() > 0
    if "layer" in kind:
        assert not tensors["norm0.bias"][WIDTH:].any()


def test_what_reads_the_stream_itself_starts_at_zero():
    before = _Net("layer", last_norm=False).checkpoint()
    after = surgery.apply(surgery.widen(before, widths={"embed": 9}, init="zero"), before).checkpoint
    assert not after.tensors["head.weight"].numpy()[:, WIDTH:].any()


@pytest.mark.parametrize(
    ("kind", "how", "padding"),
    [
        ("layer", {"relu": True}, None),
        ("rms", {"relu": True}, "rms"),
        ("layer", {"post": True}, None),
        ("rms", {"post": True}, "rms"),
    ],
)
def test_only_linear_functions_carry_a_mean_and_homogeneous_ones_a_zero(
    kind: str, how: dict[str, bool], padding: str | None
):
    before = _Net(kind, **how).checkpoint()
    assert surgery.analyse(before.model).space("embed").padding == padding
    if padding is None:
        with pytest.raises(surgery.SurgeryError, match="whole multiples"):
            surgery.widen(before, widths={"embed": 9})
    else:
        assert surgery.apply(surgery.widen(before, widths={"embed": 9}), before).report.ok


def test_a_wrong_epsilon_is_caught():
    before = _Net("rms").checkpoint()
    plan = surgery.widen(before, widths={"embed": 9}, init="zero")
    kept = plan.to_json() | {"operands": []}
    with pytest.raises(surgery.SurgeryError, match="proof"):
        surgery.apply(surgery.Plan.from_json(kept), before)


@pytest.mark.parametrize("kind", ["layer", "layer written out"])
def test_a_shift_that_is_a_bias_in_front_of_the_norm_too_takes_copies_only(kind: str):
    """One vector would have to start new units at the mean in one place, and at zero in the other."""
    net = _Net(kind)
    bias = next(v for v in net.graph.model().graph.initializers.values() if v.name == "embed.bias")
    before = net.checkpoint()
    for node in before.model.graph:
        for k, value in enumerate(node.inputs):
            if value is not None and value.name == "norm0.bias":
                node.replace_input_with(k, before.model.graph.initializers[str(bias.name)])
    space = surgery.analyse(before.model, before.interface).space("embed")
    assert space.padding is None and space.whole is not None
    assert surgery.apply(surgery.widen(before, widths={"embed": 2 * WIDTH}), before).report.ok
