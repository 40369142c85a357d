"""What a fidelity run has found so far, on disk: it goes on where it was ended."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import kinema
from kinema.bench.clip_figures import Figures, Track
from kinema.errors import OutputError
from kinema.ops import common

LINES = "figures.jsonl"


@dataclass(frozen=True)
class ClipStore:
    """A folder of the exact run's clips (KEY-CLIP.npz), and of a line of figures for each clip of every setting.

    Everything is kept under a digest of all that it depends on: what another model, scheduler, size or kinema gave
    is not found again.
    """

    folder: Path

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror or error}") from error

    def figures(self, key: str) -> dict[str, Figures]:
        """{name of the clip: its figures} of the setting with this key. A line that a kill cut short is left out."""
        file = self.folder / LINES
        found: dict[str, Figures] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            try:
                kept = json.loads(line)
                mine, clip = kept.pop("key") == key, kept.pop("clip")
                if mine:
                    found[clip] = Figures(**kept)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return found

    def add(self, key: str, clip: str, figures: Figures) -> None:
        with open(self.folder / LINES, "a", encoding="utf-8") as file:
            file.write(
                "\n" * _is_cut_short(file.name) + json.dumps({"key": key, "clip": clip, **asdict(figures)}) + "\n"
            )

    def keep(self, key: str, clip: str, track: Track) -> None:
        """An exact clip, whole or not at all."""
        file = self._file(key, clip)
        partial = file.with_suffix(".part")
        with open(partial, "wb") as written:
            np.savez(written, frames=track.frames, latents=track.latents)
        os.replace(partial, file)

    def has(self, key: str, clip: str) -> bool:
        return self._file(key, clip).exists()

    def track(self, key: str, clip: str) -> Track:
        with np.load(self._file(key, clip), allow_pickle=False) as kept:
            return Track(kept["frames"], kept["latents"])

    def _file(self, key: str, clip: str) -> Path:
        return self.folder / f"{key}-{clip}.npz"


def digest(settings: Any) -> str:
    """Of plain values and of dataclasses, whose `repr` says all."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def code() -> str:
    """Of all of kinema's sources and its native library: what an edit may have changed is found out anew."""
    found = hashlib.sha256()
    # a checkout has its folders apart, and an installed package one within the other
    for root in (Path(kinema.__file__).parent, Path(__file__).parent, Path(common.__file__).parents[1]):
        for folder, folders, names in os.walk(root, followlinks=True):
            folders.sort()
            for name in sorted(names):
                if name.endswith((".py", ".so")):
                    found.update(name.encode() + Path(folder, name).read_bytes())
    return found.hexdigest()[:16]


def files_of(folder: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of a model's files: its weights are too large to be read for this."""
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), about.st_size, about.st_mtime_ns) for path, about in files]


def _is_cut_short(file: str) -> bool:
    """Whether the last line lacks its end."""
    with open(file, "rb") as read:
        if read.seek(0, os.SEEK_END) == 0:
            return False
        read.seek(-1, os.SEEK_END)
        return read.read(1) != b"\n"
