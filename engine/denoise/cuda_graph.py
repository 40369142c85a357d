"""A request's forwards as one CUDA graph: recorded once, replayed at every step.

A DiT forward is some hundred launches, and on a fast GPU the host cannot issue them as fast as a small clip needs
them. A graph issues them all at once. It holds addresses, so inputs are copied into buffers of its own, and it belongs
to the request whose prompt's keys and values it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from kinema.denoise.batching import Rows
from kinema.families.base import Denoiser
from kinema.ops.common import Rope


class Recorder(Protocol):
    """Runs `body` once while recording it; returns what replays it."""

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]: ...


def record_on_gpu(body: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of `body`, which must only launch kernels: nothing may wait for the GPU or come from the host."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    # only this thread's calls can invalidate it: other threads may allocate meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        body()
    return graph.replay


class CapturedForward:
    """The forwards of one request. The first runs as it is, so that kernels are compiled; the second is recorded.

    Anything that changes what the graph would have to be (expert, shapes, context) starts anew. What else the
    graph reads is kept as long as it is: the context, and the rotary table, which a cache would drop.
    """

    def __init__(self, record: Recorder = record_on_gpu) -> None:
        self._record = record
        self._key: tuple[object, ...] | None = None
        self._replay: Callable[[], None] | None = None
        self._inputs: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rope: Rope | None = None
        self._output: torch.Tensor | None = None

    def __call__(self, transformer: Denoiser, rows: Rows) -> torch.Tensor:
        """What `transformer(rows.latents, rows.timesteps, rows.context)` gives; read it before the next call."""
        # the objects themselves and not their ids: an id may be reused for another object
        key = (transformer, rows.context, rows.latents.shape, rows.timesteps.shape)
        if self._key is None or not _same(self._key, key):
            self.forget()
            self._key = key
            return transformer(rows.latents, rows.timesteps, rows.context)
        if self._replay is None:
            device = transformer.ops.device  # a copy from the host cannot be part of a graph
            self._inputs = (rows.latents.to(device, copy=True), rows.timesteps.to(device, copy=True))
            self._rope = transformer.rope(rows.latents)
            self._replay = self._record(lambda: self._forward(transformer, rows))
        assert self._inputs is not None
        self._inputs[0].copy_(rows.latents)
        self._inputs[1].copy_(rows.timesteps)
        self._replay()
        assert self._output is not None
        return self._output

    def forget(self) -> None:
        """Free the graph and its buffers; the next call runs as it is."""
        self._key, self._replay, self._inputs, self._rope, self._output = None, None, None, None, None

    def _forward(self, transformer: Denoiser, rows: Rows) -> None:
        assert self._inputs is not None
        output = transformer(*self._inputs, rows.context, rope=self._rope)
        if self._output is None:
            self._output = output
        else:
            self._output.copy_(output)


def _same(old: tuple[object, ...], new: tuple[object, ...]) -> bool:
    return old[0] is new[0] and old[1] is new[1] and old[2:] == new[2:]
