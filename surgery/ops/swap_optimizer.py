"""Swap the optimizer in the middle of a training run: the weights stay, and the new one knows what the old one knew.

The state of the new optimizer is written from the gradient statistics that the old one collected
(`surgery.ops.optimizer_moments`); its learning rate is chosen per tensor such that a gradient moves the weights as far
as it would have, altogether: the same nominal settings of two optimizers can be two orders of magnitude apart.
What this comes to is measured and reported.

This is no `Plan`: a plan edits axes and fits every checkpoint with the same graph; here every number follows from the
numbers of one state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint, check_finite
from surgery.errors import ArgumentError, UnknownName
from surgery.interface import LineageStep
from surgery.json_values import Json
from surgery.ops.optimizer_moments import ADAMS, Hyper, number
from surgery.ops.optimizer_settings import at_rate, check_pair, settings
from surgery.ops.swap_tensor import Member, TensorSwap
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.storage import save
from surgery.tensors import shape_of

Match = Literal["tensor", "all", "none"]


@dataclass(frozen=True)
class SwapReport:
    """What is carried over, what is not, and how the first update changes.

    Attributes:
      before, after: kinds.
      tensors: one row per parameter.
      carried, lost: in words.
      measured: "gradients" if real ones were given, "state" if they were drawn from the state's statistics.
    """

    before: str
    after: str
    tensors: tuple[TensorSwap, ...]
    carried: tuple[str, ...]
    lost: tuple[str, ...]
    measured: Literal["gradients", "state"]

    def summary(self) -> str:
        """One line."""
        kept, rates = sum(row.carried for row in self.tensors), sorted(row.lr for row in self.tensors)
        span = " to ".join(dict.fromkeys(f"{rate:.3g}" for rate in (rates[0], rates[-1])))
        parts = [
            f"{self.before} → {self.after}",
            f"{kept} of {len(self.tensors)} tensors carried",
            f"lr {span}",
        ]
        cosines = [row.direction for row in self.tensors if row.direction is not None]
        return " · ".join([*parts, *([f"direction kept to cosine {min(cosines):.4g}"] if cosines else [])])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "from": self.before,
            "to": self.after,
            "measured_on": self.measured,
            "carried": list(self.carried),
            "lost": list(self.lost),
            "tensors": [row.to_json() for row in self.tensors],
        }


@dataclass(frozen=True)
class Swap:
    """A checkpoint with another optimizer.

    Attributes:
      checkpoint: the same model, its lineage one step longer.
      report: what was carried, and what was measured.
    """

    checkpoint: Checkpoint
    report: SwapReport

    def save(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the checkpoint; see `surgery.save`."""
        return save(self.checkpoint, path, force=force)


def swap_optimizer(
    checkpoint: Checkpoint,
    to: str,
    *,
    match: Match | None = None,
    was: Mapping[str, Json] | None = None,
    gradients: Mapping[str, Array] | None = None,
    seed: int = 0,
    **options: Json,
) -> Swap:
    """Give a checkpoint another optimizer that knows what the old one knew.

    Args:
      checkpoint: with optimizer state; its weights are not touched.
      to: "adam", "adamw", "rmsprop" or "sgd".
      match: how the learning rate is chosen: per "tensor" or one for "all", such that a gradient moves the weights as
        far as before; "none" keeps the number as it is, and so does giving `lr`. By default per tensor, and one for
        all of a framework's own file, whose optimizer has the groups that the training script makes.
      was: settings of the old optimizer that its file does not tell: `eps_inside_root`, `buffer_holds_lr`,
        `starts_at_one` (TensorFlow's RMSProp: all true).
      gradients: of real batches, by parameter, each of shape (batches, *shape): the first update is measured on them,
        and second moments that the old optimizer does not keep (SGD) are filled from them.
      seed: of the gradients that are drawn where none are given.
      options: settings of the new optimizer under PyTorch's names (`lr`, `betas`, `eps` …); what is not given is
        carried over where it means the same, else PyTorch's default.

    Returns:
      The new checkpoint and the report.

    Raises:
      ArgumentError: there is no optimizer, or a setting is out of range. UnknownName: a kind or setting.
      Refused: a kind, a slot or a weight decay that does not carry over, with the reason.
      GraphError: the state holds NaN or infinity.
    """
    state = checkpoint.optimizer
    if state is None:
        raise ArgumentError(
            "the checkpoint has no optimizer state", hint="surgery attach MODEL CHECKPOINT -o OUT"
        )
    check_finite(checkpoint)
    weights = {name: checkpoint.tensors[name] for name in state.parameters if name in checkpoint.tensors}
    if match is None and checkpoint.origin is not None and "lr" not in options:
        match = "all"
    new, report = swap_state(
        state, to, weights=weights, match=match, was=was, gradients=gradients, seed=seed, options=options
    )
    step = LineageStep(
        "swap_optimizer",
        parents=(checkpoint.digest(),),
        versions={name: version(name) for name in ("policy-surgery", "numpy")},
        seed=seed,
        summary={"options": dict(options), "was": dict(was or {}), "match": match, **report.to_json()},
        witness={"claim": "identical", "ok": True, "digest": checkpoint.digest()},
    )
    swapped = checkpoint.replace(optimizer=new, lineage=(*checkpoint.lineage, step), path=None)
    return Swap(swapped, report)


