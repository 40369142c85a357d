"""What a GPU's instructions gave, read and held against the manual: right recordings pass, and all others do not."""

import dataclasses
import json
import math

import numpy as np
import pytest
import recorded_vectors as recorded
import torch

from kinema.bench.gpu_session import number_formats as formats
from kinema.bench.gpu_session.vector_oracles import judge, swizzled
from kinema.bench.gpu_session.vectors import read_recording, write_recording
from kinema.errors import RequestError

OPERAND = {"ldmatrix": "row_of_lane", "mma": "b", "wgmma": "b", "tma": "corners", "convert": "x"}
OPERAND["mbarrier"] = "operations"
RESULT = {"ldmatrix": "registers", "mma": "d", "wgmma": "d", "tma": "boxes", "mbarrier": "ended", "convert": "y"}


def made():
    draw = np.random.default_rng(7)
    yield from (recorded.ldmatrix(draw, count, transposed) for count in (1, 2, 4) for transposed in (False, True))
    yield from (recorded.mma(draw, kind) for kind in ("bf16", "f16", "tf32", "e4m3", "s8"))
    yield recorded.mma(draw, "bf16", special=True)
    yield recorded.mma(draw, "f16", special=True)
    yield recorded.wgmma(draw, "bf16", 64, 4, onto=True)
    yield recorded.wgmma(draw, "bf16", 64, 2, swizzle=64)
    yield recorded.wgmma(draw, "bf16", 64, 2, a_rows_of_k=True)
    yield recorded.wgmma(draw, "bf16", 128, 2, b_rows_of_k=True)
    yield recorded.wgmma(draw, "bf16", 128, 2, registers=True, b_rows_of_k=True)
    yield recorded.wgmma(draw, "e4m3", 64, 4)
    yield recorded.wgmma(draw, "e4m3", 64, 2, registers=True)
    yield from (recorded.tma(draw, swizzle) for swizzle in (0, 32, 64, 128))
    yield recorded.mbarrier()
    yield recorded.conversion(draw, "cvt.rn.f16.f32", recorded.fp16_bits)
    yield recorded.conversion(draw, "cvt.rni.sat.s8.f32", lambda x: max(-128, min(127, round(x))))
    yield recorded.conversion(draw, "ex2.approx.ftz.f32", recorded.exp2_bits)


VECTORS = list(made())
NAMES = [vector.name for vector in VECTORS]


def changed(vector, name, array):
    return dataclasses.replace(vector, arrays={**vector.arrays, name: array})


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_a_right_result_is_as_expected(vector):
    verdict = judge(vector)
    assert verdict.wrong == 0 and verdict.numbers > 0 and math.isfinite(verdict.error)


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
@pytest.mark.parametrize("place", [0, -1])
def test_one_wrong_number_is_found(vector, place):
    result = vector.arrays[RESULT[vector.kind]].copy()
    flat = result.reshape(-1)
    if vector.kind == "convert":
        place = 3 if place == 0 else 40  # not one that is infinite
    flat[place] = flat[place] + 1 if result.dtype == np.float32 else flat[place] ^ (1 << 8 * (result.itemsize - 1))
    assert judge(changed(vector, RESULT[vector.kind], result)).wrong == 1


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_operands_that_are_read_elsewhere_are_found(vector):
    """Any layout but the right one gives another result."""
    name = {
        "ldmatrix": "row_of_lane",
        "mma": "b",
        "wgmma": "b",
        "tma": "corners",
        "mbarrier": "operations",
        "convert": "x",
    }
    operand = np.roll(vector.arrays[name[vector.kind]], 1, axis=0)
    assert judge(changed(vector, name[vector.kind], operand)).wrong > 0


