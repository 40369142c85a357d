"""A transformer with the diffusers class's forward, for other stacks to call in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kinema.errors import RequestError
from kinema.models.wan import WanConfig, WanTransformer


@dataclass(frozen=True)
class TransformerOutput:
    """What `return_dict=True` gives."""

    sample: torch.Tensor


class TransformerFacade:
    """Callable as `WanTransformer3DModel`; gives a Tensor unless `return_dict` is said.

    The prompt's keys and values are computed on every call; `encode_context` of `.model` computes them once.
    """

    def __init__(self, model: WanTransformer) -> None:
        self.model = model

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

    @torch.inference_mode()
    def __call__(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        return_dict: bool | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor] | TransformerOutput:
        """hidden_states: [B, C, T, H, W]; timestep: [B] or [B, S]; encoder_hidden_states: [B, L, text_dim];
        encoder_hidden_states_image: [B, L, image_dim]. Returns [B, out_channels, T, H, W] in hidden_states' dtype:
        alone, in a tuple (return_dict=False) or as `.sample` (True).
        """
        if attention_kwargs:
            raise RequestError(f"attention_kwargs {sorted(attention_kwargs)} are not supported: pass none")
        sizes = hidden_states.shape[2:]
        if (
            hidden_states.ndim != 5
            or hidden_states.shape[1] != self.config.in_channels
            or any(n % p for n, p in zip(sizes, self.config.patch_size, strict=True))
        ):
            raise RequestError(
                f"hidden_states are {tuple(hidden_states.shape)}: wanted [B, {self.config.in_channels}, T, H, W] with "
                f"T, H, W divisible by {self.config.patch_size}"
            )
        context = self.model.encode_context(encoder_hidden_states, encoder_hidden_states_image)
        sample = self.model(hidden_states, timestep, context).to(hidden_states.dtype)
        if return_dict is None:
            return sample
        return TransformerOutput(sample) if return_dict else (sample,)
