"""Whole small models on the native kernels give what the reference gives: shapes and memory as models have them."""

from dataclasses import replace

import pytest
import torch

from kinema.checkpoints import Weights
from kinema.encoders.umt5 import UMT5Config, UMT5Encoder
from kinema.encoders.umt5 import tensor_shapes as text_shapes
from kinema.families.wan import config as wan
from kinema.families.wan.config import WanConfig
from kinema.families.wan.transformer import WanTransformer
from kinema.families.wan.vae.autoencoder import FeatureCache, WanVAE, WanVAEConfig, tensor_shapes
from kinema.ops import build_ops, plan_ops, target_for
from kinema.ops.common import PRECISIONS, Target, native
from kinema.ops.linear.cpu import pack_linear

if not native.instruction_sets():
    pytest.skip("the native kernels are not built", allow_module_level=True)

VAES = {
    "wan21": WanVAEConfig(
        base_dim=8, z_dim=4, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(True,),
        latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4, scale_factor_temporal=2, scale_factor_spatial=2,
    ),
    "wan22": WanVAEConfig(
        base_dim=8, z_dim=3, dim_mult=(2, 2), num_res_blocks=1, temperal_downsample=(True,), is_residual=True,
        patch_size=2, in_channels=12, out_channels=12, latents_mean=(0.0,) * 3, latents_std=(1.0,) * 3,
        scale_factor_temporal=2, scale_factor_spatial=4,
    ),
}  # fmt: skip
TRANSFORMER = WanConfig(
    num_attention_heads=3, attention_head_dim=24, in_channels=4, out_channels=4,
    text_dim=16, freq_dim=16, ffn_dim=200, num_layers=2,
)  # fmt: skip
TEXT = UMT5Config(
    vocab_size=50, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_heads=3,
    relative_attention_num_buckets=8, relative_attention_max_distance=16,
)  # fmt: skip


def ops(backend, precision="fp32", quantize_attention=None):
    return build_ops(plan_ops(target_for("cpu", precision), backend, quantize_attention))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_of(shapes):
    """Every layer matters: gains about 1, biases and the rest of order 1 at the output of a layer."""
    made = {}
    for i, (name, shape) in enumerate(shapes.items()):
        w = drawn(*shape, seed=i)
        if (len(shape) == 1 and not name.endswith("bias")) or name.endswith("gamma"):
            w = 1.0 + 0.2 * w
        elif name.endswith("bias"):
            w = 0.5 * w
        elif name.endswith("weight"):
            w = w / w[0].numel() ** 0.5
        made[name] = w
    return Weights(made)


def distance(got, truth):
    return float((got - truth).abs().max() / truth.abs().max())


def test_the_plan_takes_the_native_kernels_where_it_is_told_to():
    chosen = {choice.op: choice.backend for choice in plan_ops(target_for("cpu", "fp32"), "cpu").choices}
    assert set(chosen.values()) == {"cpu"}


@pytest.mark.parametrize("name", VAES)
@torch.no_grad()
def test_a_vae_encodes_and_decodes(name):
    """In chunks, so that every convolution reads and renews its past."""
    config, frames = VAES[name], 5 if name == "wan21" else 3
    weights = weights_of(tensor_shapes(config))
    plain, ours = (WanVAE(config, weights, ops(backend)) for backend in ("reference", "cpu"))
    video = drawn(1, config.pixel_channels, frames, 20, 12).clamp(-1, 1)
    wanted = plain.encode(video, chunk=2).mean
    assert distance(ours.encode(video, chunk=2).mean, wanted) < 1e-5
    decoded = plain.decode(wanted, chunk=1, clamp=False)
    assert distance(ours.decode(wanted, chunk=1, clamp=False), decoded) < 1e-5


@pytest.mark.parametrize("backend", ["cpu", "cpu-direct"])
@torch.no_grad()
def test_a_decode_is_no_further_from_float64_than_twice_what_torch_is(backend):
    """Over all layers of Wan 2.1's decoder, where Winograd's roundings would add up."""
    config = WanVAEConfig(base_dim=24)
    shapes = tensor_shapes(config)
    single, z = weights_of(shapes), drawn(1, config.z_dim, 2, 5, 4)
    double = Weights({name: single[name].double() for name in shapes})
    truth = WanVAE(config, double, ops("reference")).decode(z.double(), clamp=False)
    plain, ours = (WanVAE(config, single, ops(b)).decode(z, clamp=False) for b in ("reference", backend))
    assert distance(ours, truth) < 2 * distance(plain, truth)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp8", "int8"])
