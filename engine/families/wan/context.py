"""The prompt (and image) as the Wan transformer reads it, and its padding folded into one key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from kinema.ops.attention import KV


@dataclass(frozen=True, eq=False)
class Context:
    """A prompt (and image) for the transformer: cross-attention keys and values of every layer.

    Computed once per request, read at every step. text, image: one KV of [R, N, L, D] per layer.
    folded: how many equal keys the last text key stands for (0: only itself).
    """

    text: tuple[KV, ...]
    image: tuple[KV, ...] | None = None
    folded: int = 0

    @property
    def rows(self) -> int:
        return self.text[0].k.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """What contexts must agree on to be concatenated."""
        return self.text[0].k.shape[2], self.image[0].k.shape[2] if self.image is not None else 0, self.folded

    @cached_property
    def text_bias(self) -> torch.Tensor | None:
        """What is added to the logits of the text keys, [1, 1, 1, L]."""
        if not self.folded:
            return None
        k = self.text[0].k
        bias = torch.zeros(1, 1, 1, k.shape[2], dtype=torch.float32, device=k.device)
        bias[..., -1] = math.log(self.folded)
        return bias

    def select(self, rows: slice) -> Context:
        """A view of some of the rows (samples)."""

        def cut(kvs: tuple[KV, ...]) -> tuple[KV, ...]:
            return tuple(KV(kv.k[rows], kv.v[rows]) for kv in kvs)

        return Context(cut(self.text), cut(self.image) if self.image is not None else None, self.folded)

    def clone(self) -> Context:
        """A copy that shares no memory with it."""

        def copied(kvs: tuple[KV, ...]) -> tuple[KV, ...]:
            return tuple(KV(kv.k.clone(), kv.v.clone()) for kv in kvs)

        copy = Context(copied(self.text), copied(self.image) if self.image is not None else None, self.folded)
        _ = copy.text_bias  # now: in a forward that is recorded nothing but ops may compute
        return copy

    def tensors(self) -> list[torch.Tensor]:
        """Keys and values [R, N, L, D], layer by layer."""
        return [t for kv in (*self.text, *(self.image or ())) for t in (kv.k, kv.v)]

    @staticmethod
    def concatenate(contexts: list[Context]) -> Context:
        """The rows of several contexts of equal `shape`."""
        if len(contexts) == 1:
            return contexts[0]

        def join(parts: list[tuple[KV, ...]]) -> tuple[KV, ...]:
            return tuple(
                KV(torch.cat([kv.k for kv in layer]), torch.cat([kv.v for kv in layer]))
                for layer in zip(*parts, strict=True)
            )

        images = [c.image for c in contexts if c.image is not None]
        return Context(join([c.text for c in contexts]), join(images) if images else None, contexts[0].folded)


def fold_padding(text: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Replace the zeros after the longest prompt by one zero token that counts for all of them.

    Wan attends to the padding of its 512-token prompts too. Those keys and values are all equal, and n equal
    keys in a softmax are one key whose logit is larger by log n: the same result for a fraction of the work.
    text: [R, L, C] → ([R, L', C], n), n = 0 if nothing was folded. L' is a multiple of 8, plus the zero token, so
    that requests with prompts of similar length can share a forward.
    """
    total = text.shape[1]
    real = (text != 0).any(dim=2).any(dim=0).nonzero()
    used = int(real.amax()) + 1 if len(real) else 0
    kept = -(-used // 8) * 8
    if total - kept < 2:
        return text, 0
    return text[:, : kept + 1], total - kept
