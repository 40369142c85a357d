"""Other software that runs the same models. A new peer is a file here with a `Peer`, and a line in `PEERS`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from kinema.bench.model_parts import Inputs

# name: module that holds it, as PEER
PEERS = {
    "diffusers": "kinema.bench.peers.diffusers_eager",
    "diffusers-compile": "kinema.bench.peers.diffusers_compile",
    "torch-int8": "kinema.bench.peers.torch_int8",
    "openvino": "kinema.bench.peers.openvino_f32",
    "openvino-int8": "kinema.bench.peers.openvino_int8",
}


class Peer(Protocol):
    """settings: how it is run, in words: the best that its documentation has. needs: packages that it imports."""

    settings: str
    needs: tuple[str, ...]

    def forward(self, folder: Path, part: str, inputs: Inputs, threads: int) -> Callable[[], Any] | None:
        """A call of "transformer" or "vae" that gives a tensor as kinema's does, loaded; None if it has none."""

    def generation(self, folder: Path, request: dict[str, Any]) -> Callable[[], Any] | None:
        """A whole generation that gives frames [B, T, H, W, 3] in [0, 1], loaded; None if it has none."""


def peer(name: str) -> Peer:
    found: Peer = import_module(PEERS[name]).PEER
    return found


def missing(found: Peer) -> str | None:
    """Why it cannot run here; None if it can."""
    absent = [name for name in found.needs if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
