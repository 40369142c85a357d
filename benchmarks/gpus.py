"""The peaks of GPUs, by their datasheets, and the least time that a call can take on them."""

from __future__ import annotations

from dataclasses import dataclass

from kinema.bench.op_counts import Count, Unit


@dataclass(frozen=True)
class Gpu:
    """teraflops: dense peaks, with fp32 accumulation. gigahertz: the clock that they assume."""

    name: str
    chip: str
    processors: int
    gigahertz: float
    gigabytes_per_second: float
    teraflops: dict[Unit, float]

    def peak(self, unit: Unit) -> float | None:
        """Tera-operations per second. fp32 may be done as six bf16 products on tensor cores, which are as exact."""
        if unit == "fp32":
            return max(self.teraflops["fp32"], self.teraflops["bf16"] / 6)
        return self.teraflops.get(unit)

    @property
    def exponentials(self) -> float:
        """Tera per second: 16 per cycle and multiprocessor (CUDA C++ Programming Guide, "Arithmetic Instructions")."""
        return self.processors * 16 * self.gigahertz / 1e3

    @property
    def issued(self) -> float:
        """Warp instructions, tera per second: a multiprocessor has four schedulers."""
        return self.processors * 4 * self.gigahertz / 1e3


GPUS = (
    # NVIDIA A100 datasheet, SXM 80 GB
    Gpu("A100", "sm_80", 108, 1.41, 2039, {"fp32": 19.5, "bf16": 312.0, "int8": 624.0}),
    # NVIDIA Ada GPU Architecture, v2.1, appendix A: with FP32 accumulate
    Gpu("RTX 4090", "sm_89", 128, 2.52, 1008, {"fp32": 82.6, "bf16": 165.2, "fp8": 330.3, "int8": 660.6}),
    # NVIDIA H100 datasheet, SXM: the figures "with sparsity" halved
    Gpu("H100", "sm_90a", 132, 1.83, 3350, {"fp32": 66.9, "bf16": 989.4, "fp8": 1978.9, "int8": 1978.9}),
    # NVIDIA HGX B200 datasheet, an eighth of the board, dense
    Gpu("B200", "sm_100a", 148, 1.85, 8000, {"fp32": 75.0, "bf16": 2250.0, "fp8": 4500.0, "int8": 4500.0}),
)


def of_device(name: str) -> Gpu | None:
    """The GPU that a driver calls `name` ("NVIDIA H100 80GB HBM3"), if its datasheet is here."""
    return next((gpu for gpu in GPUS if gpu.name in name), None)


@dataclass(frozen=True)
class Bound:
    """No implementation takes less. by: the resource that sets the bound."""

    microseconds: float
    by: str


def bound(gpu: Gpu, count: Count) -> Bound | None:
    """The longest of arithmetic, memory and exponentials at their peaks; None if the GPU has no such arithmetic."""
    peak = gpu.peak(count.unit)
    if peak is None:
        return None
    times = {
        count.unit: count.flops / (peak * 1e6),
        "memory": count.bytes / (gpu.gigabytes_per_second * 1e3),
        "exp2": count.exponentials / (gpu.exponentials * 1e6),
    }
    slowest = max(times, key=lambda name: times[name])
    return Bound(times[slowest], slowest)
