"""A widened network that trains as the small one did: the same trajectory, whatever the widths, to the last bits.

The optimizer is given every widened parameter in the coordinates of the small network: hooks divide gradients by t and
weights by s before a step, and bring the change back after it (`surgery.torch.trajectory.factors`). Whatever treats
elements one by one then does what it did before: SGD, Adam, AdamW, RMSProp …, any ε, any decay, any learning rate and
schedule, with nothing to set. For whole multiples and equal shares `surgery.recipe` says the same in param groups.

    optimizer = ...                                     # of the widened module, its state widened too
    trajectory = follow(optimizer, module, plan)
    ...
    loss.backward()
    trajectory.clip_grad_norm_(0.5)                     # the norm that the small network would have
    optimizer.step()
    ...
    break_symmetry(trajectory, "fc")                    # from here on, the copies in 'fc' learn things of their own
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgery.edits.arithmetic import SpaceEdit
from surgery.edits.parts import TensorEdit
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, PlanMismatch, Refused, shape_text
from surgery.optimizer import POWERS, SCALARS, WHOLE, power
from surgery.torch.optimizer_state import is_nested, is_sharded, kind_of, named, parameters_of, plain_name
from surgery.torch.trajectory.factors import Factors, factors
from surgery.torch.trajectory.steps import CORRECTED, correct, grown_up

DETACH = (
    "end that with trajectory.detach() first: until then the state is in the coordinates of a smaller network"
)


@torch.inference_mode(False)
def follow(
    optimizer: torch.optim.Optimizer,
    model: nn.Module | Iterable[tuple[str, Tensor]],
    plan: Plan,
    *,
    own_steps: bool = True,
) -> Trajectory:
    """Let an optimizer go on with a widened network as it would have with the small one.

    Args:
      optimizer: of the widened network, with its state widened by the plan's rules (or with none). Its class must
        treat elements one by one.
      model: the widened module, or its named parameters; names are those of the plan.
      plan: the widening. Copies of which a maximum is taken part all the same (its `inexact_slots`).
      own_steps: whether fresh entries have step counts of their own (Adam, AdamW, RMSProp), so that they neither
        overshoot nor wait.

    Returns:
      The handle. Until it is detached, the optimizer's state is in the coordinates of the small network;
      `optimizer.state_dict()` and `load_state_dict` translate, and give what the widened network would have.

    Raises:
      PlanMismatch: a parameter does not have the shape that the plan gives it, or none of the plan's is trained.
      ArgumentError: the optimizer follows a trajectory already.
      Refused: an optimizer without rules; a plan that merges units, which went different ways before; parameters that
        are sharded.
    """
    return Trajectory(optimizer, model, plan, own_steps=own_steps)


@dataclass
class Tracked:
    """A parameter that the plan edits.

    Attributes:
      edit: of the parameter. weight: the parameter. factors: see there.
      counts: updates of each entry, infinite for the old ones; None if all are old.
      before, gradient: what the parameter and its gradient were when the step began; None outside of one.
    """

    edit: TensorEdit
    weight: Tensor
    factors: Factors
    counts: Tensor | None = None
    before: Tensor | None = None
    gradient: Tensor | None = None


class Trajectory:
    """The handle that `follow` gives."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module | Iterable[tuple[str, Tensor]],
        plan: Plan,
        *,
        own_steps: bool,
    ) -> None:
        if trajectory_of(optimizer) is not None:
            raise ArgumentError(
                "the optimizer follows a trajectory already",
                hint=f"{DETACH}; networks that share an optimizer are operated on and followed as one module",
            )
        self.optimizer, self.plan, self.own_steps = optimizer, plan, own_steps
        self.kind = ruled_kind(optimizer)
        if self.kind in WHOLE:
            raise Refused(
                f"{WHOLE[self.kind]}: training cannot continue exactly as before",
                hint="follow the optimizer of the other parameters, and keep this one as it is",
            )
        self.edits: dict[str, SpaceEdit] = dict(plan.edits)
        if merging := [name for name, edit in self.edits.items() if edit.merged]:
            raise Refused(f"'{merging[0]}' merges units: there is no single trajectory to follow")
        names = named(model) if isinstance(model, nn.Module) else _plain(model)
        self.tracked = dict(_track(optimizer, names, plan, self.edits))
        if not self.tracked:
            raise PlanMismatch("the optimizer trains no parameter that the plan edits",
                               hint="give the module that the plan was applied to; an optimizer of nothing but other "
                               "parameters goes on by itself")  # fmt: skip
        self.settling, self._settled, self._ramp = 0, 0, False
        for tracked in self.tracked.values():
            if tracked.factors.fresh is not None:
                self.rejuvenate(tracked, tracked.factors.fresh)
        self._scale_state(-1)
        self._handles = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
            optimizer.register_state_dict_post_hook(self._translated),
            optimizer.register_load_state_dict_post_hook(lambda _: self._scale_state(-1)),
        ]

    def detach(self) -> None:
        """Leave the optimizer alone from now on, its state that of the widened network."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            self._scale_state(1)
        self._handles = []

    def clip_grad_norm_(self, max_norm: float, *, error_if_nonfinite: bool = False) -> Tensor:
        """`torch.nn.utils.clip_grad_norm_` by the norm that the gradients of the small network have.

        Returns:
          That norm, before clipping.
        """
        total = self.grad_norm()
        if error_if_nonfinite and not bool(torch.isfinite(total)):
            raise ArgumentError("the norm of the gradients is not finite, so that they cannot be clipped")
        scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for weight in parameters_of(self.optimizer):
            if weight.grad is not None:
                weight.grad.mul_(scale.to(weight.grad.device))
        return total

    def clip_grad_value_(self, clip_value: float) -> None:
        """`torch.nn.utils.clip_grad_value_` of the gradients that the small network has."""
        known = {tracked.weight: tracked.factors.gradient for tracked in self.tracked.values()}
        for weight in parameters_of(self.optimizer):
            if weight.grad is not None and weight in known:
                limit = clip_value * known[weight]
                weight.grad.copy_(torch.minimum(torch.maximum(weight.grad, -limit), limit))
            elif weight.grad is not None:
                weight.grad.clamp_(-clip_value, clip_value)

    def grad_norm(self) -> Tensor:
        """The norm of all gradients that the small network has: Σ over its elements, not over their copies."""
        known = {tracked.weight: tracked.factors for tracked in self.tracked.values()}
        squares = []
        for weight in parameters_of(self.optimizer):
            if weight.grad is None:
                continue
            found = known.get(weight)
            if found is None:
                squares.append(weight.grad.square().sum())
            else:
                squares.append(((weight.grad / found.gradient).square() * found.part).sum())
        device = squares[0].device if squares else torch.device("cpu")
        return (
            torch.stack([square.to(device) for square in squares]).sum().sqrt()
            if squares
            else torch.zeros(())
        )

    def settle(self, steps: int, *, ramp: bool = False) -> None:
        """Hold the fresh entries still for some steps, or (`ramp`) let them in linearly."""
        if steps < 1:
            raise ArgumentError(f"{steps} steps to settle", hint="a whole number, 1 or more")
        self.settling, self._settled, self._ramp = steps, 0, ramp

    def rejuvenate(self, tracked: Tracked, entries: Tensor) -> None:
        """Zero the state of some entries, and let them count their steps from 0."""
        mask = entries.broadcast_to(tracked.weight.shape)
        for _, value in self.slots(tracked.weight):
            value.masked_fill_(mask, 0)
        if self.own_steps and self.kind in CORRECTED:
            old = tracked.counts
            if old is None:
                old = torch.full_like(tracked.weight, torch.inf, dtype=_counting(tracked.weight))
            tracked.counts = old.masked_fill(mask, 0)

    def fade(self, tracked: Tracked, entries: Tensor, kept: float) -> None:
        """Keep only a part of the state of some entries: of its first power, and the square of it of the second."""
        mask = entries.broadcast_to(tracked.weight.shape)
        for slot, value in self.slots(tracked.weight):
            value.copy_(torch.where(mask, value * kept ** power(self.kind, slot), value))

    def state_dict(self) -> dict[str, Any]:
        """What is not in the optimizer's own state: the counts of young entries, and how far settling is."""
        counts = {name: t.counts for name, t in self.tracked.items() if t.counts is not None}
        edits = {name: edit.to_json() for name, edit in self.edits.items()}
        return {"counts": counts, "edits": edits, "settling": [self.settling, self._settled, self._ramp]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, after the optimizer, while it follows, has loaded its own state."""
        self._scale_state(1)
        self.edits = {name: SpaceEdit.from_json(edit) for name, edit in state["edits"].items()}
        for name, tracked in self.tracked.items():
            tracked.factors = factors(tracked.edit, self.edits, tracked.weight)
            found = state["counts"].get(name)
            tracked.counts = (
                None if found is None else found.to(tracked.weight.device, _counting(tracked.weight))
            )
        self._scale_state(-1)
        self.settling, self._settled, self._ramp = state["settling"]

    def adopt(self, edit: SpaceEdit) -> None:
        """Go on with other shares or fresh units in a space, whose weights the caller has changed to fit.

        What the optimizer knows of the small network's elements stays what it is.
        """
        self.edits[edit.space] = edit
        for tracked in self.tracked.values():
            tracked.factors = factors(tracked.edit, self.edits, tracked.weight)

    def release(self, space: str) -> None:
        """Take no account of a space any more: its copies step as a plain optimizer of the wide network does."""
        edit = self.edits[space]
        self._scale_state(1)
        self.adopt(dataclasses.replace(edit, shares=(1.0,) * edit.after))
        self._scale_state(-1)

    def slots(self, weight: Tensor) -> list[tuple[str, Tensor]]:
        """The state of a parameter that has its shape."""
        return [
            (slot, value)
            for slot, value in self.optimizer.state.get(weight, {}).items()
            if isinstance(value, Tensor) and value.shape == weight.shape and slot not in SCALARS
        ]

    def _scale_state(self, sign: int) -> None:
        """From the widened network's coordinates to the small one's (−1), or back (+1)."""
        for tracked in self.tracked.values():
            for slot, value in self.slots(tracked.weight):
                value.mul_(tracked.factors.gradient ** (sign * power(self.kind, slot)))

    def _translated(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """A state dict as the widened network would have it; the live state is not touched."""
        places = [k for group in state["param_groups"] for k in group["params"]]
        known = {id(tracked.weight): tracked.factors.gradient for tracked in self.tracked.values()}
        found = dict(state["state"])
        for place, weight in zip(places, parameters_of(self.optimizer), strict=True):
            if id(weight) in known and place in found:
                scaled = {
                    slot: value * known[id(weight)] ** power(self.kind, slot)
                    for slot, value in self.slots(weight)
                }
                found[place] = {**found[place], **scaled}
        return {**state, "state": found}

    @torch.no_grad()
    def _enter(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(argument) for argument in (*args, *kwargs.values())):
            raise Refused(
                "a trajectory cannot be followed through a closure: it would run the network in other coordinates",
                hint="compute the gradients first, and call optimizer.step() without a closure",
            )
        if is_nested(optimizer):
            return
        for tracked in self.tracked.values():
            weight, found = tracked.weight, tracked.factors
            if tracked.before is not None:  # the step before this one failed half-way
                weight.copy_(tracked.before)
            tracked.before, tracked.gradient = None, weight.grad
            if weight.grad is None:
                continue
            if found.scaled or tracked.counts is not None or (self.settling and found.fresh is not None):
                tracked.before = weight.detach().clone()
                weight.div_(found.value)
            if found.graded:
                weight.grad = weight.grad / found.gradient

    @torch.no_grad()
    def _leave(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_nested(optimizer):
            return
        groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
        # a fused optimizer is told by the gradient scaler, and skips the step by itself
        overflow = getattr(optimizer, "found_inf", None)
        skipped = overflow is not None and bool(overflow)
        for tracked in self.tracked.values():
            weight, found = tracked.weight, tracked.factors
            if tracked.before is not None and skipped:
                weight.copy_(tracked.before)
            elif tracked.before is not None:
                # old value plus a change: where nothing changes, not even the last bit does
                change = torch.addcdiv(weight, tracked.before, found.value, value=-1)
                if tracked.counts is not None:
                    change += self._corrected(tracked, groups[id(weight)])
                if self.settling and found.fresh is not None:
                    fraction = self._settled / self.settling if self._ramp else 0.0
                    change = torch.where(found.fresh, fraction * change, change)
                torch.addcmul(tracked.before, found.value, change, out=weight.data)
            weight.grad, tracked.gradient, tracked.before = tracked.gradient, None, None
        if not skipped:
            self._settle_on()

    def _corrected(self, tracked: Tracked, group: Mapping[str, Any]) -> Tensor:
        gradient = tracked.weight.grad
        assert gradient is not None
        assert tracked.before is not None
        assert tracked.counts is not None
        if group.get("maximize"):
            gradient = -gradient
        if self.kind != "adamw" and group.get("weight_decay"):
            gradient = gradient + float(group["weight_decay"]) * (tracked.before / tracked.factors.value)
        tracked.counts += 1
        change = correct(self.kind, group, self.optimizer.state[tracked.weight], gradient, tracked.counts)
        if grown_up(self.kind, group, tracked.counts):
            tracked.counts = None
        return change

    def _settle_on(self) -> None:
        if self.settling:
            self._settled += 1
            if self._settled >= self.settling:
                self.settling = 0


def ruled_kind(optimizer: torch.optim.Optimizer) -> str:
    """What an optimizer is called in `surgery.optimizer.POWERS`.

    Raises:
      Refused: a class without rules.
    """
    kind = kind_of(optimizer)
    if kind not in POWERS:
        raise Refused(
            f"there is no rule for the state of the optimizer '{type(optimizer).__name__}'",
            hint=f"rules exist for {', '.join(POWERS)} and what is derived from them",
        )
    return kind


def trajectory_of(optimizer: torch.optim.Optimizer) -> Trajectory | None:
    """The trajectory that an optimizer follows, if it follows one."""
    hooks = optimizer._optimizer_step_pre_hooks.values()
    found = (getattr(hook, "__self__", None) for hook in hooks)
    return next((owner for owner in found if isinstance(owner, Trajectory)), None)


def _counting(weight: Tensor) -> torch.dtype:
    """The type of the counts of a parameter's entries: bfloat16 counts to 256."""
    return torch.promote_types(weight.dtype, torch.float32)


def _plain(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters by the names that they have in the module, and by those behind a wrapper."""
    given = {plain_name(name): weight for name, weight in named}
    return {name.removeprefix("module."): weight for name, weight in given.items()} | given


def _track(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor], plan: Plan, edits: Mapping[str, SpaceEdit]
) -> Iterator[tuple[str, Tracked]]:
    trained = set(map(id, parameters_of(optimizer)))
    for edit in plan.tensors:
        weight = names.get(edit.name)
        if weight is None or id(weight) not in trained:
            continue
        if is_sharded(weight):
            raise Refused(
                f"'{edit.name}' is sharded: no process has the whole of it", where={"parameter": edit.name},
                hint="whole multiples: gather, operate with follow_recipe=True, shard with the groups that it made; "
                "other widths: DistributedDataParallel while the trajectory is followed",
            )  # fmt: skip
        wanted = edit.after(plan.sizes)
        if tuple(weight.shape) != wanted:
            raise PlanMismatch(
                f"'{edit.name}' has the shape {shape_text(weight.shape)}, after the plan it is {shape_text(wanted)}",
                hint="apply the plan to the module and its optimizer first",
            )
        yield edit.name, Tracked(edit, weight, factors(edit, edits, weight))
