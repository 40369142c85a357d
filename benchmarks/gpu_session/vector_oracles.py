"""Compares recorded instructions with what the PTX manual specifies, as far as it does.

Copies and conversions are specified to the bit. Sums are not: they are held to float64 within a fraction of the sum of
magnitudes, and the recording itself is the reference for an emulator. Where a recording is not as expected, either the
GPU differs from the manual or our reading of a layout is wrong; that is the first thing to find out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kinema.bench.gpu_session import number_formats as formats
from kinema.bench.gpu_session.vectors import Array, Vector

LANES = np.arange(32)
# relative to the sum of magnitudes: fp32 sums of exact products, truncated to the largest; e4m3 on Hopper keeps 14 bits
TOLERANCE = {"m16n8k16": 2.0**-18, "m16n8k8": 2.0**-9, "k16": 2.0**-18, "m16n8k32": 2.0**-8, "k32": 2.0**-8}


@dataclass(frozen=True)
class Verdict:
    """numbers: how many were compared; wrong: how many of them were not as expected; error: the largest relative error
    of sums and functions, else 0."""

    numbers: int
    wrong: int
    error: float = 0.0


def judge(vector: Vector) -> Verdict:
    """Raises KeyError for an unknown kind."""
    return _JUDGES[vector.kind](vector)


def _exact(found: Array, wanted: Array) -> Verdict:
    return Verdict(wanted.size, int(np.count_nonzero(found != wanted)))


def _near(found: Array, wanted: Array, allowed: Array, magnitude: Array) -> Verdict:
    """The same infinities and NaN in the same places; everything else within what is allowed."""
    with np.errstate(invalid="ignore", over="ignore"):
        found = found.astype(np.float64)
        finite = np.isfinite(wanted)
        same = np.where(np.isnan(wanted), np.isnan(found), found == wanted)
        off = np.where(finite, np.abs(found - np.where(finite, wanted, 0.0)), 0.0)
        right = np.where(finite, off <= allowed, same)
        error = np.max(off / np.where(magnitude > 0, magnitude, 1.0), where=finite & np.isfinite(off), initial=0.0)
    return Verdict(wanted.size, int(np.count_nonzero(~right)), float(error))


def _ldmatrix(vector: Vector) -> Verdict:
    """Register i of lane l holds halves 2·(l % 4) and the next of row l / 4 of matrix i, or of its column."""
    rows, of_lane, registers = (vector.arrays[name] for name in ("rows", "row_of_lane", "registers"))
    count, transposed = vector.options["count"], vector.options["transposed"]
    wanted = np.empty_like(registers)
    for i in range(count):
        matrix = rows[of_lane[8 * i : 8 * i + 8]]
        matrix = matrix.T if transposed else matrix
        low, high = (matrix[LANES // 4, 2 * (LANES % 4) + j].astype(np.uint32) for j in range(2))
        wanted[:, i] = low | high << 16
    return _exact(registers, wanted)


def _mma(vector: Vector) -> Verdict:
    """Every trial: D = A·B + C, fragments of 16 rows and 8 columns."""
    bits = vector.options["bits"]
    read = _reader(vector.instruction)
    a, b = (_values(vector.arrays[name], bits, read) for name in ("a", "b"))
    c, d = vector.arrays["c"].astype(np.float64), vector.arrays["d"]
    group, thread = LANES // 4, LANES % 4
    per = 32 // bits  # values of a register
    depth = 8 * per
    trials = len(a)
    left, right = np.zeros((trials, 16, depth)), np.zeros((trials, depth, 8))
    start, found = np.zeros((trials, 16, 8)), np.zeros((trials, 16, 8))
    for i in range(4):
        for v in range(per):
            left[:, group + 8 * (i % 2), per * thread + v + 4 * per * (i // 2)] = a[:, :, i, v]
        start[:, group + 8 * (i // 2), 2 * thread + i % 2] = c[:, :, i]
        found[:, group + 8 * (i // 2), 2 * thread + i % 2] = d[:, :, i]
    for i in range(2):
        for v in range(per):
            right[:, per * thread + v + 4 * per * i, group] = b[:, :, i, v]
    tolerance = 0.0 if vector.arrays["d"].dtype == np.int32 else TOLERANCE[vector.instruction.split(".")[3]]
    return _product(left, right, start, found, tolerance)


def _wgmma(vector: Vector) -> Verdict:
    """D = A·B + C of 64 rows; the operands' tiles are read where the descriptors put them."""
    options, arrays = vector.options, vector.arrays
    bits, columns, swizzle = options["bits"], options["columns"], options["swizzle"]
    read = _reader(vector.instruction)
    depth = options["products"] * 256 // bits
    if "a_registers" in arrays:
        left = _left_of_registers(_values(arrays["a_registers"], bits, read))
    else:
        left = read(_tile(arrays["a"], 64, depth, bits, swizzle, rows_of_k=bool(options["a_rows_of_k"])))
    right = read(_tile(arrays["b"], columns, depth, bits, swizzle, rows_of_k=bool(options["b_rows_of_k"]))).T
    found = _sums(arrays["d"])
    start = _sums(arrays["c"]) if "c" in arrays else np.zeros_like(found)
    shape = vector.instruction.split(".")[4]
    return _product(left[None], right[None], start[None], found[None], TOLERANCE["k" + shape.split("k")[1]])


