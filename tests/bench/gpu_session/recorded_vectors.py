"""A recording as a GPU would make it, put together lane by lane from the PTX manual's figures; run, it is written anew.

Here an operand is scattered to where instructions read it and a result to who gets it; the oracles gather.
"""

from pathlib import Path

import numpy as np

from kinema.bench.gpu_session import number_formats as formats
from kinema.bench.gpu_session.vectors import Recording, Vector, write_recording

SAMPLE = Path(__file__).parent / "samples" / "vectors"


def ldmatrix(draw, count, transposed):
    rows = draw.integers(0, 1 << 16, (64, 8), dtype=np.uint16)
    of_lane = draw.integers(0, 64, 32, dtype=np.int32)
    registers = np.zeros((32, count), np.uint32)
    for lane in range(32):
        for i in range(count):
            pair = []
            for j in range(2):
                row, column = lane // 4, 2 * (lane % 4) + j
                if transposed:
                    row, column = column, row
                pair.append(int(rows[of_lane[8 * i + row], column]))
            registers[lane, i] = pair[0] + (pair[1] << 16)
    shape = f"x{count}{'.trans' if transposed else ''}"
    options = {"count": count, "transposed": int(transposed)}
    arrays = {"rows": rows, "row_of_lane": of_lane, "registers": registers}
    return Vector(f"ldmatrix {shape}", "ldmatrix", f"ldmatrix.sync.aligned.m8n8.{shape}.shared.b16", options, arrays)


OF_BITS = {"bf16": formats.from_bf16, "f16": formats.from_fp16, "tf32": formats.from_tf32, "e4m3": formats.from_e4m3}
TO_BITS = {"bf16": formats.to_bf16, "f16": formats.to_fp16, "tf32": formats.fp32_bits, "e4m3": formats.to_e4m3}


