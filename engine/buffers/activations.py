"""Reusable activation buffers: a layer's output takes memory that an earlier layer no longer needs.

And each step reuses the last step's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from kinema.ops.common.pages import aligned_bytes

MOST_VIEWS = 64  # of clips of many sizes


class ActivationBuffers:
    """Buffers by name, for one forward or clip at a time. Autograd keeps what it was given, so with it there are none.

    An allocator hands large maps back to the system, which clears each page of the next: a twentieth of a forward.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._flat: dict[str, torch.Tensor] = {}
        self._views: dict[tuple[object, ...], torch.Tensor] = {}

    def get(self, name: str, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor | None:
        """A dense tensor for an op to write into, until the next of that name; None: the op makes its own."""
        if not self._enabled or torch.is_grad_enabled():
            return None
        key = (name, *shape)
        found = self._views.get(key)  # a view costs as much as a small op's arguments
        # nothing but a pointer may write into an inference tensor outside of inference mode
        inference = torch.is_inference_mode_enabled()
        if (
            found is None
            or found.dtype != like.dtype
            or found.device != like.device
            or found.is_inference() != inference
        ):
            found = None  # or the old memory would stay until there is new
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            found = self._views[key] = self._flat_of(name, math.prod(shape), like, inference).view(*shape)
        return found

    def _flat_of(self, name: str, count: int, like: torch.Tensor, inference: bool) -> torch.Tensor:
        flat = self._flat.get(name)
        other = flat is not None and flat.is_inference() != inference
        if flat is None or other or flat.numel() < count or flat.dtype != like.dtype or flat.device != like.device:
            for view in [key for key in self._views if key[0] == name]:
                del self._views[view]
            self._flat.pop(name, None)  # before there is another
            flat = None
            flat = self._flat[name] = _flat(count, like)
        return flat[:count]

    def in_place(self, x: torch.Tensor) -> torch.Tensor | None:
        """x itself, for an op whose result takes its place; None: the op makes its own."""
        return x if self._enabled and not torch.is_grad_enabled() else None


class BufferPool:
    """A model's maps: one lot for each forward that runs at the same time, kept for the next ones until `release`.

    Nothing of a request stays in them: whoever takes a lot writes before it reads.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._idle: list[ActivationBuffers] = []

    @contextmanager
    def lease(self) -> Iterator[ActivationBuffers]:
        try:
            maps = self._idle.pop()
        except IndexError:  # the first, or others run in other threads
            maps = ActivationBuffers(self._enabled)
        try:
            yield maps
        finally:
            self._idle.append(maps)

    def release(self) -> None:
        """Free what no forward uses now."""
        self._idle.clear()


def _flat(count: int, like: torch.Tensor) -> torch.Tensor:
    if like.device.type != "cpu":
        return torch.empty(count, dtype=like.dtype, device=like.device)
    return aligned_bytes(count * like.dtype.itemsize).view(like.dtype)
