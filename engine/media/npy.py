"""Frames as a .npy file that grows."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import numpy.typing as npt


class NpyEncoder:
    """A uint8 array [T, H, W, 3]. T is known at the end: numpy pads its header so that it can be rewritten."""

    def __init__(self, place: Path) -> None:
        self._file = place.open("r+b")
        self._shape: tuple[int, ...] | None = None

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        if self._shape is None:
            self._shape = (0, *frames.shape[1:])
            self._write_header()
        self._file.write(np.ascontiguousarray(frames).data)
        self._shape = (self._shape[0] + len(frames), *self._shape[1:])

    def finish(self) -> None:
        self._file.flush()
        body = self._file.tell()
        self._file.seek(0)
        self._write_header()
        assert self._shape is not None
        assert body - self._file.tell() == np.prod(self._shape), "the header changed its length"
        self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _write_header(self) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