def mma(draw, kind, trials=2, special=False):
    bits, shape = {"bf16": (16, "m16n8k16"), "f16": (16, "m16n8k16"), "tf32": (32, "m16n8k8"), "e4m3": (8, "m16n8k32"),
                   "s8": (8, "m16n8k32")}[kind]  # fmt: skip
    depth, whole = 256 // bits, kind == "s8"
    if whole:
        a, b = (draw.integers(-128, 128, size).astype(np.int8) for size in ((trials, 16, depth), (trials, depth, 8)))
        of_a, of_b = (x.view(np.uint8).astype(np.uint32) for x in (a, b))
        a, b = a.astype(np.float64), b.astype(np.float64)
        c = draw.integers(-99, 99, (trials, 16, 8)).astype(np.int32)
    else:
        a, b = (draw.standard_normal(size).astype(np.float32) for size in ((trials, 16, depth), (trials, depth, 8)))
        if special:
            a[0, 3, 5], a[0, 4, 2], b[1, 0, 6] = np.nan, -np.inf, np.inf
        of_a, of_b = TO_BITS[kind](a), TO_BITS[kind](b)
        a, b = OF_BITS[kind](of_a), OF_BITS[kind](of_b)
        c = draw.standard_normal((trials, 16, 8)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        d = (a @ b + c).astype(c.dtype)
    per = 32 // bits
    arrays = {"a": np.zeros((trials, 32, 4), np.uint32), "b": np.zeros((trials, 32, 2), np.uint32)}
    arrays |= {name: np.zeros((trials, 32, 4), c.dtype) for name in "cd"}
    for trial in range(trials):
        for m in range(16):
            for k in range(depth):
                lane = m % 8 * 4 + k // per % 4
                register = m // 8 + 2 * (k // (4 * per))
                arrays["a"][trial, lane, register] |= of_a[trial, m, k] << np.uint32(k % per * bits)
            for n in range(8):
                lane, register = m % 8 * 4 + n // 2, n % 2 + 2 * (m // 8)
                arrays["c"][trial, lane, register], arrays["d"][trial, lane, register] = c[trial, m, n], d[trial, m, n]
        for k in range(depth):
            for n in range(8):
                lane, register = n * 4 + k // per % 4, k // (4 * per)
                arrays["b"][trial, lane, register] |= of_b[trial, k, n] << np.uint32(k % per * bits)
    sums = "s32" if whole else "f32"
    instruction = f"mma.sync.aligned.{shape}.row.col.{sums}.{kind}.{kind}.{sums}"
    return Vector(f"mma {kind}", "mma", instruction, {"bits": bits, "special": 5}, arrays)


def wgmma(
    draw, kind, columns, products, swizzle=128, registers=False, a_rows_of_k=False, b_rows_of_k=False, onto=False
):
    bits = 16 if kind == "bf16" else 8
    depth, size = products * 256 // bits, bits // 8
    of_a, of_b = (TO_BITS[kind](draw.standard_normal((n, depth)).astype(np.float32)) for n in (64, columns))
    c = draw.standard_normal((64, columns)) if onto else np.zeros((64, columns))
    c = c.astype(np.float32)
    d = (OF_BITS[kind](of_a) @ OF_BITS[kind](of_b).T + c).astype(np.float32)

    def image(codes, rows_of_k):
        rows = depth * (len(codes) * size // swizzle) if rows_of_k else len(codes)
        bytes_ = draw.integers(0, 256, rows * swizzle, dtype=np.uint8)  # a row may be longer than what is multiplied
        for outer in range(len(codes)):
            for k in range(depth):
                row, byte = (k, outer * size) if rows_of_k else (outer, k * size)
                panel, byte = divmod(byte, swizzle)
                at = (panel * (depth if rows_of_k else len(codes)) + row) * swizzle + byte
                chunk, inside = divmod(at, 16)
                chunk ^= at // 128 % 8 % {128: 8, 64: 4}[swizzle]
                for i in range(size):
                    bytes_[chunk * 16 + inside + i] = int(codes[outer, k]) >> 8 * i & 255
        return bytes_

    def accumulators(values):
        held = np.zeros((128, columns // 2), np.float32)
        for m in range(64):
            for n in range(columns):
                lane = m // 16 * 32 + m % 8 * 4 + n % 8 // 2
                held[lane, n // 8 * 4 + m % 16 // 8 * 2 + n % 2] = values[m, n]
        return held

    arrays = {}
    if registers:
        per = 32 // bits
        held = np.zeros((products, 128, 4), np.uint32)
        for m in range(64):
            for k in range(depth):
                product, inner = divmod(k, 256 // bits)
                lane = m // 16 * 32 + m % 8 * 4 + inner // per % 4
                register = m % 16 // 8 + 2 * (inner // (4 * per))
                held[product, lane, register] |= of_a[m, k] << np.uint32(inner % per * bits)
        arrays["a_registers"] = held
    else:
        arrays["a"] = image(of_a, a_rows_of_k)
    arrays["b"] = image(of_b, b_rows_of_k)
    if onto:
        arrays["c"] = accumulators(c)
    arrays["d"] = accumulators(d)
    options = {"columns": columns, "products": products, "swizzle": swizzle, "a_rows_of_k": int(a_rows_of_k)}
    options |= {"b_rows_of_k": int(b_rows_of_k), "bits": bits}
    instruction = f"wgmma.mma_async.sync.aligned.m64n{columns}k{256 // bits}.f32.{kind}.{kind}"
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    return Vector(f"wgmma {kind}, {said}", "wgmma", instruction, options, arrays)


def tma(draw, swizzle):
    width, height, rows, columns = (swizzle or 32) // 2, 16, 22, 75
    matrix = draw.integers(1, 1 << 16, (24, 80), dtype=np.uint16)
    corners = np.array([[8, 3], [columns - width // 2, rows - 5], [-5, -2], [columns + 8, 0]], np.int32)
    boxes = np.zeros((4, height * width * 2), np.uint8)
    for box, (x, y) in zip(boxes, corners, strict=True):
        for r in range(height):
            for c in range(width):
                inside = 0 <= y + r < rows and 0 <= x + c < columns
                value = int(matrix[y + r, x + c]) if inside else 0
                at = (r * width + c) * 2
                line, chunk, byte = at // 128, at // 16 % 8, at % 16
                chunk ^= line % {0: 1, 32: 2, 64: 4, 128: 8}[swizzle]
                box[line * 128 + chunk * 16 + byte :][:2] = value & 255, value >> 8
    options = {"swizzle": swizzle, "rows": rows, "columns": columns, "box_rows": height, "box_columns": width}
    arrays = {"matrix": matrix, "corners": corners, "boxes": boxes}
    return Vector(f"tma {swizzle}-byte swizzle", "tma", "cp.async.bulk.tensor.2d", options, arrays)


def mbarrier():
    """Of two arrivals: a phase; one that waits for its bytes; one whose bytes come before the last arrival."""
    arrive, expect, complete = 0, 1, 2
    operations = [(arrive, 0), (arrive, 0), (expect, 8), (arrive, 0), (complete, 8), (complete, 4), (expect, 4)]
    first, second = (0, 1), (1, 0)  # which parity has ended, while the first or the second phase runs
    ended = [first, first, second, second, second, first, first, first]
    arrays = {"operations": np.array(operations, np.int32), "ended": np.array(ended, np.int32)}
    return Vector("mbarrier", "mbarrier", "mbarrier.test_wait.parity.shared::cta.b64", {"arrivals": 2}, arrays)


def conversion(draw, instruction, result):
    """result: bits of one value, by Python's or NumPy's own rounding."""
    x = np.concatenate([draw.standard_normal(64) * 100, [0.0, -0.0, 1.5, 2.5, 447.0, 1e9]]).astype(np.float32)
    y = np.array([result(float(value)) for value in x], np.int64).astype(np.uint32)
    return Vector(instruction, "convert", instruction, {}, {"x": x, "y": y})


def fp16_bits(value):
    with np.errstate(over="ignore"):
        return int(np.float16(value).view(np.uint16))


def exp2_bits(value):
    with np.errstate(over="ignore"):
        return int(np.exp2(np.float64(value)).astype(np.float32).view(np.uint32))


def sample():
    draw = np.random.default_rng(1)
    vectors = (
        ldmatrix(draw, 4, True),
        mma(draw, "bf16"),
        wgmma(draw, "bf16", 64, 1, registers=True, b_rows_of_k=True),
        tma(draw, 32),
        mbarrier(),
        conversion(draw, "cvt.rn.f16.f32", fp16_bits),
        conversion(draw, "ex2.approx.ftz.f32", exp2_bits),
    )
    head = {
        "gpu": "none: tests/bench/gpu_session/recorded_vectors.py",
        "capability": 0,
        "driver": 0,
        "runtime": 0,
        "seed": 1,
    }
    return Recording(head, vectors, {"mma e4m3": "needs compute capability 89"})


if __name__ == "__main__":
    SAMPLE.mkdir(parents=True, exist_ok=True)
    write_recording(SAMPLE, sample())
