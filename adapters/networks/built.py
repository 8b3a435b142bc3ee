"""What an adapter makes of the networks of a file: a graph, what goes into it, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import onnx_ir as ir

from surgery.interface import CRITIC_ACTION, Interface, Port
from surgery_adapters.networks.layers import Layers


@dataclass
class Built:
    """Networks side by side in one graph, in the making.

    Attributes:
      layers: the graph. inputs, outputs: what they mean, in its order.
      copies: prefixes of target networks -> of their originals.
    """

    layers: Layers
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)

    @property
    def interface(self) -> Interface:
        """What has been declared."""
        return Interface(tuple(self.inputs), tuple(self.outputs))

    def output(self, value: ir.Value, name: str, shape: tuple[int | str, ...], kind: str) -> None:
        """Declare an output; its shape is without the batch."""
        self.layers.graph.output(value, name, shape)
        self.outputs.append(Port(name, kind, declared=True))

    def action(self, value: ir.Value, count: int, suffix: str = "", *, scaled: bool = True) -> None:
        """Declare a continuous action between −1 and 1; suffix: of the name of a copy.

        Args:
          scaled: whether these ends stand for the bounds of the environment.
        """
        self.output(value, f"action{suffix}", (count,), "other" if suffix else "action")
        if scaled and not suffix:
            self.outputs[-1] = replace(self.outputs[-1], low=-1.0, high=1.0)

    def critic_action(self, count: int) -> ir.Value:
        """The input through which critics read an action of so many numbers."""
        self.inputs.append(Port(CRITIC_ACTION, "other", -1, 1, declared=True))
        return self.layers.graph.input(CRITIC_ACTION, (count,))
