"""Named architectures: as data, written as a graph, and found again in anyone's graph.

parse("nature-x2").layers                                    what the name stands for
new("impala", observation=(4, 84, 84), actions=6)            an untrained network of it
new_like("impala", teacher)                                  the same for a teacher's task
"""

from __future__ import annotations

from surgery.architectures.catalogue import examples as examples
from surgery.architectures.library import Architecture as Architecture
from surgery.architectures.like import new_like as new_like
from surgery.architectures.names import parse as parse
from surgery.architectures.untrained import new as new
