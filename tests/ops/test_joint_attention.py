"""Joint attention of text and video in ops, against diffusers' CogVideoX and HunyuanVideo on the same weights.

The models come later; that their attention can be written in ops is shown here.
"""

import pytest
import torch
from diffusers.models.attention_processor import Attention, CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoRotaryPosEmbed,
    HunyuanVideoSingleTransformerBlock,
)

from kinema.ops.attention import KV
from kinema.ops.common import Rope
from kinema.ops.qk_norm_rope import HeadNorm

HEADS, HEAD_DIM = 3, 16
CHANNELS = HEADS * HEAD_DIM
GRID = (2, 3, 4)
VIDEO, TEXT = 24, 7
AXES = (4, 6, 6)
TOLERANCE = 1e-5  # the contract is 1e-4; a tighter bound notices smaller mistakes


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def rescaled(module):
    """Weights under which norms, positions and lengths all matter."""
    generator = torch.Generator().manual_seed(0)
    for name, p in module.named_parameters():
        if "norm_" in name and name.endswith("weight"):
            p.copy_(torch.rand(p.shape, generator=generator) * 2.0 + 1.0)  # sharp attention
        elif name.endswith("bias"):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
        else:
            p.copy_(torch.randn(p.shape, generator=generator) * 1.5 / p.shape[-1] ** 0.5)
    return module.eval()


def tokens(batch=2):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(batch, n, CHANNELS, generator=generator) for n in (VIDEO, TEXT))


def grid_positions():
    axes = torch.meshgrid(*(torch.arange(n) for n in GRID), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes], dim=-1)


def head_norm(norm, device):
    """diffusers' LayerNorm or RMSNorm over a head, as ours."""
    kind = "layer" if isinstance(norm, torch.nn.LayerNorm) else "rms"
    bias = getattr(norm, "bias", None)
    return HeadNorm(kind, norm.eps, norm.weight.to(device), bias.to(device) if bias is not None else None)


def projected(ops, x, projections, norms, rope):
    """x [B, S, C] → q, KV in attention's layout."""
    packed = ops.pack_linear([p.weight for p in projections], [p.bias for p in projections])
    q, k, v = ops.linear(x.to(ops.device), packed).chunk(3, dim=-1)
    q, k = (ops.qk_norm_rope(t, HEADS, norm=n, rope=rope) for t, n in zip((q, k), norms, strict=True))
    return q, KV(k, v.unflatten(-1, (HEADS, -1)).transpose(1, 2))


def assert_same(got, wanted):
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours.cpu() - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


def differs(got, wanted):
    return max(float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in zip(got, wanted, strict=True)) > 0.01


# ---- CogVideoX: [text, video], one set of weights, LayerNorm per head, the video rotates


def cogvideox():
    attn = Attention(
        query_dim=CHANNELS,
        heads=HEADS,
        dim_head=HEAD_DIM,
        qk_norm="layer_norm",
        eps=1e-6,
        bias=True,
        out_bias=True,
        processor=CogVideoXAttnProcessor2_0(),
    )
    table = get_3d_rotary_pos_embed(HEAD_DIM, ((0, 0), GRID[1:]), GRID[1:], GRID[0])
    return rescaled(attn), table


def cogvideox_in_ops(ops, attn, video, text, *, rope_start=0, rotate_text=False, swap=False):
    norms = [head_norm(n, ops.device) for n in (attn.norm_q, attn.norm_k)]
    rope = Rope.from_positions(grid_positions(), AXES, start=rope_start).to(ops.device)
    projections = (attn.to_q, attn.to_k, attn.to_v)
    text_rope = Rope(rope.cos[:TEXT], rope.sin[:TEXT]) if rotate_text else None
    q_text, kv_text = projected(ops, text, projections, norms, text_rope)
    q_video, kv_video = projected(ops, video, projections, norms, rope)
    segments = ((q_video, q_text), (kv_text, kv_video)) if swap else ((q_text, q_video), (kv_text, kv_video))
    h_text, h_video = ops.attention(*segments)
    out = ops.pack_linear(attn.to_out[0].weight, attn.to_out[0].bias)
    return ops.linear(h_video, out), ops.linear(h_text, out)


