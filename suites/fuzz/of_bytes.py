"""Mutations of bytes, whatever they mean: of a specification, a weight file, a .pte."""

from __future__ import annotations

import random
import struct

_SIZES = (0, 1, 63, 64, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
_ENTRY = 64  # of the weight file: a header, then an entry before each blob, each of 64 bytes


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Replace one to three bytes, or change one bit of each."""
    broken = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(broken))
        broken[index] = rng.choice([rng.randrange(256), broken[index] ^ 1 << rng.randrange(8)])
    return bytes(broken)


def truncated(data: bytes, rng: random.Random) -> bytes:
    """Remove the end or the beginning, or append more than there should be."""
    index = rng.randrange(len(data))
    return rng.choice([data[:index], data[index:], data + data[:index]])


def moved(data: bytes, rng: random.Random) -> bytes:
    """Copy a range of bytes over another."""
    broken, size = bytearray(data), rng.randint(1, min(64, len(data)))
    source, target = (rng.randrange(len(data) - size + 1) for _ in range(2))
    broken[target : target + size] = data[source : source + size]
    return bytes(broken)


def number(data: bytes, rng: random.Random) -> bytes:
    """Replace a number of four or eight bytes, at a multiple of its size."""
    size, code = rng.choice([(4, "<I"), (8, "<Q")])
    if len(data) < size:
        return data[:-1]
    broken = bytearray(data)
    value = rng.choice([*_SIZES, rng.randrange(1 << 16)]) % (1 << (8 * size))
    struct.pack_into(code, broken, rng.randrange(len(data) // size) * size, value)
    return bytes(broken)


def entry(data: bytes, rng: random.Random) -> bytes:
    """Replace a field of the weight file's header, or of one blob's entry."""
    broken = bytearray(data)
    entries = [
        start
        for start in range(0, len(data) - _ENTRY + 1, _ENTRY)
        if start == 0 or data[start : start + 4] == b"\xef\xbe\xad\xde"
    ]
    if not entries:
        return flipped(data, rng)
    start = rng.choice(entries) + rng.choice((0, 4, 8, 16, 24))
    struct.pack_into("<Q", broken, start, rng.choice([*_SIZES, rng.randrange(1 << 12)]))
    return bytes(broken)


MUTATIONS = (flipped, flipped, truncated, moved, number)
OF_WEIGHTS = (*MUTATIONS, entry, entry, entry)
