"""Decoded chunks from a GPU to the host, each copied while the next one is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

Wait = Callable[[], torch.Tensor]


def to_host(
    chunks: Iterator[torch.Tensor], start: Callable[[torch.Tensor], Wait] | None = None
) -> Iterator[torch.Tensor]:
    """The same chunks on the CPU, each yielded one chunk late, so that its copy overlaps the next decoding.

    start: begins a copy and returns what waits for it; by default through pinned memory on a stream of its own.
    Chunks that are on the CPU already pass through at once.
    """
    pending: Wait | None = None
    for chunk in chunks:
        if chunk.device.type == "cpu" and start is None:
            yield chunk
            continue
        started = (start or _copy_to_pinned)(chunk)
        if pending is not None:
            yield pending()
        pending = started
    if pending is not None:
        yield pending()


def _copy_to_pinned(chunk: torch.Tensor) -> Wait:
    pinned = torch.empty(chunk.shape, dtype=chunk.dtype, device="cpu", pin_memory=True)
    side = torch.cuda.Stream(chunk.device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(chunk.device))
    with torch.cuda.stream(side):
        pinned.copy_(chunk, non_blocking=True)
        done = side.record_event()
    chunk.record_stream(side)  # its memory must not be reused before the copy is over

    def wait() -> torch.Tensor:
        done.synchronize()
        return pinned

    return wait
