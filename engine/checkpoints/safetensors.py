"""The safetensors file format: a header length (u64, little endian), a JSON header, then the tensors' bytes.

Our own reader, since an untrusted file must be checked as a whole before a byte of it is used, and since loading must
not hold more than one tensor beyond what it keeps. Format:
github.com/huggingface/safetensors, README.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import torch

from kinema.checkpoints.json_object import parse_object
from kinema.checkpoints.opening import open_file, reason
from kinema.checkpoints.table import Table
from kinema.checkpoints.weights import Shapes
from kinema.errors import CheckpointError, shown

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 25_000_000  # a hundred thousand tensors; the format allows four times as much
LENGTH_BYTES = 8
OWN_PAGES_BYTES = 1 << 17
MAX_DIMENSIONS = 64  # torch's own limit
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; begin and end are byte offsets in the data section."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(Mapping[str, torch.Tensor]):
    """The tensors of one file, by name, in the order of their bytes.

    The whole header is checked when the object is made. `file[name]` reads a fresh copy and leaves nothing
    else resident; `file.table(name)` reads the rows of a matrix on demand. Nothing is memory-mapped: if a
    mapped file shrinks, a signal ends the process. A read gives the bytes that the header was checked
    against, or an error.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = open_file(self.path)
        # the descriptor stays open: a file that replaces it while a model loads is not read
        weakref.finalize(self, os.close, self._file)
        self._state = self._current_state()
        header, self._data_start, data_bytes = _read_header(self._file, self.path)
        self.metadata = _read_metadata(header.pop("__metadata__", {}), self.path)
        entries = {name: _read_entry(name, value, self.path) for name, value in header.items()}
        self._entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
        _check_layout(self._entries, data_bytes, self.path)

    def shapes(self) -> Shapes:
        return {name: entry.shape for name, entry in self._entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: entry.dtype for name, entry in self._entries.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.end - entry.begin for entry in self._entries.values())

    def __getitem__(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        flat = _fresh(entry.end - entry.begin)
        self._read_into(flat.numpy().data, self._data_start + entry.begin)
        self._check_unchanged()
        return flat.view(entry.dtype).reshape(entry.shape)

    def table(self, name: str) -> Table:
        """A matrix [R, C] whose rows are read on demand."""
        return _FileTable(self, name)

    def read_rows(self, name: str, rows: list[int]) -> torch.Tensor:
        """Rows of a matrix [R, C], [len(rows), C]."""
        entry = self._entries[name]
        width = (entry.end - entry.begin) // entry.shape[0]
        flat = _fresh(len(rows) * width)
        buffer, start = flat.numpy().data, self._data_start + entry.begin
        for place, row in enumerate(rows):
            self._read_into(buffer[place * width : (place + 1) * width], start + row * width)
        self._check_unchanged()
        return flat.view(entry.dtype).reshape(len(rows), *entry.shape[1:])

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"SafetensorsFile({str(self.path)!r}, {len(self)} tensors, {self.nbytes} bytes)"

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from the file: a read, so that the file's pages never count as this process's memory."""
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._file, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be read: {reason(error)}") from error
            if got == 0:
                raise CheckpointError(f"{self.path} became shorter after it was opened; download it again")
            done += got

    def _check_unchanged(self) -> None:
        if self._current_state() != self._state:
            raise CheckpointError(f"{self.path} was written to after it was opened: load the model again")

    def _current_state(self) -> tuple[int, int]:
        """The size in bytes, and the time of the last write in ns."""
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns


class _FileTable:
    """A `Table` that stays in its file."""

    def __init__(self, file: SafetensorsFile, name: str) -> None:
        self._file = file
        self._name = name
        self.shape = file.shapes()[name]

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        distinct, places = torch.unique(ids.cpu(), return_inverse=True)
        if len(distinct) and not 0 <= int(distinct[0]) <= int(distinct[-1]) < self.shape[0]:
            raise IndexError(f"rows {int(distinct[0])} to {int(distinct[-1])} of {self.shape[0]}")
        return self._file.read_rows(self._name, distinct.tolist())[places]


def _fresh(nbytes: int) -> torch.Tensor:
    """Separate memory for a tensor, [nbytes] uint8.

    Large tensors do not come from malloc: most are converted or joined and then dropped, and the holes they
    would leave between those that stay grew a loaded model by a tenth.
    """
    if nbytes < OWN_PAGES_BYTES:
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


def _read_header(file: int, path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, where the data section starts, and its size in bytes."""
    try:
        size = os.fstat(file).st_size
        start = os.pread(file, LENGTH_BYTES + 1, 0)
        if start.startswith(b"version "):
            raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder")
        if start[LENGTH_BYTES:] not in (b"{", b""):
            raise CheckpointError(
                f"{path} is not a safetensors file: its header is not a JSON object; download it again"
            )
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} is not a safetensors file: its header would have {length} bytes, at most "
                f"{MAX_HEADER_BYTES} are allowed; download it again"
            )
        if LENGTH_BYTES + length > size:
            raise CheckpointError(
                f"{path} is truncated: it has {size} bytes, its header alone ends at {LENGTH_BYTES + length}; "
                "download it again"
            )
        header = os.pread(file, length, LENGTH_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
    return parse_object(header, f"the header of {path}"), LENGTH_BYTES + length, size - LENGTH_BYTES - length


def _read_metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{path} has a __metadata__ that is not an object of strings; download it again")
    return value


def _read_entry(name: str, value: Any, path: Path) -> TensorEntry:
    where = f"{path}, tensor {shown(name)}"
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: got {shown(value)}, wanted an object; download it again")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{where}: unknown dtype {shown(dtype)}, wanted one of {', '.join(DTYPES)}; "
            "use a checkpoint that is stored in one of these"
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{where}: got shape {shown(shape)}, wanted at most {MAX_DIMENSIONS} non-negative integers; "
            "download it again"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where}: got data_offsets {shown(offsets)}, wanted [begin, end] with begin <= end; download it again"
        )
    itemsize = DTYPES[dtype].itemsize
    if prod(max(size, 1) for size in shape) * itemsize > _MAX_SIZE:
        raise CheckpointError(f"{where}: shape {shown(shape)} is too large to be addressed; download it again")
    begin, end = offsets
    if end - begin != prod(shape) * itemsize:
        raise CheckpointError(
            f"{where}: {end - begin} bytes do not hold {dtype} of shape {shown(shape)}, which takes "
            f"{prod(shape) * itemsize}; download it again"
        )
    return TensorEntry(DTYPES[dtype], tuple(shape), begin, end)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """A list of integers of 0 to 2^63 − 1 (JSON's true and false are Python integers: they are not sizes)."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_SIZE for n in value)


def _check_layout(entries: Mapping[str, TensorEntry], data_bytes: int, path: Path) -> None:
    """Tensors, sorted by offset, must cover the data section without a gap or an overlap."""
    position = 0
    previous = "the header"
    for name, entry in entries.items():
        if entry.begin != position:
            fault = "overlaps" if entry.begin < position else "leaves a gap after"
            raise CheckpointError(
                f"{path} is damaged: tensor {shown(name)} begins at byte {entry.begin} of the data and {fault} "
                f"{previous}, which ends at {position}; download it again"
            )
        position, previous = entry.end, f"tensor {shown(name)}"
    if position > data_bytes:
        raise CheckpointError(
            f"{path} is truncated: its tensors take {position} bytes, {data_bytes} are there; download it again"
        )
    if position < data_bytes:
        raise CheckpointError(
            f"{path} is damaged: {data_bytes - position} bytes follow its last tensor; download it again"
        )