def swap_state(
    state: OptimizerState,
    to: str,
    *,
    weights: Mapping[str, ir.TensorProtocol],
    match: Match | None = None,
    was: Mapping[str, Json] | None = None,
    gradients: Mapping[str, Array] | None = None,
    seed: int = 0,
    options: Mapping[str, Json] | None = None,
) -> tuple[OptimizerState, SwapReport]:
    """`swap_optimizer` for the state alone; slots are computed when they are read, a tensor at a time.

    Args:
      weights: the parameters, by name, of which L2 decay makes a part of the gradient.
    """
    options, gradients = dict(options or {}), dict(gradients or {})
    if match not in (None, "tensor", "all", "none"):
        raise UnknownName("match", str(match), ("tensor", "all", "none"))
    _check_gradients(gradients, weights)
    members = _members(state, to, options, was or {}, weights, gradients, seed)
    rule: Match = match or ("none" if "lr" in options else "tensor")
    rates = _rates(members, rule)
    rows, groups = [], []
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    steps: dict[str, float] = {}
    for member in members:
        hyper = at_rate(to, member.old, member.new, rates[member.name])
        rows.append(member.row(hyper))
        groups.append((member.name, hyper))
        names, count = _outline(member, hyper)
        for slot in names:
            slots.setdefault(slot, {})[member.name] = member.lazy(slot, hyper)
        if count is not None:
            steps[member.name] = count
    source: Literal["gradients", "state"] = "gradients" if gradients else "state"
    carried, lost = _in_words(members, slots, [row.name for row in rows if not row.carried], rule)
    report = SwapReport(state.kind, to, tuple(rows), carried, lost, source)
    return OptimizerState(to, slots, steps, _regrouped(groups)), report


def _members(
    state: OptimizerState,
    to: str,
    options: Mapping[str, Json],
    was: Mapping[str, Json],
    weights: Mapping[str, ir.TensorProtocol],
    gradients: Mapping[str, Array],
    seed: int,
) -> list[Member]:
    found: list[Member] = []
    for group in state.groups:
        old = {**group.hyper, **was}
        check_pair(state.kind, old, to, options, was)
        new = settings(state.kind, old, to, options)
        for name in group.parameters:
            slots = {slot: members[name] for slot, members in state.slots.items() if name in members}
            each = slots.pop("step", None)
            unknown = math.inf if slots or state.kind == "sgd" else 0.0
            count = state.steps.get(name, unknown) if each is None else np.asarray(each.numpy(), np.float64)
            real = gradients.get(name)
            found.append(
                Member(
                    name, weights.get(name), (state.kind, to), old, new, slots, count,
                    None if real is None else np.asarray(real, np.float64), seed + len(found),
                )
            )  # fmt: skip
    return found


