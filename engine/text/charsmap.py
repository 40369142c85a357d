"""Checks sentencepiece's table of normalizations, bytes in a file that its readers trust.

A double-array trie of prefixes (a length in bytes, then 32-bit units, little endian), whose values are offsets into the
texts that follow, each ended by a zero byte. A reader steps from unit to unit without a check, so all steps are checked
here, at once. Format: google/sentencepiece, src/normalizer.cc, and s-yata/darts-clone, include/darts.h.
"""

from __future__ import annotations

import numpy as np

MAX_BYTES = 5_000_000
# field numbers of sentencepiece_model.proto
NORMALIZER_SPEC, PRECOMPILED_CHARSMAP = 3, 2


def longest_text(table: bytes) -> int | None:
    """The length of the longest replacement text in characters; None for a table that is not valid."""
    size = int.from_bytes(table[:4], "little")
    if not 4 <= len(table) <= MAX_BYTES or size == 0 or size % 1024 or len(table) < 4 + size:
        return None
    units = np.frombuffer(table, dtype="<u4", count=size // 4, offset=4).astype(np.int64)
    try:
        texts = table[4 + size :].decode("utf-8")
    except UnicodeDecodeError:
        return None
    values = units[units >> 31 == 1] & 0x7FFFFFFF
    inner = units >> 31 == 0
    offsets = (units >> 10) << ((units & 0x200) >> 6)
    # a step goes to the XOR of this unit's index, its offset and one byte: within a block of 256
    targets = (np.arange(len(units)) ^ offsets)[inner] | 0xFF
    if targets.size == 0 or targets.max() >= len(units) or (values.size and values.max() >= len(table) - 4 - size):
        return None
    return max(map(len, texts.split("\0")))


def longest_text_of_model(model: bytes) -> int | None:
    """The same for the tables in a sentencepiece model (a protocol buffer); 1 if it has none, None if invalid."""
    try:
        specs = _fields(model, NORMALIZER_SPEC)
        tables = [table for spec in specs for table in _fields(spec, PRECOMPILED_CHARSMAP) if table]
    except (IndexError, ValueError):
        return None
    lengths = [longest_text(table) for table in tables]
    return None if None in lengths else max((length for length in lengths if length is not None), default=1)


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """The fields of bytes that have the number `wanted`."""
    found, position = [], 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind, size = tag & 7, 0
        if kind == 0:
            _, position = _varint(message, position)
        elif kind == 2:
            size, position = _varint(message, position)
            if tag >> 3 == wanted:
                found.append(message[position : position + size])
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        position += size
    if position != len(message):
        raise ValueError("cut off")
    return found


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
