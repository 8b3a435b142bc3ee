"""What a model's inputs and outputs mean, the environment it was trained for, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

from surgery.errors import ArgumentError, CorruptFile, UnknownName
from surgery.json_values import Fields, Json, freeze, freeze_mapping, thaw

INPUT_KINDS = ("observation", "state", "mask", "other")
OUTPUT_KINDS = (
    "q_values", "atom_logits", "quantiles", "logits", "probabilities", "value", "mean", "log_std", "state", "action",
    "other",
)  # fmt: skip

CRITIC_ACTION = "critic_action"
"""The input through which critics read an action, as adapters name it: it follows the policy's actions."""

Bound = float | tuple[float | None, ...] | None
_T = TypeVar("_T")


@dataclass(frozen=True)
class Port:
    """One input or output of the graph.

    Attributes:
      name: its name in the graph.
      kind: one of `INPUT_KINDS` or `OUTPUT_KINDS`.
      low: smallest value, one for all features or one per feature; None, also of one feature, if unknown or unbounded.
      high: largest value, likewise.
      labels: a name per feature (observation) or per action; None if unknown.
      declared: whether a person or a framework said so; false if it was inferred from its name.
    """

    name: str
    kind: str
    low: Bound = None
    high: Bound = None
    labels: tuple[str, ...] | None = None
    declared: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", _bound(self.low, self.name))
        object.__setattr__(self, "high", _bound(self.high, self.name))
        object.__setattr__(self, "labels", None if self.labels is None else tuple(self.labels))
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ArgumentError(f"two labels of '{self.name}' are equal")
        if self.low is not None and self.high is not None:
            _check_order(self.low, self.high, self.name)


@dataclass(frozen=True)
class PortPatch:
    """A declaration about a port: what is None stays as it is."""

    kind: str | None = None
    low: Bound = None
    high: Bound = None
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):
            raise ArgumentError(f"labels are a list of strings, not one string: '{self.labels}'")


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a model, in the graph's order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def __post_init__(self) -> None:
        for ports, kinds, side in (
            (self.inputs, INPUT_KINDS, "input"),
            (self.outputs, OUTPUT_KINDS, "output"),
        ):
            names = [port.name for port in ports]
            if len(set(names)) != len(names):
                raise ArgumentError(f"two {side}s have the same name")
            for port in ports:
                if port.kind not in kinds:
                    raise ArgumentError(
                        f"an {side} cannot be of kind '{port.kind}' ('{port.name}')",
                        hint=f"kinds: {', '.join(kinds)}",
                    )

    def input(self, name: str) -> Port:
        """Raises: UnknownName."""
        return _find(self.inputs, name, "input")

    def output(self, name: str) -> Port:
        """Raises: UnknownName."""
        return _find(self.outputs, name, "output")

    def states(self) -> dict[str, str]:
        """Input -> output of each recurrent state, paired in order.

        Raises:
          ArgumentError: they do not pair.
        """
        inputs, outputs = (
            [port.name for port in ports if port.kind == "state"] for ports in (self.inputs, self.outputs)
        )
        if len(inputs) != len(outputs):
            raise ArgumentError(
                f"{len(inputs)} states go in ({', '.join(inputs)}), {len(outputs)} come out ({', '.join(outputs)})",
                hint="surgery annotate MODEL --input NAME:state --output NAME:state -o OUT",
            )
        return dict(zip(inputs, outputs, strict=True))

    def annotated(self, inputs: Mapping[str, PortPatch], outputs: Mapping[str, PortPatch]) -> Interface:
        """The interface with declarations added; the ports named become declared.

        Raises:
          UnknownName: a port that the model does not have.
          ArgumentError: a kind that the port cannot have, bounds out of order, a label twice.
        """
        return Interface(_patched(self.inputs, inputs, "input"), _patched(self.outputs, outputs, "output"))

    def to_json(self) -> Json:
        return {side: [asdict(port) for port in getattr(self, side)] for side in ("inputs", "outputs")}

    @staticmethod
    def from_json(record: Json) -> Interface:
        """Raises: CorruptFile."""
        fields = Fields(record, "interface")
        inputs, outputs = (
            tuple(_port(item) for item in fields.items(side)) for side in ("inputs", "outputs")
        )
        fields.done()
        return _read(lambda: Interface(inputs, outputs), "interface")


