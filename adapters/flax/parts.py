"""What the entries of a training state are: networks, copies of networks, and the states of optimizers.

Their names say it, at whatever depth they stand: `opt_state` beside `params` in a TrainState, a TrainState in the state
of a runner, an `actor_opt_state` beside a `critic_opt_state`. Inside of what is called `params` every name is that of
a module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from surgery.errors import Refused
from surgery.tensors import shape_of
from surgery_adapters.containers.optax_state import leaves
from surgery_adapters.networks.words import COPIES

Tensors = Mapping[str, ir.TensorProtocol]

_OPTIMIZER = re.compile(r"(.*_)?(tx|opt|opts|optim|optimi[sz]ers?)(_.*)?")
_KINDS = {
    "tx", "opt", "opts", "optim", "optimizer", "optimizers", "state", "states", "params", "param", *COPIES,
}  # fmt: skip
"""Words of names that do not say which network is meant."""


@dataclass(frozen=True)
class Parts:
    """A training state, taken apart; arrays are named by their paths with dots.

    Attributes:
      networks: all arrays of networks that are no copies.
      copies: prefix of a network that is a copy -> its arrays.
      originals: the same prefix -> that of its original.
      optimizers: path -> the state of one optimizer.
    """

    networks: Tensors
    copies: Mapping[str, Tensors]
    originals: Mapping[str, str]
    optimizers: Mapping[str, Mapping[str, Any]]

    @staticmethod
    def of(tree: Mapping[str, Any]) -> Parts:
        """Take a state apart.

        Raises:
          Refused: it holds no network; or a copy of one of several, and its name does not say of which.
        """
        networks: dict[str, ir.TensorProtocol] = {}
        copies: dict[str, Tensors] = {}
        optimizers: dict[str, Mapping[str, Any]] = {}
        for kind, path, node in _walk(tree):
            if kind == "optimizer":
                optimizers[path] = node
            elif kind == "copy":
                copies[f"{path}."] = dict(leaves(node, path))
            else:
                networks[path] = node
        if not networks:
            raise Refused("the file holds no parameters of a network")
        originals = {
            prefix: original
            for prefix, members in copies.items()
            if (original := _original(prefix, members, networks)) is not None
        }
        return Parts(networks, copies, originals, optimizers)

    def trained_by(self, path: str) -> Tensors:
        """The arrays that an optimizer may have trained: those beside it, and of them those that it is named after."""
        parent = path.rpartition(".")[0]
        while parent:
            beside = {name: tensor for name, tensor in self.networks.items() if name.startswith(f"{parent}.")}
            if beside:
                break
            parent = parent.rpartition(".")[0]
        else:
            beside = dict(self.networks)
        words = _words(path.rpartition(".")[2])
        named = {
            name: tensor
            for name, tensor in beside.items()
            if words and any(words <= _words(part) for part in name.removeprefix(f"{parent}.").split("."))
        }
        return named or beside


def _walk(tree: Mapping[str, Any], path: str = "", inside: bool = False) -> Iterator[tuple[str, str, Any]]:
    """("optimizer" or "copy", path, tree), and ("array", path, tensor) of all that is neither."""
    for key, value in tree.items():
        own = f"{path}.{key}" if path else key
        if isinstance(value, ir.TensorProtocol):
            yield "array", own, value
        if not isinstance(value, Mapping):
            continue
        if not inside and _is_optimizer(key, top=not path):
            yield from _optimizers(value, own)
        elif not inside and _is_copy(key, top=not path) and any(True for _ in leaves(value)):
            yield "copy", own, value
        else:
            yield from _walk(value, own, inside or _is_params(key))


def _optimizers(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, Any]]:
    """Each of several that stand under one name, as those of an actor and its critic do."""
    several = [
        key for key, value in tree.items() if isinstance(value, Mapping) and _is_optimizer(key, top=False)
    ]
    if several and len(several) == len(tree):
        for key in several:
            yield from _optimizers(tree[key], f"{path}.{key}")
    else:
        yield "optimizer", path, tree


def _is_params(key: str) -> bool:
    return "param" in key.lower() or key == "batch_stats"


def _is_optimizer(key: str, *, top: bool) -> bool:
    return _OPTIMIZER.fullmatch(key.lower()) is not None or (top and "opt" in key.lower())


def _is_copy(key: str, *, top: bool) -> bool:
    words = key.lower() if top else _parts(key)
    return any(word in words for word in COPIES)


def _parts(key: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower())) - {""}


def _words(key: str) -> set[str]:
    """The words of a name that say which network is meant."""
    return _parts(key) - _KINDS


def _original(prefix: str, members: Tensors, networks: Tensors) -> str | None:
    """The prefix of the network that another one is a copy of; None if there is none of its names and shapes.

    Raises:
      Refused: it may be of several, and its name does not say of which.
    """
    ends = {name.removeprefix(prefix): shape_of(tensor) for name, tensor in members.items()}
    first = next(iter(ends))
    fitting = [
        name.removesuffix(first)
        for name in networks
        if name.endswith(f".{first}") or name == first
        if all(
            (other := networks.get(name.removesuffix(first) + end)) is not None and shape_of(other) == shape
            for end, shape in ends.items()
        )
    ]
    path = prefix.rstrip(".")
    parent, own = path.rpartition(".")[0], _words(path.rpartition(".")[2])
    ways = (
        fitting,
        [name for name in fitting if name.rstrip(".").rpartition(".")[0] == parent],
        [name for name in fitting if own and own <= _parts(name.rstrip(".").replace(".", "_"))],
        [name for name in fitting if own and own == _words(name.rstrip(".").rpartition(".")[2])],
    )
    found = next((way for way in ways if len(way) == 1), None)
    if fitting and found is None:
        raise Refused(
            f"'{path}' has the shapes of {' and '.join(repr(name.rstrip('.')) for name in fitting)}, and its name "
            "does not say which one it copies",
            hint="save the networks under names that say it: critic_params, target_critic_params",
        )
    return found[0] if found else None
