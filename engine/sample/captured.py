"""The loss of a training batch and its gradients as a CUDA graph.

A step of a small model is thousands of small kernels, and launching them takes the host several times as long as
running them. A graph launches them at once. There is one for each kind and shape of batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kinema.sample.batches import Batch


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Batch
    loss: torch.Tensor
    gradients: list[torch.Tensor | None]


class CapturedLoss:
    """loss_of: a scalar of a batch on the device, by kernels alone: nothing may wait for the device."""

    def __init__(
        self,
        loss_of: Callable[[Batch], torch.Tensor],
        parameters: Sequence[torch.nn.Parameter],
        device: torch.device,
    ) -> None:
        self._loss_of = loss_of
        self._parameters = list(parameters)
        self._device = device
        self._graphs: dict[tuple[object, ...], _Graph] = {}

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The loss; its gradients are left in the parameters, where they last until the next call."""
        key = (batch.causal, *(tensor.shape for tensor in batch.tensors()))
        known = self._graphs.get(key)
        if known is None:
            known = self._graphs[key] = self._capture(batch)
        for buffer, tensor in zip(known.inputs.tensors(), batch.tensors(), strict=True):
            buffer.copy_(tensor, non_blocking=True)
        known.graph.replay()
        for parameter, gradient in zip(self._parameters, known.gradients, strict=True):
            parameter.grad = gradient
        return known.loss.clone()

    def _capture(self, batch: Batch) -> _Graph:
        inputs = batch.map(lambda tensor: tensor.to(self._device, copy=True).contiguous())
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries initialise at their first calls, which no graph can record
            for _ in range(2):
                self._gradients(inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._forget()
        graph = torch.cuda.CUDAGraph()
        # other threads pin batches meanwhile, which only a capture of this thread alone allows
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            loss = self._gradients(inputs)
        return _Graph(graph, inputs, loss, [parameter.grad for parameter in self._parameters])

    def _gradients(self, inputs: Batch) -> torch.Tensor:
        self._forget()
        loss = self._loss_of(inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