@torch.no_grad()
def test_a_transformer_forwards(precision):
    """As the reference does in the same precision: stored weights are the same."""
    weights = weights_of(wan.tensor_shapes(TRANSFORMER))
    latents, timesteps, text = drawn(2, 4, 3, 6, 10), torch.tensor([500.0, 20.0]), drawn(2, 5, 16, seed=1)

    def forward(backend):
        transformer = WanTransformer(TRANSFORMER, weights, ops(backend, precision))
        return transformer(latents, timesteps, transformer.encode_context(text))

    if precision in ("bf16", "fp8") and pack_linear(torch.ones(1, 1), target=target_for("cpu", precision)).rounds_to:
        # rounded before each product, not between ops too, as a model in bf16 is
        rounded = replace(PRECISIONS["cuda"][precision], quantize_activations=None)
        in_bf16 = build_ops(plan_ops(Target(torch.device("cpu"), rounded), "reference"))
        narrow = WanTransformer(TRANSFORMER, weights, in_bf16)
        others = narrow(latents, timesteps, narrow.encode_context(text))
        exact = forward("reference")
        assert 1e-4 < distance(forward("cpu"), exact) < distance(others, exact)
        return
    if precision != "int8":
        assert distance(forward("cpu"), forward("reference")) < 1e-5
        return
    # activations are rounded to other steps, of at most the same size between 127 codes and -127..127: twice as large
    truth = WanTransformer(TRANSFORMER, weights, ops("reference"))
    exact = truth(latents, timesteps, truth.encode_context(text))
    assert distance(forward("cpu"), exact) < 2 * distance(forward("reference"), exact)


@torch.no_grad()
def test_a_transformer_attends_in_int8():
    """As the reference does in int8: near what it is exactly, and not the same."""
    weights = weights_of(wan.tensor_shapes(TRANSFORMER))
    latents, timesteps, text = drawn(2, 4, 3, 6, 10), torch.tensor([500.0, 20.0]), drawn(2, 5, 16, seed=1)

    def forward(backend, kind):
        transformer = WanTransformer(TRANSFORMER, weights, ops(backend, quantize_attention=kind))
        return transformer(latents, timesteps, transformer.encode_context(text))

    exact, rounded = forward("cpu", None), forward("cpu", "int8")
    assert 1e-4 < distance(rounded, exact) < 2e-2
    assert distance(rounded, forward("reference", "int8")) < 0.1 * distance(rounded, exact)


@torch.no_grad()
def test_a_text_encoder_reads():
    """Relative positions as a bias of the logits, padding as a length."""
    weights = weights_of(text_shapes(TEXT))
    ids = torch.randint(1, TEXT.vocab_size, (2, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    plain, ours = (UMT5Encoder(TEXT, weights, ops(backend))(ids, mask) for backend in ("reference", "cpu"))
    assert distance(ours[mask.bool()], plain[mask.bool()]) < 1e-5


def allocated(run):
    """Bytes of every tensor that torch allocates while `run` runs, the smallest first."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as trace:
        run()
    events = trace.profiler.kineto_results.events()
    return sorted(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)


@torch.no_grad()
def test_a_step_allocates_no_map():
    """But small things: modulations, the prediction and what is cut into it."""
    latents, timesteps, text = drawn(1, 4, 3, 16, 16), torch.tensor([500.0]), drawn(1, 5, 16, seed=1)
    config = replace(TRANSFORMER, num_layers=5)
    transformer = WanTransformer(config, weights_of(wan.tensor_shapes(config)), ops("cpu"))
    context = transformer.encode_context(text)

    def step():
        transformer(latents, timesteps, context)

    a_map, modulation = 3 * 8 * 8 * config.dim * 4, 6 * config.dim * 4
    first, second = allocated(step), allocated(step)
    assert max(first) >= a_map, "a map is seen"
    assert max(second) <= latents.nbytes < a_map // 2
    assert sum(second) <= 3 * latents.nbytes + (config.num_layers + 4) * modulation


@torch.no_grad()
def test_a_decoder_allocates_no_map_for_the_next_frames():
    """But pixels, as they are and as they are cut to the range, and what convolutions over time alone give."""
    config = WanVAEConfig(base_dim=24)
    vae, z, cache = WanVAE(config, weights_of(tensor_shapes(config)), ops("cpu")), drawn(1, 16, 4, 8, 8), FeatureCache()
    for t in range(3):
        vae.decode_frames(z[:, :, t : t + 1], cache)
    sizes = allocated(lambda: vae.decode_frames(z[:, :, 3:], cache))
    largest_map = 24 * 4 * 64 * 64 * 4
    assert sizes.count(3 * 4 * 64 * 64 * 4) >= 2, "the pixels are seen"
    assert max(sizes) <= largest_map // 4
    assert sum(sizes) <= 1.1 * largest_map
