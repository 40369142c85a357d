"""Times a kernel after checking it against float64, with each tile of its table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from kinema.bench.gpu_session.question import Session
from kinema.ops.common.launch import Config, Table, architecture, candidates, forced


def time_kernel(
    session: Session,
    case: str,
    call: Callable[[], Any],
    truth: Any,
    *,
    plain: Any = None,
    quantized: torch.dtype | None = None,
    read: Callable[[Any], Any] = lambda result: result,
    **fields: Any,
) -> None:
    """Report the time of `call`, or why it has none. plain, quantized: see `Session.check`.

    read: converts the result of `call` for the comparison with the truth; not timed. fields: reported beside the time.
    """
    try:
        result = read(call())
    except Exception as error:  # there is no such kernel for this GPU, or the tile does not fit
        session.skip(case, failure(error))
        return
    if session.check(case, result, truth, plain=plain, quantized=quantized):
        del result
        session.report(case, **fields, seconds=session.seconds(call))


def failure(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def tiles(session: Session, tables: Mapping[str, Table], name: str) -> Iterator[tuple[int, Config]]:
    """Every candidate of a kernel's table for this GPU, and its number; launches use it until the next."""
    for number, config in enumerate(candidates(tables[name], architecture(session.device))):
        with forced({name: config}):
            yield number, config
