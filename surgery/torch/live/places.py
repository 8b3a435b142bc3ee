"""Where new layers go in a module: the part of it that makes, or reads, the value of the graph that they follow."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from surgery.edits.insertion import Insertion
from surgery.errors import Refused
from surgery.graph.layers import RECURRENT
from surgery.torch.export import SCOPES

How = Literal["append", "slot", "behind", "first", "before"]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Site:
    """A place for new layers.

    Attributes:
      path: of a part of the module.
      how: "append" to the sequence that it is the last of; "slot": a sequence of it and the new layers takes its place;
        "behind" and "before" it, called by a hook on its result or its argument; "first": on the first of its results.
      opened: whether an activation comes first, since the one that follows is in the caller's code.
      insertions: the layers, in order. rank: number of axes of what they read.
    """

    path: str
    how: How
    opened: bool
    insertions: tuple[Insertion, ...]
    rank: int


@dataclass
class Calls:
    """How the parts of a module are called when it runs once.

    Attributes:
      counts: by part. plain: those that give one tensor. single: those that are given one tensor, and first.
      paths: all paths of a part.
    """

    counts: dict[int, int] = field(default_factory=dict)
    plain: set[int] = field(default_factory=set)
    single: set[int] = field(default_factory=set)
    paths: dict[int, list[str]] = field(default_factory=dict)

    def watch(self, network: nn.Module) -> list[RemovableHandle]:
        """Hooks that count; remove them when it has run."""
        for path, part in network.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(part), []).append(path)
        self.plain, self.single = set(self.paths), set(self.paths)
        return [part.register_forward_hook(self._called, with_kwargs=True) for part in network.modules()]

    def _called(
        self, part: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: object
    ) -> None:
        self.counts[id(part)] = self.counts.get(id(part), 0) + 1
        if not isinstance(out, Tensor):
            self.plain.discard(id(part))
        if [isinstance(x, Tensor) for x in (*args, *kwargs.values())].count(True) != 1 or not (
            args and isinstance(args[0], Tensor)
        ):
            self.single.discard(id(part))


@dataclass
class _Chain:
    values: tuple[str, ...]
    insertions: list[Insertion]


def sites(model: ir.Model, network: nn.Module, insertions: Sequence[Insertion], calls: Calls) -> list[Site]:
    """Where the layers of a plan go.

    Args:
      model: the exported network, with the scopes of its nodes.
      network: the module. insertions: in the plan's order. calls: of its parts.

    Raises:
      Refused: there is no such place; names the module in whose `forward` the value is, and the reason.
    """
    finder = _Finder(model, network, calls)
    return [finder.site(chain) for chain in _chains(insertions)]


def _chains(insertions: Sequence[Insertion]) -> list[_Chain]:
    """Layers that follow one another."""
    chains: list[_Chain] = []
    behind: dict[str, _Chain] = {}
    for new in insertions:
        values = tuple(place.value for place in new.places)
        chain = behind.get(values[0])
        if chain is None:
            chain = _Chain(values, [])
            chains.append(chain)
        chain.insertions.append(new)
        for place in new.places:
            behind[place.value] = behind[place.result] = chain
    return chains


@dataclass
class _Finder:
    model: ir.Model
    network: nn.Module
    calls: Calls

    def site(self, chain: _Chain) -> Site:
        """The place of layers that follow one another: the same for every use."""
        values = {str(v.name): v for node in self.model.graph for v in node.outputs}
        reasons: list[str] = []
        for find in (self._behind_recurrent, self._behind_part, self._before_activation, self._before_reader):
            first, *others = [find(values[name], chain, reasons) for name in chain.values]
            if first is not None and all(site == first for site in others):
                return first
        node = values[chain.values[0]].producer()
        assert node is not None
        path = (scope_of(node) or [""])[-1]
        part = self.network.get_submodule(path)
        raise Refused(
            f"there is no place for the new layer '{chain.insertions[0].name}' behind '{chain.values[0]}': "
            + "; ".join(dict.fromkeys(reasons)),
            where={"module": f"{path or '(the model)'} ({type(part).__name__})", "operator": node.op_type},
            hint="make what computes that value a module of its own that is called once (self.act = nn.ReLU())",
        )

    def _behind_part(self, value: ir.Value, chain: _Chain, reasons: list[str]) -> Site | None:
        """Behind the innermost part whose result the value is."""
        path = self._leaves(value)
        if path is None:
            reasons.append("it is computed by the module's own forward(), and is the result of no part of it")
            return None
        return self._at(path, chain, reasons, opened=False, rank=_rank(value))

    def _behind_recurrent(self, value: ir.Value, chain: _Chain, reasons: list[str]) -> Site | None:
        """Behind what a recurrent layer of PyTorch's gives besides its state."""
        node = value.producer()
        path = (scope_of(node) or [""])[-1]
        part = self.network.get_submodule(path)
        if node is None or node.op_type not in RECURRENT or not isinstance(part, nn.RNNBase):
            return None
        if part.bidirectional or value is not node.outputs[0]:
            reasons.append(f"'{path}' runs in both directions, or it is its state")
            return None
        if not self._called(part, path, chain, reasons):
            return None
        return Site(path, "first", False, tuple(chain.insertions), _rank(value))

    def _before_activation(self, value: ir.Value, chain: _Chain, reasons: list[str]) -> Site | None:
        """Behind the part whose result an activation in the caller's code reads: φ(W φ(x)) with the first φ our own."""
        node = value.producer()
        if node is None or any(new.kind != "identity" for new in chain.insertions):
            return None
        before = next((v for v in node.inputs if v is not None and v.producer() is not None), None)
        if before is None or [use.node for use in before.uses()] != [node] or before.is_graph_output():
            return None
        path = self._leaves(before)
        return None if path is None else self._at(path, chain, reasons, opened=True, rank=_rank(value))

    def _before_reader(self, value: ir.Value, chain: _Chain, reasons: list[str]) -> Site | None:
        """Before the one part that reads the value."""
        own = scope_of(value.producer())
        readers = [scope_of(use.node) for use in value.uses()]
        if value.is_graph_output() or not readers:
            return None
        shared = [path for path in readers[0] if path not in own and all(path in r for r in readers)]
        if not shared:
            names = sorted({next((p for p in r if p not in own), "forward()") for r in readers})
            reasons.append(f"it is read by {' and '.join(names)}")
            return None
        part = self.network.get_submodule(shared[0])
        if not self._called(part, shared[0], chain, reasons):
            return None
        if id(part) not in self.calls.single:
            reasons.append(f"'{shared[0]}' takes several tensors")
            return None
        return Site(shared[0], "before", False, tuple(chain.insertions), _rank(value))

    def _at(self, path: str, chain: _Chain, reasons: list[str], *, opened: bool, rank: int) -> Site | None:
        part = self.network.get_submodule(path)
        if not self._called(part, path, chain, reasons):
            return None
        if id(part) not in self.calls.plain:
            reasons.append(f"'{path}' gives more than one tensor")
            return None
        parent, _, name = path.rpartition(".")
        owner = self.network.get_submodule(parent)
        how: How = "behind"
        alone = self.calls.paths[id(part)] == [path] and self.calls.paths[id(owner)] == [parent]
        if alone and type(owner).forward is nn.Sequential.forward and next(reversed(owner._modules)) == name:
            how = "append"
        elif alone and not any(True for _ in (*part.parameters(), *part.buffers())):
            how = "slot"
        return Site(path, how, opened, tuple(chain.insertions), rank)

    def _called(self, part: nn.Module, path: str, chain: _Chain, reasons: list[str]) -> bool:
        count = self.calls.counts.get(id(part), 0)
        if count != len(chain.values):
            reasons.append(f"'{path}' is called {count} times, the layer before it {len(chain.values)} times")
        return count == len(chain.values)

    def _leaves(self, value: ir.Value) -> str | None:
        """The innermost part, but the model itself, that a value is the result of: nothing in it reads the value."""
        readers: list[Collection[str]] = [scope_of(use.node) for use in value.uses()]
        for path in reversed(scope_of(value.producer())):
            if path and not any(path in reader for reader in readers):
                return path
        return None


def scope_of(node: ir.Node | None) -> list[str]:
    """The paths of the modules in whose `forward` a node came about, the outermost first."""
    noted = "" if node is None else node.metadata_props.get(SCOPES, "")
    return list(ast.literal_eval(noted))[:-1] if noted else []


def _rank(value: ir.Value) -> int:
    return 2 if value.shape is None else len(value.shape)


def is_container(part: nn.Module) -> bool:
    """Whether the children of a module are its members, so that one more would be one of them."""
    return isinstance(part, _CONTAINERS)


def free_name(owner: nn.Module, wanted: str, taken: Mapping[str, object]) -> str:
    """A name for a new child: the wanted one, or else a plain one with a number."""
    tries = [wanted, "deeper", *(f"deeper{k}" for k in range(2, 1000))]
    return next(n for n in tries if n.isidentifier() and n not in taken and not hasattr(owner, n))
