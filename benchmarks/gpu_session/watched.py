"""Runs Triton kernels once, under a tool that instruments the process: compute-sanitizer, ncu.

python -m kinema.bench.gpu_session.watched odd [OP ...]      small calls of odd sizes, their results held to float64
python -m kinema.bench.gpu_session.watched large             what dominates the time of Wan 1.3B and of its VAE
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import torch

from kinema.bench import gate
from kinema.bench.gpu_session.drawn import Drawn, flowing
from kinema.bench.gpu_session.little_calls import ODD, little
from kinema.ops.cases import all_cases

LARGE = {"attention": "1.3B 32760 self", "linear": "1.3B 32760 out", "conv3d": "VAE 96"}  # cases of engine/ops/cases.py


def main(words: Sequence[str]) -> int:
    what, *ops = words
    device = torch.device("cuda")
    with torch.inference_mode():
        if what == "large":
            large(device)
            return 0
        wrong = odd(device, tuple(ops))
    torch.cuda.synchronize()
    return 1 if wrong else 0


def odd(device: torch.device, ops: tuple[str, ...]) -> int:
    """The number of wrong results; prints a verdict on each."""
    wrong = 0
    for given in little(device, ODD, ops):
        result = given.call()
        plain = gate.distance(given.plain, given.truth)
        dtype = torch.float32 if given.op == "scheduler_step" else torch.bfloat16
        refusal = gate.refusal(gate.distance(result, given.truth), gate.allowance(plain, dtype, given.quantized))
        print(f"{given.op}: {refusal or 'right'}", flush=True)
        wrong += refusal is not None
    return wrong


def large(device: torch.device) -> None:
    for case in all_cases():
        if LARGE.get(case.op) == case.name:
            functions = importlib.import_module(f"kinema.ops.{case.op}.triton")
            case.prepare(functions, flowing(device), Drawn(device))()
            torch.cuda.synchronize()
            print(f"{case.op}: done", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
