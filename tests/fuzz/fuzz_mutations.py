"""Small damage to bytes and to JSON, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

# what a config may hold that nobody meant
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 64, 10**4, 10**9, 10**12, 2**63, -(2**63), 10**400),
    *(0.0, -0.0, 0.5, 1.5, -2.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "8", "x", "x" * 5000, "\x1b[31mred\x07", "‮evil", "../../etc/passwd", "\x00", "nan", "null"),
    *([], [0], [1, 2, 3], [1, 1, 1], [None], ["a"], [[1]], [1.5, 2.5], [True], [10**9] * 3, [1] * 1000),
    *({}, {"a": 1}, {"__class__": "x"}),
)


def odd_value(random: Random) -> Any:
    value = random.choice(ODD_VALUES)
    if random.random() < 0.05:
        for _ in range(random.choice((3, 50, 3000))):
            value = [value]
    return value


def dumped(value: Any) -> bytes:
    """JSON with what Python's reader takes beside the standard: NaN, Infinity, long integers; lone surrogates kept."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except RecursionError:  # nested deeper than the writer goes: by hand
        return b"[" * 100_000 + b"]" * 100_000


def spoilt_bytes(data: bytes, random: Random, *, front: int | None = None) -> bytes:
    """A few edits of `data`; front: they fall into its first bytes, where a format says what follows."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        if not made:
            break
        room = min(len(made), front) if front is not None and random.random() < 0.7 else len(made)
        at = random.randrange(room)
        kind = random.randrange(7)
        if kind == 0:
            made[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            made[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind == 2:
            del made[at:]
        elif kind == 3:
            made[at : at + random.choice((1, 4, 64, 4096))] = b""
        elif kind == 4:
            made[at:at] = random.randbytes(random.choice((1, 3, 16, 257)))
        elif kind == 5:  # a size or a count
            value = random.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, random.randrange(2**32)))
            made[at : at + 4] = value.to_bytes(4, random.choice(("little", "big")))  # type: ignore[arg-type]
        else:
            length = random.choice((4, 64, 1024))
            made[at : at + length] = made[at : at + length] * 2
    return bytes(made)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value inside a JSON value, itself left out; of long lists only the ends.

    Nor are there any within what lies very deep, which a mutation of before has made.
    """
    found: list[tuple[Any, ...]] = []
    if len(path) > 60:
        return found
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys if len(keys) <= 40 else [*keys[:20], *keys[-20:]]:
        found.append((*path, key))
        found += places(value[key], (*path, key))
    return found


def spoilt_json(value: Any, random: Random) -> Any:
    """A copy with one to three values replaced, removed, renamed, copied elsewhere or added."""
    made = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        paths = places(made)
        if not paths:
            break
        *above, key = random.choice(paths)
        holder = made
        for step in above:
            holder = holder[step]
        kind = random.randrange(10)
        if kind < 6:
            holder[key] = odd_value(random)
        elif kind == 6:
            del holder[key]
        elif kind == 7 and isinstance(holder, dict):
            holder[random.choice(("", "extra", f"{key}_", "__proto__", "\x1b[2J"))] = odd_value(random)
        elif kind == 8 and isinstance(holder, dict):
            holder[f"{key}2"] = holder.pop(key)
        else:
            *elsewhere, name = random.choice(paths)
            other = made
            try:
                for step in elsewhere:
                    other = other[step]
                holder[key] = copy.deepcopy(other[name])
            except (KeyError, IndexError, TypeError, RecursionError):  # a value of before that is deep
                holder[key] = odd_value(random)
    return made
