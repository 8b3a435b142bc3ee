"""The oracle of the fuzzer: an edit is refused, or it changes no output in float64 and its slots obey the slot rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import numpy as np
import onnx_ir as ir

import surgery
from surgery.edits.arithmetic import axis_maps, unknown_history
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, shrink
from surgery.errors import Refused
from surgery.graph.spaces import Analysis, Space
from surgery.interface import Interface, Port
from surgery.numeric import run
from surgery.optimizer import POWERS, OptimizerState, ParamGroup
from surgery.verify.outputs import runtime
from surgery.verify.slots import STEP, _moved, adjoint, check_slots
from tests.fuzzing import Array, Case
from tests.fuzzing_back import WAYS, back, reason
from tests.fuzzing_verdicts import LIMIT, SLACK, Arrays, Request, Tally, Wrong, gap, jitter, outputs

SLOTS = 1e-10
"""Relative; derivatives of random graphs cancel more than their values do."""

SINGLE = 1e-2
"""Relative, in float32: a second evaluator has the same opinion of what the operators mean."""


def checkpoint_of(case: Case, rng: np.random.Generator) -> surgery.Checkpoint:
    """The case as a checkpoint with optimizer state of a random kind."""
    model = ir.serde.deserialize_model(case.model)
    graph = model.graph
    state = any(name.startswith("state_in") for name in case.feeds)
    inputs = tuple(
        Port(str(v.name), "state" if str(v.name).startswith("state_in") else "observation")
        for v in graph.inputs
    )
    outputs = tuple(
        Port(str(v.name), "state" if state and k == 0 else "other") for k, v in enumerate(graph.outputs)
    )
    optimizer = optimizer_of(model, rng) if rng.random() < 0.85 else None
    return surgery.Checkpoint(model, Interface(inputs, outputs), optimizer=optimizer)


def optimizer_of(model: ir.Model, rng: np.random.Generator) -> OptimizerState:
    """State as if every slot of power p held g**p, for one random g; slots of power 0 hold ones."""
    kind = str(rng.choice([*POWERS]))
    slots: dict[str, dict[str, ir.TensorProtocol]] = {slot: {} for slot in POWERS[kind]}
    names = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or "." not in name:
            continue
        names.append(name)
        gradient = np.asarray(rng.standard_normal(tuple(tensor.shape)))
        for slot, power in POWERS[kind].items():
            slots[slot][name] = ir.Tensor(np.asarray(gradient**power, np.float64), name=name)
    return OptimizerState(kind, slots, {}, (ParamGroup(tuple(names), {"lr": 1e-3}),))


def requests(analysis: Analysis, rng: np.random.Generator, count: int) -> Iterator[dict[str, Any]]:
    """Random edits: single spaces, several, all by a factor; every initialisation."""
    hidden = [space for space in analysis.spaces if space.hidden]
    free = [space for space in hidden if space.widenable]
    forms = [("zero", "equal"), ("net2net", "equal"), ("net2net", "unequal"), ("auto", "equal")]
    for k in range(count):
        init, shares = forms[int(rng.integers(len(forms)))]
        seed = int(rng.integers(100))
        more = {"init": init, "shares": shares, "seed": seed}
        able = [space for space in free if _takes(space, init)] or free
        if not able or k == count - 1:
            yield {"factor": float(rng.choice([1.3, 1.5, 2, 2, 3])), **more}
            continue
        chosen = [able[j] for j in rng.permutation(len(able))[: 1 + int(rng.exponential(0.8))]]
        if rng.random() < 0.1:
            chosen.append(hidden[int(rng.integers(len(hidden)))])
        yield {"widths": _widths(analysis, chosen, init, rng), **more}


def _takes(space: Space, init: str) -> bool:
    return init == "auto" or init in space.inits


def _widths(analysis: Analysis, chosen: list[Space], init: str, rng: np.random.Generator) -> dict[str, int]:
    widths: dict[str, int] = {}
    for space in chosen:
        if space.whole and (space.padding is None or init == "net2net"):
            multiple = int(rng.integers(2, 4))
            together = (space.name, *space.alike)
            widths |= {
                name: multiple * analysis.by_name[name].size for name in together if name in analysis.by_name
            }
        else:
            together = space.linked or (space.name,)
            largest = max(analysis.by_name[name].size for name in together if name in analysis.by_name)
            width = largest + int(rng.integers(1, largest + 3))
            for name in together:
                widths.setdefault(name, width)
    return widths


def every_request(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """All single spaces in all forms, then everything at once: for shrinking."""
    rng = np.random.default_rng(0)
    forms = [("zero", "equal"), ("net2net", "equal"), ("net2net", "unequal")]
    for init, shares in forms:
        for space in analysis.spaces:
            if space.hidden and space.widenable and _takes(space, init):
                widths = _widths(analysis, [space], init, rng)
                yield {"widths": widths, "init": init, "shares": shares, "seed": 0}
    for init, shares in forms:
        for factor in (1.5, 2.0):
            yield {"factor": factor, "init": init, "shares": shares, "seed": 0}


# ---- judging ----------------------------------------------------------------------------------------------------


def judge(case: Case, tally: Tally, *, edits: int = 5, single: bool = False) -> Wrong | None:
    """Try random edits of a graph; the first failure is returned (and noted).

    Args:
      edits: how many. single: also let onnxruntime run the first result, in float32.
    """
    rng = np.random.default_rng([case.seed, case.number, 1])
    tally.graphs += 1
    tally.operators.update(case.operators)
    checkpoint = checkpoint_of(case, rng)
    try:
        analysis = checkpoint.analysis
    except Exception as error:  # whatever it is, it is a failure
        return _note(case, tally, Wrong(f"analyse: {type(error).__name__}", str(error), {}))
    for space in analysis.spaces:
        if space.hidden:
            tally.units["free" if space.widenable else f"frozen: {'/'.join(space.kinds) or 'mixer'}"] += 1
    old = run(checkpoint.model, case.feeds)
    for k, request in enumerate(requests(analysis, rng, edits)):
        wrong = attempt(case, checkpoint, old, request, tally, single=single and k == 0)
        if wrong is not None:
            return _note(case, tally, wrong)
    return None


def _note(case: Case, tally: Tally, wrong: Wrong) -> Wrong:
    tally.wrong.append((case, wrong))
    return wrong


def attempt(
    case: Case, checkpoint: surgery.Checkpoint, old: Arrays, request: Request, tally: Tally, *,
    single: bool = False, kind: str = "",
) -> Wrong | None:  # fmt: skip
    """One edit and all that must hold of it."""
    try:
        plan = surgery.widen(checkpoint, **request)
    except Refused as refused:
        tally.refused[reason(refused.message)] += 1
        return None
    except Exception as error:  # a refusal is the only way to say no
        return Wrong(f"widen: {type(error).__name__}", f"{error}", request)
    tally.edits += 1
    tally.edited.update(case.operators)
    before, turn = tally.unstable, crc32(repr(request).encode())  # the same whichever cases came before
    try:
        exact = execute(plan, checkpoint, double=True)
        found = (
            outputs(case, checkpoint, exact, plan, old, tally)
            or (_slots(case, checkpoint, exact, plan, tally) if tally.unstable == before else None)
            or _state(checkpoint, exact, plan)
            or (_repeatable(checkpoint, plan, request) if turn % 3 == 0 or kind == "determinism" else None)
            or (_single(case, checkpoint, plan, tally) if single else None)
            or _back(case, checkpoint, plan, tally, kind or [*WAYS, "", "", ""][turn % 6])
        )
    except Exception as error:
        return Wrong(f"execute: {type(error).__name__}", f"{error}", request)
    return Wrong(*found, request) if found else None


def _back(
    case: Case, checkpoint: surgery.Checkpoint, plan: Plan, tally: Tally, kind: str
) -> tuple[str, str] | None:
    """One way back after about every other edit; where a failure is looked for, its own."""
    way = kind.partition(":")[0]
    return back(case, checkpoint, plan, tally, way) if way in WAYS else None


def _slots(
    case: Case, before: surgery.Checkpoint, exact: surgery.Checkpoint, plan: Plan, tally: Tally
) -> tuple[str, str] | None:
    for check in check_slots(plan, before, exact, case.feeds, 0) if before.optimizer else ():
        tally.loose["slots"] += not check.ok
        if not check.value <= SLOTS and check.limit is not None:
            if check.value <= SLACK * wobble(before, case) or _flat(exact, case):
                tally.unstable += 1
                continue
            return "slot rule", f"{check.name}: {check.value:.3g}"
    return None


def _flat(checkpoint: surgery.Checkpoint, case: Case) -> bool:
    """Whether nothing depends on the parameters (the mean of what is centred): derivatives are rounding."""
    return all(float(np.abs(x).max(initial=0.0)) <= LIMIT for x in _slopes(checkpoint, case, 0.0))


def wobble(checkpoint: surgery.Checkpoint, case: Case) -> float:
    """How far the derivatives move, relative to the largest, when every parameter moves in its last bit.

    It is large where they cancel, and where a kink (Relu) lies exactly at a value.
    """
    first, *others = (_slopes(checkpoint, case, 1e-15 * k) for k in range(4))
    scale = max((float(np.abs(x).max(initial=0.0)) for x in first), default=0.0)
    moved = [
        float(np.abs(x - y).max(initial=0.0)) for other in others for x, y in zip(first, other, strict=True)
    ]
    worst = max(moved, default=0.0)
    return worst / scale if scale else np.inf if worst else 0.0


def _slopes(checkpoint: surgery.Checkpoint, case: Case, size: float) -> list[Array]:
    """Derivatives of the outputs along one direction, at parameters that are moved a little."""
    assert checkpoint.optimizer is not None
    tensors, rng = dict[str, ir.TensorProtocol](), np.random.default_rng(0)
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype.is_floating_point():
            array = tensor.numpy().astype(np.float64)
            tensors[name] = ir.Tensor(np.asarray(array * (1 + size * rng.standard_normal(array.shape))))
    tensors |= _moved(tensors, set(checkpoint.optimizer.parameters), {}, 0, {}, back=False)
    outputs = run(checkpoint.model, case.feeds, dtype=np.complex128, parameters=tensors)
    return [np.imag(x) / STEP for x in outputs.values()]


def _state(before: surgery.Checkpoint, exact: surgery.Checkpoint, plan: Plan) -> tuple[str, str] | None:
    """Slots that held powers of one gradient still do, and that gradient was edited as the slot rule's adjoint says."""
    old, new = before.optimizer, exact.optimizer
    if old is None or new is None:
        return None
    edited = {tensor.name: tensor for tensor in plan.tensors}
    first = next((slot for slot, power in POWERS[old.kind].items() if power == 1), None)
    for slot, power in POWERS[old.kind].items():
        for name, tensor in new.slots[slot].items():
            array = tensor.numpy()
            if name not in edited:
                if not np.array_equal(array, old.slots[slot][name].numpy()):
                    return "slots", f"{slot} of '{name}' changed, which the plan does not edit"
                continue
            maps = axis_maps(edited[name].axes, plan.edits)
            if array.shape != edited[name].after(plan.sizes):
                return "slots", f"{slot} of '{name}' has shape {array.shape}"
            if first is not None and power == 2:
                gradient = new.slots[first][name].numpy()
                if not np.allclose(array, gradient**2, rtol=1e-12, atol=0):
                    return "slots", f"{slot} of '{name}' is not the square of {first}"
            if power == 0 and not np.isin(array, (0.0, 1.0)).all():
                return "slots", f"{slot} of '{name}' has been scaled"
            if slot == first:
                direction = np.random.default_rng(0).standard_normal(array.shape)
                back = adjoint(np.where(unknown_history(maps), 0.0, direction), maps) / edited[name].scale
                forth = float((array * direction).sum())
                wanted = float((back * old.slots[slot][name].numpy()).sum())
                if not abs(forth - wanted) <= 1e-10 * (1 + abs(wanted)):
                    return "slots", f"{slot} of '{name}' is not edited like a gradient"
    return None