def _number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _probability(value: Json) -> bool:
    return isinstance(value, int | float) and _number(value) and 0 <= value <= 1


def _count(value: Json) -> bool:
    return isinstance(value, int) and _number(value) and value >= 0


def _positive(value: Json) -> bool:
    return _count(value) and value != 0


def _flag(value: Json) -> bool:
    return isinstance(value, bool)


def _scores(value: Json) -> bool:
    """What `surgery.evaluate` records: enough to be compared with."""
    return isinstance(value, list | tuple) and all(
        isinstance(one, Mapping)
        and isinstance(one.get("mode"), str)
        and _number(one.get("mean"))
        and _number(one.get("std"))
        and _positive(one.get("episodes"))
        and isinstance(one.get("settings", {}), Mapping)
        and isinstance(one.get("model", ""), str)
        for one in value
    )


_SETTINGS: Mapping[str, tuple[str, Callable[[Json], bool]]] = {
    "sticky_actions": ("a probability", _probability),
    "frame_skip": ("a positive integer", _positive),
    "frame_stack": ("a positive integer", _positive),
    "noop_max": ("an integer, at least 0", _count),
    "max_episode_steps": ("a positive integer", _positive),
    "action_set": ("a list of integers", lambda v: isinstance(v, list | tuple) and all(map(_count, v))),
    "preprocessing": ("an object", lambda v: isinstance(v, Mapping)),
    "full_action_space": ("true or false", _flag),
    "terminal_on_life_loss": ("true or false", _flag),
    "max_pool": ("true or false", _flag),
    "fire_reset": ("true or false", _flag),
    "reward_clip": ("true, false or a number", lambda v: isinstance(v, bool) or _number(v)),
    "scores": ("a list of scores: mode, mean, std, episodes", _scores),
}

SETTINGS = (*_SETTINGS, "action_mask", "action_range", "difficulty_ramping", "normaliser")
"""What of a contract anything reads; a framework may add what it wants to keep."""


@dataclass(frozen=True)
class Environment:
    """The environment that a policy was trained for, and everything that its returns depend on.

    Attributes:
      id: how the environment is made, such as `ALE/Breakout-v5`; None if unknown.
      settings: any JSON. Those with a fixed meaning are checked: `preprocessing` (object), `action_set` (the
        environment's action behind each output), `sticky_actions` (probability), `frame_skip`,
        `frame_stack`, `noop_max`, `max_episode_steps`, `full_action_space`, `terminal_on_life_loss`,
        `max_pool`, `fire_reset`, `reward_clip`, `scores` (what the policy reached; see `surgery.evaluate`); what
        is None of these is left open.

    Raises:
      ArgumentError: a setting with a fixed meaning has a value that it cannot have.
    """

    id: str | None = None
    settings: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stated = {k: v for k, v in self.settings.items() if v is not None or k not in _SETTINGS}
        object.__setattr__(self, "settings", freeze_mapping(stated))
        for name, (wanted, check) in _SETTINGS.items():
            if name in self.settings and not check(self.settings[name]):
                raise ArgumentError(f"the environment's {name} must be {wanted}, got {self.settings[name]!r}")

    def with_settings(self, **settings: Json) -> Environment:
        """The same environment, with these settings in place of its own."""
        return Environment(self.id, {**self.settings, **settings})

    def action_mask(self, output: str) -> Json:
        """What `action_mask` says of an output: one list is about each, a mapping names them; None: nothing."""
        masks = self.settings.get("action_mask")
        return masks.get(output) if isinstance(masks, Mapping) else masks

    def to_json(self) -> Json:
        return {"id": self.id, "settings": thaw(self.settings)}

    @staticmethod
    def from_json(record: Json) -> Environment:
        """Raises: CorruptFile."""
        fields = Fields(record, "environment")
        name, settings = fields.anything("id"), fields.mapping("settings")
        fields.done()
        if name is not None and not isinstance(name, str):
            raise CorruptFile(f"the environment's id is not a string: {name!r}")
        return _read(lambda: Environment(name, settings), "environment")


