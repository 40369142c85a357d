"""OpenVINO on the converted diffusers models: static shapes, one stream, all threads of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kinema.bench.model_parts import Inputs
from kinema.bench.peers.diffusers_eager import load


class OpenVino:
    settings = "OpenVINO, converted with static shapes, precision hint f32, latency hint, one stream"
    precision = "f32"  # the hint
    needs: tuple[str, ...] = ("openvino", "diffusers")
    devices: tuple[str, ...] = ("cpu",)

    def forward(
        self, folder: Path, part: str, inputs: Inputs, dtype: torch.dtype, threads: int
    ) -> Callable[[], Any] | None:
        import openvino

        if part != "transformer":
            return None  # the VAE keeps its past in Python lists, which a traced graph does not
        given = (inputs.latents, inputs.timestep, inputs.text)
        with torch.no_grad():
            converted = openvino.convert_model(_Plain(load(folder, part, dtype)), example_input=given)
        converted.reshape({i: list(x.shape) for i, x in enumerate(given)})
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = openvino.compile_model(self.prepared(converted, given), "CPU", settings)
        arrays = [x.numpy() for x in given]
        return lambda: torch.from_numpy(compiled(arrays)[0])

    def generation(
        self, folder: Path, request: dict[str, Any], device: torch.device, dtype: torch.dtype
    ) -> Callable[[], Any] | None:
        return None

    def prepared(self, model: Any, given: tuple[torch.Tensor, ...]) -> Any:
        """A hook between conversion and compilation."""
        return model


class _Plain(torch.nn.Module):
    """The transformer with tensors in and a tensor out, as tracing needs it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> Any:
        return self.model(latents, timestep, text, return_dict=False)[0]


PEER = OpenVino()
