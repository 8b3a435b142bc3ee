"""The named architectures with their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from surgery.architectures.layers import Activation, Flatten, Layer, Shape
from surgery.architectures.library import built_in
from surgery.architectures.names import PATTERNS, parse
from surgery.architectures.untrained import new

ACTIONS = 6
_OBSERVATION: dict[str, Shape] = {"transformer-128": (16, 8)}


@dataclass(frozen=True)
class Example:
    """One architecture, with a Q head of `actions` for an `observation`.

    Attributes:
      layers: in words. parameters: how many numbers are trained.
    """

    name: str
    layers: str
    observation: Shape
    actions: int
    parameters: int
    about: str


def examples() -> Iterator[Example]:
    """Every architecture that has a name, and an example of every family."""
    for name in (*built_in(), *PATTERNS):
        architecture = parse(name)
        observation = architecture.observation or _OBSERVATION.get(name, (8,))
        made = new(architecture, observation=observation, actions=ACTIONS)
        count = sum(tensor.size for tensor in made.tensors.values())
        yield Example(name, summary(architecture.layers), observation, ACTIONS, count, architecture.about)


def summary(layers: Sequence[Layer]) -> str:
    """Layers in words: activations and flattens left out, equal ones counted."""
    shown = [layer for layer in layers if not isinstance(layer, (Activation, Flatten))]
    words = [(str(layer), len(list(run))) for layer, run in groupby(shown)]
    return " · ".join(text if count == 1 else f"{count} × {text}" for text, count in words)
