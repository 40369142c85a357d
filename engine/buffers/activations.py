"""Reusable activation buffers: a layer writes over what earlier layers no longer need, and a step over the last."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from kinema.ops.common.pages import aligned_bytes

MOST_VIEWS = 64  # there is one per shape, and clips come in many sizes


class ActivationBuffers:
    """Buffers by name, for one forward or clip at a time; none under autograd, which keeps the activations.

    An allocator returns large blocks to the system, which zeroes each page of the next: a twentieth of a forward.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._flat: dict[str, torch.Tensor] = {}
        self._views: dict[tuple[object, ...], torch.Tensor] = {}

    def get(
        self, name: str, shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """A dense tensor for an op to write into, valid until the next of that name. None: the op allocates its own."""
        if not self._enabled or torch.is_grad_enabled():
            return None
        key, dtype = (name, *shape), dtype or like.dtype
        found = self._views.get(key)  # making a view costs as much as checking a small op's arguments
        # torch writes into an inference tensor only in inference mode
        inference = torch.is_inference_mode_enabled()
        if found is None or found.dtype != dtype or found.device != like.device or found.is_inference() != inference:
            found = None  # or the old memory would live until the new is allocated
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            found = self._views[key] = self._flat_of(name, math.prod(shape), dtype, like.device, inference).view(*shape)
        return found

    def _flat_of(
        self, name: str, count: int, dtype: torch.dtype, device: torch.device, inference: bool
    ) -> torch.Tensor:
        flat = self._flat.get(name)
        other = flat is not None and flat.is_inference() != inference
        if flat is None or other or flat.numel() < count or flat.dtype != dtype or flat.device != device:
            for view in [key for key in self._views if key[0] == name]:
                del self._views[view]
            self._flat.pop(name, None)  # freed before the new is allocated
            flat = None
            flat = self._flat[name] = _flat(count, dtype, device)
        return flat[:count]

    @property
    def nbytes(self) -> int:
        return sum(flat.nbytes for flat in self._flat.values())

    def in_place(self, x: torch.Tensor) -> torch.Tensor | None:
        """x itself, for an op whose result overwrites it. None: the op allocates its own."""
        return x if self._enabled and not torch.is_grad_enabled() else None


class BufferPool:
    """A model's activation buffers: one set per concurrent forward, kept for later forwards until `release`.

    They carry nothing over from a request: a forward writes each buffer before it reads it.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._idle: list[ActivationBuffers] = []

    @contextmanager
    def lease(self) -> Iterator[ActivationBuffers]:
        try:
            buffers = self._idle.pop()
        except IndexError:  # the first forward, or others run in other threads
            buffers = ActivationBuffers(self._enabled)
        try:
            yield buffers
        finally:
            self._idle.append(buffers)

    def release(self) -> None:
        """Free the sets that no forward is using."""
        self._idle.clear()


def _flat(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    return aligned_bytes(count * dtype.itemsize).view(dtype)
