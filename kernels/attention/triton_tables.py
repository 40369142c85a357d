"""Tile sizes of `attention`'s kernel, by head dim, what is multiplied, and architecture; README.md has the reasons."""

from __future__ import annotations

from kinema.ops.common.launch import HIP, Config, Table


def _config(rows: int, keys: int, warps: int, stages: int, tma: int = 0, per_sm: int = 0) -> Config:
    """per_sm: programs of a persistent grid on each multiprocessor, 0 for one program a tile."""
    return Config({"ROWS": rows, "KEYS": keys, "TMA": tma, "PER_SM": per_sm}, warps, stages)


_SMALL = _config(16, 16, 4, 1, tma=1, per_sm=1)
_FP8, _FP8_64 = _config(128, 64, 8, 3, tma=1), _config(128, 64, 4, 3, tma=1)
# By the largest head dim that a table serves, and what is multiplied; lean: with causality or a bias for every query.
# No thread may need more than 255 registers, which sets most of these sizes; README.md has the reasons.
#
# Candidates beside a default are of three kinds. Fewer keys at a time leave registers and shared memory for more loads
# in flight ("ahead"). Two programs on a multiprocessor ("shared") do the softmax of one while the other multiplies, and
# half as many rows are twice as many tiles for short queries. More keys at a time ("large") mean fewer reductions.
# Tables of other head dims and of fp32 have what compiles without spills, and no candidates.
TABLES: dict[str, Table] = {
    "attention/64": {
        HIP: _config(128, 64, 4, 2),
        0: _SMALL,
        80: (
            _config(128, 64, 8, 3),
            _config(128, 128, 8, 2),  # large
            _config(64, 64, 4, 3),  # shared
        ),
        89: (_config(128, 64, 4, 3), _config(64, 64, 4, 3)),  # shared
        90: (_config(128, 128, 8, 3, tma=1, per_sm=1), _config(128, 64, 8, 3, tma=1)),  # shared
        100: (_config(128, 64, 4, 3, tma=1, per_sm=2), _config(128, 128, 8, 2, tma=1)),  # large
        120: (_config(128, 64, 4, 3, tma=1), _config(64, 64, 4, 3, tma=1)),  # shared
    },
    "attention/128": {
        HIP: _config(128, 64, 4, 2),
        0: _SMALL,
        80: (_config(128, 64, 8, 3), _config(128, 32, 8, 4)),  # ahead
        89: (
            _config(128, 64, 8, 2),
            _config(128, 64, 8, 3),  # ahead: the last of the shared memory
            _config(128, 32, 8, 3),  # ahead
        ),
        90: (  # as an H200 ordered them once; make gpu-session asks again
            _config(64, 64, 4, 2, tma=1),  # shared
            _config(128, 64, 8, 3, tma=1),  # ahead
            _config(128, 128, 8, 2, tma=1),  # large
        ),
        100: (
            _config(128, 64, 4, 2, tma=1),
            _config(128, 128, 8, 2, tma=1),  # large: a row's maximum and sum are found half as often
            _config(64, 64, 4, 3, tma=1),  # shared
        ),
        120: (_config(128, 64, 8, 2, tma=1), _config(128, 32, 8, 3, tma=1)),  # ahead
    },
    "attention/256": {
        0: _SMALL,
        80: _config(64, 64, 8, 1),
        90: _config(64, 64, 8, 2, tma=1),
        120: _config(64, 64, 8, 1),
    },
    "attention/512": {0: _SMALL, 80: _config(32, 32, 8, 1)},
    "attention/64_fp8": {
        0: _SMALL,
        80: _config(128, 64, 8, 3),
        90: _config(128, 128, 8, 3, tma=1),
        100: _FP8_64,
        120: _FP8,
    },
    "attention/64_fp8_lean": {0: _SMALL, 80: _config(128, 64, 8, 3), 90: _FP8, 100: _FP8_64, 120: _FP8},
    "attention/128_fp8": {
        0: _SMALL,
        80: _config(128, 64, 8, 2),
        90: (
            _config(128, 128, 8, 2, tma=1),
            _FP8,  # ahead
        ),
        100: _FP8,
        120: _config(128, 32, 8, 3, tma=1),
    },
    "attention/128_fp8_lean": {
        0: _SMALL,
        80: _config(128, 64, 8, 2),
        90: _FP8,
        120: _config(128, 32, 8, 3, tma=1),
    },
    "attention/256_fp8": {0: _SMALL, 80: _config(64, 32, 8, 2)},
    "attention/512_fp8": {0: _SMALL, 80: _config(32, 32, 8, 1)},
    "attention/64_fp32": {0: _SMALL, 80: _config(64, 32, 4, 2), 89: _config(64, 32, 8, 2), 90: _config(64, 32, 4, 2)},
    "attention/128_fp32": {0: _SMALL, 80: _config(64, 32, 8, 2)},
    "attention/256_fp32": {0: _SMALL, 80: _config(32, 32, 8, 2)},
    "attention/512_fp32": {0: _SMALL, 80: _config(32, 16, 8, 1)},
}
