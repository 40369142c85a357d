"""FLOPs of a model's call: its matrix products and convolutions, as torch.utils.flop_counter counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from kinema.bench.op_counts import Unit, count
from kinema.ops import Ops

MULTIPLYING = ("linear", "attention", "conv3d", "patch_embed")


@dataclass
class Tally:
    """FLOPs so far, by op and by arithmetic unit."""

    by_op: dict[str, int]
    by_unit: dict[Unit, int]

    @property
    def flops(self) -> int:
        return sum(self.by_op.values())


@contextmanager
def counted(ops: Ops) -> Iterator[Tally]:
    """Count what runs through `ops` in this block, whatever implementation runs it.

    Models hold their ops, which are immutable, so the functions are replaced in place and restored: a call outside the
    block, a timed one, has no overhead.
    """
    tally = Tally(dict.fromkeys(MULTIPLYING, 0), {})
    originals = {name: getattr(ops, name) for name in MULTIPLYING}
    for name, function in originals.items():
        object.__setattr__(ops, name, _counting(name, function, tally))
    try:
        yield tally
    finally:
        for name, function in originals.items():
            object.__setattr__(ops, name, function)


def _counting(name: str, function: Callable[..., Any], tally: Tally) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        result = function(*args, **keywords)
        work = count(name, partial(function, *args, **keywords), result)
        tally.by_op[name] += work.flops
        tally.by_unit[work.unit] = tally.by_unit.get(work.unit, 0) + work.flops
        return result

    return call