def _check_gradients(gradients: Mapping[str, Array], weights: Mapping[str, ir.TensorProtocol]) -> None:
    for name, array in gradients.items():
        if name not in weights:
            raise UnknownName("parameter", name, weights)
        shape = shape_of(weights[name])
        if np.shape(array)[1:] != shape or not len(array):
            raise ArgumentError(
                f"the gradients of '{name}' have the shape {list(np.shape(array))}",
                hint=f"one per batch is wanted: [batches, {', '.join(map(str, shape))}]",
            )
        if not np.isfinite(array).all():
            raise ArgumentError(f"the gradients of '{name}' hold NaN or infinity")


def _rates(members: Sequence[Member], rule: Match) -> dict[str, float]:
    """The learning rate of every tensor."""
    if rule == "none":
        return {member.name: number(member.new, "lr") for member in members}
    lowest = min(number(member.new, "lr") for member in members)
    if lowest <= 0:
        raise ArgumentError(
            f"the old optimizer's learning rate is {lowest:g} (its schedule has ended?): no step can be as long as "
            "that optimizer's",
            hint="leave the rate to the schedule: --match none; or give the new one: --set lr=X",
        )
    ratios: dict[str, float] = {}
    total = np.zeros(2)
    for member in members:
        reach = member.reach(member.arrays(), member.new)
        if reach is not None and min(reach) > 0:
            ratios[member.name] = math.sqrt(reach[0] / reach[1])
            total += reach[:2]
    if not ratios:
        kind, to = members[0].kinds
        raise ArgumentError(
            f"the state of '{kind}' does not say how large the steps of '{to}' would be",
            hint="give the new learning rate (lr), or gradients of real batches",
        )
    overall = float(np.sqrt(total[0] / total[1]))
    own = ratios if rule == "tensor" else {}
    return {member.name: number(member.new, "lr") * own.get(member.name, overall) for member in members}


def _outline(member: Member, hyper: Hyper) -> tuple[list[str], float | None]:
    """The names of the new slots (`step` among them where elements are counted apart), and a common count."""
    slots, count = member.written(member.arrays(), hyper)
    if not slots or count is None:
        return list(slots), None
    if isinstance(count, np.ndarray) and count.ndim:
        return [*slots, "step"], None
    return list(slots), float(count)


def _regrouped(members: Sequence[tuple[str, Hyper]]) -> tuple[ParamGroup, ...]:
    """Tensors with the same settings in one group, in the order of their first members."""
    groups: dict[str, tuple[list[str], Hyper]] = {}
    for name, hyper in members:
        groups.setdefault(repr(sorted(hyper.items())), ([], hyper))[0].append(name)
    return tuple(ParamGroup(tuple(names), hyper) for names, hyper in groups.values())


def _in_words(
    members: Sequence[Member], slots: Mapping[str, Any], fresh: Sequence[str], rule: Match
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    old, new = members[0].kinds
    had = {slot for member in members for slot in member.slots}
    carried, lost = [], []
    mean = {"exp_avg", "grad_avg", "momentum_buffer"}
    squares = {"exp_avg_sq", "square_avg"}
    for what, names in (("mean of gradients", mean), ("mean of squares", squares)):
        before, after = sorted(names & had), sorted(names & set(slots))
        if before and after:
            carried.append(f"{what}: {', '.join(before)} → {', '.join(after)}")
        elif before:
            lost.append(f"{what}: {', '.join(before)} (no slot of '{new}' holds it)")
        elif after:
            lost.append(f"{what}: '{old}' keeps none; {', '.join(after)} starts at 0")
    if "max_exp_avg_sq" in had and "max_exp_avg_sq" not in slots:
        lost.append("largest mean of squares: max_exp_avg_sq (AMSGrad is off)")
    if rule != "none":
        carried.append(
            "reach of a gradient: learning rate matched " + ("per tensor" if rule == "tensor" else "over all")
        )
    if fresh and new in (*ADAMS, "rmsprop"):
        lost.append(f"without state, starting afresh: {', '.join(fresh[:5])}{' …' if len(fresh) > 5 else ''}")
    return tuple(carried), tuple(lost)
