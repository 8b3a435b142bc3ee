"""What a network is recognised as, and the names that its spaces have there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import surgery
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from surgery.architectures.family import Family
    from surgery.graph.spaces import Analysis


def recognised(checkpoint: surgery.Checkpoint, analysis: Analysis) -> tuple[Family | None, Analysis]:
    """The family of a network, and the analysis with its names for spaces; None for what is no policy."""
    from surgery.architectures.family import identify, with_aliases
    from surgery.architectures.like import observed
    from surgery.architectures.recognise import recognise

    try:
        _, shape = observed(checkpoint)
    except SurgeryError:
        return None, analysis
    found = identify(recognise(checkpoint, analysis), shape)
    return found, with_aliases(analysis, found.aliases)


def by_space(checkpoint: surgery.Checkpoint, widths: Mapping[str, int]) -> dict[str, int]:
    """Widths by the names of spaces: `conv1` of a recognised network is what its graph calls `network.0`."""
    analysis = surgery.analyse(checkpoint.model, checkpoint.interface, checkpoint.trained)
    known = {space.name for space in analysis.spaces}
    if known.issuperset(widths):
        return dict(widths)
    _, analysis = recognised(checkpoint, analysis)
    return {analysis.space(name).name: width for name, width in widths.items()}
