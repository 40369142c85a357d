"""The safetensors reader: every damaged file is one CheckpointError, every sound one is read bit for bit."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints.safetensors import DTYPES, SafetensorsFile
from kinema.errors import CheckpointError

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
U8 = {"dtype": "U8", "shape": [5], "data_offsets": [24, 29]}


def raw_file(path: Path, header: Any, data: bytes = bytes(29), length: int | None = None) -> Path:
    """A file as written: `header` is JSON to dump or bytes as they are; `length` may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensors_of_every_dtype() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for i, (name, dtype) in enumerate(DTYPES.items()):
        for shape in ((), (3,), (0, 4), (2, 5, 7)):
            values = torch.randn(shape, generator=generator) * 3
            made[f"{name}.{len(shape)}.{i}"] = (values > 0) if dtype == torch.bool else values.to(dtype)
    return made


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def test_reads_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    tensors = tensors_of_every_dtype()
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert set(file) == set(tensors)
    assert len(file) == len(tensors)
    assert file.shapes() == {name: tuple(t.shape) for name, t in tensors.items() if name in file}
    assert file.dtypes == {name: t.dtype for name, t in tensors.items()}
    assert file.nbytes == sum(t.nbytes for t in tensors.values())
    assert file.metadata == {"format": "pt"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, tensor in tensors.items():
            assert same_bits(file[name], tensor), name
            assert file[name].data_ptr() % 64 == 0 or file[name].numel() == 0


def test_shape_and_offset_order_may_differ_from_header_order(tmp_path: Path) -> None:
    header = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]},
        "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    }
    file = SafetensorsFile(raw_file(tmp_path / "x.safetensors", header, bytes(range(6))))
    assert list(file) == ["a", "b"]
    assert file["b"].tolist() == [4, 5]


def test_a_tensor_at_an_odd_place_is_read_to_an_even_one(tmp_path: Path) -> None:
    value = torch.tensor([1.5, -2.0])
    text = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    text += b" " * ((1 - len(text)) % 4)  # the data begins at 8 + 1 modulo 4
    file = SafetensorsFile(raw_file(tmp_path / "x.safetensors", text, value.numpy().tobytes()))
    assert torch.equal(file["x"], value)
    assert file["x"].data_ptr() % 4 == 0


@pytest.mark.parametrize("name", DTYPES)
def test_rows_of_a_table_are_those_of_the_matrix(tmp_path: Path, name: str) -> None:
    bits = torch.randint(0, 256, (9, 5 * DTYPES[name].itemsize), generator=torch.Generator().manual_seed(0))
    whole = (bits % 2 if name == "BOOL" else bits).to(torch.uint8).view(DTYPES[name])
    save_file({"before": torch.ones(3, dtype=torch.uint8), "x": whole}, tmp_path / "x.safetensors")
    table = SafetensorsFile(tmp_path / "x.safetensors").table("x")
    assert table.shape == (9, 5)
    ids = torch.tensor([[8, 0, 3], [3, 3, 8]])
    assert same_bits(table.rows(ids), torch.stack([whole[row] for row in ids.flatten().tolist()]).view(2, 3, 5))
    assert table.rows(torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2, 5)
    for outside in ([9], [-1], [0, 100]):
        with pytest.raises(IndexError, match="of 9"):
            table.rows(torch.tensor(outside))


def test_a_table_is_not_read_until_rows_are_asked_for_and_then_no_more_than_these(tmp_path: Path) -> None:
    save_file({"x": torch.arange(4_000.0).view(1000, 4)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    read: list[tuple[int, int]] = []
    into = file._read_into
    file._read_into = lambda buffer, offset: (read.append((offset, len(buffer))), into(buffer, offset))[1]  # type: ignore
    table = file.table("x")
    assert read == []
    assert table.rows(torch.tensor([[7, 7, 2]]))[0, :, 0].tolist() == [28, 28, 8]
    assert [size for _, size in read] == [16, 16], "each row once"


def test_a_file_that_is_replaced_while_open_is_still_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.arange(6.0)}, path)
    file = SafetensorsFile(path)
    save_file({"x": -torch.arange(6.0)}, tmp_path / "y.safetensors")
    os.replace(tmp_path / "y.safetensors", path)
    assert torch.equal(file["x"], torch.arange(6.0))


