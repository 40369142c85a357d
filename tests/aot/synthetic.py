"""Kernels that are broken on purpose, beside sound ones, measured as the ladder measures: prints JSON.

Run by test_aot.py as a process of its own, since what is interpreted cannot be compiled.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import torch
import triton
import triton.language as tl
from builds import build
from chips import CHIPS
from compiled import Job, job

from kinema.ops.common.launch import Config, Launch, options

META = torch.device("meta")


@triton.jit
def copy_kernel(x, y, stride, SIZE: tl.constexpr):
    """One row of x to one of y; wide loads if stride is known to be 1."""
    i = tl.arange(0, SIZE)
    at = tl.program_id(0).to(tl.int64) * SIZE
    tl.store(y + at + i, tl.load(x + (at + i) * stride))


@triton.jit
def dot_kernel(a, b, y, k, SIZE: tl.constexpr, ON_TENSOR_CORES: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    acc = tl.zeros((SIZE, SIZE), tl.float32)
    for at in range(0, k, SIZE):
        left = tl.load(a + i * k + at + j)
        right = tl.load(b + i * k + at + j)
        if ON_TENSOR_CORES:
            acc = tl.dot(left, right.T, acc)
        else:
            acc += tl.sum(left.to(tl.float32) * right.to(tl.float32), axis=1)[:, None]
    tl.store(y + i * SIZE + j, acc)


@triton.jit
def centred_kernel(x, y, SIZE: tl.constexpr):
    """x less its mean, all of it in the registers of one program."""
    i = tl.arange(0, SIZE)
    h = tl.load(x + i)
    tl.store(y + i, h - tl.sum(h) / SIZE)


def launched(kernel: object, config: Config, **arguments: object) -> Launch:
    return Launch(kernel, (1,), {**arguments, **config.blocks}, config)


def new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def launches() -> dict[str, Launch]:
    row = {"x": new(1024), "y": new(1024)}
    tile = {"a": new(64, 1024), "b": new(64, 1024), "y": new(64, 64, dtype=torch.float32), "k": 1024}
    values = {"x": new(8192, dtype=torch.float32), "y": new(8192, dtype=torch.float32)}
    return {
        "wide loads": launched(copy_kernel, Config({"SIZE": 1024}), **row, stride=1),
        "narrow loads": launched(copy_kernel, Config({"SIZE": 1024}), **row, stride=3),
        "dot": launched(dot_kernel, Config({"SIZE": 64}), **tile, ON_TENSOR_CORES=True),
        "sum for dot": launched(dot_kernel, Config({"SIZE": 64}), **tile, ON_TENSOR_CORES=False),
        "fits": launched(centred_kernel, Config({"SIZE": 1024}), **values),
        "spills": launched(centred_kernel, Config({"SIZE": 8192}, warps=1), **values),
    }


def same_as_the_jit(launch: Launch, made: Job) -> bool:
    """Whether Triton's own launch of these arguments would compile what `made` compiles."""

    class Absent:
        """A driver of a GPU that is not here."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> object:
            return made.chip.target

    triton.runtime.driver.set_active(Absent())
    warmed = launch.kernel.warmup(grid=launch.grid, **launch.arguments, **options(launch.config))
    return bool(warmed.hash == made.compile().hash)


def main() -> None:
    chip = next(chip for chip in CHIPS if chip.name == "sm_89")
    made = {name: job(launch, chip) for name, launch in launches().items()}
    found = build(made.values(), folder=Path(sys.argv[1]))
    failed = [reason for reason in found.values() if isinstance(reason, str)]
    if failed:
        raise SystemExit(failed[0])
    os.environ["TRITON_CACHE_DIR"] = sys.argv[1]
    print(
        json.dumps(
            {
                "measures": {name: found[one.key].as_json() for name, one in made.items()},
                "as the jit": [same_as_the_jit(launches()[name], one) for name, one in made.items()],
            }
        )
    )


if __name__ == "__main__":
    main()
