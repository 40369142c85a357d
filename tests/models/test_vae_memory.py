"""The VAE's memory does not grow with the number of frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kinema.checkpoints.weights import Weights
from kinema.families.wan.vae import memory
from kinema.families.wan.vae.autoencoder import WanVAE, WanVAEConfig, tensor_shapes
from kinema.ops import build_ops, plan_ops, target_for
from kinema.vae.tiling import Tiling

CONFIG = WanVAEConfig(base_dim=32, z_dim=8, num_res_blocks=1, latents_mean=(0.0,) * 8, latents_std=(1.0,) * 8)
WEIGHTS = {name: torch.full(shape, 0.01) for name, shape in tensor_shapes(CONFIG).items()}
SIZE = 64
FEW, MANY = 33, 97  # frames of two chunks and of six


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operators have made and someone still holds, given ones apart."""

    def __init__(self, given: list[torch.Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self._given:
                reference = StorageWeakRef(tensor.untyped_storage())
                self._alive[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def peak_beyond_output(run: Callable[[WanVAE, torch.Tensor], torch.Tensor], given: torch.Tensor) -> int:
    vae = WanVAE(CONFIG, Weights(WEIGHTS), build_ops(plan_ops(target_for("cpu"))))
    _ = vae.encoder, vae.decoder  # packed before the count begins
    with torch.no_grad(), PeakBytes([given, *WEIGHTS.values()]) as bytes_held:
        result = run(vae, given)
    assert bytes_held.peak > result.nbytes
    return bytes_held.peak - result.nbytes


def latents(frames: int) -> torch.Tensor:
    return torch.ones(1, CONFIG.z_dim, 1 + (frames - 1) // 4, SIZE // 8, SIZE // 8)


def video(frames: int) -> torch.Tensor:
    return torch.ones(1, 3, frames, SIZE, SIZE)


def test_decoding_more_frames_takes_no_more_memory() -> None:
    few, many = (peak_beyond_output(lambda vae, z: vae.decode(z), latents(n)) for n in (FEW, MANY))
    assert few > 2_000_000
    assert many <= 1.3 * few


def test_decoding_more_frames_in_tiles_takes_no_more_memory() -> None:
    tiling = Tiling(40, 64, 32, 64)
    few, many = (peak_beyond_output(lambda vae, z: vae.decode(z, tiling=tiling), latents(n)) for n in (FEW, MANY))
    assert many <= 1.3 * few


def test_encoding_more_frames_takes_no_more_memory() -> None:
    few, many = (peak_beyond_output(lambda vae, v: vae.encode_moments(v), video(n)) for n in (9, 33))
    assert many <= 1.3 * few


def test_large_frames_take_less_memory_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = peak_beyond_output(lambda vae, z: vae.decode(z), latents(9))
    frame = 4 * CONFIG.decoder_dims[-1] * SIZE**2
    monkeypatch.setattr(memory, "PIECE_BYTES", 2 * frame - 1)
    one, pair = (memory.frames_at_once(frame, native=native) for native in (False, True))
    assert (one, pair) == (1, 2) and memory.frames_at_once(frame // 2, native=True) == 3
    native = plan_ops(target_for("cpu")).backend("conv3d").startswith("cpu")
    decoding = WanVAE(CONFIG, Weights(WEIGHTS), build_ops(plan_ops(target_for("cpu")))).decoder
    entering = SIZE >> sum(stage.double is not None for stage in decoding.late)
    assert decoding._together(torch.empty(1, 8, 4, entering, entering)) == (pair if native else one)
    in_turn = peak_beyond_output(lambda vae, z: vae.decode(z), latents(9))
    fewer = 4 - (pair if native else one)
    assert at_once - in_turn > fewer * frame, "the maps of those frames, and there are several"


def test_a_half_is_packed_when_it_is_first_used() -> None:
    """Text to video never needs the encoder, which is as large as the decoder."""
    vae = WanVAE(CONFIG, Weights(WEIGHTS), build_ops(plan_ops(target_for("cpu"))))
    assert not {"encoder", "decoder"} & set(vars(vae))
    vae.decode(latents(5))
    assert "encoder" not in vars(vae)
    assert vae.decoder is vae.decoder


def test_the_measure_sees_what_does_grow() -> None:
    few, many = (peak_beyond_output(lambda vae, z: vae.decode(z, chunk=None), latents(n)) for n in (5, FEW))
    assert many > 2 * few
