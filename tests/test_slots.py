"""Optimizer slots after an edit are those that the widened network would have accumulated; torch is the judge.

Parameters stay where they are (a learning rate of 0), so that both networks see the same gradients: the slots are then
exact functions of the batches, and compared element by element in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.builder import GraphBuilder
from surgery.edits.arithmetic import AxisMap, axis_maps, edit_slot, unknown_history
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.graph.layout import Layout
from surgery.optimizer import POWERS, OptimizerState, ParamGroup
from surgery.port_kinds import infer
from surgery.probes import probes
from surgery.verify.slots import check_slots
from tests import zoo

LIMIT = 1e-12
BATCHES, ROWS = 3, 6
SLOTS = importlib.import_module("surgery.verify.slots")  # `surgery.verify` is the function
TEACHERS = Path(__file__).parent.parent / "examples" / "teachers"

Maps = Sequence[AxisMap | None]
State = Mapping[str, Mapping[str, np.ndarray]]
Make = Callable[[list[Tensor]], torch.optim.Optimizer]

TINY = 1e-300
"""RMSProp's momentum sums g / (sqrt(v) + eps): free of scale when eps is nothing, and 0 / eps is 0."""


class Lamb(torch.optim.Optimizer):
    """What Sample Factory's keeps of the gradients (You et al., 2020); its steps have length 0 here."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, {"lr": 0.0, "betas": (0.9, 0.999), "min_trust": 0.01})

    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            for slot, decay, seen in (
                ("exp_avg", 0.9, parameter.grad),
                ("exp_avg_sq", 0.999, parameter.grad**2),
            ):
                state[slot] = decay * state.get(slot, 0.0) + (1 - decay) * seen


OPTIMIZERS: dict[str, tuple[str, Make]] = {
    "sgd momentum": ("sgd", lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9)),
    "sgd nesterov": ("sgd", lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9, nesterov=True)),
    "adam": ("adam", lambda p: torch.optim.Adam(p, lr=0.0)),
    "amsgrad": ("adam", lambda p: torch.optim.Adam(p, lr=0.0, amsgrad=True)),
    "adamw": ("adamw", lambda p: torch.optim.AdamW(p, lr=0.0)),
    "adamw amsgrad": ("adamw", lambda p: torch.optim.AdamW(p, lr=0.0, amsgrad=True)),
    "radam": ("radam", lambda p: torch.optim.RAdam(p, lr=0.0)),
    "nadam": ("nadam", lambda p: torch.optim.NAdam(p, lr=0.0)),
    "lamb": ("lamb", Lamb),
    "adamax": ("adamax", lambda p: torch.optim.Adamax(p, lr=0.0, eps=TINY)),
    "rmsprop": ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.0)),
    "rmsprop centered": ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.0, centered=True)),
    "rmsprop momentum": ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.0, momentum=0.9, eps=TINY)),
    "adagrad": ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.0)),
    "adadelta": ("adadelta", lambda p: torch.optim.Adadelta(p, lr=0.0, eps=TINY)),
    "muon": ("muon", lambda p: torch.optim.Muon([matrix for matrix in p if matrix.ndim == 2], lr=0.0)),
}


class Teacher(nn.Module):
    """The networks of the agents that ship with the project, under the names of their checkpoints."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        if name == "cartpole-dqn":
            layers = [nn.Linear(4, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2)]
        elif name == "minatar-breakout-dqn":
            head = [nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 3)]
            layers = [nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), *head]
        else:
            convolutions = [nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3)]
            trunk = [layer for conv in convolutions for layer in (conv, nn.ReLU())]
            layers = [*trunk, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()]
            self.actor, self.critic = nn.Linear(512, 4), nn.Linear(512, 1)
        self.network = nn.Sequential(*layers)

    def forward(self, observation: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.name != "breakout-ppo":
            return self.network(observation)
        hidden = self.network(observation / 255.0)
        return self.actor(hidden), self.critic(hidden)


FIXED_IN_CODE = {
    "frame_slices", "gru_step", "lstm_cell_loop", "maxout", "mobilenet", "nature_nhwc", "shufflenet",
    "shufflenet_v2", "simnorm", "space_to_depth",
}  # fmt: skip
"""Modules with a width (nature_nhwc: a precision) written in `forward`: other weights alone do not widen them."""

CORE = [name for name, net in zoo.NETS.items() if "core" in net.tags and name != "nature_dqn"]
NAMES = ["cartpole-dqn", "minatar-breakout-dqn", "breakout-ppo", *CORE, "cosine_attention"]


@dataclass(frozen=True)
class Source:
    """One network in both worlds, and the batches it is trained on."""

    checkpoint: surgery.Checkpoint
    module: nn.Module
    batches: tuple[tuple[Tensor, ...], ...]

    @property
    def trained(self) -> dict[str, np.ndarray]:
        return {name: p.detach().numpy() for name, p in self.module.named_parameters()}


@functools.lru_cache(maxsize=2)
def source(name: str) -> Source:
    rng = np.random.default_rng(0)
    if name in zoo.NETS:
        checkpoint, module = surgery.load(zoo.export(name, "dynamo")), zoo.module(name).double()
        batches = [list(zoo.sample(name, ROWS, rng).values()) for _ in range(BATCHES)]
    else:
        checkpoint, module = surgery.load(TEACHERS / f"{name}.onnx"), Teacher(name)
        module.load_state_dict({k: torch.from_numpy(t.numpy().copy()) for k, t in checkpoint.tensors.items()})
        module = module.double().requires_grad_(False)
        shape = (2 if name == "breakout-ppo" else ROWS, *checkpoint.model.graph.inputs[0].shape[1:])
        scale = 255.0 if name == "breakout-ppo" else 1.0
        batches = [[scale * rng.random(shape).astype(np.float32)] for _ in range(BATCHES)]
    return Source(checkpoint, module, tuple(tuple(_double(x) for x in batch) for batch in batches))


def _double(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.double() if tensor.is_floating_point() else tensor


def outputs(origin: Source, values: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    results = torch.func.functional_call(origin.module, dict(values), batch)
    return results if isinstance(results, tuple) else (results,)


def train(origin: Source, values: Mapping[str, Tensor], make: Make) -> State:
    """Slots of the trained parameters after all batches: slot -> parameter -> array."""
    parameters = {name: values[name].clone().requires_grad_() for name in origin.trained}
    optimizer = make(list(parameters.values()))
    for number, batch in enumerate(origin.batches):
        optimizer.zero_grad()
        results = outputs(origin, {**values, **parameters}, batch)
        torch.manual_seed(number)
        loss = sum((torch.randn_like(result) * result + result.square()).sum() for result in results)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
    slots: dict[str, dict[str, np.ndarray]] = {}
    for name, parameter in parameters.items():
        for slot, value in optimizer.state[parameter].items():
            if slot != "step" and isinstance(value, Tensor) and value.shape == parameter.shape:
                slots.setdefault(slot, {})[name] = value.detach().numpy()
    return slots


def old_values(origin: Source) -> dict[str, Tensor]:
    return {**dict(origin.module.named_parameters()), **dict(origin.module.named_buffers())}


def new_values(origin: Source, after: surgery.Checkpoint) -> dict[str, Tensor]:
    """The module's parameters and buffers as the edited graph has them, before rounding."""
    tensors = after.tensors
    return {
        name: torch.from_numpy(np.array(tensors[name].numpy(), np.float64)) if name in tensors else value
        for name, value in old_values(origin).items()
    }


def with_state(origin: Source, kind: str, slots: State) -> surgery.Checkpoint:
    tensors = {
        slot: {name: ir.Tensor(array, name=name) for name, array in members.items()}
        for slot, members in slots.items()
    }
    names = tuple(origin.trained)
    state = OptimizerState(kind, tensors, dict.fromkeys(names, float(BATCHES)), (ParamGroup(names),))
    return origin.checkpoint.replace(optimizer=state)


def maps_of(plan: Plan) -> dict[str, Maps]:
    return {edit.name: axis_maps(edit.axes, plan.edits) for edit in plan.tensors}


def unknown(maps: Maps | None, shape: tuple[int, ...]) -> np.ndarray:
    mask = False if maps is None else unknown_history(maps)
    return np.broadcast_to(np.asarray(mask), shape)


def error(
    truth: np.ndarray, edited: np.ndarray, mask: np.ndarray | bool = False, least: float = 0.0
) -> float:
    """The largest error outside a mask, relative to the largest element (or `least`, if that is more)."""
    assert truth.shape == edited.shape
    scale = max(float(np.abs(truth).max(initial=0.0)), least) or 1.0
    return float(np.abs(np.where(mask, 0.0, truth - edited)).max(initial=0.0)) / scale


def plans(origin: Source, *, single: bool = True) -> Iterator[Plan]:
    """All spaces at once and (if `single`) each alone, in each initialisation; 1.4 is no integer for any width."""
    spaces = [space for space in origin.checkpoint.analysis.spaces if space.widenable]
    free = [space for space in spaces if space.whole is None]
    for init, shares in (("zero", "equal"), ("net2net", "equal"), ("net2net", "unequal")):
        able = [s for s in free if (s.no_zero if init == "zero" else s.no_net2net) is None]
        for chosen in [able, *([s] for s in able if single and len(able) > 1)]:
            if chosen:
                widths = {space.name: -(-7 * space.size // 5) for space in chosen}
                yield surgery.widen(origin.checkpoint, widths=widths, init=init, shares=shares)  # type: ignore[arg-type]
    if len(free) < len(spaces):  # what a normaliser averages
        yield surgery.widen(origin.checkpoint, factor=2, init="net2net")


def usable(name: str) -> Source:
    if name in FIXED_IN_CODE:
        pytest.skip("a width is written in the module's forward")
    return source(name)


@pytest.mark.parametrize("name", NAMES)
def test_slots_follow_exactly_whatever_the_space(name: str) -> None:
    """Powers 1 and 2 (Adam) for every plan; what is excluded is exactly what is declared to be unknown."""
    origin = usable(name)
    kind, make = OPTIMIZERS["adam"]
    state = train(origin, old_values(origin), make)
    assert set(origin.trained) <= set(origin.checkpoint.tensors)
    checkpoint = with_state(origin, kind, state)
    found = [
        _check_plan(origin, checkpoint, plan, make) for plan in plans(origin, single=name != "breakout-ppo")
    ]
    assert any(declared for declared, _ in found) == any(really for _, really in found)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["cartpole-dqn", "minatar-breakout-dqn", "conv_scalars", "batchnorm_mlp"])
def test_slots_of_every_optimizer_follow_exactly(name: str, optimizer: str) -> None:
    origin = source(name)
    kind, make = OPTIMIZERS[optimizer]
    state = train(origin, old_values(origin), make)
    assert state and set(state) <= set(POWERS[kind])
    for plan in plans(origin, single=False):
        _check_plan(origin, with_state(origin, kind, state), plan, make)


def test_these_optimizers_fill_every_slot_that_has_a_rule() -> None:
    """A rule that no test reaches would be a rule on paper."""
    origin, reached = source("cartpole-dqn"), dict[str, set[str]]()
    for kind, make in OPTIMIZERS.values():
        reached.setdefault(kind, set()).update(train(origin, old_values(origin), make))
    assert reached == {kind: set(slots) - {"step"} for kind, slots in POWERS.items()}


def _check_plan(origin: Source, checkpoint: surgery.Checkpoint, plan: Plan, make: Make) -> tuple[bool, bool]:
    """Whether some history is declared unknown, and whether some of that is not zero after all.

    Of equal copies that a maximum is taken of, torch gives the gradient to whichever rounding has made the largest.
    """
    unknown_there = really = False
    parting = {edit.name for edit in plan.tensors if edit.makes(plan.inexact_slots)}
    after = execute(plan, checkpoint, double=True)
    assert after.optimizer is not None
    values = new_values(origin, after)
    for batch in origin.batches:
        pairs = zip(outputs(origin, old_values(origin), batch), outputs(origin, values, batch), strict=True)
        assert all(error(old.numpy(), new.numpy()) <= LIMIT for old, new in pairs)
    truth, maps = train(origin, values, make), maps_of(plan)
    assert truth.keys() == after.optimizer.slots.keys()
    for slot, members in truth.items():
        # a bias before a softmax has no gradient but rounding
        least = 1e-3 * max(float(np.abs(array).max()) for array in members.values())
        members = {name: array for name, array in members.items() if name not in parting}
        masks = {name: unknown(maps.get(name), array.shape) for name, array in members.items()}
        for name, array in members.items():
            edited = after.optimizer.slots[slot][name].numpy()
            assert error(array, edited, masks[name], least) <= LIMIT, (slot, name, plan.arguments)
            assert not edited[masks[name]].any()
        unknown_there |= any(mask.any() for mask in masks.values())
        really |= any(array[masks[name]].any() for name, array in members.items())
    assert dict(after.optimizer.steps) == dict(checkpoint.optimizer.steps)  # type: ignore[union-attr]
    return unknown_there, really


# ---- wrong rules fail -------------------------------------------------------------------------------------------


def _as_weights(axis: AxisMap) -> AxisMap:
    """Slots scaled like the weights: shared out where the weight is, copied where the weight is copied."""
    return dataclasses.replace(axis, grad=axis.value)


def _inverse(axis: AxisMap) -> AxisMap:
    """Slots that grow where they should shrink."""
    return dataclasses.replace(axis, grad=1 / axis.grad)


def _copied(axis: AxisMap) -> AxisMap:
    """Slots copied everywhere."""
    return dataclasses.replace(axis, grad=np.ones_like(axis.grad))


WRONG = [_as_weights, _inverse, _copied]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("shares", ["equal", "unequal"])
@pytest.mark.parametrize(
    "name", ["cartpole-dqn", "minatar-breakout-dqn", "conv_scalars", "batchnorm_mlp", "d2rl"]
)
def test_a_plausible_wrong_rule_fails(name: str, shares: str, wrong: Callable[[AxisMap], AxisMap]) -> None:
    """They leave every output perfect: only the slots are off, by tens of per cent."""
    origin = source(name)
    kind, make = OPTIMIZERS["adam"]
    state = train(origin, old_values(origin), make)
    plan = surgery.widen(origin.checkpoint, factor=1.4, init="net2net", shares=shares)  # type: ignore[arg-type]
    after = execute(plan, with_state(origin, kind, state), double=True)
    truth = train(origin, new_values(origin, after), make)
    for slot, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
        worst = 0.0
        for tensor, maps in maps_of(plan).items():
            if tensor in state[slot]:
                changed = [axis and wrong(axis) for axis in maps]
                worst = max(worst, error(truth[slot][tensor], edit_slot(state[slot][tensor], changed, power)))
        assert worst > 0.1


def _checks(name: str, plan: Plan) -> float:
    origin = source(name)
    tensors = origin.checkpoint.tensors
    trained = {key: tensors[key].numpy() for key in origin.trained if key in tensors}
    before = with_state(origin, "sgd", {"momentum_buffer": trained})
    exact = execute(plan, before, double=True)
    inputs = [value.name for value in before.model.graph.inputs]
    arrays = {
        str(key): x.numpy().astype(np.float32) for key, x in zip(inputs, origin.batches[0], strict=True)
    }
    (check,) = check_slots(plan, before, exact, arrays, seed=0)
    assert "not evaluated" not in check.detail
    assert check.ok == (check.value <= LIMIT)
    return check.value


@pytest.mark.parametrize("name", [*NAMES[:3], *(name for name in zoo.NETS if name != "nature_dqn")])
def test_the_verifier_agrees_on_right_edits(name: str) -> None:
    """Also where torch cannot say: recurrence, attention, normalisers, widths written in code."""
    for plan in plans(source(name), single=False):
        assert _checks(name, plan) <= LIMIT


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    "name", ["cartpole-dqn", "minatar-breakout-dqn", "conv_scalars", "batchnorm_mlp", "d2rl"]
)
def test_the_verifier_agrees_with_torch_on_wrong_edits(
    name: str, wrong: Callable[[AxisMap], AxisMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = surgery.widen(source(name).checkpoint, factor=1.4, init="net2net")

    def damaged(layouts: Sequence[Layout], edits: Mapping[str, object]) -> list[AxisMap | None]:
        return [axis and wrong(axis) for axis in axis_maps(layouts, edits)]  # type: ignore[arg-type]

    monkeypatch.setattr(SLOTS, "axis_maps", damaged)
    assert _checks(name, plan) > 1e-3


@pytest.mark.parametrize("number", [0.0, -1e8, float(np.finfo(np.float32).min)])
def test_the_verifier_sees_wrong_edits_beside_scores_of_forbidden_actions(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands for -inf is no measure of a slope."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"fc.weight": (8, 4), "fc.bias": 8, "head.weight": (3, 8), "head.bias": 3}.items()
    }
    graph = GraphBuilder("masked")
    x, mask = graph.input("observation", (4,)), graph.input("action_mask", (3,), "bool")
    x = graph.op("Relu", graph.linear(x, "fc", arrays["fc.weight"], arrays["fc.bias"]))
    x = graph.linear(x, "head", arrays["head.weight"], arrays["head.bias"])
    graph.output(graph.op("Where", mask, x, graph.constant(number, "float32")), "logits", (3,))
    model = graph.model()
    slots = {"momentum_buffer": {name: ir.Tensor(array, name=name) for name, array in arrays.items()}}
    state = OptimizerState("sgd", slots, {}, (ParamGroup(tuple(arrays)),))
    before = surgery.Checkpoint(model, infer(model), optimizer=state)
    plan = surgery.widen(before, factor=1.5, init="net2net")
    exact, inputs = execute(plan, before, double=True), probes(before, ROWS, seed=0)
    assert check_slots(plan, before, exact, inputs, seed=0)[0].ok
    for wrong in WRONG:
        monkeypatch.setattr(
            SLOTS, "axis_maps", lambda *a, wrong=wrong: [k and wrong(k) for k in axis_maps(*a)]
        )
        assert check_slots(plan, before, exact, inputs, seed=0)[0].value > 1e-3


def test_what_only_onnxruntime_can_evaluate_is_compared_in_float32_alone() -> None:
    rng, graph = np.random.default_rng(0), GraphBuilder("of another domain")
    weights = {
        name: rng.standard_normal((4, 4)).astype(np.float32) for name in ("body.weight", "head.weight")
    }
    x = graph.input("observation", (4,))
    side = graph.op("Sigmoid", x)
    hidden = graph.op("Relu", graph.linear(x, "body", weights["body.weight"]))
    graph.output(graph.linear(hidden, "head", weights["head.weight"]), "q_values", (4,))
    graph.output(side, "side", (4,))
    model, node = graph.model(), side.producer()
    assert node is not None
    node.op_type, node.domain, model.graph.opset_imports["com.microsoft"] = "QuickGelu", "com.microsoft", 1
    slots = {"momentum_buffer": {name: ir.Tensor(array, name=name) for name, array in weights.items()}}
    state = OptimizerState("sgd", slots, {}, (ParamGroup(tuple(weights)),))
    before = surgery.Checkpoint(model, infer(model), optimizer=state)
    report = surgery.apply(surgery.widen(before, factor=2, init="net2net"), before).report
    assert report is not None and report.ok
    for name in ("outputs, float64", "optimizer slots"):
        check = report.check(name)
        assert check is not None and check.limit is None and "cannot evaluate QuickGelu" in check.detail


@pytest.mark.parametrize("name", ["minatar-breakout-dqn", "conv_scalars", "lstm_policy"])
def test_directions_of_large_tensors_judge_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of vectors: right edits pass, and wrong ones are as wrong."""
    monkeypatch.setattr(SLOTS, "LARGE", 0)
    for plan in plans(source(name), single=False):
        assert _checks(name, plan) <= LIMIT
    for wrong in WRONG:
        with monkeypatch.context() as patch:
            patch.setattr(
                SLOTS, "axis_maps", lambda *given, wrong=wrong: [a and wrong(a) for a in axis_maps(*given)]
            )
            assert _checks(name, surgery.widen(source(name).checkpoint, factor=1.4, init="net2net")) > 1e-3


def test_a_tensor_that_becomes_a_large_one_is_moved_along_one_direction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """10,080 weights between the hidden layers before, 14,280 after."""
    plan = surgery.widen(source("cartpole-dqn").checkpoint, widths={"network.0": 170})
    for limit in (0, 12_000, 1 << 20):
        monkeypatch.setattr(SLOTS, "LARGE", limit)
        assert _checks("cartpole-dqn", plan) <= LIMIT


def test_the_verifier_sees_a_history_that_is_not_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were new columns of a zero start declared known, their slots of 0 would be wrong."""
    plan = surgery.widen(source("cartpole-dqn").checkpoint, factor=1.4, init="zero")
    assert _checks("cartpole-dqn", plan) <= LIMIT
    monkeypatch.setattr(SLOTS, "unknown_history", lambda maps: False)
    assert _checks("cartpole-dqn", plan) > 1e-3


@pytest.mark.parametrize("name", ["cartpole-dqn", "minatar-breakout-dqn"])
@pytest.mark.parametrize("init", ["zero", "net2net"])
def test_the_state_of_a_real_run_follows_and_is_proved(name: str, init: str) -> None:
    checkpoint = surgery.attach(surgery.load(TEACHERS / f"{name}.onnx"), TEACHERS / f"{name}.pt")
    assert checkpoint.optimizer is not None
    plan = surgery.widen(checkpoint, factor=1.4, init=init)  # type: ignore[arg-type]
    result = surgery.apply(plan, checkpoint)
    assert result.report is not None and result.report.ok
    assert any(check.name == "optimizer slots" for check in result.report.checks)
    after, maps = result.checkpoint.optimizer, maps_of(plan)
    assert after is not None and after.slots.keys() == checkpoint.optimizer.slots.keys()
    for slot, members in checkpoint.optimizer.slots.items():
        for tensor, old in members.items():
            edited = (
                edit_slot(old.numpy(), maps[tensor], POWERS[after.kind][slot])
                if tensor in maps
                else old.numpy()
            )
            assert (after.slots[slot][tensor].numpy() == edited).all()
            assert after.slots[slot][tensor].dtype == old.dtype
