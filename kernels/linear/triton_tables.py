"""Tile sizes of `linear`'s kernel, by what is multiplied, rows and architecture; README.md has the reasons."""

from __future__ import annotations

from kinema.ops.common.launch import Config, Table


def _tile(
    rows: int, columns: int, nbytes: int, warps: int, stages: int, *, per_sm: int, tma: int, steps: int = 1
) -> Config:
    """nbytes: of a row in one product. per_sm: programs of the persistent grid on each multiprocessor.

    steps: products per iteration of the loop. With one, on Ampere and Ada, Triton carries 8-bit factors to the next
    iteration unpacked into bytes: more instructions than the products themselves.
    """
    blocks = {"ROWS": rows, "COLUMNS": columns, "BYTES": nbytes, "STEPS": steps, "PARTS": 4, "GROUP": 8}
    return Config({**blocks, "PER_SM": per_sm, "TMA": tma}, warps, stages)


# The interpreter's: small shapes cross their edges.
_FEW = Config({"ROWS": 32, "COLUMNS": 64, "BYTES": 128, "STEPS": 1, "PARTS": 2, "GROUP": 2, "PER_SM": 1, "TMA": 1})
_TURNS = Config({"ROWS": 32, "COLUMNS": 64, "BYTES": 32, "STEPS": 2, "PARTS": 2, "GROUP": 2, "PER_SM": 1, "TMA": 0})
_SHORT = Config({"ROWS": 16, "COLUMNS": 32, "BYTES": 128, "STEPS": 1, "PARTS": 1, "GROUP": 1, "PER_SM": 1, "TMA": 0})

# Tables have four kinds of candidates beside the default. Large tiles read fewer bytes per product. Longer products, or
# more loads in flight, mean fewer waits. Programs that share a multiprocessor do the epilogue of one while the other
# multiplies. And half as many rows are twice as many tiles, where a short input has fewer than the GPU multiprocessors.
_WARPGROUPS = (
    _tile(128, 256, 128, 8, 4, per_sm=1, tma=1),
    _tile(128, 128, 128, 4, 3, per_sm=2, tma=1),  # shared
    _tile(64, 128, 128, 4, 4, per_sm=2, tma=1),  # half the rows
)
LARGE: Table = {
    0: _FEW,
    80: (
        _tile(128, 128, 64, 4, 4, per_sm=2, tma=0),
        _tile(256, 128, 64, 8, 3, per_sm=1, tma=0),  # large: a quarter fewer bytes; 128x256 spills if gated
        _tile(64, 128, 64, 4, 3, per_sm=3, tma=0),  # half the rows
    ),
    90: _WARPGROUPS,
    120: (
        _tile(128, 128, 64, 4, 4, per_sm=2, tma=1),
        _tile(128, 256, 64, 8, 3, per_sm=1, tma=1),  # large: a quarter fewer bytes
        _tile(128, 128, 128, 8, 3, per_sm=1, tma=1),  # half as many waits for memory
        _tile(64, 128, 64, 4, 3, per_sm=3, tma=1),  # half the rows
    ),
}
LARGE_INT8: Table = {
    0: _TURNS,
    80: (
        _tile(128, 128, 64, 8, 3, per_sm=2, tma=0, steps=2),
        _tile(128, 128, 64, 8, 4, per_sm=1, tma=0, steps=2),  # one program, with more loads in flight
        _tile(64, 128, 64, 4, 3, per_sm=2, tma=0, steps=2),  # half the rows
    ),
    89: (
        _tile(128, 128, 64, 8, 3, per_sm=1, tma=0, steps=2),
        _tile(64, 128, 64, 4, 3, per_sm=2, tma=0, steps=2),  # half the rows, and shared
    ),
    90: (_WARPGROUPS[1], _WARPGROUPS[0], _WARPGROUPS[2]),  # as an H200 ordered them once; make gpu-session asks again
    120: LARGE[120],
}
LARGE_FP8: Table = {
    0: _FEW,
    89: LARGE_INT8[89],
    90: (  # as an H200 ordered them once; make gpu-session asks again
        _tile(64, 128, 128, 4, 4, per_sm=2, tma=1),  # half the rows, and shared
        _tile(128, 128, 128, 8, 4, per_sm=1, tma=1),  # a second accumulator, of promoted sums, leaves no room for more
    ),
    100: _WARPGROUPS,
    120: (
        _tile(128, 128, 128, 8, 3, per_sm=1, tma=1),
        _tile(128, 128, 64, 4, 4, per_sm=2, tma=1),  # shared
        _tile(64, 128, 64, 4, 3, per_sm=3, tma=1),  # half the rows
    ),
}
LARGE_FP32: Table = {
    0: _FEW,
    80: (
        _tile(128, 128, 32, 8, 3, per_sm=1, tma=0),
        _tile(
            128, 64, 32, 4, 3, per_sm=2, tma=0
        ),  # half the columns, and shared; with half the rows it spills if gated
    ),
}
# Up to 16 rows all that counts is reading the weights once: every tile that loads 16 bytes at a time and has enough
# loads in flight takes equally long, so there is nothing to choose.
SMALL: Table = {
    0: _SHORT,
    80: Config({"ROWS": 16, "COLUMNS": 32, "BYTES": 256, "PARTS": 1, "GROUP": 1, "PER_SM": 4, "TMA": 0}, 4, 5),
}
SMALL_INT8: Table = {
    0: _SHORT,
    80: Config(
        {"ROWS": 16, "COLUMNS": 32, "BYTES": 128, "STEPS": 2, "PARTS": 1, "GROUP": 1, "PER_SM": 4, "TMA": 0}, 4, 5
    ),
    90: SMALL[80],
}
SMALL_FP32: Table = {
    0: _SHORT,
    80: Config({"ROWS": 16, "COLUMNS": 32, "BYTES": 128, "PARTS": 1, "GROUP": 1, "PER_SM": 4, "TMA": 0}, 4, 5),
}
TABLES: dict[str, Table] = {
    "linear/large": LARGE,
    "linear/large_fp8": LARGE_FP8,
    "linear/large_int8": LARGE_INT8,
    "linear/large_fp32": LARGE_FP32,
    "linear/small": SMALL,
    "linear/small_fp8": SMALL_INT8,
    "linear/small_int8": SMALL_INT8,
    "linear/small_fp32": SMALL_FP32,
}
