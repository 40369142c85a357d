"""torch.compile takes a transformer whole: one graph of kinema's operators, whose fakes are true to them."""

import gc
import warnings
from functools import partial

import pytest
import torch

from kinema.checkpoints import Weights
from kinema.families.wan import config as wan
from kinema.families.wan.config import WanConfig
from kinema.families.wan.transformer import WanTransformer
from kinema.ops import build_ops, plan_ops, target_for
from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.common import Rope
from kinema.ops.common.packed import _alive
from kinema.ops.norm_modulate import Norm
from kinema.ops.qk_norm_rope import HeadNorm
from kinema.ops.torch_compile import compilable

CONFIG = WanConfig(
    num_attention_heads=2,
    attention_head_dim=24,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    freq_dim=16,
    ffn_dim=64,
    num_layers=2,
)
PLAIN = build_ops(plan_ops(target_for("cpu"), "reference"))
OPS = compilable(PLAIN)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def positions(count, axis_dim=8):
    return Rope.from_positions(torch.arange(count, dtype=torch.float64)[:, None], (axis_dim,))


def calls():
    """name: what is called on an Ops, with every kind of argument. Inputs are made here, outside of what is traced."""
    x, heads = normal(2, 6, 16), normal(2, 2, 6, 8, seed=1)
    by_three, shared, channels = normal(2, 3, 16), normal(1, 1, 16), normal(16)
    gate, residual, bias = normal(2, 3, 12), normal(2, 6, 12), normal(1, 2, 6, 6)
    video, place = normal(2, 4, 3, 4, 4), normal(12, 16)
    norm, rope = HeadNorm("rms", 1e-6, channels, None, True), positions(6)
    kv = KV(heads, heads.flip(0), torch.tensor([4, 6]), rope)
    blocks = BlockList(3, 3, torch.tensor([[[[0, 1], [1, 0]]]]), torch.tensor([[[2, 1]]]))
    weight, row, kernel = normal(12, 16, seed=2), normal(12, seed=3), normal(16, 4, 1, 2, 2, seed=4)
    linear = {id(ops): ops.pack_linear(weight, row) for ops in (OPS, PLAIN)}
    patch = {id(ops): ops.pack_patch_embed(kernel) for ops in (OPS, PLAIN)}
    return (
        {
            "norm": lambda o, w, p: o.norm_modulate(x, eps=1e-6, scale=by_three, shift=shared),
            "norm_strided": lambda o, w, p: o.norm_modulate(x.transpose(0, 1), eps=1e-6),
            "norm_rms": lambda o, w, p: o.norm_modulate(x, norm="rms", eps=1e-6, weight=channels),
            "norm_fp8": lambda o, w, p: o.norm_modulate(x, eps=1e-6, quantize="fp8"),
            "qk": lambda o, w, p: o.qk_norm_rope(x, 2, norm=norm, rope=rope),
            "qk_plain": lambda o, w, p: o.qk_norm_rope(x, 2),
            "attention": lambda o, w, p: o.attention((heads, heads[:, :, :3]), (kv, kv), scale=0.5),
            "attention_causal": lambda o, w, p: o.attention(heads, kv, causal=BlockCausal(2, 1), residual=x),
            "attention_blocks": lambda o, w, p: o.attention(heads, KV(heads, heads), blocks=blocks),
            "attention_fp8": lambda o, w, p: o.attention(heads, kv, quantize="fp8"),
            "attention_int8": lambda o, w, p: o.attention(heads, kv, quantize="int8"),
            "attention_bias": lambda o, w, p: o.attention(heads, KV(heads, heads), bias=bias),
            "linear": lambda o, w, p: o.linear(x, w, activation="gelu_tanh"),
            "linear_gated": lambda o, w, p: o.linear(x, w, gate=gate, residual=residual),
            "linear_normed": lambda o, w, p: o.linear(x, w, norm=Norm(1e-6, scale=by_three, shift=shared), gate=gate),
            "linear_normed_rms": lambda o, w, p: o.linear(x, w, norm=Norm(1e-3, "rms", channels, channels.flip(0))),
            "linear_pair": lambda o, w, p: o.linear((x[..., :6], x[..., 6:]), w),
            "patch": lambda o, w, p: o.patch_embed(video, p, position=place),
            "unpatchify": lambda o, w, p: o.unpatchify(x, (1, 2, 3), (1, 2, 2), order="channel_first"),
        },
        linear,
        patch,
    )


NAMES = tuple(calls()[0])


def bound(name):
    """The call on OPS and on PLAIN, without arguments."""
    functions, linear, patch = calls()
    return [partial(functions[name], ops, linear[id(ops)], patch[id(ops)]) for ops in (OPS, PLAIN)]


def tensors(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result) if isinstance(result, tuple) else [result.data.float(), result.scale]


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_gives_what_the_op_gives(name):
    ours, plain = bound(name)
    traced = []

    def backend(graph, inputs):
        traced.append([str(node.target) for node in graph.graph.nodes if "kinema" in str(node.target)])
        return graph

    torch._dynamo.reset()
    got = torch.compile(lambda: ours(), backend=backend, fullgraph=True)()
    assert len(traced) == 1 and len(traced[0]) == 1, "one opaque operator"
    for one, other in zip(tensors(got), tensors(plain()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_fakes_have_the_shapes_and_dtypes_of_results(name):
    """aot_eager runs the fakes first and the operators after."""
    ours, _ = bound(name)
    torch._dynamo.reset()
    for got, wanted in zip(
        tensors(torch.compile(lambda: ours(), backend="aot_eager", fullgraph=True)()),
        tensors(ours()),
        strict=True,
    ):
        assert (got.shape, got.dtype, got.stride()) == (wanted.shape, wanted.dtype, wanted.stride())


@torch.no_grad()
def test_a_transformer_is_one_graph():
    generator = torch.Generator().manual_seed(0)
    weights = Weights(
        {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in wan.tensor_shapes(CONFIG).items()}
    )
    plain, ours = WanTransformer(CONFIG, weights, PLAIN), WanTransformer(CONFIG, weights, OPS)
    latents, timesteps = normal(1, 4, 3, 8, 8), torch.tensor([500.0])
    context = ours.encode_context(normal(1, 8, 16))
    wanted = plain(latents, timesteps, context)
    assert torch.equal(ours(latents, timesteps, context), wanted), "eager code calls the implementations"
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rope's cache, which is traced through
        got = torch.compile(ours.__call__, backend="aot_eager", fullgraph=True)(latents, timesteps, context)
    assert torch.allclose(got, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_out_is_refused_in_compiled_code():
    torch._dynamo.reset()
    x = normal(1, 2, 8)
    with pytest.raises(Exception, match="compiled code has no out="):
        torch.compile(lambda: OPS.norm_modulate(x, eps=1e-6, out=x), backend="eager", fullgraph=True)()


def test_numbers_do_not_keep_weights_alive():
    gc.collect()
    before = len(_alive)
    packed = OPS.pack_linear(normal(4, 4))
    assert len(_alive) == before + 1
    del packed
    gc.collect()
    assert len(_alive) == before