@dataclass(frozen=True)
class LineageStep:
    """One thing that was done to reach a checkpoint.

    Attributes:
      operation: its name, such as `widen`.
      parents: digests of the checkpoints it was made from.
      versions: package -> version, of what did it.
      seed: the seed of its random numbers, if it used any.
      summary: what it did, in the plan's own words.
      witness: what verification measured.
    """

    operation: str
    parents: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    summary: Json = None
    witness: Json = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(self.parents))
        object.__setattr__(self, "versions", freeze_mapping(self.versions))
        object.__setattr__(self, "summary", freeze(self.summary))
        object.__setattr__(self, "witness", freeze(self.witness))

    def to_json(self) -> Json:
        return {
            "operation": self.operation,
            "parents": list(self.parents),
            "versions": thaw(self.versions),
            "seed": self.seed,
            "summary": thaw(self.summary),
            "witness": thaw(self.witness),
        }

    @staticmethod
    def from_json(record: Json) -> LineageStep:
        """Raises: CorruptFile."""
        fields = Fields(record, "lineage step")
        versions = {name: str(version) for name, version in fields.mapping("versions").items()}
        operation, parents, seed = (
            fields.text("operation"),
            fields.texts("parents"),
            fields.optional_integer("seed"),
        )
        summary, witness = fields.anything("summary"), fields.anything("witness")
        fields.done()
        return _read(
            lambda: LineageStep(operation, parents, versions, seed, summary, witness), "lineage step"
        )


def _read(make: Callable[[], _T], what: str) -> _T:
    try:
        return make()
    except ArgumentError as error:
        raise CorruptFile(f"the {what} is not valid: {error.message}") from error


def _bound(value: Json, name: str) -> Bound:
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    numbers: list[float | None] = []
    for item in values:
        if item is None:
            numbers.append(None)
            continue
        if not isinstance(item, int | float) or isinstance(item, bool) or not math.isfinite(item):
            raise ArgumentError(
                f"a bound of '{name}' is not a finite number: {item!r}", hint="leave it out if unbounded"
            )
        numbers.append(float(item))
    if all(item is None for item in numbers):
        return None
    return tuple(numbers) if isinstance(value, list | tuple) else numbers[0]


def _check_order(
    low: float | tuple[float | None, ...], high: float | tuple[float | None, ...], name: str
) -> None:
    width = max(len(side) if isinstance(side, tuple) else 1 for side in (low, high))
    lows, highs = (side if isinstance(side, tuple) else (side,) * width for side in (low, high))
    if len(lows) != len(highs) or any(
        a > b for a, b in zip(lows, highs, strict=True) if a is not None and b is not None
    ):
        raise ArgumentError(f"the bounds of '{name}' do not fit each other: low {low}, high {high}")


def _find(ports: tuple[Port, ...], name: str, side: str) -> Port:
    for port in ports:
        if port.name == name:
            return port
    raise UnknownName(side, name, [port.name for port in ports])


def _patched(ports: tuple[Port, ...], patches: Mapping[str, PortPatch], side: str) -> tuple[Port, ...]:
    for name in patches:
        _find(ports, name, side)
    return tuple(_patch(port, patches[port.name]) if port.name in patches else port for port in ports)


def _patch(port: Port, patch: PortPatch) -> Port:
    return replace(
        port,
        kind=port.kind if patch.kind is None else patch.kind,
        low=port.low if patch.low is None else patch.low,
        high=port.high if patch.high is None else patch.high,
        labels=port.labels if patch.labels is None else tuple(patch.labels),
        declared=True,
    )


def _port(record: Json) -> Port:
    fields = Fields(record, "port")
    low, high = fields.anything("low"), fields.anything("high")
    labels = fields.anything("labels")
    names = None if labels is None else Fields({"labels": labels}, "port").texts("labels")
    name, kind, declared = fields.text("name"), fields.text("kind"), fields.flag("declared")
    fields.done()
    return _read(lambda: Port(name, kind, _bound(low, name), _bound(high, name), names, declared), "port")
