"""An optimizer of a file whose parameters are told by their order, with their names."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.optimizer import OptimizerState
from surgery.optimizer_record import OptimizerRecord


@dataclass(frozen=True)
class Trained:
    """One optimizer of the file.

    Attributes:
      record: what it holds. places: the names of its parameters, group by group.
    """

    record: OptimizerRecord
    places: tuple[tuple[str, ...], ...]

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
