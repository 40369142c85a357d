"""diffusers as its documentation loads it, in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kinema.bench.model_parts import Inputs


class Diffusers:
    settings = "diffusers, eager, fp32, torch's scaled_dot_product_attention"
    needs: tuple[str, ...] = ("diffusers", "transformers")

    def forward(self, folder: Path, part: str, inputs: Inputs, threads: int) -> Callable[[], Any] | None:
        model = self.prepared(load(folder, part))
        call = {"transformer": _transformer, "vae": _vae}[part]
        return torch.no_grad()(lambda: call(model, inputs))

    def generation(self, folder: Path, request: dict[str, Any]) -> Callable[[], Any] | None:
        from diffusers import WanPipeline

        kind: Any = WanPipeline
        pipe = kind.from_pretrained(folder, torch_dtype=torch.float32)
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
        """What is done with a model after loading."""
        return model


def load(folder: Path, part: str) -> Any:
    """The diffusers model of a part, in fp32."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    kind = {"transformer": WanTransformer3DModel, "vae": AutoencoderKLWan}[part]
    return kind.from_pretrained(folder / part, torch_dtype=torch.float32).eval()


def _transformer(model: Any, inputs: Inputs) -> torch.Tensor:
    sample: torch.Tensor = model(inputs.latents, inputs.timestep, inputs.text, return_dict=False)[0]
    return sample


def _vae(model: Any, inputs: Inputs) -> torch.Tensor:
    frames: torch.Tensor = model.decode(inputs.decoded, return_dict=False)[0]
    return frames


PEER = Diffusers()