def _repeatable(checkpoint: surgery.Checkpoint, plan: Plan, request: Request) -> tuple[str, str] | None:
    record = plan.to_json()
    again = surgery.widen(checkpoint, **request).to_json()
    if again != record:
        parts = [f"{key}: {record[key]} or {again[key]}" for key in record if record[key] != again[key]]
        return "determinism", f"the same request gives another plan: {'; '.join(parts)[:600]}"
    if Plan.from_json(json.loads(json.dumps(record))) != plan:
        return "determinism", "the plan does not survive JSON"
    return None


def _single(case: Case, checkpoint: surgery.Checkpoint, plan: Plan, tally: Tally) -> tuple[str, str] | None:
    """The stored result in onnxruntime, against the original there; what it cannot load is left out."""
    feeds = {name: x.astype(np.float32) if x.dtype.kind == "f" else x for name, x in case.feeds.items()}
    try:
        old = runtime(checkpoint.model)(feeds)
    except Exception:  # onnxruntime has no kernel for everything
        return None
    double = run(checkpoint.model, case.feeds)
    if not gap(double, old) <= 1e-4:
        return None
    again = execute(plan, checkpoint)
    first, second = (
        {name: tensor.numpy().tobytes() for name, tensor in execute(plan, checkpoint).tensors.items()}
        for _ in range(2)
    )
    if first != second:
        return "determinism", "the same plan gives other bytes"
    new = shrink(plan, runtime(again.model)(grow(plan, feeds)))
    error = gap(old, new)
    if error <= SINGLE:
        return None
    if error <= SLACK * jitter(checkpoint.model, case.feeds, double, 1e-6):
        tally.unstable += 1
        return None
    return "float32", f"relative error {error:.3g} in onnxruntime"
