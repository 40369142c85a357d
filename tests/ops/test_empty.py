"""Empty tensors are computed as the contracts say, by every implementation of every op: no samples, no tokens, no keys.

The first block of a streamed video attends over a cache that holds nothing yet.
"""

import pytest
import torch

from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.common import PRECISIONS, Quantized, Rope
from kinema.ops.norm_modulate import Norm
from kinema.ops.plan import OPS as ALL
from kinema.ops.qk_norm_rope import HeadNorm

OPS = ALL
FP32 = torch.float32
EMPTY = [(0, 6), (2, 0), (0, 0)]  # B, S


def of(*ops):
    """A test of these ops alone."""

    def mark(test):
        test.of = ops
        return test

    return mark


def quiet(impl):
    return impl.target(PRECISIONS["cpu"]["fp32"])


def is_shaped(impl, y, shape, dtype=FP32):
    impl.expect(y.shape == shape and y.dtype == dtype, f"gave {y.dtype} {tuple(y.shape)}, wanted {dtype} {shape}")


def same(impl, got, wanted):
    is_shaped(impl, got, wanted.shape)
    impl.expect(torch.allclose(got, wanted, rtol=1e-4, atol=1e-5), f"gave {got}, wanted {wanted}")


@of("linear", "norm_modulate", "quantize", "qk_norm_rope")
@pytest.mark.parametrize(("batch", "tokens"), EMPTY)
def test_no_tokens(impl, batch, tokens):
    draw, shape = impl.draw(), (batch, tokens, 8)
    x, groups = draw.normal(*shape), max(tokens, 1)
    scale, shift = (draw.normal(batch, n, 8) for n in (groups, tokens))
    if impl.op == "quantize":
        for kind, dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
            got = impl.functions.quantize(x, kind)
            is_shaped(impl, got.data, shape, dtype)
            is_shaped(impl, got.scale, (batch, tokens, 1))
            is_shaped(
                impl, impl.functions.quantize(x.view(batch, 1, tokens, 8), kind).data, (batch, 1, tokens, 8), dtype
            )
    elif impl.op == "norm_modulate":
        for name in ("layer", "rms"):
            options = {
                "norm": name,
                "eps": 1e-6,
                "weight": draw.normal(8),
                "scale": scale,
                "shift": shift,
            }
            is_shaped(impl, impl.functions.norm_modulate(x, **options), shape)
            assert impl.functions.norm_modulate(x, **options, out=x) is x
            got = impl.functions.norm_modulate(x, **options, quantize="int8")
            is_shaped(impl, got.data, shape, torch.int8)
            is_shaped(impl, got.scale, (batch, tokens, 1))
    elif impl.op == "qk_norm_rope":
        rope = Rope(draw.normal(tokens, 2), draw.normal(tokens, 2))
        norm = HeadNorm("rms", 1e-6, draw.normal(8), across_heads=True)
        is_shaped(impl, impl.functions.qk_norm_rope(x, 2, norm=norm, rope=rope), (batch, 2, tokens, 4))
        out = draw.poison(batch, 2, tokens, 4)
        assert impl.functions.qk_norm_rope(x, 2, norm=HeadNorm("layer", 1e-6), out=out) is out
    else:
        packed = impl.functions.pack_linear(draw.normal(5, 8), draw.normal(5), target=quiet(impl))
        wanted = (batch, tokens, 5)
        options = {"gate": draw.normal(batch, groups, 5), "residual": draw.normal(*wanted)}
        norm = Norm(1e-6, scale=scale, shift=shift)
        is_shaped(impl, impl.functions.linear(x, packed, norm=norm, activation="gelu", **options), wanted)
        is_shaped(impl, impl.functions.linear((x[..., :3], x[..., 3:]), packed, **options), wanted)
        codes = Quantized(draw.normal(*shape).to(torch.int8), draw.normal(batch, tokens, 1))
        is_shaped(impl, impl.functions.linear(codes, packed), wanted)
        assert impl.functions.linear(x, packed, out=options["residual"], residual=options["residual"]).numel() == 0


@of("linear")
def test_half_of_a_pair_without_features(impl):
    draw = impl.draw()
    packed = impl.functions.pack_linear(draw.normal(5, 8), draw.normal(5), target=quiet(impl))
    x, none = draw.normal(2, 6, 8), draw.normal(2, 6, 0)
    wanted = impl.functions.linear(x, packed)
    for pair in ((x, none), (none, x)):
        assert torch.equal(impl.functions.linear(pair, packed), wanted)


@of("qk_norm_rope")
def test_a_rotation_of_no_tokens(impl):
    draw = impl.draw()
    x, nothing = draw.normal(2, 6, 8), Rope(draw.normal(0, 2), draw.normal(0, 2), start=6)
    assert torch.equal(impl.functions.qk_norm_rope(x, 2, rope=nothing), impl.functions.qk_norm_rope(x, 2))


