"""Optimizers of a file whose parameters are told by their order, with their names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import onnx_ir as ir

from surgery.errors import WITHOUT_OPTIMIZER, SurgeryError
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import OptimizerRecord, merged, shape_of_state
from surgery.tensors import shape_of
from surgery_adapters.networks.chains import Part
from surgery_adapters.networks.layers import Tensors
from surgery_adapters.networks.statistics import is_statistic
from surgery_adapters.networks.words import roles_of


@dataclass(frozen=True)
class Trained:
    """One optimizer of the file.

    Attributes:
      record: what it holds. places: the names of its parameters, group by group.
      carried: those of them that are single numbers and of no network: a temperature. They stay as they are.
    """

    record: OptimizerRecord
    places: tuple[tuple[str, ...], ...]
    carried: frozenset[str] = frozenset()

    @staticmethod
    def bind(
        name: str, state: Mapping[str, object], choices: Sequence[Mapping[str, ir.TensorProtocol]]
    ) -> Trained:
        """Name the parameters of an optimizer: those of the first of some networks that it fits.

        Raises:
          CorruptFile: it is no optimizer's state dict.
          ArgumentError, Refused: none has its parameters, or there is more than one way.
        """
        try:
            record = OptimizerRecord.parse(state)
            return Trained(record, tuple(map(tuple, record.bind(choices, None))))
        except SurgeryError as error:
            raise error.within(optimizer=name) from error

    @property
    def state(self) -> OptimizerState:
        """What it remembers, by parameter name."""
        names = {name: name for group in self.places for name in group if name not in self.carried}
        return self.record.state(self.places, names, self.record.kind())[0]

    def named(self) -> dict[str, object]:
        """The optimizer's state dict with the names of its parameters, as PyTorch writes those that it knows."""
        groups = [
            {**group, "params": list(numbers), "param_names": list(names)}
            for group, numbers, names in zip(
                self.record.groups, self.record.numbers, self.places, strict=True
            )
        ]
        return {"state": dict(self.record.states), "param_groups": groups}


def joined(optimizers: Iterable[Trained]) -> OptimizerState | None:
    """The state of several optimizers as one, by parameter name; None of none.

    Raises:
      Refused: they are of several kinds.
    """
    states = [optimizer.state for optimizer in optimizers]
    return merged(states) if states else None


def trained_in(optimizers: Mapping[str, Mapping[str, object]], parts: Sequence[Part]) -> dict[str, Trained]:
    """The optimizers of a file's networks, by name; that of a single number, a temperature, is none of them.

    Raises:
      CorruptFile: one is no optimizer's state dict.
      ArgumentError, Refused: parameters that the networks do not have, or more than one way to bind them.
    """
    found = {name: _of_networks(name, saved, parts) for name, saved in optimizers.items()}
    return {name: trained for name, trained in found.items() if trained is not None}


def _of_networks(name: str, saved: Mapping[str, object], parts: Sequence[Part]) -> Trained | None:
    try:
        record = OptimizerRecord.parse(saved)
        record.kind()
        shapes = [shape_of_state(record.states.get(k, {})) for group in record.numbers for k in group]
        if len(shapes) == 1 and math.prod(shapes[0] or ()) == 1:
            return None
        single = _single_numbers(parts)
        places = tuple(map(tuple, record.bind(_scopes(name, parts, single), None)))
        return Trained(record, places, frozenset(single) & {name for group in places for name in group})
    except SurgeryError as error:
        raise error.within(
            optimizer=name,
            without=f"read it without its optimizer: {WITHOUT_OPTIMIZER}",
        ) from error


def _single_numbers(parts: Sequence[Part]) -> dict[str, ir.TensorProtocol]:
    """What stands beside the networks and may be trained with them: logarithms of temperatures, mostly."""
    beside = {name: tensor for part in parts for name, tensor in part.beside.items()}
    return {
        name: tensor
        for name, tensor in beside.items()
        if math.prod(shape_of(tensor)) == 1 and not is_statistic(name)
    }


def _scopes(name: str, parts: Sequence[Part], single: Tensors) -> list[Tensors]:
    """The networks that an optimizer may be of, those first that its name speaks of; the last has all.

    Args:
      single: numbers that may be among its parameters too; a module's own parameters come before its buffers.
    """
    originals = [part for part in parts if part.original is None]
    stem = name.removesuffix("_optimizer").removesuffix("_optim")
    own = [part for part in parts if part.label and name.startswith(part.label.rstrip("."))]
    several = [part for part in originals if part.label.startswith(stem)]
    alike = [part for part in originals if roles_of(stem) & roles_of(part.label)]
    place = re.search(r"\[(\d+)\]$", name)  # one of a list: of the network in that place
    there = originals[int(place[1]) :][:1] if place else []
    found = [[part] for part in own] + [several, alike, there, [parts[0]], originals]
    scopes = [_tensors(some) for some in found if some]
    scopes += [{**dict(islice(single.items(), k)), **scopes[-1]} for k in range(1, len(single) + 1)]
    return [*scopes, _tensors(parts)]


def _tensors(parts: Sequence[Part]) -> dict[str, ir.TensorProtocol]:
    return {name: tensor for part in parts for name, tensor in part.tensors.items()}
