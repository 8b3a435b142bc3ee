"""What an environment shows and takes: its spaces as plain data, with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from surgery.errors import ArgumentError, CorruptFile
from surgery.json_values import Fields, Json, check_schema

SCHEMA = 1


@dataclass(frozen=True)
class Observed:
    """One array of an observation.

    Attributes:
      name: its key in a dictionary of observations; "" where the observation is this array.
      shape: without a batch. labels: a name per feature (or channel); None if they have none.
      low, high: bounds, one for all features or one per feature, in which None is unbounded; None if not known.
    """

    name: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] | None = None
    low: float | tuple[float | None, ...] | None = None
    high: float | tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class Actions:
    """What an agent may do: one of `count` actions, or `count` numbers; `labels` names them."""

    kind: Literal["discrete", "continuous"]
    count: int
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SpaceDescription:
    """The spaces of an environment.

    Attributes:
      observations: at least one. actions: None where they are not described. environment: its id, if it has one.
    """

    observations: tuple[Observed, ...]
    actions: Actions | None = None
    environment: str | None = None

    def __post_init__(self) -> None:
        labels = [part.labels for part in self.observations] + [self.actions.labels if self.actions else None]
        for names in labels:
            if names is not None and len(set(names)) != len(names):
                raise ArgumentError(f"two labels are equal: {', '.join(names)}")

    def to_json(self) -> dict[str, Json]:
        """Plain JSON; `from_json` gives an equal description."""
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "observations": [
                {
                    "name": o.name,
                    "shape": list(o.shape),
                    "labels": None if o.labels is None else list(o.labels),
                    **{
                        side: bound for side, bound in (("low", o.low), ("high", o.high)) if bound is not None
                    },
                }
                for o in self.observations
            ],
            "actions": None
            if self.actions is None
            else {
                "kind": self.actions.kind,
                "count": self.actions.count,
                "labels": None if self.actions.labels is None else list(self.actions.labels),
            },
        }

    @staticmethod
    def from_json(data: Mapping[str, Json]) -> SpaceDescription:
        """Raises: CorruptFile, if the data is no description; ArgumentError, if two labels are equal."""
        what = "space description"
        check_schema(data, what, SCHEMA)
        fields = Fields(data, what)
        observations = tuple(_observed(item) for item in fields.items("observations"))
        actions, environment = fields.anything("actions"), fields.anything("environment")
        fields.done(ignore=("schema",))
        if not observations or not (environment is None or isinstance(environment, str)):
            raise CorruptFile(f"the {what} has no observation, or its environment is not text")
        return SpaceDescription(observations, None if actions is None else _actions(actions), environment)


def _observed(data: Json) -> Observed:
    fields = Fields(data, "observation of a space description")
    name, shape, labels = fields.text("name"), fields.anything("shape"), _labels(fields.anything("labels"))
    low, high = (_bound(fields.anything(side), name) for side in ("low", "high"))
    fields.done()
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not all(_count(n) for n in shape):
        raise CorruptFile(f"the shape of observation '{name}' is not a list of sizes: {shape!r:.60}")
    return Observed(name, tuple(int(n) for n in shape), labels, low, high)  # type: ignore[arg-type]


def _bound(value: Json, name: str) -> float | tuple[float | None, ...] | None:
    items = value if isinstance(value, list | tuple) else (value,)
    numbers = [None if item is None else _number(item, name) for item in items]
    return tuple(numbers) if isinstance(value, list | tuple) else numbers[0]


def _number(value: Json, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CorruptFile(f"a bound of observation '{name}' is not a number: {value!r:.40}")
    return float(value)


def _actions(data: Json) -> Actions:
    fields = Fields(data, "actions of a space description")
    kind, count, labels = fields.text("kind"), fields.anything("count"), _labels(fields.anything("labels"))
    fields.done()
    if kind not in ("discrete", "continuous") or not _count(count):
        raise CorruptFile(f"actions are discrete or continuous, and have a count: {kind!r}, {count!r:.30}")
    if labels is not None and len(labels) != count:
        raise CorruptFile(f"{count} actions with {len(labels)} labels")
    return Actions(kind, int(count), labels)  # type: ignore[arg-type]


def _count(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _labels(value: Json) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(label, str) for label in value):
        raise CorruptFile(f"labels are a list of names: {value!r:.60}")
    return tuple(str(label) for label in value)