@pytest.mark.parametrize("option", ["swizzle", "b_rows_of_k", "a_rows_of_k"])
def test_another_descriptor_is_another_result(option):
    vector = next(v for v in VECTORS if v.kind == "wgmma" and v.options["columns"] == 64 and "a" in v.arrays)
    other = {"swizzle": 64, "b_rows_of_k": 1, "a_rows_of_k": 1}[option]
    assert judge(dataclasses.replace(vector, options={**vector.options, option: other})).wrong > 0


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_a_swizzle_moves_sixteen_bytes_within_eight_rows(swizzle):
    at = np.arange(4096)
    moved = swizzled(at, swizzle)
    assert sorted(moved) == list(at) and np.array_equal(moved % 16, at % 16)
    assert np.array_equal(moved // 128, at // 128), "no byte leaves its 128 bytes"
    assert np.array_equal(swizzled(moved, swizzle), at)
    assert (swizzle == 0) == np.array_equal(moved, at)


def edges():
    bits = np.random.default_rng(3).integers(0, 1 << 32, 20000, dtype=np.uint32)
    ties = np.concatenate([(bits[:2000] >> n << n) | 1 << (n - 1) for n in (13, 16, 20)]).astype(np.uint32)
    near = np.concatenate([ties - 1, ties, ties + 1])
    values = np.array(
        [0.0, -0.0, 448, 464, 465, 480, 65504, 65520, 1e-8, np.inf, -np.inf, np.nan, 126.5, 127.5, -128.5]
    )
    return np.concatenate([bits.view(np.float32), near.view(np.float32), values.astype(np.float32)])


def same_bits(found, wanted, x, nan):
    wanted = np.where(np.isnan(x), nan, wanted)
    assert np.array_equal(found, wanted), x[found != wanted][:5]


def test_narrow_numbers_are_torchs_to_the_bit():
    x = edges()
    with np.errstate(all="ignore"):
        given = torch.from_numpy(x.copy())
        for to, dtype, nan in ((formats.to_bf16, torch.bfloat16, 0x7FFF), (formats.to_fp16, torch.float16, 0x7FFF)):
            same_bits(to(x), given.to(dtype).view(torch.uint16).numpy().astype(np.uint32), x, nan)
        e4m3 = given.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        same_bits(formats.to_e4m3(x), e4m3.astype(np.uint32), x, 0x7F)


def test_what_is_cut_off_is_never_larger():
    x = edges()[~np.isnan(edges())]
    with np.errstate(all="ignore"):
        for to, back in ((formats.to_bf16, formats.from_bf16), (formats.to_fp16, formats.from_fp16)):
            cut, near = back(to(x, to_zero=True)), back(to(x))
            size = np.abs(x.astype(np.float64))
            assert np.all(np.abs(cut) <= size) and np.all(np.signbit(cut) == np.signbit(x))
            up = np.abs(near) > size
            assert np.array_equal(cut[~up], near[~up]) and np.all(np.abs(cut[up]) < np.abs(near[up]))
            assert np.all(to(x, to_zero=True)[up] == to(x)[up] - 1)


def test_every_code_of_e4m3_is_torchs():
    codes = np.arange(256, dtype=np.uint8)
    wanted = torch.from_numpy(codes).view(torch.float8_e4m3fn).double().numpy()
    assert np.array_equal(formats.from_e4m3(codes), wanted, equal_nan=True)


def test_a_recording_is_read_as_it_was_written(tmp_path):
    given = recorded.sample()
    write_recording(tmp_path, given)
    found = read_recording(tmp_path)
    assert found.head == {**given.head, "format": 1} and found.absent == given.absent
    for a, b in zip(found.vectors, given.vectors, strict=True):
        assert (a.name, a.kind, a.instruction, a.options) == (b.name, b.kind, b.instruction, b.options)
        assert a.arrays.keys() == b.arrays.keys()
        for name, array in a.arrays.items():
            assert array.dtype == b.arrays[name].dtype and np.array_equal(array, b.arrays[name])


def test_the_stored_recording_is_the_one_that_is_made_here():
    """`python tests/bench/gpu_session/recorded_vectors.py` writes it."""
    stored = read_recording(recorded.SAMPLE)
    assert [v.name for v in stored.vectors] == [v.name for v in recorded.sample().vectors]
    assert all(judge(vector).wrong == 0 for vector in stored.vectors)


@pytest.mark.parametrize("damage", ["format", "dtype", "offset", "arrays", "option", "json", "cut", "none"])
def test_a_damaged_recording_is_refused(tmp_path, damage):
    write_recording(tmp_path, recorded.sample())
    index, data = tmp_path / "vectors.json", tmp_path / "vectors.bin"
    told = json.loads(index.read_text())
    array = told["vectors"][0]["arrays"]["rows"]
    if damage == "format":
        told["format"] = 2
    elif damage == "dtype":
        array["dtype"] = "object"
    elif damage == "offset":
        array["offset"] = -4
    elif damage == "arrays":
        del told["vectors"][0]["arrays"]
    elif damage == "option":
        told["vectors"][0]["count"] = "four"
    index.write_text("{" if damage == "json" else json.dumps(told))
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-8])
    if damage == "none":
        data.unlink()
    with pytest.raises(RequestError, match=str(tmp_path)):
        read_recording(tmp_path)