def _tile(image: Array, extent: int, depth: int, bits: int, swizzle: int, *, rows_of_k: bool) -> Array:
    """[extent, depth] of bits, from shared memory: see Tile in csrc/cuda/conformance/wgmma.cuh."""
    size = bits // 8
    outer, inner = np.meshgrid(np.arange(extent), np.arange(depth), indexing="ij")
    if rows_of_k:
        across = swizzle // size
        at = outer // across * depth * swizzle + inner * swizzle + outer % across * size
    else:
        at = outer * swizzle + inner * size
    at = swizzled(at, swizzle)
    found: Array = image[at] if size == 1 else image[at].astype(np.uint16) | image[at + 1].astype(np.uint16) << 8
    return found


def swizzled(at: Array, swizzle: int) -> Array:
    """A byte's swizzled address: the index of its 16-byte unit within 128 (64, 32) bytes is XORed with its row's."""
    masks = {128: 7, 64: 3, 32: 1, 0: 0}
    moved: Array = at ^ ((at >> 7 & masks[swizzle]) << 4)
    return moved


def _left_of_registers(values: Array) -> Array:
    """[products, 128, 4, values of a register] → [64, depth]."""
    products, _, _, per = values.shape
    lane = np.arange(128)
    row, thread = 16 * (lane // 32) + lane % 32 // 4, lane % 4
    left = np.zeros((products, 64, 8 * per))
    for i in range(4):
        for v in range(per):
            left[:, row + 8 * (i % 2), per * thread + v + 4 * per * (i // 2)] = values[:, :, i, v]
    return left.transpose(1, 0, 2).reshape(64, -1)


def _sums(registers: Array) -> Array:
    """[128, N / 2], a warpgroup's accumulators → [64, N]."""
    lane, count = np.arange(128), registers.shape[1]
    row, thread = 16 * (lane // 32) + lane % 32 // 4, lane % 4
    result = np.zeros((64, 2 * count))
    for i in range(count):
        result[row + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * thread + i % 2] = registers[:, i]
    return result


def _product(left: Array, right: Array, start: Array, found: Array, tolerance: float) -> Verdict:
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = left @ right + start
        magnitude = np.abs(left) @ np.abs(right) + np.abs(start)
    return _near(found, wanted, tolerance * magnitude, magnitude)


def _values(registers: Array, bits: int, read: Callable[[Array], Array]) -> Array:
    """[..., registers] → [..., registers, values of each], the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    parts = registers[..., None] >> shifts
    return read(parts & np.uint32((1 << bits) - 1) if bits < 32 else parts)


def _reader(instruction: str) -> Callable[[Array], Array]:
    """What decodes the left operand's bits."""
    known = {"bf16": formats.from_bf16, "f16": formats.from_fp16, "tf32": formats.from_tf32, "e4m3": formats.from_e4m3}
    known["s8"] = lambda bits: bits.astype(np.uint8).view(np.int8).astype(np.float64)
    return known[instruction.split(".")[-2]] if instruction.startswith("wgmma") else known[instruction.split(".")[-3]]


def _tma(vector: Vector) -> Verdict:
    """Every box, row by row; zeros outside the declared matrix."""
    options, matrix = vector.options, vector.arrays["matrix"]
    height, width = options["box_rows"], options["box_columns"]
    wanted = np.empty_like(vector.arrays["boxes"])
    for box, (x, y) in zip(wanted, vector.arrays["corners"], strict=True):
        rows, columns = np.meshgrid(np.arange(height) + y, np.arange(width) + x, indexing="ij")
        inside = (rows >= 0) & (rows < options["rows"]) & (columns >= 0) & (columns < options["columns"])
        values = np.where(inside, matrix[rows.clip(0, len(matrix) - 1), columns.clip(0, matrix.shape[1] - 1)], 0)
        at = swizzled(np.arange(height * width) * 2, options["swizzle"])
        flat = values.reshape(-1).astype(np.uint16)
        box[at], box[at + 1] = flat & 0xFF, flat >> 8
    return _exact(vector.arrays["boxes"], wanted)


def _mbarrier(vector: Vector) -> Verdict:
    """A phase ends when all threads and all expected bytes have arrived; then the next one begins."""
    arrivals, operations = vector.options["arrivals"], vector.arrays["operations"]
    pending, expected, phase = arrivals, 0, 0
    wanted = np.empty_like(vector.arrays["ended"])
    for i in range(len(wanted)):
        wanted[i] = (phase % 2 == 1, phase % 2 == 0)
        if i == len(operations):
            break
        what, count = operations[i]
        pending -= what in (0, 1)
        expected += count if what == 1 else -count if what == 2 else 0
        if pending == 0 and expected == 0:
            pending, phase = arrivals, phase + 1
    return _exact(vector.arrays["ended"], wanted)


def _convert(vector: Vector) -> Verdict:
    x, y = vector.arrays["x"], vector.arrays["y"]
    if vector.instruction in _CONVERSIONS:
        return _exact(y, _CONVERSIONS[vector.instruction](x).astype(np.uint32))
    function, allowed = _FUNCTIONS[vector.instruction]
    flushed = ".ftz." in vector.instruction
    with np.errstate(all="ignore"):
        given = x.astype(np.float64)
        given = np.where((np.abs(given) < 2.0**-126) & flushed, np.copysign(0.0, given), given)
        wanted = function(given)
        wanted = np.where(np.abs(wanted) >= 2.0**128, np.copysign(np.inf, wanted), wanted)
        size = np.where(np.isfinite(wanted), np.maximum(np.abs(wanted), allowed.floor), 1.0)
    # subnormals are flushed or have fewer bits, so no relative error applies
    normal = np.where(size >= 2.0**-126, size, np.inf)
    return _near(y.view(np.float32), wanted, allowed.relative * size + 2.0**-126, normal)


@dataclass(frozen=True)
class _Allowed:
    """relative: to a value, or to `floor` if that is larger."""

    relative: float
    floor: float = 0.0


def _pair(to: Callable[[Array], Array], width: int) -> Callable[[Array], Array]:
    """x in the upper half of a pair, −x in the lower one."""
    return lambda x: to(x) << np.uint32(width) | to(-x)


def _from_e4m3_pair(x: Array) -> Array:
    codes = formats.fp32_bits(x) & np.uint32(0xFFFF)
    low, high = (formats.to_fp16(formats.from_e4m3(c).astype(np.float32)) for c in (codes & 0xFF, codes >> 8))
    both: Array = low | high << np.uint32(16)
    return both


_CONVERSIONS: dict[str, Callable[[Array], Array]] = {
    "cvt.rn.bf16.f32": formats.to_bf16,
    "cvt.rz.bf16.f32": lambda x: formats.to_bf16(x, to_zero=True),
    "cvt.rn.bf16x2.f32": _pair(formats.to_bf16, 16),
    "cvt.rn.f16.f32": formats.to_fp16,
    "cvt.rz.f16.f32": lambda x: formats.to_fp16(x, to_zero=True),
    "cvt.rn.satfinite.e4m3x2.f32": _pair(formats.to_e4m3, 8),
    "cvt.rn.f16x2.e4m3x2": _from_e4m3_pair,
    "cvt.rni.sat.s8.f32": formats.to_int8,
}
# the manual's bounds, a little wider
_FUNCTIONS: dict[str, tuple[Callable[[Array], Array], _Allowed]] = {
    "ex2.approx.ftz.f32": (np.exp2, _Allowed(2.0**-21)),
    "ex2.approx.f32": (np.exp2, _Allowed(2.0**-21)),
    "lg2.approx.ftz.f32": (np.log2, _Allowed(2.0**-21, floor=1.0)),
    "rcp.approx.ftz.f32": (lambda x: 1.0 / x, _Allowed(2.0**-22)),
    "rsqrt.approx.ftz.f32": (lambda x: 1.0 / np.sqrt(x), _Allowed(2.0**-21)),
    "tanh.approx.f32": (np.tanh, _Allowed(2.0**-10)),
}
_JUDGES: dict[str, Callable[[Vector], Verdict]] = {
    "ldmatrix": _ldmatrix,
    "mma": _mma,
    "wgmma": _wgmma,
    "tma": _tma,
    "mbarrier": _mbarrier,
    "convert": _convert,
}
