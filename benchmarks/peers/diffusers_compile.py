"""diffusers under torch.compile, whose own documentation recommends it for the transformer and the decoder."""

from __future__ import annotations

from typing import Any

import torch

from kinema.bench.peers.diffusers_eager import Diffusers


class Compiled(Diffusers):
    settings = "diffusers, torch.compile (inductor, static shapes); compiled before anything is timed"

    def prepared(self, model: Any) -> Any:
        if hasattr(model, "decoder"):  # the VAE loops over frames in Python: what it calls is compiled
            model.decoder = torch.compile(model.decoder, dynamic=False)
            return model
        return torch.compile(model, dynamic=False)


PEER = Compiled()
