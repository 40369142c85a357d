"""diffusers as its documentation loads it: the VAE in fp32, the rest in the dtype of kinema's activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kinema.bench.model_parts import Inputs


class Diffusers:
    settings = "diffusers, eager, torch's scaled_dot_product_attention"
    needs: tuple[str, ...] = ("diffusers", "transformers")
    devices: tuple[str, ...] = ("cpu", "cuda")

    def forward(
        self, folder: Path, part: str, inputs: Inputs, dtype: torch.dtype, threads: int
    ) -> Callable[[], Any] | None:
        call = {"transformer": _transformer, "vae": _vae}[part]
        kept = dtype if part == "transformer" else torch.float32
        model = self.prepared(load(folder, part, kept).to(inputs.latents.device))
        return torch.no_grad()(lambda: call(model, inputs, kept))

    def generation(
        self, folder: Path, request: dict[str, Any], device: torch.device, dtype: torch.dtype
    ) -> Callable[[], Any] | None:
        from diffusers import WanPipeline

        kind: Any = WanPipeline
        pipe = kind.from_pretrained(folder, vae=load(folder, "vae", torch.float32), torch_dtype=dtype).to(device)
        pipe.set_progress_bar_config(disable=True)
        pipe.transformer = self.prepared(pipe.transformer)
        pipe.vae.decoder = self.prepared(pipe.vae.decoder)
        seed = request["seed"]
        given = {name: value for name, value in request.items() if name != "seed"}

        def call() -> Any:
            # its pipeline draws a stochastic scheduler's noise from the default generator, whatever it is given
            generator = torch.manual_seed(seed)
            return torch.from_numpy(pipe(**given, generator=generator, output_type="np").frames)

        return call

    def prepared(self, model: Any) -> Any:
        """A hook after loading."""
        return model


def load(folder: Path, part: str, dtype: torch.dtype) -> Any:
    """The diffusers model of a part, on the CPU."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    kind = {"transformer": WanTransformer3DModel, "vae": AutoencoderKLWan}[part]
    return kind.from_pretrained(folder / part, torch_dtype=dtype).eval()


def _transformer(model: Any, inputs: Inputs, dtype: torch.dtype) -> torch.Tensor:
    given = (inputs.latents.to(dtype), inputs.timestep, inputs.text.to(dtype))
    sample: torch.Tensor = model(*given, return_dict=False)[0]
    return sample


def _vae(model: Any, inputs: Inputs, dtype: torch.dtype) -> torch.Tensor:
    frames: torch.Tensor = model.decode(inputs.decoded.to(dtype), return_dict=False)[0]
    return frames


PEER = Diffusers()
