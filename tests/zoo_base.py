"""One row of the zoo: a network, what goes into it, and what of it a user would want to widen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

Shape = tuple[int | str, ...]
CORE = frozenset({"core"})


class Range(NamedTuple):
    """Values of an input that is no standard-normal float: `low` <= value < `high`, of a numpy `dtype`."""

    dtype: str
    low: float
    high: float


MASK = Range("bool", 0, 2)
PIXELS = Range("uint8", 0, 256)


@dataclass(frozen=True)
class Net:
    """A network of the field.

    Attributes:
      name: unique; the row in `zoo.NETS`.
      build: makes the module, initialised by torch's global generator (`zoo.module` seeds it).
      inputs: input -> shape in the order of `forward`'s arguments; a str is a symbolic size.
      outputs: names in the order of `forward`'s results.
      hidden: width that can grow by itself -> today's size. The key is the path of the first module (or
        parameter) that produces it; a suffix after ':' says what is counted where that is only a part
        (`attention:heads`, `conv2:channels`).
      tags: `core` when Gemm, MatMul, Conv, elementwise, pooling, reductions and shape operators are all it
        takes; other tags name what else is in it.
      ranges: inputs that are not standard-normal float32.
      frozen: widths that cannot grow by an axis edit alone (a tied pair, a repeated shuffle).
      impossible: style -> why the exporter cannot take this network.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    hidden: Mapping[str, int]
    tags: frozenset[str] = CORE
    ranges: Mapping[str, Range] = field(default_factory=dict)
    frozen: Mapping[str, int] = field(default_factory=dict)
    impossible: Mapping[str, str] = field(default_factory=dict)


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of the given sizes, an activation between them: modules '0', '2', '4' are the layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])
