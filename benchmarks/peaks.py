"""What this machine reaches at most, measured in the run that is to be judged: arithmetic, and a copy in memory.

The arithmetic is the best of many short matrix products that fit the caches, by torch: a floor of the processor's
peak, since torch's product is not perfect. `probe` is the one place to put a native loop of FMAs instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kinema.bench.rounds import interleaved

SIZES = {"cpu": (192, 256, 384), "cuda": (4096, 8192)}
COPIED = {"cpu": 1 << 24, "cuda": 1 << 28}  # values of 4 bytes: several times the last cache


@dataclass(frozen=True)
class Peaks:
    """flops: per second, of `dtype`. bytes: per second, read and written. how: what measured the arithmetic."""

    flops: float
    bytes: float
    dtype: str
    how: str

    def share_of_flops(self, flops: float, seconds: float) -> float:
        return flops / seconds / self.flops

    def share_of_bytes(self, nbytes: float, seconds: float) -> float:
        return nbytes / seconds / self.bytes

    def better(self, other: Peaks) -> Peaks:
        """The best of two probes of the same kind: a disturbance only ever lowers one."""
        return Peaks(max(self.flops, other.flops), max(self.bytes, other.bytes), self.dtype, self.how)


def probe(device: torch.device, dtype: torch.dtype = torch.float32, *, rounds: int = 8) -> Peaks:
    """A short look, to be taken again between the calls that are measured; with `better` of all of them."""
    sizes = SIZES[device.type]
    count = COPIED[device.type]
    source, target = (torch.ones(count, dtype=torch.float32, device=device) for _ in range(2))
    calls = {}
    for n in sizes:
        a, b, out = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(3))
        calls[f"{n}"] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)
    with torch.inference_mode():
        products = interleaved(calls, rounds, device=device, warmup=1)
        copies = interleaved({"copy": lambda: target.copy_(source)}, max(2, rounds // 2), device=device, warmup=1)
    flops = max(2 * n**3 / min(products[f"{n}"]) for n in sizes)
    return Peaks(
        flops,
        2 * source.nbytes / min(copies["copy"]),
        str(dtype).removeprefix("torch."),
        f"torch.mm of {', '.join(str(n) for n in sizes)} squared, the best",
    )
