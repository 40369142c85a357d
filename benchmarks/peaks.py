"""This machine's peaks, measured during the run that they judge: arithmetic, and a copy in memory.

On a CPU the arithmetic is that of the native library's chains of multiply-adds (native_peak.py). Without the library,
on a GPU and in other number formats it is the best of matrix products by torch: a lower bound of the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kinema.bench.native_peak import native_peak
from kinema.bench.op_counts import Unit, unit_of
from kinema.bench.rounds import interleaved
from kinema.ops.common import Target

SIZES = {"cpu": (192, 256, 384), "cuda": (4096, 8192)}
HELD = "the peak's loops"  # their name among the calls of a run
HELD_SECONDS = 0.05  # of a call of `held`: as long as a large product, so that it is disturbed as often
COPIED = {"cpu": 1 << 24, "cuda": 1 << 28}  # values of 4 bytes: several times the last-level cache
MULTIPLIED = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Rate:
    """per_second: FLOPs, or bytes read and written. how: what measured it."""

    per_second: float
    how: str


@dataclass(frozen=True)
class Peaks:
    """flops: by arithmetic unit; one that cannot be probed here is absent."""

    flops: Mapping[Unit, Rate]
    copy: Rate

    def share_of_flops(self, work: Mapping[Unit, int], seconds: float) -> float | None:
        """The least time of `work`, FLOPs by unit, over `seconds`; None where a unit's peak is not known."""
        needed = {unit: flops for unit, flops in work.items() if flops}
        if not needed.keys() <= self.flops.keys():
            return None
        return sum(flops / self.flops[unit].per_second for unit, flops in needed.items()) / seconds

    def share_of_bytes(self, nbytes: float, seconds: float) -> float:
        return nbytes / seconds / self.copy.per_second

    def better(self, other: Peaks) -> Peaks:
        """The best of two probes: disturbances only ever lower a rate."""
        units = {**self.flops, **other.flops}
        known = {unit: _best([p.flops[unit] for p in (self, other) if unit in p.flops]) for unit in units}
        return Peaks(known, _best([self.copy, other.copy]))

    def as_dict(self) -> dict[str, Any]:
        return {"flops": {unit: asdict(rate) for unit, rate in self.flops.items()}, "copy": asdict(self.copy)}


@dataclass(frozen=True)
class _Probe:
    call: Callable[[], object]
    work: float  # FLOPs or bytes of a call
    how: str


def held(device: torch.device, unit: Unit) -> tuple[Callable[[], object], int] | None:
    """A longer call of the peak's own loops, and its operations; None where there are none.

    The peak is the best of many short probes. Timed in the rounds of the calls that are judged, this shows what even a
    loop in registers reached then, on a machine shared with other work.
    """
    own = native_peak(torch.get_num_threads()) if device.type == "cpu" else None
    return own.arithmetic(unit, HELD_SECONDS) if own is not None and unit in own.units else None


def units_of(targets: Iterable[Target]) -> list[Unit]:
    """The arithmetic units that a model on one of `targets` uses."""
    found: list[Unit] = ["fp32"]
    for target in targets:
        found.append(unit_of(target.precision.activations))
        if target.precision.quantize_activations is not None:
            found.append(target.precision.quantize_activations)
        own = native_peak(1) if target.device.type == "cpu" else None
        if (
            own is not None
            and "bf16" in own.units
            and target.precision.weights in (torch.bfloat16, torch.float8_e4m3fn, torch.int8)
        ):
            found.append("bf16")
    return list(dict.fromkeys(found))


def probe(device: torch.device, units: Sequence[Unit] = ("fp32",), *, rounds: int = 8) -> Peaks:
    """A short probe, to be repeated between the measured calls and combined by `better`."""
    with torch.inference_mode():
        flops = {unit: _rate(found, 4 * rounds, device) for unit in units if (found := list(_products(device, unit)))}
        return Peaks(flops, _rate(list(_copies(device)), max(2, rounds // 2), device))


def said(peaks: Mapping[str, Any]) -> str:
    """The peaks of a report in one line of text."""
    rates = [
        f"{rate['per_second'] / 1e9:.0f} GFLOP/s of {unit} ({rate['how']})" for unit, rate in peaks["flops"].items()
    ]
    return ", ".join([*rates, f"copies of {peaks['copy']['per_second'] / 1e9:.1f} GB/s ({peaks['copy']['how']})"])


def _best(rates: Sequence[Rate]) -> Rate:
    return max(rates, key=lambda rate: rate.per_second)


def _rate(probes: Sequence[_Probe], rounds: int, device: torch.device) -> Rate:
    """The best round of the best probe."""
    calls = {str(i): p.call for i, p in enumerate(probes)}
    seconds = interleaved(calls, rounds, device=device, warmup=1)
    return _best([Rate(p.work / min(seconds[str(i)]), p.how) for i, p in enumerate(probes)])


def _products(device: torch.device, unit: Unit) -> Iterator[_Probe]:
    alone = native_peak(1) if device.type == "cpu" else None
    if alone is not None and unit in alone.units:
        # also on one thread: on a machine whose other cores are busy, all threads wait for the slowest
        for threads in sorted({1, torch.get_num_threads()}):
            own = native_peak(threads)
            assert own is not None
            call, operations = own.arithmetic(unit)
            yield _Probe(call, operations, f"multiply-adds in registers, {own.cpu.isa}, {_threads(threads)}")
        return
    for n in SIZES[device.type]:
        product = _product(device, unit, n)
        if product is not None:
            yield _Probe(product[0], 2 * n**3, f"{product[1]} of {n} squared")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _product(device: torch.device, unit: Unit, n: int) -> tuple[Callable[[], object], str] | None:
    """A product of two matrices of ones [n, n] by torch, and its name; None where torch has none."""
    if unit in MULTIPLIED:
        a, b, out = (torch.ones(n, n, dtype=MULTIPLIED[unit], device=device) for _ in range(3))
        return lambda: torch.mm(a, b, out=out), "torch.mm"
    if unit == "int8":
        x, y = (torch.ones(n, n, dtype=torch.int8, device=device) for _ in range(2))
        return lambda: torch._int_mm(x, y.t()), "torch._int_mm"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return None
    f, g = (torch.ones(n, n, dtype=torch.float32, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), dtype=torch.float32, device=device)

    def scaled() -> torch.Tensor:
        return torch._scaled_mm(f, g.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return scaled, "torch._scaled_mm"


def _copies(device: torch.device) -> Iterator[_Probe]:
    count = COPIED[device.type]
    source, target = (torch.ones(count, dtype=torch.float32, device=device) for _ in range(2))
    yield _Probe(lambda: target.copy_(source), 2 * source.nbytes, "torch's copy")
    own = native_peak(torch.get_num_threads()) if device.type == "cpu" else None
    if own is not None:
        yield _Probe(own.copy(source, target), 2 * source.nbytes, "memcpy")
