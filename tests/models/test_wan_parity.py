"""The Wan transformer against diffusers, on the same weights, and a table of mistakes that must be noticed."""

import dataclasses

import pytest
import torch
from diffusers import WanTransformer3DModel

from kinema.buffers.activations import ActivationBuffers
from kinema.checkpoints.weights import Weights
from kinema.families.wan import transformer
from kinema.families.wan.config import WanConfig, tensor_shapes
from kinema.families.wan.transformer import WanTransformer
from kinema.ops import build_ops, plan_ops, target_for

OPS = build_ops(plan_ops(target_for("cpu"), "reference"))  # weights that can be changed, and gradients
TOLERANCE = 1e-5  # the contract is 1e-4; a tighter bound notices smaller mistakes

TINY = {
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 88,
    "num_layers": 2,
}
CONFIGS = {
    "t2v": TINY,
    "wide_head": {**TINY, "num_attention_heads": 2, "attention_head_dim": 34},
    "channel_concat": {**TINY, "in_channels": 9},
    "large_patch": {**TINY, "patch_size": (2, 3, 1), "in_channels": 3, "out_channels": 3},
    "no_cross_norm": {**TINY, "cross_attn_norm": False, "eps": 1e-5},
    "i2v": {**TINY, "in_channels": 9, "image_dim": 12, "added_kv_proj_dim": 48},
    "first_last": {**TINY, "in_channels": 9, "image_dim": 12, "added_kv_proj_dim": 48, "pos_embed_seq_len": 14},
}


