"""Reading a JSON object from an untrusted file: every way it can be wrong is a CheckpointError."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from kinema.checkpoints.opening import is_file, read_file
from kinema.errors import CheckpointError, shown
from kinema.fields.config import JsonObject

MAX_BYTES = 20_000_000
MAX_VALUES = 1_000_000


def parse_object(data: bytes, where: str, *, max_values: int = MAX_VALUES) -> JsonObject:
    """Parse UTF-8 JSON whose root is an object. A repeated key is an error: one of its values would be lost.

    max_values: about how many values there may be, since in Python they take up to a hundred times their bytes.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            key, times = Counter(key for key, _ in pairs).most_common(1)[0]
            raise CheckpointError(f"{where} has the key {shown(key)} {times} times, wanted it once; download it again")
        return result

    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > max_values:
        raise CheckpointError(f"{where} has more than {max_values} values: kinema reads no such file")
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{where} is a git-lfs pointer, not the file; run `git lfs pull` in its folder")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # also bad UTF-8, numbers too long, nesting too deep
        raise CheckpointError(f"{where} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is a JSON {type(value).__name__}, wanted an object; download it again")
    return JsonObject(value, where)


def read_object(path: Path, *, max_bytes: int = MAX_BYTES, max_values: int = MAX_VALUES) -> JsonObject:
    """The JSON object in a file, such as config.json."""
    if not is_file(path):
        raise CheckpointError(f"{path} is missing or not a file; download the folder again")
    return parse_object(read_file(path, max_bytes), str(path), max_values=max_values)
