"""Reads what csrc/cuda/conformance recorded on a GPU: operands and results of instructions, raw.

`vectors.json` is the index of `vectors.bin`: {"format": 1, "gpu", "capability", "driver", "runtime", "seed", "vectors",
"absent"}. A vector has a name, a kind, the instruction, options (whole numbers) and arrays of {"dtype", "shape",
"offset"}; absent is what this GPU lacks, and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinema.errors import RequestError

FORMAT = 1
DTYPES = ("uint8", "uint16", "uint32", "int32", "float32")
INDEX, DATA = "vectors.json", "vectors.bin"
Array = NDArray[Any]


@dataclass(frozen=True)
class Vector:
    """One instruction's results for one set of operands. Names of options and arrays are those of the recording."""

    name: str
    kind: str
    instruction: str
    options: Mapping[str, int]
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class Recording:
    """head: where it was made. absent: {name: why it is not there}."""

    head: Mapping[str, Any]
    vectors: tuple[Vector, ...]
    absent: Mapping[str, str]


def read_recording(folder: Path) -> Recording:
    """Raises RequestError for what is no recording, or a damaged one."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        data = (folder / DATA).read_bytes()
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder} holds no recording of instructions: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise RequestError(f"{folder / INDEX} is of another format: wanted {FORMAT}")
    try:
        vectors = tuple(_vector(entry, data) for entry in index["vectors"])
        absent = {str(entry["name"]): str(entry["why"]) for entry in index["absent"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(f"{folder / INDEX} is damaged: {type(error).__name__}: {error}") from error
    return Recording({k: v for k, v in index.items() if k not in ("vectors", "absent")}, vectors, absent)


def write_recording(folder: Path, recording: Recording) -> None:
    """Writes the same files from Python: for expectations, and for an emulator's results."""
    data, entries = bytearray(), []
    for vector in recording.vectors:
        arrays = {}
        for name, array in vector.arrays.items():
            arrays[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": len(data)}
            data += np.ascontiguousarray(array).tobytes()
        said = {"name": vector.name, "kind": vector.kind, "instruction": vector.instruction}
        entries.append({**said, **vector.options, "arrays": arrays})
    absent = [{"name": name, "why": why} for name, why in recording.absent.items()]
    index = {**recording.head, "format": FORMAT, "vectors": entries, "absent": absent}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    (folder / DATA).write_bytes(bytes(data))


def _vector(entry: Mapping[str, Any], data: bytes) -> Vector:
    words = {key: entry[key] for key in ("name", "kind", "instruction")}
    options = {key: value for key, value in entry.items() if key not in (*words, "arrays")}
    if not all(isinstance(value, int) for value in options.values()):
        raise ValueError(f"the options of {entry['name']} are {options}, wanted whole numbers")
    arrays = {name: _array(f"{name} of {entry['name']}", where, data) for name, where in entry["arrays"].items()}
    return Vector(**words, options=options, arrays=arrays)


def _array(name: str, where: Mapping[str, Any], data: bytes) -> Array:
    dtype, shape, offset = where["dtype"], where["shape"], where["offset"]
    if dtype not in DTYPES:
        raise ValueError(f"{name} is of {dtype!r}, wanted one of {', '.join(DTYPES)}")
    count = prod(shape)
    if offset < 0 or offset + count * np.dtype(dtype).itemsize > len(data):
        raise ValueError(f"{name} lies behind the end of {DATA}")
    return np.frombuffer(data, dtype, count, offset).reshape(shape)