def test_cogvideox(ops):
    attn, table = cogvideox()
    video, text = tokens()
    wanted = attn(video, encoder_hidden_states=text, image_rotary_emb=table)
    assert_same(cogvideox_in_ops(ops, attn, video, text), wanted)


def test_cogvideox_as_one_tensor(ops):
    """The same from one joint sequence, of which a range rotates."""
    attn, table = cogvideox()
    video, text = tokens()
    wanted = attn(video, encoder_hidden_states=text, image_rotary_emb=table)
    norms = [head_norm(n, ops.device) for n in (attn.norm_q, attn.norm_k)]
    rope = Rope.from_positions(grid_positions(), AXES, start=TEXT).to(ops.device)
    q, kv = projected(ops, torch.cat((text, video), dim=1), (attn.to_q, attn.to_k, attn.to_v), norms, rope)
    (h,) = ops.attention(q, kv)
    y = ops.linear(h, ops.pack_linear(attn.to_out[0].weight, attn.to_out[0].bias))
    assert_same((y[:, TEXT:], y[:, :TEXT]), wanted)


@pytest.mark.planted
def test_cogvideox_mistakes_are_noticed(ops):
    attn, table = cogvideox()
    video, text = tokens()
    wanted = attn(video, encoder_hidden_states=text, image_rotary_emb=table)
    assert differs(cogvideox_in_ops(ops, attn, video, text, rotate_text=True), wanted)
    without_norm = attn.norm_q.weight.clone()
    attn.norm_q.weight.fill_(1.0)
    assert differs(cogvideox_in_ops(ops, attn, video, text), wanted)
    attn.norm_q.weight.copy_(without_norm)
    swapped = cogvideox_in_ops(ops, attn, video, text, swap=True)
    assert [part.shape[1] for part in swapped] == [TEXT, VIDEO]


def test_cogvideox_positions_may_be_fractional(ops):
    """A grid other than the one trained at is interpolated: positions between whole numbers."""
    attn, _ = cogvideox()
    video, text = tokens()
    crop = ((0, 0), (4.5, 7.0))
    table = get_3d_rotary_pos_embed(HEAD_DIM, crop, GRID[1:], GRID[0])
    wanted = attn(video, encoder_hidden_states=text, image_rotary_emb=table)
    positions = grid_positions().double()
    positions[:, 1:] *= torch.tensor(crop[1], dtype=torch.float64) / torch.tensor(GRID[1:], dtype=torch.float64)
    rope = Rope.from_positions(positions, AXES).to(ops.device)
    norms = [head_norm(n, ops.device) for n in (attn.norm_q, attn.norm_k)]
    projections = (attn.to_q, attn.to_k, attn.to_v)
    q_text, kv_text = projected(ops, text, projections, norms, None)
    q_video, kv_video = projected(ops, video, projections, norms, rope)
    h_text, h_video = ops.attention((q_text, q_video), (kv_text, kv_video))
    out = ops.pack_linear(attn.to_out[0].weight, attn.to_out[0].bias)
    assert_same((ops.linear(h_video, out), ops.linear(h_text, out)), wanted)


# ---- HunyuanVideo: [video, text], RMSNorm per head, prompts of different lengths

LENGTHS = (7, 3)


def hunyuan_table():
    rope = HunyuanVideoRotaryPosEmbed(patch_size=1, patch_size_t=1, rope_dim=list(AXES), theta=256.0)
    return rope(torch.zeros(1, 1, *GRID))


def hunyuan_rope(ops):
    return Rope.from_positions(grid_positions(), AXES, theta=256.0).to(ops.device)


def hunyuan_mask():
    real = torch.arange(TEXT)[None] < torch.tensor(LENGTHS)[:, None]
    return torch.cat((torch.ones(2, VIDEO, dtype=torch.bool), real), dim=1)[:, None, None]


def hunyuan_dual():
    attn = Attention(
        query_dim=CHANNELS,
        added_kv_proj_dim=CHANNELS,
        heads=HEADS,
        dim_head=HEAD_DIM,
        out_dim=CHANNELS,
        context_pre_only=False,
        bias=True,
        qk_norm="rms_norm",
        eps=1e-6,
        processor=HunyuanVideoAttnProcessor2_0(),
    )
    return rescaled(attn)


