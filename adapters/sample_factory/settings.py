"""`config.json`: the settings of an experiment, among them the sizes of its networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import CorruptFile, Refused
from surgery.files import check_readable, read_error
from surgery_adapters.networks.layers import Layers

NAME = "config.json"
_MOST = 1 << 24
_REQUIRED = ("algo", "encoder_mlp_layers", "use_rnn", "nonlinearity")


@dataclass(frozen=True)
class Settings:
    """What an experiment was started with.

    Attributes:
      values: setting -> value.
    """

    values: Mapping[str, Any]

    @staticmethod
    def read(path: Path) -> Settings:
        """Raises: FileError, CorruptFile."""
        check_readable(path)
        try:
            if path.stat().st_size > _MOST:
                raise CorruptFile(f"{path} is larger than any configuration")
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise read_error(error, path) from error
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict) or not set(_REQUIRED) <= set(values):
            raise CorruptFile(f"{path} is not a configuration of Sample Factory")
        return Settings(values)

    def number(self, name: str, usual: float) -> float:
        """A setting that is a number."""
        found = self.values.get(name, usual)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise CorruptFile(f"the setting '{name}' is not a number: {found!r:.40}")
        return float(found)

    def flag(self, name: str, usual: bool) -> bool:
        """A setting that is on or off."""
        found = self.values.get(name, usual)
        if not isinstance(found, bool):
            raise CorruptFile(f"the setting '{name}' is neither true nor false: {found!r:.40}")
        return found

    def word(self, name: str, usual: str, known: tuple[str, ...]) -> str:
        """A setting that is one of some words.

        Raises:
          Refused: it is another one.
        """
        found = self.values.get(name, usual)
        if found not in known:
            raise Refused(f"the setting '{name}' is {found!r:.60}; known are {', '.join(known)}")
        return str(found)

    def following(self, layers: Layers) -> Settings:
        """The settings with the sizes that the layers now have.

        Raises:
          Refused: one setting would have to hold several sizes.
        """
        values = dict(self.values)
        for setting, ends in _WIDTHS.items():
            sizes = {
                tuple(layers.shape(f"{sequence}{place}.weight")[0] for place in layers.places(sequence))
                for sequence in sequences(layers, ends)
            }
            _put(values, setting, [list(found) for found in sizes])
        states = {layers.shape(name)[1] for name in layers.tensors if ".weight_hh_l" in name}
        _put(values, "rnn_size", sorted(states))
        return Settings(values)

    def text(self) -> str:
        """As Sample Factory writes it."""
        return json.dumps(self.values, indent=2)


_WIDTHS: Mapping[str, tuple[str, ...]] = {
    "encoder_mlp_layers": (".mlp_head.",),
    "encoder_conv_mlp_layers": (".mlp_layers.",),
    "decoder_mlp_layers": ("decoder.mlp.",),
}
"""Setting -> the ends of the names of the sequences that have these widths."""


def sequences(layers: Layers, ends: tuple[str, ...]) -> list[str]:
    """The sequences of numbered layers whose prefixes end so."""
    prefixes = dict.fromkeys(f"{name.rsplit('.', 2)[0]}." for name in layers.tensors if name.count(".") > 1)
    return [prefix for prefix in prefixes if prefix.endswith(ends)]


def _put(values: dict[str, Any], setting: str, found: list[Any]) -> None:
    if len(found) > 1:
        shown = " and ".join(map(str, found))
        raise Refused(
            f"Sample Factory has one '{setting}' for all of them, and they now differ: {shown}",
            hint="give the parts the same widths",
        )
    if found and values.get(setting) != found[0]:
        values[setting] = found[0]
