"""An optimizer of a file whose parameters are told by their order, with their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.optimizer import OptimizerState
from surgery.optimizer_record import OptimizerRecord, merged


@dataclass(frozen=True)
class Trained:
    """One optimizer of the file.

    Attributes:
      record: what it holds. places: the names of its parameters, group by group.
    """

    record: OptimizerRecord
    places: tuple[tuple[str, ...], ...]

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
        names = {name: name for group in self.places for name in group}
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
