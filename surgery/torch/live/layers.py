"""New layers put into modules that are in use, and their parameters into the optimizers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.edits.execute import execute
from surgery.edits.insertion import Insertion
from surgery.edits.plan import Plan
from surgery.errors import Refused
from surgery.numeric import Unsupported, run
from surgery.torch.layers import layers_of, new_numbers, started
from surgery.torch.live.journal import Journal
from surgery.torch.live.outputs import Runner
from surgery.torch.live.places import Calls, Site, free_name, is_container, sites
from surgery.torch.optimizer_state import parameters_of
from surgery.torch.sequences import sources
from surgery.torch.stored import to_numpy
from surgery.verify.outputs import runtime

_LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3}
_HALF = 5e-2
_PROBE = 0.5
"""Spread of the random numbers that show whether a layer is where the plan has it."""


class Behind:
    """A hook: what a part gives goes through new layers. It holds them; they are registered elsewhere."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, part: nn.Module, args: tuple[Any, ...], result: Tensor) -> Tensor:
        out: Tensor = self.layer(result)
        return out


class BehindFirst:
    """The same for the first of several results: what a recurrent layer gives besides its state."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, part: nn.Module, args: tuple[Any, ...], result: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.layer(result[0]), *result[1:])


class Before:
    """A hook: what a part is given goes through new layers first."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.layer(args[0]), *args[1:])


@dataclass(frozen=True)
class _New:
    """A tensor of a new layer in one network: its layer and name there, and the parameter whose group it joins."""

    layer: str
    name: str
    tensor: Tensor
    start: Tensor
    joins: Tensor | None


