"""CRC-32C (Castagnoli), as LevelDB and TensorFlow check their blocks; many lanes at once in numpy.

A checksum is linear: that of a whole is made of those of its parts, each moved on by as many zero bytes as follow it
(RFC 3720, section 12.1; M. Adler's `crc32_combine` of zlib).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.uint32]]

_POLYNOMIAL = 0x82F63B78
_LANES = 1 << 12
_MASK = 0xA282EAD8


@functools.cache
def _table() -> Array:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum as it is stored, so that checksums of checksums are no trouble (leveldb/util/crc32c.h)."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of some bytes."""
    array = np.frombuffer(data, np.uint8)
    length = len(array) // _LANES
    body, tail = array[: length * _LANES].reshape(_LANES, -1), array[length * _LANES :]
    state = _moved(0xFFFFFFFF, length * _LANES) ^ _joined(_columns(body), length) if length else 0xFFFFFFFF
    table = _table()
    for byte in tail.tolist():
        state = int(table[(state ^ byte) & 255]) ^ state >> 8
    return state ^ 0xFFFFFFFF


def _columns(lanes: np.ndarray[Any, np.dtype[np.uint8]]) -> Array:
    """The bare checksum (from 0) of every row."""
    table = _table()
    state = np.zeros(len(lanes), np.uint32)
    for column in np.ascontiguousarray(lanes.T):
        state = table[(state ^ column) & 255] ^ state >> 8
    return state


def _joined(parts: Array, length: int) -> int:
    """The bare checksum of parts that follow each other, each of so many bytes; their number is a power of 2."""
    while len(parts) > 1:
        parts = _apply(_zeros(length), parts[::2]) ^ parts[1::2]
        length *= 2
    return int(parts[0])


def _moved(crc: int, length: int) -> int:
    return int(_apply(_zeros(length), np.array([crc], np.uint32))[0])


def _zeros(length: int) -> Array:
    """What `length` zero bytes do to each bit of a state, (32,)."""
    done = np.uint32(1) << np.arange(32, dtype=np.uint32)
    step = _table()[done & 255] ^ done >> 8
    while length:
        if length & 1:
            done = _apply(step, done)
        step = _apply(step, step)
        length >>= 1
    return done


def _apply(operator: Array, states: Array) -> Array:
    found = np.zeros_like(states)
    for bit in range(32):
        found ^= np.where(states >> np.uint32(bit) & 1, operator[bit], 0).astype(np.uint32)
    return found
