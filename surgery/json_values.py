"""Strict JSON values: frozen when held in memory, checked field by field when read from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn, TypeAlias

from surgery.errors import ArgumentError, CorruptFile, FileError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

_EMPTY: Mapping[str, Json] = MappingProxyType({})


def freeze(value: Json) -> Json:
    """A deep copy that nothing can change: lists become tuples, mappings become read-only.

    Raises:
      ArgumentError: not JSON: a type that JSON lacks, a key that is no string, NaN, an infinity.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ArgumentError(f"{value} is not a JSON number")
        return value
    if isinstance(value, Mapping):
        return freeze_mapping(value)
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    raise ArgumentError(f"a {type(value).__name__} is not a JSON value")


def freeze_mapping(value: Mapping[str, Json]) -> Mapping[str, Json]:
    """`freeze` for a mapping, whose type is kept."""
    for key in value:
        if not isinstance(key, str):
            raise ArgumentError(f"JSON keys are strings, got {key!r}")
    return MappingProxyType({key: freeze(item) for key, item in value.items()}) if value else _EMPTY


def thaw(value: Json) -> Json:
    """The plain lists and dicts that `json` writes."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value


def dumps(value: Json) -> str:
    """Compact JSON, the same text for the same value."""
    return json.dumps(thaw(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def loads(text: str, what: str) -> Mapping[str, Json]:
    """Parse one JSON object.

    Args:
      text: the JSON text.
      what: what it describes, for the error message.

    Raises:
      CorruptFile: not JSON, not an object, or a key twice.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"the {what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptFile(f"the {what} is not a JSON object")
    return value


def check_schema(record: Mapping[str, Json], what: str, supported: int) -> None:
    """Refuse a record written by another version.

    Raises:
      CorruptFile: no schema number.
      FileError: a schema number that this version does not know.
    """
    schema = record.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise CorruptFile(f"the {what} has no schema number")
    if schema != supported:
        raise FileError(
            f"the {what} has schema {schema}, this version reads schema {supported}",
            hint="upgrade this program, or write the file again with a version that fits",
        )


class Fields:
    """Reads the fields of one JSON object, each with its type; `done` refuses what nobody asked for."""

    def __init__(self, record: Json, what: str) -> None:
        if not isinstance(record, Mapping):
            raise CorruptFile(f"the {what} is not a JSON object")
        self._record = dict(record)
        self._what = what

    def text(self, name: str) -> str:
        value = self._record.pop(name, None)
        return value if isinstance(value, str) else self._wrong(name, "a string", value)

    def flag(self, name: str) -> bool:
        value = self._record.pop(name, None)
        return value if isinstance(value, bool) else self._wrong(name, "true or false", value)

    def optional_integer(self, name: str) -> int | None:
        value = self._record.pop(name, None)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        return self._wrong(name, "an integer", value)

    def items(self, name: str) -> Sequence[Json]:
        value = self._record.pop(name, None)
        return value if isinstance(value, list | tuple) else self._wrong(name, "a list", value)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.items(name)
        if not all(isinstance(value, str) for value in values):
            self._wrong(name, "a list of strings", values)
        return tuple(str(value) for value in values)

    def mapping(self, name: str) -> Mapping[str, Json]:
        value = self._record.pop(name, None)
        return value if isinstance(value, Mapping) else self._wrong(name, "an object", value)

    def anything(self, name: str) -> Json:
        return self._record.pop(name, None)

    def done(self, ignore: Iterable[str] = ()) -> None:
        unknown = sorted(set(self._record) - set(ignore))
        if unknown:
            raise CorruptFile(
                f"the {self._what} has fields that this version does not know: {', '.join(unknown)}"
            )

    def _wrong(self, name: str, wanted: str, value: Json) -> NoReturn:
        raise CorruptFile(f"field '{name}' of the {self._what} is not {wanted}: {str(value)[:60]}")


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key occurs twice")
    return record
