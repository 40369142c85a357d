"""Reading a JSON object that came from somewhere else: every way it can be wrong is a CheckpointError."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from kinema.errors import CheckpointError

MAX_BYTES = 100_000_000


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse UTF-8 JSON whose root is an object. A repeated key is an error: one of its values would be lost."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            key, times = Counter(key for key, _ in pairs).most_common(1)[0]
            raise CheckpointError(f"{where} has the key {key!r} {times} times, wanted it once; download it again")
        return result

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # also bad UTF-8, numbers too long to read, nesting too deep
        raise CheckpointError(f"{where} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is a JSON {type(value).__name__}, wanted an object; download it again")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, such as config.json."""
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing or not a file; download the folder again")
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes: wanted JSON of at most {MAX_BYTES}")
        return parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
