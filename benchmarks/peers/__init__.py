"""Other software that runs the same models. A new peer is a file here with a `Peer`, and a line in `PEERS`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from kinema.bench.model_parts import Inputs

# name: module that holds it, as PEER
PEERS = {
    "diffusers": "kinema.bench.peers.diffusers_eager",
    "diffusers-compile": "kinema.bench.peers.diffusers_compile",
    "diffusers-bf16": "kinema.bench.peers.diffusers_bf16",
    "torch-int8": "kinema.bench.peers.torch_int8",
    "openvino": "kinema.bench.peers.openvino_f32",
    "openvino-bf16": "kinema.bench.peers.openvino_bf16",
    "openvino-int8": "kinema.bench.peers.openvino_int8",
}


class Peer(Protocol):
    """settings: a description of how it runs, the best that its documentation has. needs: packages that it imports.

    devices: the types that it runs on. A peer computes in `dtype`, that of kinema's activations, if it can.
    """

    settings: str
    needs: tuple[str, ...]
    devices: tuple[str, ...]

    def forward(
        self, folder: Path, part: str, inputs: Inputs, dtype: torch.dtype, threads: int
    ) -> Callable[[], Any] | None:
        """A call of "transformer" or "vae" that gives a tensor as kinema's does, loaded; None if it has none."""

    def generation(
        self, folder: Path, request: dict[str, Any], device: torch.device, dtype: torch.dtype
    ) -> Callable[[], Any] | None:
        """A whole generation that gives frames [B, T, H, W, 3] in [0, 1], loaded; None if it has none."""


def peer(name: str) -> Peer:
    found: Peer = import_module(PEERS[name]).PEER
    return found


def missing(found: Peer, device: torch.device) -> str | None:
    """Why it cannot run there; None if it can."""
    if device.type not in found.devices:
        return f"runs on {' and '.join(found.devices)} alone"
    absent = [name for name in found.needs if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
