"""One op run by a kernel of your own: python examples/swap_kernel.py [out.mp4]

`kinema.ops.scheduler_step` has the contract; docs/adding_a_kernel.md says how a kernel joins those that kinema chooses
from. Exits with 1 if the frames of the two runs differ by more than 1e-3.
"""

import sys
from dataclasses import replace

import numpy as np
import torch

from kinema import VideoPipeline

calls = 0


def my_scheduler_step(terms, coefficients, *, out=None):
    """output[m] = Σ_k coefficients[:, m, k] · terms[k]; a term without a coefficient may hold NaN."""
    global calls
    calls += 1
    stacked = torch.stack([term.float().nan_to_num() for term in terms], dim=1)  # [B, K, ...]
    results = torch.einsum("bmk,bk...->mb...", coefficients.to(stacked.device), stacked)
    return tuple(results) if out is None else tuple(into.copy_(r) for into, r in zip(out, results, strict=True))


def main(path: str) -> int:
    pipe = VideoPipeline.from_pretrained("sample")
    wanted = pipe("a blue square moving up", seed=0).frames
    pipe.ops = replace(pipe.ops, scheduler_step=my_scheduler_step)  # Ops is a frozen dataclass of functions
    output = pipe("a blue square moving up", seed=0)
    output.videos[0].save(path)
    largest = float(np.abs(output.frames - wanted).max())
    print(f"{calls} calls of my_scheduler_step; largest difference of the frames: {largest:.1e}")
    return int(not (calls and largest <= 1e-3))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "swap_kernel.mp4"))