class NewLayers:
    """The new layers of a plan, for one network and those beside it."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint, runner: Runner) -> None:
        self.plan, self.checkpoint, self.runner = plan, checkpoint, runner
        self.names: dict[str, str] = {}
        self._new: list[_New] = []
        self._done: set[int] = set()
        self._cells: list[nn.RNNBase] = []
        self._ranks: dict[int, int] = {}
        calls = Calls()
        handles = calls.watch(runner.network)
        try:
            runner.outputs()
        finally:
            for handle in handles:
                handle.remove()
        self.sites = sites(checkpoint.model, runner.network, plan.insertions, calls)

    def install(self, journal: Journal, networks: Sequence[tuple[nn.Module, Mapping[str, Tensor]]]) -> None:
        """Put the layers into every network; what networks share is deepened once.

        Raises:
          Refused: a network without such a part, or one in which the layers do something else.
        """
        for network, held in networks:
            for site in self.sites:
                part = _part(network, site.path)
                if id(part) not in self._done:
                    self._done.add(id(part))
                    self._put(journal, network, part, site, held)
        if any(site.how not in ("append", "slot") for site in self.sites) and "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # what is compiled does not look for hooks that came later
        every = dict.fromkeys(id(p) for network, _ in networks for p in network.parameters())
        self._ranks = {number: rank for rank, number in enumerate(every)}
        self._name(networks[0][0])
        self._probe()
        for new in self._new:
            new.tensor.data = new.start
        for cell in self._cells:
            cell.flatten_parameters()  # does something on CUDA only

    def join(self, journal: Journal, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """The new parameters come into the group of the parameter that they join; their state begins with them.

        There they stand where an optimizer made of the changed module has them: it numbers its state by place.
        """
        paths = {id(p): name for name, p in self.runner.network.named_parameters()}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                held = {id(p) for p in group["params"]}
                more = [new.tensor for new in self._new if new.joins is not None and id(new.joins) in held]
                if not more:
                    continue
                members, names = list(group["params"]), list(group.get("param_names", ()))
                for k, tensor in enumerate(more):
                    place = _place(self._ranks, members, tensor)
                    members.insert(place, tensor)
                    names.insert(place, paths.get(id(tensor), f"new.{k}"))
                journal.contents(group["params"], members)
                if "param_names" in group:
                    journal.contents(group["param_names"], names)

    def untrained(self, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[str, ...]:
        """New parameters of the model that no optimizer trains: frozen like what they join, or in no group as it."""
        held = {id(p) for optimizer in optimizers for p in parameters_of(optimizer)}
        found = dict(self.runner.network.named_parameters())
        own = [name for name in self.names.values() if name in found]
        return tuple(name for name in own if id(found[name]) not in held or not found[name].requires_grad)

    def _put(
        self, journal: Journal, network: nn.Module, part: nn.Module, site: Site, held: Mapping[str, Tensor]
    ) -> None:
        parent, _, name = site.path.rpartition(".")
        owner = network.get_submodule(parent)
        pieces = self._pieces(site, held, bool(getattr(part, "batch_first", False)))
        for piece in pieces:
            piece.train(part.training)
            self._cells += [cell for cell in piece.modules() if isinstance(cell, nn.RNNBase)]
        if site.how == "append":
            for piece in pieces:
                journal.item(owner._modules, str(len(owner._modules)), piece)
        elif site.how == "slot":
            journal.item(owner._modules, name, nn.Sequential(part, *pieces))
        else:
            layer = pieces[0] if len(pieces) == 1 else nn.Sequential(*pieces)
            home = part if is_container(owner) else owner
            wanted = site.insertions[0].name.rpartition(".")[2]
            journal.item(home._modules, free_name(home, wanted, home._modules), layer)
            if site.how == "behind":
                journal.hook(part.register_forward_hook(Behind(layer)))
            elif site.how == "first":
                journal.hook(part.register_forward_hook(BehindFirst(layer)))
            else:
                journal.hook(part.register_forward_pre_hook(Before(layer)))

    def _pieces(self, site: Site, held: Mapping[str, Tensor], batch_first: bool) -> list[nn.Module]:
        """The layers as modules; in front of an activation of the caller's, each one's own comes first."""
        pieces: list[nn.Module] = []
        for new in site.insertions:
            numbers = new_numbers(new, self.plan.seed, held)
            made = layers_of(new, site.rank, numbers, batch_first)
            pieces += [made[-1], *made[:-1]] if site.opened else made
            likes = {tensor.name: tensor.like for tensor in new.tensors}
            for name, (origin, _) in sources(new).items():
                like, own = likes[origin], numbers[name]
                joins = None if like is None else held[like]
                self._new.append(_New(new.name, name, own, own.detach().clone(), joins))
        return pieces

    def _name(self, network: nn.Module) -> None:
        """What the new tensors are called in the module."""
        paths = {id(t): name for name, t in (*network.named_parameters(), *network.named_buffers())}
        own = {new.name: paths.get(id(new.tensor)) for new in reversed(self._new)}
        self.names = {name: path for name, path in sorted(own.items()) if path is not None}

    def _probe(self) -> None:
        """With random numbers in the new layers, the module and the graph must still compute the same."""
        random = {new.name: _random(new) for new in self.plan.insertions}
        for new in self._new:
            new.tensor.data = started(random[new.layer], new.name, self.plan.seed, new.start)
        changed = execute(dataclasses.replace(self.plan, insertions=tuple(random.values())), self.checkpoint)
        wanted = _evaluated(changed.model, self.runner.inputs())
        for name, found in self.runner.outputs().items():
            if not found.is_floating_point():
                continue
            gap = float(np.abs(found.double().cpu().numpy() - wanted[name]).max()) if found.numel() else 0.0
            scale = float(np.abs(wanted[name]).max()) if found.numel() else 1.0
            if not gap <= _LIMITS.get(found.dtype, _HALF) * max(scale, 1e-30):
                first = self.sites[0]
                raise Refused(
                    f"with a new layer {first.how} '{first.path}', {type(self.runner.network).__name__} does not "
                    f"compute what the plan says: '{name}' differs by {gap / max(scale, 1e-30):.2g} (relative)",
                    hint="its code reads parts of a module without calling them, or is random: deepen behind "
                    "another layer, or the exported file",
                )


def check_stateless(plan: Plan) -> None:
    """Refuse new layers whose state `forward` would have to take and return."""
    for new in plan.insertions:
        if new.ports:
            raise Refused(
                f"the new layer '{new.name}' brings a state, which forward() would have to take and return",
                where={"behind": new.places[0].value},
                hint="write it into the class, or deepen the exported file",
            )


def _random(insertion: Insertion) -> Insertion:
    """The same layer with random numbers in all it learns, so that it does something."""
    tensors = [
        t if t.like is None else dataclasses.replace(t, start="normal", numbers=(), deviation=_PROBE)
        for t in insertion.tensors
    ]
    return dataclasses.replace(insertion, tensors=tuple(tensors))


def _evaluated(model: ir.Model, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
    """The graph's outputs, in float64 where our own evaluator has its operators."""
    arrays = {name: to_numpy(x) for name, x in inputs.items()}
    try:
        found = run(model, arrays, dtype=np.float64)
    except Unsupported:
        found = runtime(model)(arrays)
    return {name: np.asarray(x, np.float64) for name, x in found.items()}


def _part(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise Refused(
            f"{type(network).__name__} has no part '{path}', behind which the new layers go",
            hint="companions have the same architecture as the model",
        ) from None


def _place(ranks: Mapping[int, int], members: Sequence[Tensor], new: Tensor) -> int:
    """Where a new parameter stands in a group: behind those that its network has before it, or before the others."""
    own = ranks[id(new)]
    known = [(k, ranks[id(p)]) for k, p in enumerate(members) if id(p) in ranks]
    before = [k for k, rank in known if rank < own]
    return before[-1] + 1 if before else min(k for k, _ in known)
