"""A recurrent layer between a trunk and its heads, where a file tells that it is there.

PufferLib's `LSTMWrapper` holds one `nn.LSTM`, `lstm`, and an `nn.LSTMCell` of the same tensors, `cell`, beside the
policy that it wraps: what that makes of an observation goes through the cell, and from there to its heads.
(pufferlib/models.py, 3.0)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.errors import Refused
from surgery.tensors import shape_of
from surgery_adapters.networks.layers import HINT
from surgery_adapters.networks.wiring import Group

Tensors = Mapping[str, ir.TensorProtocol]
_LEAVES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass(frozen=True)
class Wrapper:
    """An LSTM that a network is wrapped in.

    Attributes:
      module: its path. reads: how many features. makes: how many.
      rest: the network's tensors without it.
    """

    module: str
    reads: int
    makes: int
    rest: Tensors

    def wrap(self, groups: Sequence[Group]) -> Group:
        """Put it behind the group that makes what it reads; the group.

        Raises:
          Refused: there is none, or it is not told which.
        """
        makers = [group for group in groups if group.units == self.reads]
        makers = [group for group in makers if group.wanted != self.makes] or makers
        if len(makers) != 1:
            found = " and ".join(f"'{group.name}'" for group in makers) or "no layer"
            raise Refused(f"{found} makes the {self.reads} features that '{self.module}' reads", hint=HINT)
        makers[0].units = self.makes
        return makers[0]


def wrapper_of(tensors: Tensors, prefix: str) -> Wrapper | None:
    """The wrapper of a network whose names have a prefix; None if it has none."""
    pairs = [(f"{prefix}lstm.{leaf}_l0", f"{prefix}cell.{leaf}") for leaf in _LEAVES]
    if not all(
        one in tensors
        and other in tensors
        and tensors[one].meta.get(SHARED, one) == tensors[other].meta.get(SHARED, other)
        for one, other in pairs
    ):
        return None
    gates, reads = shape_of(tensors[pairs[0][0]])
    own = {name for pair in pairs for name in pair}
    rest = {name: tensor for name, tensor in tensors.items() if name not in own}
    return Wrapper(f"{prefix}lstm", reads, gates // 4, rest)