def read_whole(file: SafetensorsFile) -> None:
    file["x"]


def read_row(file: SafetensorsFile) -> None:
    file.table("x").rows(torch.tensor([1]))


def shrink(path: Path) -> None:
    os.truncate(path, 1000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    """As `cp` does it: the same file, of the same size, with other bytes."""
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(1, 1))  # a clock may be coarser than this test


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("read", [read_whole, read_row])
@pytest.mark.parametrize("change", [shrink, empty, overwrite, grow])
def test_a_file_that_changes_while_open_is_an_error(tmp_path: Path, read: Any, change: Any) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.arange(6000.0).view(2, 3000)}, path)
    file = SafetensorsFile(path)
    read(file)
    change(path)
    with pytest.raises(CheckpointError, match=r"x\.safetensors (became shorter|was written to) after it was opened"):
        read(file)


def test_descriptors_are_released(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.arange(6.0)}, path)
    broken = raw_file(tmp_path / "broken.safetensors", b"{")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(20):
        SafetensorsFile(path)["x"]
        with pytest.raises(CheckpointError):
            SafetensorsFile(broken)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": F32, "b": {**U8, **changes}}


BAD_HEADERS: dict[str, tuple[Any, str]] = {
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, "unknown dtype None"),
    "unknown dtype": (entry(dtype="F4"), "tensor 'b': unknown dtype 'F4', wanted one of F64, F32"),
    "dtype is a list": (entry(dtype=["U8"]), "unknown dtype"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, "got shape None"),
    "negative shape": (entry(shape=[-5]), r"got shape \[-5\], wanted at most 64 non-negative integers"),
    "fractional shape": (entry(shape=[5.0]), r"got shape \[5.0\]"),
    "boolean shape": (entry(shape=[True, 5]), r"got shape \[True, 5\]"),
    "text shape": (entry(shape=["5"]), "got shape"),
    "shape is a number": (entry(shape=5), "got shape 5"),
    "65 dimensions": (entry(shape=[5] + [1] * 64), "at most 64"),
    "size overflows": (entry(shape=[2**62, 4, 2]), "too large to be addressed"),
    "dimension overflows": (entry(shape=[2**64]), "got shape"),
    "empty but overflowing": (entry(shape=[0, 2**62, 2**62], data_offsets=[24, 24]), "too large to be addressed"),
    "shape and bytes differ": (entry(shape=[4]), r"5 bytes do not hold U8 of shape \[4\], which takes 4"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, "data_offsets None"),
    "three offsets": (entry(data_offsets=[24, 26, 29]), "data_offsets"),
    "negative offset": (entry(data_offsets=[-5, 0]), "data_offsets"),
    "reversed offsets": (entry(data_offsets=[29, 24]), r"wanted \[begin, end\] with begin <= end"),
    "fractional offset": (entry(data_offsets=[24, 29.0]), "data_offsets"),
    "huge offset": (entry(data_offsets=[2**64, 2**64 + 5]), "data_offsets"),
    "overlap": (entry(data_offsets=[23, 28]), r"tensor 'b' begins at byte 23 of the data and overlaps tensor 'a'"),
    "same place": (entry(data_offsets=[0, 5]), "overlaps"),
    "gap": (entry(data_offsets=[25, 30]), "leaves a gap after tensor 'a', which ends at 24"),
    "gap at the start": ({"a": {**F32, "data_offsets": [5, 29]}}, "leaves a gap after the header"),
    "beyond the end": ({**entry(), "c": {**U8, "data_offsets": [29, 34]}}, "truncated: its tensors take 34 bytes, 29"),
    "bytes left over": ({"a": F32}, "5 bytes follow its last tensor"),
    "entry is a list": ({"a": [1, 2]}, r"tensor 'a': got \[1, 2\], wanted an object"),
    "entry is null": ({"a": None}, "got None"),
    "metadata is a list": ({**entry(), "__metadata__": []}, "__metadata__"),
    "metadata holds a number": ({**entry(), "__metadata__": {"x": 1}}, "__metadata__"),
    "root is a list": ([1], "not a JSON object"),
    "empty header": (b"", "not a JSON object"),
    "not JSON": (b"{not json", "not valid JSON"),
    "leading space": (b" {}", "not a JSON object"),
    "cut JSON": (json.dumps(entry()).encode()[:-1], "not valid JSON"),
    "two documents": (b"{}{}", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "repeated tensor": (b'{"a": 1, "a": 2}', "has the key 'a' 2 times"),
    "repeated field": (
        b'{"a": {"dtype": "U8", "dtype": "F32", "shape": [29], "data_offsets": [0, 29]}}',
        "has the key 'dtype' 2 times",
    ),
    "nested deeply": (b'{"a":' * 100_000, "not valid JSON"),
    "number too long": (b'{"a":' + b"9" * 10_000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header(tmp_path: Path, case: str) -> None:
    header, message = BAD_HEADERS[case]
    path = raw_file(tmp_path / "bad.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_the_good_form_of_the_bad_headers_is_read(tmp_path: Path) -> None:
    """So that each case above fails for its own reason."""
    file = SafetensorsFile(raw_file(tmp_path / "good.safetensors", entry()))
    assert file.shapes() == {"a": (2, 3), "b": (5,)}
    padded = json.dumps({**entry(), "__metadata__": {"x": "1"}}).encode() + b"   "
    assert SafetensorsFile(raw_file(tmp_path / "padded.safetensors", padded)).metadata == {"x": "1"}
    assert len(SafetensorsFile(raw_file(tmp_path / "empty.safetensors", b"{}", b""))) == 0


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (25 * 10**6 + 1, "would have 25000001 bytes, at most 25000000"),
        (2**64 - 1, "would have 18446744073709551615 bytes"),
        (500, "its header alone ends at 508"),
        (3, "not valid JSON"),
        (0, "not valid JSON"),
    ],
)
def test_header_length_that_lies(tmp_path: Path, length: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(raw_file(tmp_path / "x.safetensors", entry(), length=length))


def test_header_length_that_is_longer_but_inside_the_file(tmp_path: Path) -> None:
    good = len(json.dumps(entry()))
    with pytest.raises(CheckpointError, match="not valid JSON"):
        SafetensorsFile(raw_file(tmp_path / "x.safetensors", entry(), length=good + 4))


def test_a_file_cut_anywhere_is_an_error_that_says_to_download_again(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "whole.safetensors", entry())
    whole = path.read_bytes()
    SafetensorsFile(path)
    for size in range(len(whole)):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors.*download it again"):
            SafetensorsFile(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(500), "not a safetensors file"),
        (b"<!DOCTYPE html><html>not found</html>", "not a safetensors file"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(path)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be opened: No such file"):
        SafetensorsFile(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="is not a file"):
        SafetensorsFile(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")  # nobody writes into it: an ordinary open would wait
    os.symlink("/dev/zero", tmp_path / "zero.safetensors")
    for name in ("pipe.safetensors", "zero.safetensors"):
        with pytest.raises(CheckpointError, match="is not a file, but a folder, a device, a socket or a pipe"):
            SafetensorsFile(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(CheckpointError, match=r"cannot be opened|is not a file"):
            SafetensorsFile(tmp_path / "s")
    os.symlink("loop", tmp_path / "loop")
    for path, said in (
        (tmp_path / "loop", "cannot be opened: Too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "cannot be opened: File name too long"),
        (tmp_path / ("y/" * 3000), "cannot be opened: File name too long"),
        (tmp_path / "a\0b", "cannot be opened: embedded null byte"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            SafetensorsFile(path)
        assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("seed", range(4))
def test_random_corruption_gives_a_checkpoint_error_or_a_readable_file(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "x.safetensors"
    save_file({k: v for k, v in tensors_of_every_dtype().items() if rng.random() < 0.2}, path)
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(header_end)
            kind = rng.randrange(4)
            if kind == 0:
                damaged[at] = rng.randrange(256)
            elif kind == 1:
                damaged[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                damaged[at] = rng.choice(b'0123456789-[]{}",:.eE ')
            else:
                other = rng.randrange(header_end)
                damaged[at], damaged[other] = damaged[other], damaged[at]
        path.write_bytes(damaged)
        try:
            file = SafetensorsFile(path)
        except CheckpointError as error:
            refused += 1
            assert "x.safetensors" in str(error)
        else:
            for name in file:
                assert tuple(file[name].shape) == file.shapes()[name]
    assert 250 < refused < 500
