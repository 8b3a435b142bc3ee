"""All that live surgery will change, computed before anything is touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from surgery.checkpoint import Checkpoint
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, Refused, shape_text
from surgery.optimizer import OptimizerState
from surgery.recipe import Recipe, recipe
from surgery.torch.live import checks
from surgery.torch.live.constants import followed
from surgery.torch.live.groups import Factors
from surgery.torch.live.journal import Journal
from surgery.torch.live.modules import attributes, owners
from surgery.torch.optimizer_state import parameters_of, read_optimizer
from surgery.torch.stored import initializers, laid_out, to_numpy, to_torch

COMPANIONS = "companions have the same architecture as the model"


class Prepared:
    """Everything that will change, computed before anything is touched."""

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        optimizers: Sequence[torch.optim.Optimizer],
        reset_unknown: bool,
    ) -> None:
        self.plan, self.checkpoint, self.optimizers = plan, checkpoint, optimizers
        self.reset_unknown = reset_unknown
        self.data: dict[int, tuple[Tensor, Tensor]] = {}
        self.parameters: list[nn.Parameter] = []
        self.attributes: dict[tuple[nn.Module, str], Any] = {}
        self.paths: dict[tuple[nn.Module, str], str] = {}
        self.state: list[tuple[dict[Any, Any], Any, Any]] = []
        self.names: list[tuple[str, ...]] = []
        self.changed: dict[str, tuple[Any, Any]] = {}
        self.not_carried: dict[str, str] = {}
        self.slots = 0
        self.recipe: Recipe | None = None
        self.factors: dict[torch.optim.Optimizer, dict[int, Factors]] = {each: {} for each in optimizers}
        self._told: dict[torch.optim.Optimizer, set[str]] = {each: set() for each in optimizers}

    def add_all(self, networks: Sequence[nn.Module], given: Mapping[tuple[nn.Module, str], Any]) -> None:
        """Prepare every network, and attributes with the values that are given."""
        for network in networks:
            self._add(network, given)
        self.attributes.update(given)

    def _add(self, network: nn.Module, given: Collection[tuple[nn.Module, str]]) -> None:
        """Prepare one network; attributes that are given need not be found."""
        self.parameters += network.parameters()
        held = checks.tensors_of(network)
        missing = sorted(tensor.name for tensor in self.plan.tensors if tensor.name not in held)
        if missing:
            raise Refused(
                f"{', '.join(missing[:3])} would have to change too, and is not a tensor of {type(network).__name__}",
                where={"module": type(network).__name__},
                hint=COMPANIONS
                if self.names
                else "forward() contains it as a number: make it a buffer, or derive it from a shape",
            )
        own = self._own(held)
        edited = {tensor.name for tensor in self.plan.tensors if id(held[tensor.name]) not in self.data}
        result = execute(self.plan, own)
        folded = _replaced(own, result) & set(held) - edited
        folded = {name for name in folded if id(held[name]) not in self.data}
        for name in sorted(edited | folded):
            new = to_torch(result.tensors[name].numpy()).to(held[name].device, held[name].dtype)
            self.data.setdefault(id(held[name]), (held[name], laid_out(new, held[name])))
        self.names.append(tuple(sorted(edited | folded)))
        for path, module, edits in owners(network, self.plan):
            for name, value in attributes(path, module, edits, self.plan).items():
                self.attributes[module, name] = value
                self.paths[module, name] = f"{path}.{name}".lstrip(".")
        for path, module, name, value in followed(self.plan, self.checkpoint.model, network, given):
            self.attributes[module, name] = value
            self.paths[module, name] = f"{path}.{name}".lstrip(".")
        for optimizer in self.optimizers:
            self._add_state(optimizer, {name: held[name] for name in own.tensors if name in held}, edited)

    def _own(self, held: Mapping[str, Tensor]) -> Checkpoint:
        """The graph with this network's numbers."""
        model = self.checkpoint.model.clone()
        for value in initializers(model):
            name = str(value.name)
            if name in held and value.const_value is not None:
                if tuple(held[name].shape) != tuple(value.const_value.shape):
                    raise ArgumentError(
                        f"'{name}' is {shape_text(held[name].shape)} in one network, and in the model "
                        f"{shape_text(value.const_value.shape)}",
                        hint=COMPANIONS,
                    )
                value.const_value = ir.tensor(to_numpy(held[name]), name=name)
        return self.checkpoint.replace(model=model)

    def _add_state(
        self, optimizer: torch.optim.Optimizer, held: Mapping[str, Tensor], edited: set[str]
    ) -> None:
        members = set(map(id, parameters_of(optimizer)))
        named = {name: tensor for name, tensor in held.items() if id(tensor) in members}
        if not named:
            return
        unknown = checks.state_without_rules(optimizer, {id(held[n]): n for n in edited if n in named})
        if unknown and not self.reset_unknown:
            raise Refused(
                f"no rule carries {', '.join(unknown.values())}",
                hint="reset_unknown=True lets the parameters that change begin without state",
            )
        self.not_carried.update(unknown)
        state = read_optimizer(optimizer, named)
        kept = {slot: members for slot, members in state.slots.items() if slot not in unknown}
        old = self.checkpoint.replace(model=self.checkpoint.model, optimizer=state.replace(slots=kept))
        new = execute(self.plan, old).optimizer
        assert new is not None
        self._collect(optimizer, named, new, edited, unknown)
        self._follow(optimizer, recipe(self.plan, state), named)

    def _collect(
        self,
        optimizer: torch.optim.Optimizer,
        named: Mapping[str, Tensor],
        new: OptimizerState,
        edited: set[str],
        unknown: Mapping[str, str],
    ) -> None:
        """The slots of the parameters that change; their step counts stay as they are.

        A parameter that would keep part of its state loses all of it: optimizers make what they need where there is
        none, and miss it where there is some.
        """
        for name in sorted(edited & set(new.parameters)):
            parameter = named[name]
            current = optimizer.state.get(parameter, {})
            if not current:
                continue
            if not unknown.keys().isdisjoint(current):
                self.state.append((optimizer.state, parameter, {}))
                continue
            made = dict(current)
            for slot, members in new.slots.items():
                if name in members:
                    old = current[slot]
                    made[slot] = laid_out(
                        to_torch(members[name].numpy()).to(old.device, old.dtype), parameter
                    )
                    self.slots += 1
            self.state.append((optimizer.state, parameter, made))

    def _follow(self, optimizer: torch.optim.Optimizer, found: Recipe, named: Mapping[str, Tensor]) -> None:
        told = self._told[optimizer]
        if self.recipe is None or (self.recipe.exact and not found.exact):
            self.recipe = found
        elif found.exact and self.recipe.exact:
            more = (group for group in found.groups if not told.issuperset(group.parameters))
            self.recipe = Recipe((*self.recipe.groups, *more), True)
        for group in found.groups:
            for name in group.parameters:
                self.factors[optimizer][id(named[name])] = (group.lr, group.eps, group.weight_decay)
                told.add(name)

    def carry_out(self, journal: Journal) -> None:
        """Change everything; a step whose gradients are there in part is worse than none."""
        for parameter in self.parameters:
            journal.no_gradient(parameter)
        for tensor, new in self.data.values():
            journal.data(tensor, new)
        for (module, name), value in self.attributes.items():
            self.changed[self.paths.get((module, name), name)] = (getattr(module, name), value)
            journal.attribute(module, name, value)
        for states, parameter, made in self.state:
            journal.item(states, parameter, made)
        for module in {module for module, _ in self.attributes}:
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # does something on CUDA only


def _replaced(before: Checkpoint, after: Checkpoint) -> set[str]:
    """The tensors that are others than before: biases take what constant units contributed."""
    new = after.tensors
    return {name for name, tensor in before.tensors.items() if new.get(name, tensor) is not tensor}
