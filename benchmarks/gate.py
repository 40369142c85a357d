"""Whether a call's result is right: no benchmark prints the speed of a wrong one.

The yardstick of the contract tests, over the whole result: an implementation may err twice as much as plain PyTorch
in the same precision, both from a float64 truth, plus a floor for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from kinema.ops.calls import Inputs
from kinema.ops.common import Quantized, Target

# where activations are rounded to 8 bits, a value between two steps may go to either; only some kernels round to bf16,
# of attention's second product both factors
STEP = {torch.int8: (1 / 500, 1 / 50), torch.float8_e4m3fn: (1 / 200, 1 / 12), torch.bfloat16: (1 / 350, 1 / 100)}


class ExactInputs(Inputs):
    """The same numbers as `Inputs`, in float64: the reference then computes in float64, and rounds nothing."""

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return super().__call__(*shape, dtype=dtype).double()

    def target(self, target: Target) -> Target:
        return replace(target, precision=replace(target.precision, quantize_activations=None))


@dataclass(frozen=True)
class Distance:
    """relative: the norm of the error over that of the truth. largest: the largest error over the largest value."""

    relative: float
    largest: float

    def within(self, allowed: Distance) -> bool:
        return self.relative <= allowed.relative and self.largest <= allowed.largest

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def distance(result: Any, truth: Any) -> Distance:
    """Of two results of one call, tensors or containers of tensors. NaN, or another shape, is infinitely far."""
    got, wanted = list(_tensors(result)), list(_tensors(truth))
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return Distance(math.inf, math.inf)
    error = square = largest = highest = 0.0
    for g, w in zip(got, wanted, strict=True):
        w = w.to(g.device, torch.float64)
        off = (g.double() - w).nan_to_num(nan=math.inf)
        error += float(off.square().sum())
        square += float(w.square().sum())
        largest = max(largest, float(off.abs().max()))
        highest = max(highest, float(w.abs().max()))
    if not error:
        return Distance(0.0, 0.0)
    return Distance(math.sqrt(error / square) if square else math.inf, largest / highest if highest else math.inf)


def allowance(plain: Distance, dtype: torch.dtype, quantized: torch.dtype | None = None) -> Distance:
    """How much an implementation may err. dtype: of the result. quantized: what activations are rounded to, or None."""
    eps = torch.finfo(dtype).eps
    relative, largest = (8 * eps, 64 * eps) if dtype.itemsize >= 4 else (eps / 2, eps)
    if quantized is not None:
        steps = STEP[quantized]
        relative, largest = relative + steps[0], largest + steps[1]
    return Distance(2 * plain.relative + relative, 2 * plain.largest + largest)


def refusal(found: Distance, allowed: Distance) -> str | None:
    """Why the speed of this result must not be printed; None if it may be."""
    if found.within(allowed):
        return None
    return (
        f"wrong: errs by {found.relative:.1e} (at most {found.largest:.1e} of the largest value), "
        f"allowed {allowed.relative:.1e} ({allowed.largest:.1e}); its speed means nothing"
    )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Quantized):
        yield value.dequantize(torch.float64)
    else:
        for part in value:
            yield from _tensors(part)
