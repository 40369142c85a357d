"""OpenVINO with weights and activations in int8, by nncf."""

from __future__ import annotations

from typing import Any

import torch

from kinema.bench.peers.openvino_f32 import OpenVino


class Int8(OpenVino):
    settings = f"{OpenVino.settings}; nncf.quantize as for transformers, calibrated on the very inputs"
    needs: tuple[str, ...] = ("openvino", "nncf", "diffusers")

    def prepared(self, model: Any, given: tuple[torch.Tensor, ...]) -> Any:
        import nncf

        samples = nncf.Dataset([[x.numpy() for x in given]])
        return nncf.quantize(model, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=1)


PEER = Int8()
