"""The transformer with the forward of diffusers' class, for other libraries to call in its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from kinema.caches import CacheConfig
from kinema.caches.named_calls import NamedCalls
from kinema.errors import RequestError, shown
from kinema.families.wan.config import WanConfig
from kinema.families.wan.transformer import WanTransformer
from kinema.fields.diffusers_names import DiffusersNames
from kinema.fields.values import dense, kind


class TransformerOutput(NamedTuple):
    """What `return_dict=True` gives: `.sample`, or `[0]`."""

    sample: torch.Tensor


class DiffusersTransformer(DiffusersNames):
    """Callable as `WanTransformer3DModel`; returns a Tensor unless `return_dict` is given.

    The prompt's keys and values are computed on every call; `encode_context` of `.model` computes them once. On a CPU
    the activation buffers are kept for the next call; `.model.release()` frees them.
    """

    def __init__(self, model: WanTransformer) -> None:
        self.model = model
        self._cache: NamedCalls | None = None

    @property
    def config(self) -> WanConfig:
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that flows between ops."""
        return self.model.ops.dtype

    @property
    def device(self) -> torch.device:
        return self.model.ops.device

    def enable_cache(self, config: CacheConfig | Sequence[CacheConfig]) -> None:
        """Hold steps of the runs that follow, as kinema.caches' configurations say. RequestError if a cache is on.

        For pipelines that say to `cache_context` at which step a forward is; of others every forward runs.
        """
        if self._cache is not None:
            raise RequestError("a cache is enabled already: call disable_cache() first")
        self._cache = NamedCalls.of(config)

    def disable_cache(self) -> None:
        self._cache = None

    @property
    def is_cache_enabled(self) -> bool:
        return self._cache is not None

    def cache_context(self, name: str, **where: Any) -> AbstractContextManager[None]:
        """Called by diffusers' pipelines to name the next call ("cond", "uncond") and its step."""
        return nullcontext() if self._cache is None else self._cache.called(name, where)

    @torch.no_grad()
    def __call__(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        return_dict: bool | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor] | TransformerOutput:
        """hidden_states: [B, C, T, H, W]; timestep: [B], or [B, S] by token; encoder_hidden_states: [B, L, text_dim];
        encoder_hidden_states_image: [B, L, image_dim] (two rows per sample for a first and a last frame).

        Returns [B, out_channels, T, H, W] on the device and in the dtype of hidden_states: alone, in a tuple
        (return_dict=False) or as `.sample` (True).
        """
        if attention_kwargs:
            raise RequestError(f"attention_kwargs {shown(attention_kwargs)} are not supported: pass none")
        self._check(hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image)

        def forward() -> torch.Tensor:
            context = self.model.encode_context(encoder_hidden_states, encoder_hidden_states_image)
            return self.model(hidden_states, timestep, context).to(hidden_states.device)

        sample = forward() if self._cache is None else self._cache(forward, hidden_states)
        sample = sample.to(hidden_states.dtype)
        if return_dict is None:
            return sample
        return TransformerOutput(sample) if return_dict else (sample,)

    def _check(
        self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, image: torch.Tensor | None
    ) -> None:
        config = self.config
        given = {"hidden_states": latents, "timestep": timestep, "encoder_hidden_states": text}
        if image is not None:
            given["encoder_hidden_states_image"] = image
        for name, tensor in given.items():
            if 0 in dense(name, tensor, floating=name != "timestep").shape:
                raise RequestError(f"{name} is {kind(tensor)}: wanted at least 1 of each")
        if (
            latents.ndim != 5
            or latents.shape[1] != config.in_channels
            or any(n % p for n, p in zip(latents.shape[2:], config.patch_size, strict=True))
        ):
            raise RequestError(
                f"hidden_states are {tuple(latents.shape)}: wanted [B, {config.in_channels}, T, H, W] with "
                f"T, H, W divisible by {config.patch_size}"
            )
        batch = latents.shape[0]
        tokens = latents[0, 0].numel() // math.prod(config.patch_size)
        if timestep.shape not in ((batch,), (batch, tokens)):
            raise RequestError(
                f"timestep is {tuple(timestep.shape)}: wanted [{batch}], or [{batch}, {tokens}] by token"
            )
        if text.ndim != 3 or text.shape[0] != batch or text.shape[2] != config.text_dim:
            raise RequestError(f"encoder_hidden_states are {tuple(text.shape)}: wanted [{batch}, L, {config.text_dim}]")
        if (image is None) != (config.image_dim is None):
            wanted = "takes no image" if image is not None else f"needs [{batch}, L, {config.image_dim}]"
            raise RequestError(f"encoder_hidden_states_image: this transformer {wanted}")
        rows = batch if config.pos_embed_seq_len is None else 2 * batch
        if image is not None and (image.ndim != 3 or image.shape[0] != rows or image.shape[2] != config.image_dim):
            raise RequestError(
                f"encoder_hidden_states_image is {tuple(image.shape)}: wanted [{rows}, L, {config.image_dim}]"
            )
