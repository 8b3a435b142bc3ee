"""A sidecar changes no bit at first, hands over as its gate says, and the old network goes without a trace."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.architectures import new
from surgery.cli import main
from surgery.errors import ArgumentError, ClaimFailed, Refused
from surgery.graph.beside import PREFIX
from surgery.probes import probes
from surgery.sidecar import GATE, finish, gate, set_gate, sidecar
from surgery.verify.outputs import runtime
from tests import zoo
from tests.originals import original
from tests.test_deepen import with_adam

HEADS = ("q", "dueling", "c51", "qr", "actor-critic", "gaussian")
FIXTURES = Path(__file__).parent / "fixtures"
IMAGE, VECTOR = (4, 36, 36), (7,)
PAIRS = [
    *[pytest.param("mlp-16-16", "mlp-24", VECTOR, head, id=f"mlp-mlp-{head}") for head in HEADS],
    *[pytest.param("mlp-16", "lstm-8", VECTOR, head, id=f"mlp-lstm-{head}") for head in HEADS],
    pytest.param("lstm-12", "gru-8", VECTOR, "actor-critic", id="lstm-gru"),
    pytest.param("gru-8", "mlp-16", VECTOR, "q", id="gru-mlp"),
    pytest.param("nature", "impala", IMAGE, "q", id="nature-impala-q"),
    pytest.param("nature", "impala", IMAGE, "actor-critic", id="nature-impala-actor-critic"),
    pytest.param("impala", "nature", IMAGE, "dueling", id="impala-nature-dueling"),
]


def trained(checkpoint: surgery.Checkpoint, seed: int = 0) -> surgery.Checkpoint:
    """The checkpoint with every tensor of the new network moved, as training would."""
    model, rng = checkpoint.model.clone(), np.random.default_rng(seed)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if name.startswith(PREFIX) and tensor.dtype.is_floating_point() and tensor.size > 1:
            moved = tensor.numpy() + 0.05 * rng.standard_normal(tuple(tensor.shape)).astype(np.float32)
            value.const_value = ir.tensor(moved, name=name)
    return checkpoint.replace(model=model)


@pytest.mark.parametrize(("old", "other", "observation", "head"), PAIRS)
def test_the_network_is_the_old_one_at_first_and_the_new_one_in_the_end(
    old: str, other: str, observation: tuple[int, ...], head: str, tmp_path
) -> None:
    teacher = with_adam(new(old, observation=observation, actions=5, head=head, seed=1))
    student = new(other, observation=observation, actions=5, head=head, seed=2)
    both = sidecar(teacher, student)
    assert both.report.ok and both.report.max_abs_error == 0
    both.save(tmp_path / "both.onnx")
    moved = trained(surgery.load(tmp_path / "both.onnx"))
    inputs = probes(moved, 3, 0)
    halfway = runtime(set_gate(moved, 0.5).model)(inputs)
    alone = finish(set_gate(moved, 1.0))
    assert alone.report.ok
    alone.save(tmp_path / "new.onnx")
    result = surgery.load(tmp_path / "new.onnx")
    assert set(result.tensors) == set(student.tensors)
    assert [p.name for p in result.interface.inputs] == [p.name for p in student.interface.inputs]
    assert [p.name for p in result.interface.outputs] == [p.name for p in student.interface.outputs]
    # by hand: y = (1 − g)·old + new
    own = {p.name: inputs.get(PREFIX + p.name, inputs.get(p.name)) for p in student.interface.inputs}
    first = runtime(teacher.model)({n: inputs[n] for n in (p.name for p in teacher.interface.inputs)})
    second = runtime(result.model)(own)
    for port in teacher.interface.outputs:
        if port.kind != "state":
            blended = 0.5 * first[port.name] + second[port.name]
            np.testing.assert_allclose(halfway[port.name], blended, rtol=1e-5, atol=1e-6)


def test_the_optimizer_keeps_the_old_and_starts_the_new(tmp_path) -> None:
    teacher = with_adam(new("mlp-16", observation=VECTOR, actions=3, seed=1))
    student = new("mlp-24-24", observation=VECTOR, actions=3, seed=2)
    both = sidecar(teacher, student).checkpoint
    state = both.optimizer
    assert state is not None and teacher.optimizer is not None
    assert set(state.parameters) == {*teacher.tensors, *(PREFIX + n for n in student.tensors)}
    assert GATE not in state.parameters
    for slot, held in teacher.optimizer.slots.items():
        assert all(state.slots[slot][n].tobytes() == t.tobytes() for n, t in held.items())
        assert not any(state.slots[slot][PREFIX + n].numpy().any() for n in student.tensors)
    assert {state.steps[PREFIX + n] for n in student.tensors} == {0.0}
    alone = finish(set_gate(both, 1.0)).checkpoint
    assert alone.optimizer is not None
    assert sorted(alone.optimizer.parameters) == sorted(student.tensors)


def test_a_student_that_has_been_trained_brings_its_own_state() -> None:
    teacher = with_adam(new("mlp-16", observation=VECTOR, actions=3, seed=1))
    student = with_adam(new("mlp-24", observation=VECTOR, actions=3, seed=2))
    both = sidecar(teacher, student).checkpoint
    head = [n for n in student.tensors if not both.tensors[PREFIX + n].numpy().any()]
    assert head and both.optimizer is not None and student.optimizer is not None
    for name in student.tensors:
        slot = both.optimizer.slots["exp_avg"][PREFIX + name]
        if name in head:
            assert not slot.numpy().any() and both.optimizer.steps[PREFIX + name] == 0
        else:
            assert slot.tobytes() == student.optimizer.slots["exp_avg"][name].tobytes()
            assert both.optimizer.steps[PREFIX + name] == 10


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize("name", ["nature_nhwc", "impala", "sac_actor", "lstm_policy"])
def test_networks_of_every_export_style_carry_one(name: str, style: str) -> None:
    """Another network of the same task, exported in another way."""
    teacher = original(name, style).checkpoint
    student = surgery.load(zoo.export(name, "torchscript", seed=1))
    both = sidecar(teacher, student)
    moved = set_gate(trained(both.checkpoint), 1.0)
    assert finish(moved).report.ok


def test_only_the_last_layer_is_zero_and_it_learns_at_once() -> None:
    from surgery.numeric import run

    teacher = new("mlp-16", observation=VECTOR, actions=3, seed=1)
    student = new("mlp-24-24", observation=VECTOR, actions=3, seed=2)
    both = sidecar(teacher, student).checkpoint
    zero = {n for n in student.tensors if not both.tensors[PREFIX + n].numpy().any()}
    assert zero == {n for n in student.tensors if n.startswith("q.")} | {
        n for n in student.tensors if not student.tensors[n].numpy().any()
    }
    weight = both.tensors[f"{PREFIX}q.weight"].numpy().astype(np.float64)
    moved = {f"{PREFIX}q.weight": weight + 1e-30j * np.ones_like(weight)}
    slope = run(both.model, probes(both, 4, 0), dtype=np.complex128, parameters=moved)["q_values"].imag
    assert np.abs(slope).max() > 0


def test_the_gate_is_no_parameter_of_the_module_and_moves_it() -> None:
    torch = pytest.importorskip("torch")
    from surgery.torch import to_module

    teacher = new("mlp-16", observation=VECTOR, actions=3, seed=1)
    both = trained(sidecar(teacher, new("mlp-24", observation=VECTOR, actions=3, seed=2)).checkpoint)
    module = to_module(both)
    assert GATE in module.state_dict() and GATE not in dict(module.named_parameters())
    x = torch.from_numpy(probes(both, 4, 0)["observation"])
    for value in (0.0, 0.25, 1.0):
        with torch.no_grad():
            module.get_buffer(GATE).fill_(value)
            found = module(x).numpy()
        wanted = runtime(set_gate(both, value).model)({"observation": x.numpy()})["q_values"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


# ---- what must fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.35, 0.999999])
def test_the_old_network_stays_as_long_as_it_counts(value: float) -> None:
    teacher = new("mlp-16", observation=VECTOR, actions=3, seed=1)
    both = sidecar(teacher, new("mlp-24", observation=VECTOR, actions=3, seed=2)).checkpoint
    assert gate(set_gate(both, value)) == pytest.approx(value)
    with pytest.raises(Refused, match=f"the gate is {value:g}"):
        finish(set_gate(both, value))


def test_a_last_layer_that_is_not_zero_is_caught(monkeypatch) -> None:
    # the name surgery.sidecar is the function
    monkeypatch.setattr(sys.modules[sidecar.__module__], "zeroed_for", lambda *_: frozenset())
    teacher = new("mlp-16", observation=VECTOR, actions=3, seed=1)
    with pytest.raises(ClaimFailed, match="would change the function"):
        sidecar(teacher, new("mlp-24", observation=VECTOR, actions=3, seed=2))


def _task(**changes: object) -> surgery.Checkpoint:
    how = {"arch": "mlp-24", "observation": VECTOR, "actions": 3, "head": "q", **changes}
    return new(how.pop("arch"), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("student", "error", "says"),
    [
        (lambda: _task(actions=4), ArgumentError, "output 'q_values' of the networks differs"),
        (lambda: _task(observation=(8,)), ArgumentError, "input 'observation' of the networks differs"),
        (
            lambda: _task(observation=(*VECTOR, 1, 1)),
            ArgumentError,
            "input 'observation' of the networks differs",
        ),
        (lambda: _task(dtype="uint8"), ArgumentError, "input 'observation' of the networks differs"),
        (lambda: _task(head="actor-critic"), ArgumentError, "nothing fits 'q_values'"),
    ],
)
def test_networks_that_do_not_fit_are_refused(student, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        sidecar(new("mlp-16", observation=VECTOR, actions=3, seed=1), student())


@pytest.mark.parametrize(("name", "says"), [("c51", "Softmax"), ("actor_critic", "LogSoftmax")])
def test_an_output_that_cannot_start_at_zero_is_refused_by_name(name: str, says: str) -> None:
    checkpoint = original(name, "dynamo").checkpoint
    with pytest.raises(Refused, match=says):
        sidecar(checkpoint, surgery.load(zoo.export(name, "dynamo", seed=1)))


def test_a_model_without_a_side_car_and_one_with_two_are_refused() -> None:
    teacher = new("mlp-16", observation=VECTOR, actions=3, seed=1)
    with pytest.raises(ArgumentError, match="no sidecar"):
        finish(teacher)
    both = sidecar(teacher, _task()).checkpoint
    with pytest.raises(Refused, match="a sidecar already"):
        sidecar(both, _task())
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match="a gate of"):
            set_gate(both, value)


def test_the_verbs(tmp_path, capsys) -> None:
    old, other = tmp_path / "old.onnx", tmp_path / "new.onnx"
    surgery.save(new("mlp-16", observation=VECTOR, actions=3, seed=1), old)
    surgery.save(_task(), other)
    both, done, final = (str(tmp_path / name) for name in ("both.onnx", "done.onnx", "final.onnx"))
    assert main(["sidecar", str(old), str(other), "-o", both]) == 0
    assert "outputs equal (max |Δ| 0)" in capsys.readouterr().out
    assert main(["finish", both, "-o", final]) == 1
    assert "the gate is 0" in capsys.readouterr().err
    assert main(["gate", both]) == 0
    assert capsys.readouterr().out.strip() == "0"
    assert main(["gate", both, "--to", "1", "-o", done]) == 0
    assert main(["finish", done, "-o", final]) == 0
    assert surgery.load(final).lineage[-1].operation == "finish"
    assert main(["gate", both, "--to", "2", "-o", str(tmp_path / "x.onnx")]) == 2
    assert main(["sidecar", str(old), str(old), "-o", both]) == 2  # exists
    named = str(tmp_path / "named.onnx")
    assert main(["migrate", str(old), "--to", "mlp-24-24", "--route", "sidecar", "-o", named, "--json"]) == 0
    assert '"max_abs_error": 0' in capsys.readouterr().out
    assert f"{PREFIX}q.weight" in surgery.load(named).tensors
    assert main(["sidecar", str(old), "mlp-0", "-o", str(tmp_path / "y.onnx")]) == 2


def test_the_new_network_may_lie_in_a_framework_s_own_folder(tmp_path, capsys) -> None:
    """One of RLlib's, beside itself; `migrate --to` reads it as the same network."""
    with zipfile.ZipFile(FIXTURES / "rllib" / "ppo.zip") as archive:
        archive.extractall(tmp_path / "theirs")
    theirs, old, both = (str(tmp_path / name) for name in ("theirs", "old.onnx", "both.onnx"))
    assert main(["convert", theirs, "-o", old]) == 0
    assert main(["sidecar", old, theirs, "-o", both]) == 0
    assert "outputs equal (max |Δ| 0)" in capsys.readouterr().out
    assert {f"{PREFIX}{name}" for name in surgery.load(old).tensors} <= set(surgery.load(both).tensors)
    assert main(["migrate", old, "--to", theirs, "--dry-run"]) == 0
    assert "pi.net.mlp.2" in capsys.readouterr().out