def hunyuan_dual_in_ops(ops, attn, video, text, *, lengths=LENGTHS, text_norms_of_video=False):
    norms = [head_norm(n, ops.device) for n in (attn.norm_q, attn.norm_k)]
    added = [head_norm(n, ops.device) for n in (attn.norm_added_q, attn.norm_added_k)]
    q_video, kv_video = projected(ops, video, (attn.to_q, attn.to_k, attn.to_v), norms, hunyuan_rope(ops))
    q_text, kv_text = projected(
        ops,
        text,
        (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
        norms if text_norms_of_video else added,
        None,
    )
    kv_text = KV(kv_text.k, kv_text.v, torch.tensor(lengths, device=ops.device) if lengths is not None else None)
    h_video, h_text = ops.attention((q_video, q_text), (kv_video, kv_text))
    out, add_out = (ops.pack_linear(p.weight, p.bias) for p in (attn.to_out[0], attn.to_add_out))
    return ops.linear(h_video, out), ops.linear(h_text, add_out)


def test_hunyuan_dual_stream(ops):
    attn = hunyuan_dual()
    video, text = tokens()
    wanted = attn(video, encoder_hidden_states=text, attention_mask=hunyuan_mask(), image_rotary_emb=hunyuan_table())
    assert_same(hunyuan_dual_in_ops(ops, attn, video, text), wanted)
    assert differs(hunyuan_dual_in_ops(ops, attn, video, text, lengths=None), wanted)
    assert differs(hunyuan_dual_in_ops(ops, attn, video, text, lengths=LENGTHS[::-1]), wanted)
    assert differs(hunyuan_dual_in_ops(ops, attn, video, text, text_norms_of_video=True), wanted)


def hunyuan_single_in_ops(ops, block, video, text, temb, *, lengths=LENGTHS, swap_sources=False, rotate=VIDEO):
    """One tensor holds both streams; the projection at the end reads attention and MLP without joining them."""
    x = torch.cat((video, text), dim=1).to(ops.device)
    modulation = ops.pack_linear(block.norm.linear.weight, block.norm.linear.bias)
    shift, scale, gate = ops.linear(torch.nn.functional.silu(temb).unsqueeze(1).to(ops.device), modulation).chunk(
        3, dim=-1
    )
    h = ops.norm_modulate(x, eps=1e-6, scale=scale, shift=shift)
    mlp = ops.linear(h, ops.pack_linear(block.proj_mlp.weight, block.proj_mlp.bias), activation="gelu_tanh")
    attn = block.attn
    norms = [head_norm(n, ops.device) for n in (attn.norm_q, attn.norm_k)]
    rope = hunyuan_rope(ops)
    rope = Rope(rope.cos[:rotate], rope.sin[:rotate])
    q, kv = projected(ops, h, (attn.to_q, attn.to_k, attn.to_v), norms, rope)
    real = torch.tensor(lengths, device=ops.device) + VIDEO  # text comes last, so its padding does
    (attended,) = ops.attention(q, KV(kv.k, kv.v, real))
    out = ops.pack_linear(block.proj_out.weight, block.proj_out.bias)
    pair = (attended, mlp[..., : 2 * CHANNELS])
    y = ops.linear(pair[::-1] if swap_sources else pair, out, gate=gate, residual=x)
    return y[:, :VIDEO], y[:, VIDEO:]


def test_hunyuan_single_stream(ops):
    block = rescaled(HunyuanVideoSingleTransformerBlock(HEADS, HEAD_DIM, mlp_ratio=2.0, qk_norm="rms_norm"))
    video, text = tokens()
    temb = torch.randn(2, CHANNELS, generator=torch.Generator().manual_seed(2))
    wanted = block(video, text, temb, hunyuan_mask(), hunyuan_table())
    assert_same(hunyuan_single_in_ops(ops, block, video, text, temb), wanted)
    assert differs(hunyuan_single_in_ops(ops, block, video, text, temb, lengths=(7, 7)), wanted)
    assert differs(hunyuan_single_in_ops(ops, block, video, text, temb, swap_sources=True), wanted)
    assert differs(hunyuan_single_in_ops(ops, block, video, text, temb, rotate=VIDEO - 6), wanted)
