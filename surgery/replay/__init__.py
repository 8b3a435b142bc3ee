"""Experience: single frames in rings, one per environment; n-step and prioritised sampling; compressed segments.

replay = Replay(Layout(envs=8, frame=(84, 84), dtype="uint8", stack=4), capacity=1_000_000, n_step=3)
replay.add(observation, action, reward, terminated, truncated, next_observation)
batch = replay.sample(32, generator)
"""

from surgery.replay.batch import Batch, Layout, Stretch
from surgery.replay.buffer import NOWHERE, Replay
from surgery.replay.memory import check_memory, estimate
from surgery.replay.recorded import check_fits, fill, read_transitions
from surgery.replay.segments import Segment, restore, write_segment
from surgery.replay.sequences import Window
from surgery.replay.sum_tree import SumTree
from surgery.replay.transitions import Transitions

__all__ = [
    "NOWHERE",
    "Batch",
    "Layout",
    "Replay",
    "Segment",
    "Stretch",
    "SumTree",
    "Transitions",
    "Window",
    "check_fits",
    "check_memory",
    "estimate",
    "fill",
    "read_transitions",
    "restore",
    "write_segment",
]
