"""Python source of a forward pass: names, lines, what is dropped and what is freed."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*", re.ASCII)
_USED = {"self", "torch", "F", "math", "float", "int", "bool", "abs", "min", "max"}
RESERVED = frozenset({*keyword.kwlist, *keyword.softkwlist, *_USED})


def identifiers(text: str) -> list[str]:
    """Every identifier in a piece of source, as often as it stands there; attributes are none."""
    return _WORD.findall(text)


class Names:
    """Identifiers, each given out once.

    Whatever a graph calls its values, only ASCII letters, digits and underscores reach the source.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {*RESERVED, *taken}

    def new(self, wanted: str) -> str:
        """An identifier as near to `wanted` as can be."""
        words = re.sub(r"\W+", "_", re.sub(r"_output_\d+$", "", wanted), flags=re.ASCII).strip("_").lower()
        stem = words[-48:].strip("_") or "x"
        stem = stem if stem[0].isalpha() else f"v{stem}"
        name, count = stem, 1
        while name in self._taken:
            name, count = f"{stem}_{count}", count + 1
        self._taken.add(name)
        return name


@dataclass
class Line:
    """`target = text`; or `def target(…):` with a block.

    Attributes:
      rank: the number of axes of the first operand of the node that it comes from, if it is known.
    """

    target: str
    text: str
    block: Block | None = None
    rank: int | None = None

    def words(self) -> set[str]:
        """Every identifier that it reads."""
        found = set(identifiers(self.text))
        return found | self.block.words() if self.block else found


@dataclass
class Block:
    """The body of a function.

    Attributes:
      lines: in order. returned: the expression that it returns.
    """

    lines: list[Line] = field(default_factory=list)
    returned: str = "None"

    def words(self) -> set[str]:
        """Every identifier that it reads."""
        return set(identifiers(self.returned)).union(*(line.words() for line in self.lines))

    def prune(self) -> None:
        """Drop lines whose result nobody reads."""
        needed, kept = set(identifiers(self.returned)), []
        for line in reversed(self.lines):
            if line.block:
                line.block.prune()
            if line.target in needed:
                needed |= line.words()
                kept.append(line)
        self.lines = kept[::-1]

    def text(self, indent: int = 1, *, free: bool = True) -> Iterator[str]:
        """The lines of the source; a name is deleted once nothing behind reads it, unless `free` is off."""
        pad = "    " * indent
        kept = set(identifiers(self.returned)).union(*(line.words() for line in self.lines if line.block))
        last = {word: at for at, line in enumerate(self.lines) for word in line.words()}
        own = {line.target for line in self.lines}
        for at, line in enumerate(self.lines):
            if line.block:
                yield f"{pad}def {line.target}({line.text}):"
                yield from line.block.text(indent + 1, free=free)
                continue
            yield f"{pad}{line.target} = {line.text}"
            dead = sorted(w for w in line.words() if w in own and last[w] == at and w not in kept)
            if dead and free:
                yield f"{pad}del {', '.join(dead)}"
        yield f"{pad}return {self.returned}"