# ---- patches and frames


@of("patch_embed", "unpatchify")
@pytest.mark.parametrize("size", [(0, 4, 2, 4, 6), (2, 4, 0, 4, 6), (2, 4, 2, 0, 6), (2, 4, 2, 4, 0)])
def test_no_patches(impl, size):
    draw = impl.draw()
    batch, channels, t, h, w = size
    grid, tokens = (t, h // 2, w // 2), t * (h // 2) * (w // 2)
    if impl.op == "unpatchify":
        x = draw.normal(batch, tokens, channels * 4)
        for order in ("patch_first", "channel_first"):
            is_shaped(impl, impl.functions.unpatchify(x, grid, (1, 2, 2), order=order), size)
        out = draw.poison(*size)
        assert impl.functions.unpatchify(x, grid, (1, 2, 2), out=out) is out
        return
    packed = impl.functions.pack_patch_embed(draw.normal(10, 4, 1, 2, 2), draw.normal(10), target=quiet(impl))
    wanted = (batch, tokens, 10)
    position, out = draw.normal(tokens, 10), draw.poison(*wanted)
    is_shaped(impl, impl.functions.patch_embed(draw.normal(*size), packed, position=position), wanted)
    assert impl.functions.patch_embed(draw.normal(*size), packed, out=out) is out


@of("conv3d")
def test_no_frames(impl):
    """No frames give none, and leave the cache as it is: a chunk that holds nothing changes nothing."""
    draw = impl.draw()
    for kernel, stride in (((3, 3, 3), (1, 1, 1)), ((3, 1, 1), (2, 1, 1)), ((1, 3, 3), (1, 1, 1))):
        packed = impl.functions.pack_conv3d(
            draw.normal(10, 8, *kernel), draw.normal(10), stride=stride, target=quiet(impl)
        )
        for batch, frames in EMPTY:
            cache = draw.normal(batch, 8, packed.history, 10, 12)
            before = cache.clone()
            frames_out = (packed.history + frames - kernel[0]) // stride[0] + 1 if frames else 0
            shape = (batch, 10, frames_out, 10, 12)
            x, residual, out = draw.normal(batch, 8, frames, 5, 6), draw.normal(*shape), draw.poison(*shape)
            options = {"norm": draw.normal(8), "activation": "silu", "upsample": 2, "cache": cache}
            is_shaped(impl, impl.functions.conv3d(x, packed, residual=residual, **options), shape)
            assert impl.functions.conv3d(x, packed, out=out, **options) is out
            impl.expect(torch.equal(cache, before), "the cache of no frames was changed")


@of("conv3d")
def test_pictures_without_pixels_are_refused(impl):
    draw = impl.draw()
    packed = impl.functions.pack_conv3d(draw.normal(10, 8, 1, 1, 1), padding=(2, 2, 2, 2), target=quiet(impl))
    for size in ((3, 0, 6), (3, 5, 0)):
        with pytest.raises(ValueError, match="too small"):
            impl.functions.conv3d(draw.normal(2, 8, *size), packed)


@of("scheduler_step")
def test_no_values_to_step(impl):
    draw = impl.draw()
    for shape in ((0, 4, 6), (2, 0, 6), (0,)):
        terms = [draw.normal(*shape) for _ in range(3)]
        table, outs = draw.normal(shape[0], 2, 3), [draw.poison(*shape) for _ in range(2)]
        for y in impl.functions.scheduler_step(terms, table):
            is_shaped(impl, y, shape)
        got = impl.functions.scheduler_step(terms, table, out=outs)
        assert all(y is out for y, out in zip(got, outs, strict=True))
    assert impl.functions.scheduler_step([draw.normal(2, 4)], draw.normal(2, 0, 1)) == ()


# ---- attention


def keys(draw, slots, *, batch=2, **options):
    return KV(draw.normal(batch, 3, slots, 16), draw.normal(batch, 3, slots, 16), **options)


@of("attention")
@pytest.mark.parametrize(
    ("batch", "tokens", "slots"),
    [
        (2, 7, (0,)),
        (2, 7, (0, 0)),
        (2, 0, (5,)),
        (2, 0, (0, 5)),
        (0, 7, (5,)),
        (0, 0, (0, 5)),
        (0, 7, (0,)),
        (2, 0, (0,)),
    ],
)
def test_no_queries_or_no_keys(impl, batch, tokens, slots):
    """What sees no key is 0."""
    draw = impl.draw()
    q, kv = draw.normal(batch, 3, tokens, 16), tuple(keys(draw, n, batch=batch) for n in slots)
    wanted = torch.zeros(batch, tokens, 48, device=impl.device)
    bias, out = draw.normal(batch, 1, tokens, sum(slots)), draw.poison(batch, tokens, 48)
    for options in ({}, {"bias": bias}, {"causal": BlockCausal(2)}, {"scale": 0.3}, {"out": out}):
        (y,) = impl.functions.attention(q, kv, **options)
        same(impl, y, wanted)
    assert y is out
    residual = draw.normal(batch, tokens, 48)
    same(impl, impl.functions.attention(q, kv, residual=residual)[0], residual)
    kept = residual.clone()
    same(impl, impl.functions.attention(q, kv, residual=residual, out=residual)[0], kept)


def nothing_yet(draw):
    """A cache's first state, with all that a cache has."""
    return keys(
        draw, 0, lengths=torch.tensor([0, 0], device=draw.device), rope=Rope(draw.normal(0, 8), draw.normal(0, 8))
    )


@of("attention")
def test_an_empty_cache_before_new_keys(impl):
    """The first block of a streamed video."""
    draw = impl.draw()
    q, cache, new, text = draw.normal(2, 3, 7, 16), nothing_yet(draw), keys(draw, 7), keys(draw, 3)
    (wanted,) = impl.functions.attention(q, new)
    for kv in ((cache, new), (new, keys(draw, 0))):
        same(impl, impl.functions.attention(q, kv)[0], wanted)
    bias = draw.normal(2, 3, 7, 10)
    (biased,) = impl.functions.attention(q, (new, text), bias=bias)
    for kv in ((cache, new, text), (new, cache, text), (new, text, cache)):
        same(impl, impl.functions.attention(q, kv, bias=bias)[0], biased)
    (causal,) = impl.functions.attention(q, new, causal=BlockCausal(3))
    same(impl, impl.functions.attention(q, (cache, new), causal=BlockCausal(3))[0], causal)
    assert not torch.allclose(causal, wanted)


@of("attention")
def test_the_rule_of_the_last_segment_is_not_the_one_before(impl):
    draw = impl.draw()
    q, cache = draw.normal(2, 3, 7, 16), keys(draw, 7)
    (wanted,) = impl.functions.attention(q, cache)
    same(impl, impl.functions.attention(q, (cache, keys(draw, 0)), causal=BlockCausal(3))[0], wanted)


@of("attention")
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_an_empty_cache_in_eight_bits(impl, kind):
    if (impl.backend, kind) == ("triton", "int8"):
        pytest.skip("multiplies in fp8")
    draw = impl.draw()
    q, new = draw.normal(2, 3, 7, 16), keys(draw, 7)
    (wanted,) = impl.functions.attention(q, new, quantize=kind)
    same(impl, impl.functions.attention(q, (nothing_yet(draw), new), quantize=kind)[0], wanted)
    zero = impl.functions.attention(q, nothing_yet(draw), quantize=kind)[0]
    assert not bool(zero.any())


@of("attention")
def test_joint_attention_without_a_text(impl):
    draw = impl.draw()
    video, none, new, nothing = draw.normal(2, 3, 7, 16), draw.normal(2, 3, 0, 16), keys(draw, 7), keys(draw, 0)
    (wanted,) = impl.functions.attention(video, new)
    out = draw.poison(2, 7, 48), draw.poison(2, 0, 48)
    first, second = impl.functions.attention((video, none), (new, nothing), out=out)
    same(impl, first, wanted)
    assert first is out[0] and second is out[1]
    second, first = impl.functions.attention((none, video), (nothing, new))
    same(impl, first, wanted)
    is_shaped(impl, second, (2, 0, 48))


@of("attention")
def test_lists_of_no_tiles(impl):
    draw = impl.draw()
    q, kv, residual = draw.normal(2, 3, 7, 16), keys(draw, 12), draw.normal(2, 7, 48)
    for listed in (0, 2):
        indices = torch.full((1, 1, 2, listed), 10**6, dtype=torch.int32, device=impl.device)
        blocks = BlockList(4, 5, indices, torch.zeros(1, 1, 2, dtype=torch.int32, device=impl.device))
        assert not bool(impl.functions.attention(q, kv, blocks=blocks)[0].any())
        same(impl, impl.functions.attention(q, kv, blocks=blocks, residual=residual)[0], residual)
    none = BlockList(4, 5, blocks.indices[:, :, :0], blocks.counts[:, :, :0])
    is_shaped(impl, impl.functions.attention(q[:, :, :0], kv, blocks=none)[0], (2, 0, 48))
    same(impl, impl.functions.attention(q, (keys(draw, 0), keys(draw, 0)), blocks=blocks)[0], 0.0 * residual)
