"""Frames as a .npy file, written chunk by chunk and read frame by frame."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from kinema.errors import RequestError
from kinema.media.files import open_file
from kinema.media.limits import MAX_STILL_PIXELS, MAX_VIDEO_BYTES, check_size


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


class NpyReader:
    """The frames of a uint8 array [T, H, W, 3]. Iterating gives uint8 [H, W, 3]; such a file has no `rate`."""

    rate: Fraction | None = None

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        with open_file(self.path, "video") as file:
            shape, by_columns = self._header(file)
            check_size(shape[2], shape[1], MAX_STILL_PIXELS, f"video {self.path}")
            size = math.prod(shape)
            if os.fstat(file.fileno()).st_size - file.tell() < size:
                raise RequestError(f"cannot read video {self.path}: the file is shorter than its {list(shape)} values")
            if not by_columns:
                for _ in range(shape[0]):
                    yield np.frombuffer(file.read(math.prod(shape[1:])), np.uint8).reshape(shape[1:])
                return
            if size > MAX_VIDEO_BYTES:
                raise RequestError(f"cannot read video {self.path}: it is in Fortran order, save it in C order")
            yield from np.frombuffer(file.read(size), np.uint8).reshape(shape, order="F")

    def _header(self, file: BinaryIO) -> tuple[tuple[int, ...], bool]:
        """The array's shape, and whether it is in Fortran order."""
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 0:
            raise RequestError(f"cannot read video {self.path}: wanted uint8 [T, H, W, 3], got {dtype} {list(shape)}")
        return shape, by_columns
