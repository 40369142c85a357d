"""Whole small models on Triton's ops give what they give on the reference's: shapes and memory as models have them."""

import pytest
import torch

pytest.importorskip("triton")

from kinema.checkpoints import Weights
from kinema.families.wan import config as wan
from kinema.families.wan.config import WanConfig
from kinema.families.wan.transformer import WanTransformer
from kinema.families.wan.vae.autoencoder import WanVAE, WanVAEConfig, tensor_shapes
from kinema.ops import build_ops, plan_ops
from kinema.ops.common import PRECISIONS, Target

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VAES = {
    "wan21": WanVAEConfig(
        base_dim=4, z_dim=4, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(True,),
        latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4, scale_factor_temporal=2, scale_factor_spatial=2,
    ),
    "wan22": WanVAEConfig(
        base_dim=4, z_dim=3, dim_mult=(2, 2), num_res_blocks=1, temperal_downsample=(True,), is_residual=True,
        patch_size=2, in_channels=12, out_channels=12, latents_mean=(0.0,) * 3, latents_std=(1.0,) * 3,
        scale_factor_temporal=2, scale_factor_spatial=4,
    ),
}  # fmt: skip
TRANSFORMER = WanConfig(
    num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4,
    text_dim=16, freq_dim=16, ffn_dim=64, num_layers=1,
)  # fmt: skip


def ops(backend, precision="fp32"):
    return build_ops(plan_ops(Target(DEVICE, PRECISIONS["cuda"][precision]), backend))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def weights_of(shapes):
    """Every layer matters: gains about 1, biases and the rest of order 1 at the output of a layer."""
    drawn_weights = {}
    for i, (name, shape) in enumerate(shapes.items()):
        w = drawn(*shape, seed=i).cpu()
        if name.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm2.weight")):
            w = 1.0 + 0.2 * w
        elif name.endswith("weight"):
            w = w / w[0].numel() ** 0.5
        drawn_weights[name] = w if name.endswith("weight") else 0.5 * w if name.endswith("bias") else w
    return Weights(drawn_weights)


def distance(got, truth):
    return float((got - truth).abs().max() / truth.abs().max())


def test_the_plan_takes_triton_where_it_has_the_op():
    chosen = {
        choice.op: choice.backend for choice in plan_ops(Target(DEVICE, PRECISIONS["cuda"]["fp32"]), "triton").choices
    }
    assert {op for op, backend in chosen.items() if backend != "triton"} <= {"attention"}


@pytest.mark.parametrize("name", VAES)
@torch.no_grad()
def test_a_vae_encodes_and_decodes(name):
    """In chunks, so that every convolution reads and renews its past."""
    config, frames = VAES[name], 5 if name == "wan21" else 3
    weights = weights_of(tensor_shapes(config))
    plain, ours = (WanVAE(config, weights, ops(backend)) for backend in ("reference", "triton"))
    video = drawn(1, config.pixel_channels, frames, 8, 4).clamp(-1, 1)
    wanted = plain.encode(video, chunk=2).mean
    assert distance(ours.encode(video, chunk=2).mean, wanted) < 1e-5
    wanted = plain.decode(wanted, chunk=1, clamp=False)
    assert distance(ours.decode(plain.encode(video, chunk=2).mean, chunk=1, clamp=False), wanted) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@torch.no_grad()
def test_a_transformer_forwards(precision):
    """In low precision as near to fp32 as plain PyTorch is, within a factor of two."""
    weights = weights_of(wan.tensor_shapes(TRANSFORMER))
    latents, timesteps, text = drawn(2, 4, 3, 4, 6), torch.tensor([500.0, 20.0], device=DEVICE), drawn(2, 5, 16, seed=1)

    def forward(backend, precision):
        transformer = WanTransformer(TRANSFORMER, weights, ops(backend, precision))
        return transformer(latents, timesteps, transformer.encode_context(text))

    truth = forward("reference", "fp32")
    allowed = 1e-5 if precision == "fp32" else 2 * distance(forward("reference", precision), truth)
    assert distance(forward("triton", precision), truth) < allowed