def rescaled_model(config: dict) -> WanTransformer3DModel:
    """A diffusers model whose every sub-layer matters (plain initialisation hides mistakes)."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(**config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "scale_shift_table" in name:
                p.normal_(0, 0.5)
                if p.shape[1] == 6:
                    p[:, [2, 5]] += 1.0  # gates of order 1
            elif "norm" in name and name.endswith("weight"):
                p.uniform_(0.5, 1.5)
                if "attn1.norm_q" in name:
                    p *= 5.0  # sharp attention, so that positions matter
            elif "ffn.net.0.proj.bias" in name:
                p.normal_(-1.5, 0.8)  # where the two GELUs differ most
            elif name.endswith("bias") or "pos_embed" in name:
                p.normal_(0, 0.5)
            elif "time_proj" in name:
                p.normal_(0, 0.5 / p.shape[1] ** 0.5)
            else:
                strong = 6.0 if "ffn.net.2" in name else 2.0 if "to_out" in name else 1.5
                p.normal_(0, strong / p[0].numel() ** 0.5)
    return model


def ours_from(model: WanTransformer3DModel, config: dict, **changes: object) -> WanTransformer:
    weights = {k: v.detach() for k, v in model.state_dict().items() if "norm_added_q" not in k}
    return WanTransformer(WanConfig(**{**config, **changes}), Weights(weights), OPS)


def case_inputs(config: dict, batch: int, size: tuple[int, int, int], text_length: int, per_token: bool):
    generator = torch.Generator().manual_seed(batch * 100 + text_length)
    patch = config.get("patch_size", (1, 2, 2))
    latents = torch.randn(batch, config["in_channels"], *size, generator=generator)
    text = torch.randn(batch, text_length, config["text_dim"], generator=generator)
    if per_token:
        tokens = (size[0] // patch[0]) * (size[1] // patch[1]) * (size[2] // patch[2])
        timesteps = torch.randint(0, 1000, (batch, tokens), generator=generator)
    else:
        timesteps = torch.randint(1, 1000, (batch,), generator=generator)
    image = None
    if "image_dim" in config:
        images = 2 if "pos_embed_seq_len" in config else 1
        image = torch.randn(batch * images, 7, config["image_dim"], generator=generator)
    return latents, timesteps, text, image


@torch.no_grad()
def reference_output(model, latents, timesteps, text, image):
    return model(latents, timesteps, text, image, return_dict=False)[0]


@torch.no_grad()
def our_output(model, latents, timesteps, text, image):
    return model(latents, timesteps, model.encode_context(text, image))


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


CASES = [
    ("t2v", 1, (1, 2, 2), 1, False),
    ("t2v", 2, (3, 6, 10), 77, False),
    ("t2v", 3, (5, 4, 2), 512, False),
    ("t2v", 2, (2, 6, 8), 9, True),
    ("wide_head", 1, (3, 10, 6), 33, False),
    ("channel_concat", 2, (3, 6, 4), 5, False),
    ("large_patch", 2, (4, 9, 5), 13, False),
    ("large_patch", 1, (2, 6, 7), 13, True),
    ("no_cross_norm", 1, (3, 6, 4), 20, False),
    ("i2v", 2, (3, 6, 4), 512, False),
    ("first_last", 2, (3, 6, 4), 512, False),
]


@pytest.mark.parametrize(("name", "batch", "size", "text_length", "per_token"), CASES)
def test_forward_equals_diffusers(name, batch, size, text_length, per_token):
    config = CONFIGS[name]
    model = rescaled_model(config)
    inputs = case_inputs(config, batch, size, text_length, per_token)
    error = relative_error(our_output(ours_from(model, config), *inputs), reference_output(model, *inputs))
    assert error <= TOLERANCE


@pytest.mark.parametrize("block", [0, 1])
def test_each_block_equals_diffusers(block):
    config = CONFIGS["t2v"]
    model, ours = rescaled_model(config), ours_from(rescaled_model(config), config)
    latents, timesteps, text, _ = case_inputs(config, 2, (3, 6, 10), 77, False)
    seen = {}
    handle = model.blocks[block].register_forward_hook(lambda _, args, out: seen.update(args=args, out=out))
    reference_output(model, latents, timesteps, text, None)
    handle.remove()
    hidden, embedded, modulation, _ = seen["args"]
    rope = transformer.wan_rope((3, 3, 5), 16, OPS.device)
    with torch.no_grad():
        given = modulation.unsqueeze(1) + ours.blocks[block].table
        kv = ours.blocks[block].text_kv(embedded)
        for buffers in (ActivationBuffers(enabled=False), ActivationBuffers()):
            got = ours.blocks[block](hidden.clone(), given, rope, kv, None, None, None, buffers)
            assert relative_error(got, seen["out"]) <= TOLERANCE


@pytest.mark.parametrize(("length", "used"), [(512, 0), (512, 7), (64, 63), (64, 64), (16, 8), (3, 1), (512, 505)])
def test_folded_padding_equals_attending_to_it(length, used):
    """Prompts end in zeros; we attend to one of them, weighted, diffusers to each."""
    config = CONFIGS["t2v"]
    model = rescaled_model(config)
    latents, timesteps, text, _ = case_inputs(config, 2, (3, 6, 10), length, False)
    text[:, used:] = 0
    text[1, used // 2 :] = 0  # the other prompt is shorter
    ours = ours_from(model, config)
    wanted = reference_output(model, latents, timesteps, text, None)
    assert relative_error(our_output(ours, latents, timesteps, text, None), wanted) <= TOLERANCE
    if used + 9 < length:
        with torch.no_grad():
            assert ours.encode_context(text).text[0].k.shape[2] < length


def test_frame_timesteps_equal_token_timesteps():
    config = CONFIGS["t2v"]
    ours = ours_from(rescaled_model(config), config)
    latents, _, text, _ = case_inputs(config, 2, (3, 4, 6), 11, False)
    frames = torch.tensor([[0, 400, 900], [0, 10, 20]])
    by_frame = our_output(ours, latents, frames, text, None)
    by_token = our_output(ours, latents, frames.repeat_interleave(6, dim=1), text, None)
    assert relative_error(by_frame, by_token) <= 1e-6


def planted(model: WanTransformer, mistake: str) -> None:
    """Plant a mistake in a model of ours."""
    ops = model.ops

    def replace(**functions):
        changed = dataclasses.replace(ops, **functions)
        for part in [model, model.time_embed, model.text_embed, *model.blocks, *(b.ffn for b in model.blocks)]:
            part.ops = changed

    def normed_as(change):
        def linear(x, weight, norm=None, **kw):
            return ops.linear(x, weight, norm=change(norm) if norm is not None else None, **kw)

        replace(linear=linear)

    if mistake == "erf_gelu":
        for block in model.blocks:
            block.ffn.activation = "gelu"
    elif mistake == "eps_1e-3_norm":
        for block in model.blocks:
            block.eps = 1e-3
    elif mistake == "swapped_qk":

        def swap(x, weight, **kw):
            y = ops.linear(x, weight, **kw)
            if any(weight is b.qkv for b in model.blocks):
                q, k, v = y.chunk(3, dim=-1)
                y = torch.cat((k, q, v), dim=-1)
            return y

        replace(linear=swap)
    elif mistake == "shift_for_scale":
        normed_as(lambda norm: dataclasses.replace(norm, scale=norm.shift, shift=norm.scale))
    elif mistake == "no_rope":
        replace(qk_norm_rope=lambda x, heads, rope=None, **kw: ops.qk_norm_rope(x, heads, **kw))
    elif mistake == "half_split_rope":

        def half_split(x, heads, rope=None, **kw):
            rope = dataclasses.replace(rope, interleaved=False) if rope is not None else None
            return ops.qk_norm_rope(x, heads, rope=rope, **kw)

        replace(qk_norm_rope=half_split)
    elif mistake == "norm_per_head":

        def per_head(x, heads, norm=None, **kw):
            if norm is not None:
                weight = norm.weight[: norm.operands * x.shape[-1] // heads]
                norm = dataclasses.replace(norm, across_heads=False, weight=weight)
            return ops.qk_norm_rope(x, heads, norm=norm, **kw)

        replace(qk_norm_rope=per_head)
    elif mistake == "no_gate":
        replace(linear=lambda x, weight, gate=None, **kw: ops.linear(x, weight, **kw))
    elif mistake == "no_residual":
        replace(linear=lambda x, weight, residual=None, **kw: ops.linear(x, weight, **kw))
    elif mistake == "attention_scale":
        replace(attention=lambda q, kv, scale=None, **kw: ops.attention(q, kv, scale=q.shape[-1] ** -0.45, **kw))
    elif mistake == "unpatchify_order":

        def channel_first(x, grid, patch, **kw):
            return ops.unpatchify(x, grid, patch, order="channel_first", **kw)

        replace(unpatchify=channel_first)
    elif mistake == "rms_for_layer":
        normed_as(lambda norm: dataclasses.replace(norm, kind="rms"))
    elif mistake == "text_as_self":
        for block in model.blocks:
            of_q, of_k = (dataclasses.replace(block.cross_norm_q, weight=w) for w in block.norm_qk.weight.chunk(2))
            block.cross_norm_q, block.cross_norm_k = of_q, of_k
    else:
        raise AssertionError(mistake)


MISTAKES = [
    "erf_gelu",
    "eps_1e-3_norm",
    "swapped_qk",
    "shift_for_scale",
    "no_rope",
    "half_split_rope",
    "norm_per_head",
    "no_gate",
    "no_residual",
    "attention_scale",
    "unpatchify_order",
    "rms_for_layer",
    "text_as_self",
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(mistake):
    config = CONFIGS["t2v"]
    model = rescaled_model(config)
    ours = ours_from(model, config)
    inputs = case_inputs(config, 2, (3, 6, 10), 77, False)
    wanted = reference_output(model, *inputs)
    planted(ours, mistake)
    assert relative_error(our_output(ours, *inputs), wanted) > TOLERANCE


def test_eps_of_1e_5_is_noticed():
    config = CONFIGS["t2v"]
    model = rescaled_model(config)
    # tokens of small variance make an epsilon visible, as real activations do after the patch embedding
    with torch.no_grad():
        model.patch_embedding.weight *= 0.01
        model.patch_embedding.bias *= 0.01
    inputs = case_inputs(config, 2, (3, 6, 10), 77, False)
    wanted = reference_output(model, *inputs)
    assert relative_error(our_output(ours_from(model, config), *inputs), wanted) <= TOLERANCE
    assert relative_error(our_output(ours_from(model, config, eps=1e-5), *inputs), wanted) > TOLERANCE


def test_swapped_height_and_width_is_noticed(monkeypatch):
    config = CONFIGS["t2v"]
    model = rescaled_model(config)
    inputs = case_inputs(config, 1, (3, 6, 10), 7, False)
    wanted = reference_output(model, *inputs)

    def swapped(grid, head_dim, device):
        t, h, w = grid
        rope = wan_rope((t, w, h), head_dim, device)
        return dataclasses.replace(
            rope,
            cos=rope.cos.view(t, w, h, -1).transpose(1, 2).flatten(0, 2),
            sin=rope.sin.view(t, w, h, -1).transpose(1, 2).flatten(0, 2),
        )

    wan_rope = transformer.wan_rope
    monkeypatch.setattr(transformer, "wan_rope", swapped)
    # transposing the grid and back exchanges the roles of the two axes
    assert relative_error(our_output(ours_from(model, config), *inputs), wanted) > TOLERANCE


@pytest.mark.parametrize("part", ["rope", "self_attention", "cross_attention", "ffn"])
def test_every_sublayer_matters(part):
    """Dropping a sub-layer changes the output by a fifth or more: otherwise parity proves nothing."""
    config = CONFIGS["t2v"]
    model = rescaled_model(config)
    inputs = case_inputs(config, 2, (3, 6, 10), 77, False)
    wanted = reference_output(model, *inputs)
    ours = ours_from(model, config)
    if part == "rope":
        planted(ours, "no_rope")
    else:
        for block in ours.blocks:
            target = {"self_attention": block.out, "cross_attention": block.cross_out, "ffn": block.ffn.down}[part]
            target.weight.zero_()
            target.bias.zero_()
    got = our_output(ours, *inputs)
    assert float((got - wanted).norm() / wanted.norm()) >= 0.2


@pytest.mark.parametrize("name", CONFIGS)
def test_tensor_shapes_are_the_checkpoints(name):
    model = WanTransformer3DModel(**CONFIGS[name])
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if "norm_added_q" not in k}
    assert tensor_shapes(WanConfig(**CONFIGS[name])) == wanted
