"""What an environment shows, on its way into the inputs of a model: one array into one, or a dictionary by its keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from surgery.errors import ArgumentError, shape_text
from surgery.policy.arrays import Arrays
from surgery.policy.feeds import ObservationPort

if TYPE_CHECKING:
    from surgery.envs.parts import Part


@dataclass(frozen=True)
class Observations:
    """The inputs that observations go to, and the masks of legal actions that an environment may show beside them.

    Attributes:
      ports: at least one.
      masks: type and width of every input that is a mask.
      parts: what flattened observations consist of, in order; empty: an observation is one array.
    """

    ports: tuple[ObservationPort, ...]
    masks: Mapping[str, tuple[ir.DataType, int]]
    parts: tuple[Part, ...] = ()

    @property
    def first(self) -> ObservationPort:
        return self.ports[0]

    def given(self, observation: Any, arrays: Arrays) -> dict[str, Any]:  # noqa: ANN401
        """Observations (n, …), or a mapping of them by input, as what each input gets (n, …); masks if they are shown.

        Raises:
          ArgumentError: nothing is shown of an input.
        """
        if isinstance(observation, Mapping):
            shown = observation
        elif len(self.ports) == 1 and not self._by_name:
            shown = {self.first.name: observation}
        else:
            shown = self._cut(arrays.take(observation), arrays)
        names = [port.name for port in self.ports]
        if missing := [name for name in names if name not in shown]:
            raise self._lacks(missing[0])
        return {name: shown[name] for name in (*names, *(mask for mask in self.masks if mask in shown))}

    def feeds(self, given: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
        """What each input gets, as the graph takes it.

        Raises:
          ArgumentError: observations of another shape.
        """
        fed = {port.name: port.feed(given[port.name], arrays) for port in self.ports}
        masks = {name: kind for name, (kind, _) in self.masks.items() if name in given}
        return fed | {name: arrays.cast(arrays.take(given[name]), kind) for name, kind in masks.items()}

    def batch(self, given: Mapping[str, Any]) -> int | None:
        """The batch that the graph insists on."""
        return self.first.batch(given[self.first.name].ndim - 1)

    def shown(self, shape: tuple[int, ...], parts: Sequence[Part]) -> Observations:
        """The same for an environment that shows observations of a shape, which may have parts.

        Raises:
          ArgumentError: an input does not take what it would be given, or is given nothing.
        """
        found = replace(self, parts=tuple(parts) if len(shape) == 1 else ())
        if len(self.ports) == 1 and not found._by_name:
            self.first.check_moved(shape)
            return found
        shapes = {part.name: part.shape for part in found.parts}
        for port in self.ports:
            if port.name not in shapes:
                raise found._lacks(port.name)
            port.check_moved(shapes[port.name])
        for name, (_, width) in self.masks.items():
            if shapes.get(name, (width,)) != (width,):
                raise ArgumentError(
                    f"input '{name}' is a mask of {width} actions, the environment shows under that name shape "
                    f"{shape_text(shapes[name])}"
                )
        return found

    @property
    def _by_name(self) -> bool:
        """Whether the one input is called like one of several parts, and takes that."""
        named = [part for part in self.parts if part.name == self.first.name]
        return len(self.parts) > 1 and bool(named) and self.first.takes(named[0].shape)

    def _cut(self, rows: Any, arrays: Arrays) -> dict[str, Any]:  # noqa: ANN401
        """Flattened observations (n, features) by part, each with its own shape; bytes are bytes again."""
        cut, begin = {}, 0
        for part in self.parts:
            piece = rows[:, begin : begin + part.size].reshape(len(rows), *part.shape)
            cut[part.name] = arrays.cast(piece, ir.DataType.UINT8) if part.dtype == "uint8" else piece
            begin += part.size
        return cut

    def _lacks(self, name: str) -> ArgumentError:
        names = ", ".join(part.name for part in self.parts)
        shown = f"what is shown is {names}" if names else "observations are shown as one array"
        return ArgumentError(
            f"input '{name}' is one of {len(self.ports)} observations, and nothing is shown under its name: {shown}",
            hint="the environment's dictionary has the names of the inputs; those of the model: surgery inspect MODEL",
        )
