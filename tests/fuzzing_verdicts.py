"""What the fuzzer found and counted; and whether two graphs give the same outputs, as far as numbers can tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

import surgery
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, kept, shrink
from surgery.numeric import run
from surgery.verify.outputs import FLOAT64_LIMIT
from tests.fuzzing import Array, Case

LIMIT = 1e-12
"""Relative, in float64."""

SLACK = 1e3
"""How much further than parameters that differ in the last bit an edit may move the outputs."""

Request = Mapping[str, Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Wrong:
    """A failure: its kind (what shrinking preserves), the details, and what was asked for."""

    kind: str
    detail: str
    request: Request


@dataclass
class Tally:
    """What a run of the fuzzer saw.

    `unstable` edits were let off because the graph itself amplifies rounding; `loose` ones are right, but further off
    than the limits of `surgery.verify` allow. `back` counts ways back from what was widened.
    """

    graphs: int = 0
    drawn: int = 0
    edits: int = 0
    units: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    edited: Counter[str] = field(default_factory=Counter)
    back: Counter[str] = field(default_factory=Counter)
    unstable: int = 0
    loose: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[Case, Wrong]] = field(default_factory=list)


def gap(old: Mapping[str, Array], new: Mapping[str, Array]) -> float:
    """The largest difference relative to its output's largest element; NaN and other shapes are infinitely far."""
    worst = 0.0
    for name, before in old.items():
        after = np.asarray(new[name])
        if before.shape != after.shape:
            return np.inf
        if before.dtype == bool or before.dtype.kind in "iu":
            worst = max(worst, float((before != after).any()))
            continue
        scale = float(np.abs(before).max(initial=0.0)) or 1.0
        error = float(np.abs(before - after).max(initial=0.0)) / scale
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def outputs(
    case: Case, before: surgery.Checkpoint, exact: surgery.Checkpoint, plan: Plan, old: Arrays, tally: Tally
) -> tuple[str, str] | None:
    """What is wrong with the outputs of an edited checkpoint, in float64."""
    error = _apart(case, before, exact, plan, old)
    tally.loose["outputs"] += error > FLOAT64_LIMIT
    if error <= LIMIT:
        return None
    if error <= SLACK * jitter(before.model, case.feeds, old, 1e-15):
        tally.unstable += 1
        return None
    if _finer(case, before, exact, plan) <= error / SLACK or error <= 4 * _stored_epsilon(before, case, old):
        tally.unstable += 1
        return None
    return "outputs", f"relative error {error:.3g}"


def _apart(
    case: Case,
    before: surgery.Checkpoint,
    exact: surgery.Checkpoint,
    plan: Plan,
    old: Arrays,
    dtype: type = np.float64,
) -> float:
    """The largest difference in one step, and in the next, into which goes the state that has come out."""
    given = grow(plan, case.feeds)
    new = run(exact.model, given, dtype=dtype)
    error, states = gap(kept(plan, old), shrink(plan, new)), before.interface.states()
    if not states or any(case.feeds[name].shape != old[result].shape for name, result in states.items()):
        return error
    once, again = (
        run(model, {**feeds, **{name: came[result] for name, result in states.items()}}, dtype=dtype)
        for model, feeds, came in ((before.model, case.feeds, old), (exact.model, given, new))
    )
    return max(error, gap(kept(plan, once), shrink(plan, again)))


def _finer(case: Case, before: surgery.Checkpoint, exact: surgery.Checkpoint, plan: Plan) -> float:
    """The error with more digits: rounding shrinks (an average of equal numbers, say), what is wrong does not."""
    old = run(before.model, case.feeds, dtype=np.longdouble)
    return _apart(case, before, exact, plan, old, np.longdouble)


def _stored_epsilon(checkpoint: surgery.Checkpoint, case: Case, old: Arrays) -> float:
    """How far the outputs move with the last bit of the ε of normalisations, which attributes hold in float32."""
    model = checkpoint.model.clone()
    for node in model.graph:
        if "epsilon" in node.attributes:
            moved = node.attributes["epsilon"].as_float() * (1 + float(np.finfo(np.float32).eps))
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", moved)
        elif node.op_type in ("LayerNormalization", "RMSNormalization"):
            node.attributes["epsilon"] = ir.AttrFloat32(
                "epsilon", 1e-5 * (1 + float(np.finfo(np.float32).eps))
            )
    return gap(old, run(model, case.feeds))


def jitter(model: ir.Model, feeds: Arrays, old: Arrays, size: float) -> float:
    """How far the outputs move when every parameter moves by about this relative amount."""
    worst = 0.0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        moved = {
            name: _nudged(v.const_value.numpy(), size, rng)
            for name, v in model.graph.initializers.items()
            if v.const_value is not None and v.const_value.dtype.is_floating_point()
        }
        inputs = {
            name: x * (1 + size * rng.standard_normal(x.shape)) if x.dtype.kind == "f" else x
            for name, x in feeds.items()
        }
        worst = max(worst, gap(old, run(model, {k: np.asarray(x, np.float64) for k, x in inputs.items()},
                                        parameters=moved)))  # fmt: skip
    return worst


def _nudged(array: Array, size: float, rng: np.random.Generator) -> Array:
    """Whole numbers are literals (the scale of a Resize, say), and stay."""
    moved = array * (1 + size * rng.standard_normal(array.shape))
    return np.where(array == np.round(array), array, moved)
