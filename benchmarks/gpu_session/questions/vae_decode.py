"""A decode at 480p by Wan 2.1's VAE with random weights: pieces of one frame and of eight, and cuDNN in fp32."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import torch

from kinema.bench.gpu_session.drawn import Drawn, drawn_weights, flowing
from kinema.bench.gpu_session.question import Question, Session
from kinema.bench.published_configs import VAE_21
from kinema.checkpoints.weights import Weights
from kinema.families.wan.vae import decoder
from kinema.families.wan.vae.autoencoder import WanVAE, WanVAEConfig, tensor_shapes
from kinema.ops import build_ops, plan_ops

LATENT = (5, 60, 104)  # 17 frames of 480×832
FEW = (2, 8, 8)  # what is decoded in float64
SMALL = WanVAEConfig(base_dim=4, z_dim=2, dim_mult=(1, 1), num_res_blocks=1, temperal_downsample=(True,),
                     latents_mean=(0.0, 0.0), latents_std=(1.0, 1.0), scale_factor_temporal=2,
                     scale_factor_spatial=2)  # fmt: skip
# frames that go through the late stages at once (a piece): latent frames of a chunk, which must cover a piece
PIECES = {1: 1, 8: 2}


@torch.no_grad()
def ask(session: Session) -> None:
    config = session.pick(WanVAEConfig.from_dict(VAE_21), SMALL)
    new, shapes = Drawn(session.device), tensor_shapes(config)
    latents = new(1, config.z_dim, *session.pick(LATENT, (3, 2, 2)))
    few = new(1, config.z_dim, *session.pick(FEW, (2, 1, 2)))
    drawn = drawn_weights(shapes, session.device)
    weights, exact = Weights({name: drawn[name] for name in shapes}), {name: drawn[name].double() for name in shapes}
    reference = _vae(session, config, weights, "reference")
    truth = _vae(session, config, Weights(exact), "reference").decode(few.double(), clamp=False)
    plain = reference.decode(few, clamp=False)
    ours = _vae(session, config, weights, "auto")  # interpreted, a decode takes minutes
    for pieces in PIECES:
        _time(session, f"kinema, pieces of {pieces}", ours, few, latents, pieces, truth, plain)
    _time(session, "cuDNN in fp32, pieces of 8", reference, few, latents, 8, truth, plain)


def _time(
    session: Session,
    case: str,
    vae: WanVAE,
    few: torch.Tensor,
    latents: torch.Tensor,
    frames: int,
    truth: torch.Tensor,
    plain: torch.Tensor,
) -> None:
    """frames: of a piece, whatever their size."""
    with patch.object(decoder, "frames_at_once", lambda frame_bytes, *, native: frames):
        if not session.check(case, vae.decode(few, chunk=PIECES[frames], clamp=False), truth, plain=plain):
            return
        call = partial(vae.decode, latents, chunk=PIECES[frames])
        peak = session.peak(call)
        session.report(
            case,
            latents=list(latents.shape),
            seconds=session.seconds(call, samples=session.pick(2, 1), flush=False),
            peak_bytes=peak.allocated,
            reserved_bytes=peak.reserved,
            held_before_bytes=peak.before,
        )


def _vae(session: Session, config: WanVAEConfig, weights: Weights, backend: str) -> WanVAE:
    """In fp32 beside a transformer in bf16, or in float64 if the weights are."""
    return WanVAE(config, weights, build_ops(plan_ops(flowing(session.device), backend)))


QUESTION = Question(
    decides="what a decode takes and holds, and whether larger pieces are faster",
    serves="the VAE's decoder, its memory prediction",
    value=8,
    seconds=45,
    ask=ask,
)
